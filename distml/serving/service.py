"""`Service`, between the protocols and the models that are served: which model, which version (replica).

A protocol turns a request into images, calls `Service.classify` and renders the answer; it does not
depend on batching, versions on disk, Ray or the registry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from starlette.requests import Request

from distml.artifacts.layout import Described
from distml.data.image import Policy
from distml.data.plausible import Doubt, Usual
from distml.data.schema import Images
from distml.serving.exchange import Answer, RejectedError
from distml.serving.metrics import Metrics
from distml.tasks import Outputs


@dataclass(frozen=True)
class Served(Described):
    """A loaded version of the model.

    Args:
        name: Of the registered model.
        version: Its number.
        run_id: MLflow run that trained it, None where the registry does not say.
        sha256: Stands for the whole export: the SHA-256 of its list of digests.
        classes: Name of each class, by label.
        shape: (H, W, C) of an image.
        metrics: Of the run, by name.
        data_digest: Of the data set's manifest, None where the export does not say.
        loaded_at: Seconds since 1970 when this replica had it ready.
        confusion: Counts on held-out rows by true and predicted class, None where the export does not say.
        policy: How pictures become images, None where the export does not say.
        target: Describes the task beside the names, None where that is classification.
        usual: How training images look, None where the export does not say.
        predicted: Validation rows by bin of what the model predicts, None where the export does not say.
        engine: What computes, and what others took: `Choice.described`.
    """

    name: str
    version: int
    run_id: str | None
    sha256: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    metrics: Mapping[str, float]
    data_digest: str | None
    loaded_at: float
    confusion: tuple[tuple[int, ...], ...] | None = None
    policy: Policy | None = None
    target: Mapping[str, Any] | None = None
    usual: Usual | None = None
    predicted: tuple[int, ...] | None = None
    engine: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Refusal:
    """A version the registry points at that was not loaded.

    Args:
        version: Its number.
        alias: The alias that points at it.
        reason: One sentence.
        at: Seconds since 1970.
    """

    version: int
    alias: str
    reason: str
    at: float


Doing = Literal["loading", "predicting"]


@dataclass(frozen=True)
class Loss:
    """Replicas that died with a version at work, since the endpoint's watcher started.

    Args:
        version: Its number.
        doing: What they did with it.
        replicas: How many.
        at: Seconds since 1970 when the last was noticed.
    """

    version: int
    doing: Doing
    replicas: int
    at: float


@dataclass
class Usage:
    """What a version has been asked of this replica.

    Args:
        requests: Answered.
        failed: Not answered: too late, too many.
        images: Classified.
        calls: Of the model; one takes many requests.
        seconds: From the request to its answer, summed.
        last_at: Seconds since 1970 of the last answer, 0 for none.
    """

    requests: int = 0
    failed: int = 0
    images: int = 0
    calls: int = 0
    seconds: float = 0.0
    last_at: float = 0.0


@dataclass(frozen=True)
class RegistryState:
    """What is known of the registry.

    Args:
        answered_at: Seconds since 1970 when it answered last, 0 for never.
        missing: Followed aliases that are not set there; the last champion keeps answering.
    """

    answered_at: float = 0.0
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Standing:
    """How a model stands in the registry, for replicas that have loaded none of its versions, too.

    Args:
        registry: When it answered, and what is missing there.
        refused: What its aliases point at and was refused.
        losses: What replicas did with it when they died.
    """

    registry: RegistryState
    refused: tuple[Refusal, ...]
    losses: tuple[Loss, ...] = ()


class Service(Protocol):
    """The loaded versions of one model in one replica."""

    async def classify(
        self,
        images: Images,
        version: int | None = None,
        request: str | None = None,
        heard: bool = True,
    ) -> tuple[Outputs, Served]:
        """Classify images, together with whatever else is waiting.

        Args:
            images: uint8 [N, H, W, C] with N of at least 1 and the shape of the version asked.
            version: A loaded version; None takes the champion, or its canary for some of the requests.
            request: Identity of the request in the log; None lets the log give it one.
            heard: Whether the log and a shadow hear of it; images that no client sent are not for them.

        Returns:
            float32 [N, K], and the version that computed it.

        Raises:
            OverloadedError: Too many images are waiting already.
            TimedOutError: No answer within `serve.request_timeout_s`.
            UnknownVersionError: That version is not loaded.
            NotReadyError: No version is loaded.
            ModelError: The images are not of the version's shape.
        """
        ...

    def served(self) -> list[Served]:
        """Return the loaded versions, the champion first; empty before the first is loaded."""
        ...

    def refused(self) -> list[Refusal]:
        """Return the versions that an alias points at now and that were rejected."""
        ...

    def losses(self) -> list[Loss]:
        """Return what replicas did with this model when they died."""
        ...

    def aliases(self) -> Mapping[str, int]:
        """Return the version of each alias that is followed and loaded, the champion first."""
        ...

    def most_images(self) -> int:
        """Return how many images of one request are taken while others wait."""
        ...

    def usage(self, version: int) -> Usage:
        """Return what a version has been asked since this replica started."""
        ...

    def registry(self) -> RegistryState:
        """Return what is known of the registry."""
        ...

    def ready(self) -> bool:
        """Return whether a champion is loaded and this replica is not about to end."""
        ...


class Models:
    """The models of an endpoint by the names that clients call them. Final.

    Args:
        services: Of each model; the first answers where a route names none.
        metrics: Where the requests of each model are counted, where they are counted apart.
        several: Whether names choose among them; a model that is alone is asked whatever the name, and says
            which name is its own.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        metrics: Mapping[str, Metrics] | None = None,
        several: bool = True,
    ) -> None:
        self.services, self.several = services, several
        self.metrics = metrics or {}
        self.first = next(iter(services.values()))

    @classmethod
    def of(cls, service: Service | Models) -> Models:
        """Return the models, or a model that is alone as such."""
        return service if isinstance(service, Models) else cls({"": service}, several=False)

    def asked(self, request: Request) -> Service:
        """Return the model that the path names, the first where it names none.

        Raises:
            RejectedError: 404, none is called so.
        """
        name = request.path_params.get("name")
        return self.first if name is None else self.named(name)

    def named(self, name: str) -> Service:
        """Return the model of a name.

        Raises:
            RejectedError: 404, none is called so.
        """
        if not self.several:
            return self.first
        if name not in self.services:
            known = ", ".join(map(repr, self.services))
            raise RejectedError(404, f"there is no model {name[:80]!r}; the models are {known}")
        return self.services[name]

    def ready(self) -> bool:
        """Return whether any model answers: that of others must not be withheld where one fails."""
        return any(service.ready() for service in self.services.values())

    def unready(self) -> list[str]:
        """Return the names of those that do not answer."""
        return [name for name, service in self.services.items() if not service.ready()]

    def loaded(self) -> list[str]:
        """Return the names of those of which a version is loaded."""
        return [served[0].name for service in self.services.values() if (served := service.served())]


