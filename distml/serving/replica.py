"""The Ray Serve deployment: loads models, hosts the HTTP and gRPC servers, health checks (replica).

HAProxy asks every replica each second for its health and takes one that stays silent out of rotation. Asked
at the port of the requests, the question waits behind them: a replica in overload, which answers 429 in time
to its clients, missed its check, and all its requests were lost. So a separate thread reports it at a port of
its own: only a process that is stopped, or whose event loop has stood for longer than a request may take, is
silent or says 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
import ray

from distml import log
from distml.artifacts import layout
from distml.config import Config
from distml.errors import DistmlError, ModelError, ServingError
from distml.runtime import compat
from distml.runtime.processes import Death, Marks, deaths
from distml.serving import haproxy
from distml.serving.batching import Core, Loaded, Mark
from distml.serving.encoded import Decoder
from distml.serving.haproxy import HEALTH_PORT_OFFSET
from distml.serving.metrics import Families, Metrics
from distml.serving.models import ModelSet, hosted, marks
from distml.serving.request_log import RequestLog
from distml.serving.rpc import PATHS, Rpc, procedures
from distml.serving.service import Models, Served
from distml.storage import Storage

logger = logging.getLogger(__name__)

LOWEST, HIGHEST = "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"
"""Environment variables: the range in which Ray allocates the ports of requests."""
_BEAT_S, _LOOK_S, _CHECK_S = 0.5, 0.1, 2.0


class _Server(ThreadingHTTPServer):
    """A server whose answer depends on an event loop. Final."""

    daemon_threads = True

    def __init__(self, host: str, port: int, health: Health) -> None:
        self.health = health
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a health check of %s broke off", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Answers each check and closes the connection. Final."""

    server: _Server
    timeout = _CHECK_S

    def do_GET(self) -> None:
        self.send_response(200 if self.server.health.alive() else 503)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


class Health:
    """Reports to HAProxy whether the event loop of this replica runs. Final.

    Args:
        host: Address to listen at.
        limit_s: How long the loop may stand, in seconds, before the replica counts as hanging.
    """

    def __init__(self, host: str, limit_s: float) -> None:
        self._host, self._limit_s = host, limit_s
        self._beat_at = time.monotonic()
        self.error = ""
        """Why the port cannot be reached, in a sentence; empty where it can."""

    def start(self) -> None:
        """Begin, from within the event loop; the port is known when Ray has bound that of the requests."""
        self._beat(asyncio.get_running_loop())
        threading.Thread(target=self._serve, name="health", daemon=True).start()

    def alive(self) -> bool:
        """Whether the event loop ran within the limit."""
        return time.monotonic() - self._beat_at <= self._limit_s

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat_at = time.monotonic()
        loop.call_later(_BEAT_S, self._beat, loop)

    def _serve(self) -> None:
        while not (port := listening()):
            time.sleep(_LOOK_S)
        try:
            with _Server(self._host, port + HEALTH_PORT_OFFSET, self) as server:
                server.serve_forever()
        except OSError as error:
            reason = error.strerror or str(error)
            self.error = (
                f"port {port + HEALTH_PORT_OFFSET}, at which HAProxy asks for health, is not free: {reason}"
            )
            logger.error("%s", self.error)


def listening() -> int | None:
    """Return the port at which this process takes requests; None where Ray has bound none yet."""
    lowest, highest = int(os.environ[LOWEST]), int(os.environ[HIGHEST])
    for connection in psutil.Process().net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and lowest <= connection.laddr.port <= highest:
            return int(connection.laddr.port)
    return None


_WAIT_S = 1.0
"""Between two questions whether a replica that starts waits for a model that cannot be loaded."""
_SHARE_S = 2.0
"""Between two reports of metrics: shorter than Prometheus's interval, so that no counter steps back."""


