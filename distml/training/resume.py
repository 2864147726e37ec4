"""What a checkpoint holds of a rank, and taking it up again (worker)."""

from __future__ import annotations

from typing import Any

import numpy as np

from distml.errors import CheckpointError
from distml.training import checkpoint
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
    found, skipped = checkpoint.newest(rank.storage, rank.run)
    for one in skipped:
        rank.post("skipped", name=one.name, reason=one.reason)
    if found is None:
        return
    for group, variables in _variables(rank).items():
        for position, variable in enumerate(variables):
            value = found.arrays.get(f"{group}/{position:04d}")
            if value is None or value.shape != tuple(variable.shape):
                raise CheckpointError(
                    f"checkpoint {'/'.join(found.parts)} does not fit the model ({group} {position}).",
                    "Pass --run.restart true or choose another run.name.",
                )
            variable.assign(value)
    rank.history = list(found.state["history"])
    rank.post("resumed", epoch=found.epoch, name="/".join(found.parts[-2:]), history=rank.history)
