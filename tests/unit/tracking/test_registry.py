"""One client of the registry: every question waits for a server that is away."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from distml.config import Config
from distml.errors import TrackingError
from distml.tracking import registry, sender
from distml.tracking.registry import ModelVersion

RUN = "0" * 32
KNOWN = ModelVersion("pets", 3, RUN, "ab", "s3://bucket/model", {"sha256": "ab"})
ENTITY = SimpleNamespace(
    name="pets", version="3", run_id=RUN, tags={"sha256": "ab"}, source="s3://bucket/model"
)


class Server:
    """A client of MLflow whose server is away for the first calls."""

    def __init__(self, away: int) -> None:
        self.away, self.calls = away, 0
        self.answers: dict[str, Any] = {
            "get_model_version_by_alias": ENTITY,
            "get_model_version": ENTITY,
            "search_model_versions": Page([ENTITY]),
            "get_model_version_download_uri": "s3://bucket/model",
            "get_run": SimpleNamespace(data=SimpleNamespace(metrics={"val_accuracy": 0.5, "loss": 1.0})),
            "get_logged_model": SimpleNamespace(metrics=[SimpleNamespace(key="val_accuracy", value=0.75)]),
            "get_registered_model": SimpleNamespace(aliases={"champion": "3"}),
        }

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*_: Any, **__: Any) -> Any:
            self.calls += 1
            if self.calls <= self.away:
                raise requests.ConnectionError("connection refused")
            return self.answers.get(name)

        return call


class Page(list[Any]):
    """The last page of a listing."""

    token = None


REQUESTS: dict[str, tuple[Callable[[Config], Any], Any]] = {
    "by_alias": (registry.by_alias, KNOWN),
    "by_number": (lambda config: registry.by_number(config, 3), KNOWN),
    "by_run": (lambda config: registry.by_run(config, RUN), KNOWN),
    "newest": (registry.newest, KNOWN),
    "versions": (registry.versions, [ModelVersion("pets", 3, RUN, "ab")]),
    "metrics": (lambda config: registry.metrics(config, KNOWN), {"val_accuracy": 0.5}),
    "location": (
        lambda config: registry.location(config, ModelVersion("pets", 3, RUN, "ab")),
        KNOWN.location,
    ),
    "aliases": (registry.aliases, {"champion": 3}),
    "point": (lambda config: registry.point(config, "champion", 3), None),
    "tag": (lambda config: registry.tag(config, 3, "key", "text"), None),
    "untag": (lambda config: registry.untag(config, 3, "key"), None),
}


def config(wait_s: float) -> Config:
    return Config.resolve({"tracking": {"uri": "http://127.0.0.1:9", "wait_s": wait_s}})


@pytest.mark.parametrize("name", REQUESTS)
def test_every_registry_call_waits_for_an_unreachable_server(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, answer = REQUESTS[name]
    server = Server(away=2)
    monkeypatch.setattr(registry, "client", lambda _: server)
    assert ask(config(30)) == answer


@pytest.mark.parametrize("name", REQUESTS)
def test_every_registry_call_fails_with_the_same_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(away=10**6)
    monkeypatch.setattr(registry, "client", lambda _: server)
    with pytest.raises(
        TrackingError, match=r"the registry http://127\.0\.0\.1:9 does not respond: connection"
    ):
        REQUESTS[name][0](config(0))
    assert server.calls == 1


def test_the_location_of_a_version_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(away=0)
    monkeypatch.setattr(registry, "client", lambda _: server)
    monkeypatch.setattr(registry, "_locations", {})
    assert [registry.by_alias(config(0), "champion") for _ in range(3)] == [KNOWN] * 3
    assert server.calls == 3 + 1
    server.answers["get_model_version_by_alias"] = SimpleNamespace(**vars(ENTITY) | {"source": "s3://other"})
    server.answers["get_model_version_download_uri"] = "s3://other"
    moved = registry.by_alias(config(0), "champion")
    assert moved is not None
    assert moved.location == "s3://other"


def test_polling_registry_calls_wait_briefly() -> None:
    assert registry.briefly(config(300)).tracking.wait_s == 2
    assert registry.briefly(config(0)).tracking.wait_s == 0


def test_a_version_is_an_integer_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_logged", lambda *_: "m-1")
    server: Any = Server(away=0)
    described = {"metrics": {}, "digest": "ab"}
    assert sender.publish(server, config(0), RUN, described) == 3
    server.answers |= {"search_model_versions": Page(), "create_model_version": ENTITY}
    made = sender.publish(server, config(0), RUN, described)
    assert (made, type(made)) == (3, int)


def test_a_version_has_the_metrics_of_its_own_weights_and_not_those_of_the_last_epoch() -> None:
    server: Any = Server(away=0)
    server.answers["get_model_version"] = SimpleNamespace(**vars(ENTITY) | {"source": "models:/m-1"})
    assert registry._measured(server, KNOWN) == {"val_accuracy": 0.75, "loss": 1.0}


def test_a_version_is_described_by_the_main_metric_of_its_task() -> None:
    metrics = {"val_loss": 0.1, "val_mae": 1.5, "val_rmse": 2.0, "test_loss": 0.2, "test_mae": 1.75}
    assert sender._reached(metrics) == "val mae 1.5000, test mae 1.7500"