class Loader:
    """Keeps the versions of one model loaded that the watcher orders. Final.

    Args:
        name: What clients call the model.
        config: Of an endpoint of this model alone.
        watcher: Handle of the watcher.
        core: Answers with what is loaded.
        turn: Whose turn it is to load: engines are measured then, and Keras loads in one thread at a time.
        mark: Called with the version that is loaded next, and with 0 after it.
    """

    def __init__(
        self, name: str, config: Config, watcher: Any, core: Core, turn: asyncio.Lock, mark: Mark
    ) -> None:
        self.name, self.config, self.core = name, config, core
        self._watcher, self._turn, self._mark = watcher, turn, mark
        self._models = ModelSet(leading=config.serve.alias)
        self._loaded: dict[int, Loaded] = {}
        self.changed = asyncio.Event()
        """Set when versions have been loaded, or could not be."""

    async def follow(self) -> None:
        """Load what is ordered for as long as the replica lives."""
        while True:
            try:
                await self._follow_once()
            except Exception as error:  # the watcher restarts; the loaded versions keep answering
                logger.warning("the watcher does not respond: %s", str(error).partition("\n")[0][:200])
                await asyncio.sleep(1.0)

    async def _follow_once(self) -> None:
        models = await self._watcher.changes.remote(self.name, self._models)
        if models.withdraws(self._models):
            logger.error("%s: version %d is withdrawn", self.name, self._models.aliases[models.leading])
            self._models, self._loaded = ModelSet(leading=models.leading), {}
            self.core.swap({}, {}, models.refused)
            return
        if models.digest in ("", self._models.digest):
            return
        if not _orders(models, self._models, self.config.tracking.registered_model):
            await asyncio.sleep(1.0)  # the watcher answers at once until it has caught up
            return
        for number, version in models.versions.items():
            # A registry that was set up anew numbers its versions from one again.
            if number not in self._loaded or self._models.versions.get(number, version) != version:
                self._loaded.pop(number, None)
                if loaded := await self._load(number, models):
                    self._loaded[number] = loaded
        if not all(number in self._loaded for number in models.aliases.values()):
            self.changed.set()
            self.changed = asyncio.Event()
            await asyncio.sleep(0.5)  # a rejection has been reported, and the next model set is without it
            return
        self._models = models
        self._loaded = {
            number: served for number, served in self._loaded.items() if number in models.versions
        }
        self.core.swap(self._loaded, models.aliases, models.refused)
        self.changed.set()
        self.changed = asyncio.Event()
        self._say(models)

    def _say(self, models: ModelSet) -> None:
        named = ", ".join(f"{alias} is version {number}" for alias, number in models.aliases.items())
        logger.info("%s: %s; loaded: %s", self.name, named, sorted(self._loaded))

    async def _load(self, number: int, models: ModelSet) -> Loaded | None:
        """Fetch, verify and load a version beside those that answer; None where it is rejected."""
        try:
            files = await self._watcher.files.remote(self.name, number)
            async with self._turn:
                self._mark(number)
                try:
                    return await asyncio.to_thread(_loaded, self.config, self.name, models, number, files)
                finally:
                    self._mark(0)
        except ModelError as error:
            await self._watcher.refuse.remote(self.name, number, str(error))
        except DistmlError as error:
            logger.warning("version %d cannot be fetched: %s", number, error)
        return None