_DIGITS = 18


def champion(service: Service) -> Served:
    """Return the version that answers by default.

    Raises:
        RejectedError: 503, none is loaded.
    """
    if not (served := service.served()):
        why = "".join(f"; version {bad.version} is rejected: {bad.reason}" for bad in service.refused())
        raise RejectedError(503, f"no model has been loaded yet{why}", (b"retry-after", b"1"))
    return served[0]


WARNINGS = b"x-input-warnings"
"""Header with the codes of what is odd about the images."""


def warn(request: Request, answer: Answer, doubts: Sequence[Doubt]) -> Answer:
    """Name the doubts in a header, count them and leave a line in the log."""
    if doubts:
        answer.raw_headers.append((WARNINGS, ", ".join(doubt.code for doubt in doubts).encode()))
        for doubt in doubts:
            request.scope["metrics"].doubted.labels(doubt.code).inc(doubt.images)
    return answer


def number(service: Service, request: Request) -> int | None:
    """Return the version in the path, or the one that its label stands for; None where it names neither.

    Raises:
        RejectedError: 404, it is not a number, or no label that is followed.
    """
    if "label" in request.path_params:
        return labelled(service, request.path_params["label"])
    word = request.path_params.get("version")
    return None if word is None else version_number(word)


def version_number(word: str) -> int:
    """Return the number of a version.

    Raises:
        RejectedError: 404, it is none.
    """
    if not (word.isascii() and word.isdigit() and len(word) <= _DIGITS):
        raise RejectedError(404, f"the version {word[:80]!r} is not a number")
    return int(word)


def labelled(service: Service, label: str) -> int:
    """Return the version that a label stands for.

    Raises:
        RejectedError: 404, no such label is followed; 503, no version is loaded.
    """
    champion(service)
    aliases = service.aliases()
    if label not in aliases:
        known = ", ".join(aliases) or "none"
        raise RejectedError(404, f"there is no label {label[:80]!r}; the labels are {known}")
    return aliases[label]


def choose(service: Service, request: Request, version: int | None) -> Served:
    """Return the version that the path asks for.

    Raises:
        RejectedError: 404, no model or version of that name is loaded; 503, none at all.
    """
    return named(service, request.path_params["name"], version)


def named(service: Service, name: str, version: int | None) -> Served:
    """Return a version by the name of its model and its number; None takes the champion.

    Raises:
        RejectedError: As `choose`.
    """
    first = champion(service)
    if name != first.name:
        raise RejectedError(404, f"there is no model {name[:80]!r}; {first.name!r} is served")
    if version in (None, first.version):
        return first
    for served in service.served():
        if served.version == version:
            return served
    loaded = ", ".join(str(model.version) for model in service.served())
    raise RejectedError(404, f"version {version} of {name!r} is not loaded; loaded: {loaded}")
