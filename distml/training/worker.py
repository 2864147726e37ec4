"""The training loop that Ray Train runs on every rank (worker).

Modules that need TensorFlow are imported inside, after `Rank.prepare` has imported it with this rank's share
of the machine. Input is a specification of plain values; output is events in the queue, and checkpoints and
an export in storage.
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
    """Train this rank from the newest checkpoint to the end of the run.

    A deterministic error is sent to the driver and ends the loop normally on every rank, so that Ray Train
    does not spend its restarts on it; any other error is raised, and Ray Train restarts the group.

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