@procedures
class Replica:
    """Answers for the models of the endpoint: one, or several that share its process. Final.

    Args:
        config: The configuration, as a dictionary.
        watcher: Handle of the watcher.
    """

    def __init__(self, config: dict[str, Any], watcher: Any) -> None:
        log.configure("replica")
        compat.grpc_on_loopback()
        compat.http_in_one_write()
        self._config = Config.model_validate(config)
        self._watcher = watcher
        self._name = ray.get_runtime_context().get_actor_id()[:8]
        self._log = RequestLog(self._config.log, Storage(self._config.storage.root))
        self._deaths: list[Death] = []
        turn, models = asyncio.Lock(), hosted(self._config)
        self._marks = _marks(self._config, [mark for name in models for mark in marks(name).values()])
        self._loaders = {
            name: Loader(
                name, alone, watcher, self._core(name, alone), turn, self._marking(marks(name)["loading"])
            )
            for name, alone in models.items()
        }
        several = bool(self._config.serve.models)
        counted = {name: loader.core.metrics for name, loader in self._loaders.items()}
        cores = {name if several else "": loader.core for name, loader in self._loaders.items()}
        self._models = Models(cores, counted, several)
        parts = list(counted.values())
        self._metrics = Metrics(self._name, parts=parts) if several else parts[0]
        for outcome in self._log.counts():
            self._metrics.logged.labels(outcome).set_function(partial(self._rows, outcome))
        if certificate := os.environ.get(haproxy.CERTIFICATE):  # with its whole path
            self._metrics.certificate.set_function(partial(haproxy.expiry, certificate))
        self._tasks: list[asyncio.Task[None]] = []
        host = os.environ.get(haproxy.REPLICAS, self._config.serve.host)
        self._health = Health(host, self._config.serve.request_timeout_s)

    def _core(self, name: str, alone: Config) -> Core:
        record, registered = self._log.record, alone.tracking.registered_model

        def renamed(request: str | None, served: Served, *answered: Any) -> None:
            record(request, replace(served, name=registered), *answered)

        # Rows of one registered model lie together, whatever clients call it.
        hear = record if name == registered else renamed
        return Core(alone.serve, Metrics(self._name, name), hear, self._marking(marks(name)["predicting"]))

    def _marking(self, name: str) -> Mark:
        return partial(self._marks.set, name) if self._marks else lambda _: None

    async def __serve_build_asgi_app__(self) -> Any:
        """Load the champions, then make the application; Ray Serve calls this by its name.

        Before the first champion it answers 503 until the first is: on Kubernetes the endpoint stands
        before the first training. Of several models those that cannot be loaded keep none of the others
        waiting.
        """
        from distml.serving.application import application, key_check

        # While the watcher imports MLflow; what an engine lacks is said when it is loaded.
        prepared = asyncio.create_task(asyncio.to_thread(_prepare, self._config))
        await self._tell_deaths()  # first: what the one before this died of must not be loaded again
        self._tasks = [asyncio.create_task(loader.follow()) for loader in self._loaders.values()]
        await self._await_models()
        await prepared
        await self._share_once()
        self._metrics.ask_others(self._counted)
        self._tasks.append(asyncio.create_task(self._share()))
        if haproxy.HOST in os.environ:  # HAProxy is the ingress
            self._health.start()
        serve, metrics = self._config.serve, self._metrics
        keys, decoder = key_check(serve, metrics), Decoder(serve)
        self.rpc = Rpc(self._models, serve, metrics, decoder.images, keys)
        calls = dict.fromkeys(PATHS, self.rpc) if haproxy.HOST in os.environ else None
        return application(self._models, serve, metrics, keys, decoder, calls)

    async def _await_models(self) -> None:
        """Wait until every model is loaded, or all that are left have nothing to be loaded."""
        while self._unready():  # while this asks, they load
            with contextlib.suppress(Exception):  # the watcher starts
                if await self._watcher.vacant.remote():
                    return
                settled = await self._watcher.settled.remote()
                names = [loader.name for loader in self._unready()]
                if self._models.ready() and set(names) <= settled:
                    logger.warning("nothing can be loaded of %s", ", ".join(names))
                    return
            changed = [asyncio.create_task(loader.changed.wait()) for loader in self._unready()]
            if changed:
                await asyncio.wait(changed, timeout=_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
            for task in changed:
                task.cancel()

    def _unready(self) -> list[Loader]:
        return [loader for loader in self._loaders.values() if not loader.core.ready()]

    def _rows(self, outcome: str) -> float:
        return self._log.counts()[outcome]

    async def _counted(self) -> Mapping[str, Families]:
        counted: Mapping[str, Families] = await self._watcher.counted.remote()
        return counted

    async def _share(self) -> None:
        while True:
            await asyncio.sleep(_SHARE_S)
            await self._tell_deaths()
            await self._share_once()

    async def _tell_deaths(self) -> None:
        """Tell the watcher what replicas on this machine were doing that died since the last look."""
        if self._marks:
            self._deaths += await asyncio.to_thread(deaths, _folder(self._config))
        while self._deaths:
            try:
                await self._watcher.lost.remote(self._deaths[0])
            except Exception as error:  # the watcher restarts, and is told later
                logger.warning("a death is not reported yet: %s", str(error).partition("\n")[0][:200])
                return
            self._deaths.pop(0)

    async def _share_once(self) -> None:
        with contextlib.suppress(Exception):  # the watcher restarts; each then answers for itself
            told = await self._watcher.share.remote(self._name, self._metrics.families())
            self._metrics.replicas, standing = told
            for name, loader in self._loaders.items():
                loader.core.learn(standing[name])

    async def check_health(self) -> None:
        """Report to Ray Serve whether this replica still computes; a replica that does not is replaced.

        Raises:
            ServingError: The model has been computing one batch for far longer than any request may take, or
                HAProxy cannot ask for this replica's health.
        """
        if self._health.error:
            raise ServingError(self._health.error)
        for loader in self._loaders.values():
            busy_s, limit_s = loader.core.busy_s(), 10 * loader.config.serve.request_timeout_s
            if busy_s > limit_s:
                raise ServingError(f"one batch of {loader.name} has been computed for {busy_s:.0f} s.")

    async def __del__(self) -> None:
        for loader in self._loaders.values():
            loader.core.draining = True
        if self._marks:
            self._marks.close()
        await asyncio.to_thread(self._log.close)


def _folder(config: Config) -> Path:
    """Where replicas of one endpoint on one machine leave their marks."""
    endpoint = json.dumps([config.storage.root, config.tracking.uri, config.serve.port, os.getuid()])
    return Path(tempfile.gettempdir(), f"distml-marks-{hashlib.sha256(endpoint.encode()).hexdigest()[:12]}")


def _marks(config: Config, names: list[str]) -> Marks | None:
    try:
        return Marks(_folder(config), names)
    except OSError as error:
        logger.warning("what a replica does when it dies cannot be recorded: %s", error)
        return None


def _orders(models: ModelSet, held: ModelSet, name: str) -> bool:
    """Whether a model set changes what a replica of a registered model holds.

    One without a champion is no order: a watcher that knows of none has not been told yet. One that its
    watcher only remembers is good for a replica that holds nothing newer. One of another registered model is
    for the replicas that replace this one.
    """
    if models.champion is None or models.champion.name != name or models.digest == held.digest:
        return False
    return models.confirmed or models.asked_at > held.asked_at


def _prepare(config: Config) -> None:
    from distml.artifacts import predictor

    if not config.serve.gpus_per_replica:
        for engine in sorted({alone.serve.engine for alone in hosted(config).values()}):
            predictor.prepare(engine, Storage(config.storage.root))


_CALM_S = 600.0
"""After loading, until TensorFlow is measured: only an endpoint that stays is worth its import."""
_COMPARE_S = 180.0
_COMPARE = """
import contextlib, os, signal, sys
from pathlib import Path
from distml.serving.haproxy import end_with_parent
os.nice(19)
end_with_parent(signal.SIGKILL)  # the replica
with contextlib.suppress(OSError):  # where memory runs out, this process ends and no replica
    Path("/proc/self/oom_score_adj").write_text("1000")
from distml.artifacts import predictor
from distml.storage import Storage
folder, sha256, threads, root = sys.argv[1:]
choice = predictor.compare(Path(folder), sha256, int(threads), Storage(root))
figures = sorted(choice.figures, key=lambda figure: figure.engine != predictor.TENSORFLOW)
print(choice.engine, f"{figures[0].alone_ms:.3g}", f"{figures[0].image_ms:.3g}")
"""


def _compare(files: Mapping[str, bytes], sha256: str, threads: int, root: str) -> None:
    """Measure TensorFlow in a process of its own, which gives way to all others, for the next start."""
    time.sleep(_CALM_S)
    with tempfile.TemporaryDirectory(prefix="distml-compare-") as folder:
        for path, content in files.items():
            Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, path).write_bytes(content)
        command = [sys.executable, "-c", _COMPARE, folder, sha256, str(threads), root]
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "text": True, "capture_output": True}
        try:
            done = subprocess.run(command, timeout=_COMPARE_S, check=True, **quiet)
            engine, alone, each = done.stdout.split()[-3:]
            logger.info("tensorflow: %s ms alone, %s ms in a batch; next time: %s", alone, each, engine)
        except subprocess.CalledProcessError as error:
            logger.warning("TensorFlow is not measured: %s", error.stderr.strip().rpartition("\n")[2][:300])
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            logger.warning("TensorFlow is not measured: %s", error)


