"""The training loop that Ray Train runs on every rank (worker).

What needs TensorFlow is imported inside, once `Rank.prepare` has imported it with this rank's share of
the machine. What arrives and what leaves are values: a specification in; events in the queue,
checkpoints and an export in storage out.
"""

from __future__ import annotations

import logging
from typing import Any

from distml import log
from distml.errors import CheckpointError, DataError, ModelError, NotFiniteError
from distml.training.events import RunFailed
from distml.training.rank import Rank

logger = logging.getLogger(__name__)


def loop(spec: dict[str, Any]) -> None:
    """Train this rank from wherever the run stands to its end.

    An error that would only repeat itself is sent to the driver and ends the loop normally on every rank,
    so that Ray Train does not spend its restarts on it; any other error is raised for Ray Train to act on.

    Args:
        spec: As `Rank` takes it.
    """
    rank = Rank(spec)
    log.configure("worker", rank.rank)
    try:
        _train(rank)
    except (NotFiniteError, DataError, ModelError, CheckpointError) as error:
        logger.error("%s", error)
        rank.send(RunFailed(error.message, error.remedy, type(error).__name__))


def _train(rank: Rank) -> None:
    times = rank.prepare()
    from distml.training import checkpoint, epoch, evaluate

    checkpoint.resume(rank)
    rank.ready(times)
    epoch.Epochs(rank).run()
    evaluate.evaluate_and_export(rank)
