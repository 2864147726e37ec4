"""What Ray Train raises, in words for the person (driver, controller)."""

from __future__ import annotations

import logging
from typing import Any

from ray.train.v2.api.callback import UserCallback

from distml.errors import TrainingError
from distml.training.events import WorkerFailed

logger = logging.getLogger(__name__)

_OOM = "the worker ran out of memory (OOM)"
_FULL = "the storage is full (ENOSPC)"
_ALONE = "a worker that it exchanges gradients with was lost"
_SIGNS = (
    ("OutOfMemory", _OOM, "Lower train.global_batch_size or data.memory_budget_bytes."),
    ("low on memory", _OOM, "Lower train.global_batch_size or data.memory_budget_bytes."),
    (
        "No space left on device",
        _FULL,
        "Free space below storage.root and run again.",
    ),
    ("ActorDiedError", "the worker process died", ""),
    ("actor died", "the worker process died", ""),
    ("ActorUnavailableError", "the worker process died", ""),
    ("WorkerHealthCheckTimeout", "the worker stopped answering", ""),
    # What TensorFlow raises on the others when one is gone: a connection reset, or its exchange given up.
    ("errors_impl.UnavailableError", _ALONE, ""),
    ("errors_impl.AbortedError", _ALONE, ""),
    ("node while/CollectiveReduce", _ALONE, ""),
)


def _sign(error: BaseException) -> tuple[str, str] | None:
    text = f"{type(error).__name__}: {error}"
    return next(((said, then) for sign, said, then in _SIGNS if sign in text), None)


def cause(error: BaseException) -> str:
    """Say in a few words what made a worker fail."""
    if known := _sign(error):
        return known[0]
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def explain(error: BaseException, logs: str | None) -> TrainingError:
    """Turn what Ray Train raises into a sentence that names the cause."""
    failures = getattr(error, "worker_failures", {}) or {}
    rank, first = next(iter(failures.items()), (None, error))
    who = "the controller" if rank is None else f"rank {rank}"
    known = _sign(first)
    remedy = f"The worker logs are in {logs}." if logs else "See the worker logs on the Ray dashboard."
    return TrainingError(
        f"training failed on {who} with no restart left: {cause(first)}.",
        f"{known[1]} {remedy}".strip() if known else remedy,
    )


class Failures(UserCallback):
    """Tells the driver why a worker group is restarted, or ends the run where that cannot help. Final.

    An exception that leaves a callback ends the run without a restart (controller, Ray 2.60), so none does
    but the one that is meant to.
    """

    def __init__(self, events: Any) -> None:
        self._events = events

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Send the rank and the cause of each failure; a full disk stays full, so it is the last one."""
        causes = {rank: cause(error) for rank, error in worker_exceptions.items()}
        try:
            for rank, why in causes.items():
                self._events.put.remote(WorkerFailed(rank, why))
        except Exception:
            logger.exception("the driver could not be told of a failure")
        if _FULL in causes.values():
            raise TrainingError("No space left on device")
