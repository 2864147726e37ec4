from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import WorkerGroupError

from distml.errors import TrainingError
from distml.runtime import processes
from distml.training import group
from distml.training.events import Event, WorkerFailed


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OutOfMemoryError("Task was killed due to the node running low on memory."), "OOM"),
        (ActorDiedError(), "the worker process died"),
        (OSError(28, "No space left on device"), "ENOSPC"),
        # As seen on a cluster when the pod of the other worker was deleted.
        (
            RuntimeError("… \n\t [[{{node while/CollectiveReduceV2}}]] [Op:steps_738]"),
            "was lost",
        ),
        (RuntimeError("tensorflow…errors_impl.UnavailableError: Connection reset by peer"), "was lost"),
        (ValueError("a long\n\nstory that ends in the point"), "story that ends in the point"),
        (ValueError(), "ValueError"),
    ],
)
def test_the_cause_is_named(error: Exception, cause: str) -> None:
    assert cause in group.cause(error)


def test_the_sentence_names_rank_cause_and_logs() -> None:
    explained = group.explain(WorkerGroupError("failed", {1: ActorDiedError()}), "/logs")
    assert explained.message == "training failed on rank 1 with no restart left: the worker process died."
    assert explained.remedy == "The worker logs are in /logs."
    assert "the controller" in group.explain(ValueError("x"), None).message


def test_a_full_temporary_folder_is_not_called_a_full_storage() -> None:
    with pytest.raises(OSError, match="among temporary files in /") as raised, processes.scratch():
        raise OSError(28, "No space left on device")
    explained = group.explain(WorkerGroupError("failed", {0: raised.value}), None)
    assert explained.message.endswith("the folder of temporary files is full (ENOSPC).")
    assert "TMPDIR" in str(explained.remedy)
    assert "storage.root" not in str(explained.remedy)
    with pytest.raises(PermissionError, match="denied"), processes.scratch():
        raise PermissionError(13, "denied")


def test_no_exception_leaves_the_callback() -> None:
    class Broken:
        @property
        def put(self) -> object:
            raise RuntimeError("no queue")

    group.Failures(Broken()).after_exception(None, {0: ValueError("x")})


def test_a_full_disk_is_sent_to_the_driver_and_ends_the_run() -> None:
    sent: list[Event] = []

    class Queue:
        class put:  # noqa: N801 - as Ray names it
            remote = sent.append

    with pytest.raises(TrainingError, match="No space left"):
        group.Failures(Queue).after_exception(None, {1: OSError(28, "No space left on device")})
    assert sent == [WorkerFailed(1, "the storage is full (ENOSPC)", time=sent[0].time)]
    scratch = OSError(28, f"No space left on device {processes.SCRATCH_IS_FULL} in /tmp")
    with pytest.raises(TrainingError, match="among temporary files"):
        group.Failures(Queue).after_exception(None, {1: scratch})
