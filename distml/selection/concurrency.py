"""How many candidates train at the same time, given what they take and what there is (driver)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from distml.config import TrainConfig
from distml.runtime.cluster import SPARE_CPUS


def concurrent(
    wanted: Literal["auto"] | int, trains: Sequence[TrainConfig], cpus: float, gpus: int = 0
) -> int:
    """Decide how many candidates train side by side.

    Ray's CPUs are tickets, and a local Ray is given as many as the workers need, so it would start any
    number of TensorFlow processes on two cores. Side by side pays only where each candidate has cores, or
    GPUs, of its own.

    Args:
        wanted: `sweep.concurrent`.
        trains: Training section of each candidate.
        cpus: Cores of this machine for a local Ray, else the CPUs of the cluster.
        gpus: Of the cluster.

    Returns:
        A number from 1 to that of the candidates.
    """
    if wanted != "auto":
        return max(1, min(wanted, len(trains)))
    share = max(train.max_workers * train.cpus_per_worker for train in trains)
    room = math.floor((cpus - SPARE_CPUS) / share + 1e-9)
    if any(
        train.device == "gpu" or (train.device == "auto" and gpus >= train.min_workers) for train in trains
    ):
        room = min(room, gpus // max(train.max_workers for train in trains))
    return max(1, min(room, len(trains)))
