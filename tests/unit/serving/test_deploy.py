"""An endpoint is up when the champion is served; the answer of its predecessor does not count."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distml import api
from distml.config import Config
from distml.errors import ModelError, ResourceError, ServingError
from distml.runtime import cluster
from distml.serving import deploy, ingress, run
from distml.serving.models import ModelSet
from distml.tracking import registry
from distml.tracking.registry import ModelVersion


class Standing(ThreadingHTTPServer):
    """A running endpoint that answers with the given versions in turn, at the end always the last."""

    versions: list[int]


class Handler(BaseHTTPRequestHandler):
    server: Standing

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        told = self.server.versions
        version = told.pop(0) if len(told) > 1 else told[0]
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.send_header("x-model-version", str(version))
        self.end_headers()
        self.wfile.write(b"{}")


@pytest.fixture
def standing() -> Iterator[Standing]:
    with Standing(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Calls of `deploy.stop`, on a Ray that has room and a deployment that nothing rejects."""
    calls: list[bool] = []
    monkeypatch.setattr(deploy, "stop", lambda: calls.append(True))
    monkeypatch.setattr(deploy, "_deploy", lambda config: None)
    monkeypatch.setattr(deploy, "_require_hope", lambda config, champion: None)
    monkeypatch.setattr(deploy, "_status", lambda: "")
    monkeypatch.setattr(deploy, "require_resources", lambda serve: None)
    return calls


def configured(server: Standing) -> Config:
    return Config.resolve({"serve": {"port": server.server_port}, "tracking": {"registered_model": "shoes"}})


