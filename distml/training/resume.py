"""What a checkpoint holds of a rank, and taking it up again (worker)."""

from __future__ import annotations

from typing import Any

import numpy as np

from distml.errors import CheckpointError
from distml.training import checkpoint
from distml.training.events import CheckpointSkipped, EpochFinished, Resumed
from distml.training.rank import Rank


def _variables(rank: Rank) -> dict[str, list[Any]]:
    return {
        "model": [variable.value for variable in rank.step.model.variables],
        "optimizer": [variable.value for variable in rank.step.optimizer.variables],
        "ema": list(rank.step.ema),
    }


def weights(rank: Rank) -> list[np.ndarray]:
    """The model's weights, in the order of `Model.get_weights`: without the states of random generators."""
    return [variable.value.numpy() for variable in rank.step.model.weights]


def arrays(rank: Rank) -> dict[str, np.ndarray]:
    """Everything a resumed run needs to go on as if it had not stopped, by name."""
    return {
        f"{group}/{position:04d}": variable.numpy()
        for group, variables in _variables(rank).items()
        for position, variable in enumerate(variables)
    }


def resume(rank: Rank) -> None:
    """Take up the newest checkpoint that verifies; every rank reads the same one.

    Raises:
        CheckpointError: It belongs to another model or optimizer.
    """
    newest, skipped = checkpoint.newest(rank.storage, rank.run)
    for passed in skipped:
        rank.send(CheckpointSkipped(passed.name, passed.reason))
    if newest is None:
        return
    for group, variables in _variables(rank).items():
        for position, variable in enumerate(variables):
            value = newest.arrays.get(f"{group}/{position:04d}")
            if value is None or value.shape != tuple(variable.shape):
                raise CheckpointError(
                    f"checkpoint {'/'.join(newest.parts)} does not fit the model ({group} {position}).",
                    "Pass --run.restart true or choose another run.name.",
                )
            variable.assign(value)
    rank.history = [EpochFinished.from_json(epoch) for epoch in newest.state["history"]]
    rank.send(Resumed(newest.epoch, "/".join(newest.parts[-2:]), list(rank.history)))
