"""Exception classes whose messages users read, with remedy and exit code (any process).

Every error carries the sentence to print and the remedy. All of them cross Ray's process boundaries,
so each survives pickling with its fields.
"""

from __future__ import annotations


class DistmlError(Exception):
    """A failure with a sentence for the user and what to do about it.

    Args:
        message: One sentence naming the offending value.
        remedy: What the user can do; empty when there is nothing to add.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()

    def __reduce__(self) -> tuple[type[DistmlError], tuple[str, str]]:
        return type(self), (self.message, self.remedy)


class ConfigError(DistmlError):
    """A configuration that cannot be used; nothing has been started or written."""

    exit_code = 2


class DataError(DistmlError):
    """Data that is missing, damaged or not what its description says."""


class StorageError(DistmlError):
    """The storage root cannot be read or written."""


class ResourceError(DistmlError):
    """The cluster cannot give the run what it asks for."""


class TrainingError(DistmlError):
    """The run failed while training."""


class NotFiniteError(TrainingError):
    """The loss is not a number; trying again would only find the same."""


class TrackingError(DistmlError):
    """The tracking server or its registry cannot be used."""


class CheckpointError(DistmlError):
    """A checkpoint is damaged or does not fit this run."""


class ModelError(DistmlError):
    """A model cannot be built, loaded or trusted."""


class OtherDataError(ModelError):
    """A model that tells other classes or pictures apart than the data it is measured on."""


class ServingError(DistmlError):
    """The endpoint cannot be started or cannot answer this request."""


class OverloadedError(ServingError):
    """More requests wait than the endpoint keeps; the same request may succeed a little later."""

    retry_after_s = 1
    """Seconds a client should wait before it retries."""


class TimedOutError(ServingError):
    """A request was not answered within the time limit of the endpoint."""


class UnknownVersionError(ServingError):
    """A version was asked for that is not loaded."""


class NotReadyError(ServingError):
    """No model has been loaded yet."""

    retry_after_s = 1
    """Seconds a client should wait before it retries."""


class ClusterError(DistmlError):
    """A Kubernetes cluster rejects a request or cannot be reached."""


class JobError(DistmlError):
    """A job on a cluster did not succeed; its exit code becomes ours."""