def _loaded(config: Config, name: str, models: ModelSet, number: int, files: Mapping[str, bytes]) -> Loaded:
    """Write a version's files where only this process looks, verify them there, load and try the model."""
    from distml.artifacts.predictor import Predictor, compared

    version, serve = models.versions[number], config.serve
    with tempfile.TemporaryDirectory(prefix="distml-model-") as temporary:
        folder = Path(temporary)
        for path, content in files.items():
            if ".." in PurePosixPath(path).parts or path.startswith("/"):
                raise ModelError(f"{path!r} is not below the model.")
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        export = layout.verify(folder, version.sha256)
        engine = "tensorflow" if serve.engine == "auto" and serve.gpus_per_replica else serve.engine
        kept = Storage(config.storage.root)
        predictor = Predictor.fastest(export, engine, max(1, int(serve.cpus_per_replica)), kept)
    predictor.warm()
    if engine == "auto" and not compared(predictor.choice):
        compare = partial(
            _compare, dict(files), predictor.sha256, max(1, int(serve.cpus_per_replica)), kept.root
        )
        threading.Thread(target=compare, name="compare", daemon=True).start()
    served = Served(
        name=name,
        version=number,
        run_id=version.run_id,
        sha256=predictor.sha256,
        classes=predictor.classes,
        shape=predictor.shape,
        metrics=dict(models.metrics.get(number, {})),
        data_digest=export.data_digest,
        confusion=export.confusion,
        policy=export.policy,
        target=export.target,
        usual=export.usual,
        predicted=export.predicted,
        loaded_at=time.time(),
        engine=predictor.choice.described(),
    )
    return Loaded(served, predictor.predict)