@pytest.mark.usefixtures("stopped")
def test_an_answer_of_the_previous_endpoint_does_not_count(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing.versions = [1, 1, 2]
    monkeypatch.setattr(deploy, "stands", lambda: True)
    monkeypatch.setattr(deploy, "require_champion", lambda config: 2)
    endpoint = deploy.start(configured(standing), 30)
    assert (endpoint.model, endpoint.version) == ("shoes", 2)


@pytest.mark.usefixtures("stopped")
def test_a_champion_that_changes_meanwhile_is_the_one_waited_for(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing.versions = [1, 3]
    champions = iter([2, 3, 3])
    monkeypatch.setattr(deploy, "stands", lambda: True)
    monkeypatch.setattr(deploy, "require_champion", lambda config: next(champions))
    assert deploy.start(configured(standing), 30).version == 3


@pytest.mark.parametrize("stood", [True, False])
def test_only_an_endpoint_that_is_new_ends_with_a_failed_start(
    standing: Standing, stopped: list[bool], monkeypatch: pytest.MonkeyPatch, stood: bool
) -> None:
    standing.versions = [1]
    monkeypatch.setattr(deploy, "stands", lambda: stood)
    monkeypatch.setattr(deploy, "require_champion", lambda config: 2)
    began = time.monotonic()
    with pytest.raises(ServingError, match="answers with version 1, not with the champion, 2"):
        deploy.start(configured(standing), 0.3)
    assert time.monotonic() - began < 10
    assert stopped == ([] if stood else [True])


def test_an_external_endpoint_is_waited_for_and_not_stopped(
    standing: Standing, stopped: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    standing.versions = [1, 1, 2]
    monkeypatch.setattr(deploy, "require_champion", lambda config: 2)
    url = f"http://127.0.0.1:{standing.server_port}"
    config = Config.resolve({"serve": {"url": f"{url}/", "start_timeout_s": 30}})
    assert (deploy.elsewhere(config).url, deploy.elsewhere(config).version) == (url, 2)
    standing.versions = [1]
    with pytest.raises(ServingError, match="version 1, not with the champion, 2") as caught:
        deploy.elsewhere(Config.resolve({"serve": {"url": url, "start_timeout_s": 0.3}}))
    assert "serve.start_timeout_s" in caught.value.remedy
    assert stopped == []


def test_only_changed_settings_of_an_endpoint_redeploy_it() -> None:
    def version(**sections: Any) -> str:
        return deploy._version(deploy._relevant(Config.resolve(sections)))

    standing = version(run={"name": "first"})
    assert version(run={"name": "second"}, train={"epochs": 9}, data={"name": "other"}) == standing
    assert version(serve={"replicas": {"max": 3}, "start_timeout_s": 5}) == standing  # changed in place
    assert version(serve={"max_batch_size": 32}) != standing
    assert version(tracking={"registered_model": "shoes"}) != standing


@pytest.mark.parametrize("start", [run.run, lambda config: api.serve(config).__enter__()])
def test_a_taken_port_is_reported_before_ray_starts(
    standing: Standing, monkeypatch: pytest.MonkeyPatch, start: Callable[[Config], Any]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(deploy, "require_champion", lambda config: pytest.fail("asked the registry first"))
    monkeypatch.setattr(cluster, "connect", lambda *_, **__: pytest.fail("started Ray first"))
    with pytest.raises(ResourceError, match=f"{standing.server_port} of 127.0.0.1 cannot be used"):
        start(configured(standing))


@pytest.mark.parametrize(("address", "stops"), [(None, []), ("http://127.0.0.1:8265", [True])])
def test_an_interrupted_start_stops_the_endpoint_it_deployed(
    standing: Standing,
    stopped: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    address: str | None,
    stops: list[bool],
) -> None:
    def interrupted(config: Config, champion: int) -> None:
        raise KeyboardInterrupt

    standing.versions = [1]
    monkeypatch.setattr(cluster, "address", lambda: address)
    monkeypatch.setattr(deploy, "stands", lambda: False)
    monkeypatch.setattr(deploy, "require_champion", lambda config: 2)
    monkeypatch.setattr(deploy, "_require_hope", interrupted)
    with pytest.raises(KeyboardInterrupt):
        deploy.start(configured(standing), 30)
    assert stopped == stops


def test_a_champion_that_may_not_be_loaded_is_rejected_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = Config.resolve({"storage": {"root": str(tmp_path)}, "tracking": {"registered_model": "shoes"}})
    unsigned = ModelVersion("shoes", 2, None, None)
    monkeypatch.setattr(registry, "by_alias", lambda *_: unsigned)
    with pytest.raises(ModelError, match="shoes version 2 was registered without a SHA-256"):
        deploy.require_champion(config)
    served = dataclasses.replace(unsigned, version=1, sha256="0" * 64)
    known = ModelSet({"champion": 1}, {1: served}, asked_at=1.0)
    monkeypatch.setattr(deploy, "Record", lambda _: SimpleNamespace(recall=lambda: known))
    assert deploy.require_champion(config) == 2  # the version that was served last goes on answering


@pytest.fixture
def deploying(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """`_deploy` on a Ray Serve that is there at once; the event is set when replicas are asked for."""
    serve = pytest.importorskip("ray.serve")
    asked = threading.Event()
    monkeypatch.setattr(deploy, "application", lambda _: SimpleNamespace())
    monkeypatch.setattr(deploy, "stands", lambda: True)
    monkeypatch.setattr(serve, "run_many", lambda *_, **__: asked.set())
    return asked


def test_replicas_start_while_the_proxies_do(
    monkeypatch: pytest.MonkeyPatch, deploying: threading.Event
) -> None:
    overlapped = []
    monkeypatch.setattr(ingress, "listen", lambda _: overlapped.append(deploying.wait(timeout=30)))
    deploy._deploy(Config())
    assert overlapped == [True]


def test_the_error_of_a_proxy_is_raised_and_not_what_follows_from_it(
    monkeypatch: pytest.MonkeyPatch, deploying: threading.Event
) -> None:
    serve = pytest.importorskip("ray.serve")
    reached = threading.Event()

    def listen(_: Any) -> None:
        assert reached.wait(timeout=30)
        raise ResourceError("Failed to bind: it was taken just now.")

    def run_many(*_: Any, **__: Any) -> None:
        reached.set()
        raise RuntimeError("the controller died")

    monkeypatch.setattr(ingress, "listen", listen)
    monkeypatch.setattr(serve, "run_many", run_many)
    with pytest.raises(ResourceError, match="taken just now"):
        deploy._deploy(Config())
