"""Memory and disks, against what a run takes (driver)."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from distml.checks.check import GIB, Check, ok, problem, size, warning
from distml.config import Config

WORKER_BYTES = int(1.0 * GIB)
"""A worker with TensorFlow and a small model: 0.85 GiB (TensorFlow 2.21, Ray 2.60, Linux)."""
DRIVER_BYTES = int(2.5 * GIB)
"""The driver with MLflow, Ray's own processes and the actors of Ray Train and Ray Data."""
SHARED = Path("/dev/shm")  # noqa: S108 - a place of the system, not a file of ours
_DISK_BYTES = 2 * GIB
_RAY_FULL = 0.95
"""`local_fs_capacity_threshold` of Ray 2.60."""
_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes this process and its children may still take: of the machine, and of its container."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return min(free, limit - used)


def memory(config: Config, free: int, data: int) -> Check:
    """Memory for the workers, Ray and the rows they keep.

    Args:
        config: `train` says how many workers.
        free: Bytes that are free.
        data: Bytes of the training rows where they are known, else 0.
    """
    count = config.train.max_workers
    kept = 2 * min(data, count * config.data.memory_budget_bytes)  # in the object store and in the workers
    need = count * WORKER_BYTES + DRIVER_BYTES + kept
    detail = f"{size(free)} free, about {size(need)} needed for {count} worker{'s' * (count > 1)}"
    if free < count * WORKER_BYTES:
        return problem("memory", detail, "Take fewer train.workers, or a machine with more memory.")
    if free < need:
        return warning("memory", detail, "Close other programs or take fewer train.workers.")
    return ok("memory", detail)


def shared_memory(free: int | None, data: int) -> Check:
    """Room in /dev/shm, where Ray keeps objects.

    Args:
        free: Bytes, None where the system has no such place.
        data: Bytes of the training rows where they are known, else 0.
    """
    if free is None:
        return ok("shared memory", "this system has no /dev/shm; Ray keeps objects in files")
    need = max(256 << 20, 2 * data)
    detail = f"{size(free)} free in /dev/shm, about {size(need)} needed"
    if free < need:
        remedy = "Give the container more (docker run --shm-size=1g); Ray will use slow files instead."
        return warning("shared memory", detail, remedy)
    return ok("shared memory", detail)


def disk(place: Path, free: int) -> Check:
    """Room where runs are kept.

    Args:
        place: The storage root.
        free: Bytes.
    """
    detail = f"{size(free)} free at {place}"
    if free < _DISK_BYTES // 10:
        return problem("disk", detail, "Free space there, or give another storage.root.")
    if free < _DISK_BYTES:
        return warning("disk", detail, f"Keep {size(_DISK_BYTES)} free: checkpoints and models grow.")
    return ok("disk", detail)


def scratch(place: Path, used: float) -> Check:
    """Room where Ray keeps its sessions.

    Args:
        place: The folder for temporary files.
        used: Share of its disk that is taken.
    """
    detail = f"{used:.0%} of the disk of {place} is used"
    if used > _RAY_FULL:
        remedy = f"Free space: Ray writes no more objects to a disk that is more than {_RAY_FULL:.0%} full."
        return warning("scratch", detail, remedy)
    return ok("scratch", detail)


def _existing(place: Path) -> Path:
    return next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())


def free_on(place: Path) -> int:
    """Bytes free where a path is or would be made."""
    return shutil.disk_usage(_existing(place)).free


def used_on(place: Path) -> float:
    """Share that is taken of the disk where a path is or would be made."""
    found = shutil.disk_usage(_existing(place))
    return 1 - found.free / max(1, found.total)
