"""The endpoint as it stands in the open: keys, allowed hosts, TLS and gRPC, hostile files, renewals, fuzzing.

Two endpoints of one champion run side by side and are asked in turn: a plain one, and one with keys, a host
name and TLS. Throughput is measured by h2load, one client for HTTP/1.1, TLS and gRPC (Debian's package
nghttp2-client). `$ROOT` names a storage root with a champion that takes 28x28 gray images; without it one is
trained. `$BEFORE` names a checkout of another commit, whose plain endpoint is then a peer. With `ONLY=faults`
nothing but the requests is counted that fail while replicas, the watcher and the registry are lost.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import urllib3
from PIL import Image

from benchmarks import harness, ours, report
from distml.serving import ingress, keys
from distml.serving.rpc import message

REPEATS = int(os.environ.get("REPEATS", "2"))
SECONDS = int(os.environ.get("SECONDS_EACH", "4"))
MUTATED = int(os.environ.get("MUTATED", "20000"))
_PERIOD_S = 0.02
_HOST = "api.example.com"
_IMAGE = np.random.default_rng(0).integers(0, 256, (28, 28, 1), np.uint8)


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint.

    Args:
        process: Its command.
        port: Of HTTP.
        grpc_port: Of gRPC, 0 for none.
        key: To send; empty for none.
        tls: Whether it speaks TLS.
    """

    process: psutil.Process
    port: int
    grpc_port: int
    key: str = ""
    tls: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """What a client has to send."""
        return {"authorization": f"Bearer {self.key}", "host": _HOST} if self.key else {}

    @property
    def url(self) -> str:
        """Where HTTP is answered."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"


@contextlib.contextmanager
def _serving(checkout: Path, root: Path, *flags: str, **known: Any) -> Iterator[Endpoint]:
    port, rpc = ingress.free_ports(2)
    own = [f"--storage.root={root}", f"--serve.port={port}", "--serve.replicas.max=1", *flags]
    if known.pop("grpc", False):
        own.append(f"--serve.grpc_port={rpc}")
    url = f"{'https' if known.get('tls') else 'http'}://127.0.0.1:{port}"
    with ours.endpoint(own, url, checkout) as (process, _):
        yield Endpoint(process, port, rpc, **known)


def _h2load(url: str, body: Path, *words: str) -> dict[str, float]:
    """Requests a second and the median of their times over 64 connections, or what else is said."""
    with tempfile.NamedTemporaryFile() as log:
        command = [
            "h2load",
            "-c64",
            "-t1",
            f"-D{SECONDS}",
            f"--log-file={log.name}",
            f"-d{body}",
            *words,
            url,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        status = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", done.stdout)
        if done.returncode or status is None:
            raise harness.BenchmarkError(f"h2load: {done.stdout[-500:]}{done.stderr[-500:]}")
        good, *bad = (int(number) for number in status.groups())
        took = [int(line.split("\t")[2]) for line in Path(log.name).read_text().splitlines()]
    return {"rps": good / SECONDS, "bad": sum(bad), "p50_ms": statistics.median(took or [0]) / 1000}


def _bodies(folder: Path) -> dict[str, Path]:
    """The same image as JSON, and as a framed message of gRPC."""
    request = message("ModelInferRequest")(model_name="fashion-mnist")
    request.inputs.add(name="image", datatype="UINT8", shape=[1, *_IMAGE.shape])
    request.raw_input_contents.append(_IMAGE.tobytes())
    encoded = request.SerializeToString()
    content = {
        "json": json.dumps({"instances": [_IMAGE[..., 0].tolist()]}).encode(),
        "grpc": b"\0" + len(encoded).to_bytes(4, "big") + encoded,
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in content}


def _http(endpoint: Endpoint, bodies: Mapping[str, Path]) -> Callable[[], dict[str, float]]:
    words = ["--h1", "-Hcontent-type: application/json"]
    if not endpoint.key:
        return lambda: _h2load(f"{endpoint.url}/predict", bodies["json"], *words)
    words += [f"-Hauthorization: Bearer {endpoint.key}", f"--connect-to=127.0.0.1:{endpoint.port}"]
    return lambda: _h2load(f"https://{_HOST}:{endpoint.port}/predict", bodies["json"], *words)


def _grpc(endpoint: Endpoint, bodies: Mapping[str, Path]) -> Callable[[], dict[str, float]]:
    url = f"http://127.0.0.1:{endpoint.grpc_port}/inference.GRPCInferenceService/ModelInfer"
    words = ["-Hcontent-type: application/grpc", "-Hte: trailers"]
    return lambda: _h2load(url, bodies["grpc"], *words)


class Honest(threading.Thread):
    """Requests at a steady rate over one connection that is opened anew where it was closed. Final.

    Args:
        endpoint: Which is asked.
        period_s: Between two of them.
    """

    def __init__(self, endpoint: Endpoint, period_s: float = _PERIOD_S) -> None:
        super().__init__(daemon=True)
        self.took: list[float] = []
        self.failed: list[str] = []
        self.failed_at: list[float] = []
        self._period_s = period_s
        self._endpoint, self._over = endpoint, threading.Event()
        self._body = json.dumps({"instances": [_IMAGE[..., 0].tolist()]})
        self._session = requests.Session()
        self._session.trust_env = False  # its file of authorities would be used in spite of `verify`
        self._session.verify = False
        self.start()

    def run(self) -> None:
        """Ask until `end`; what is late is sent at once, so that a wait counts."""
        headers = {"content-type": "application/json", **self._endpoint.headers}
        due = time.monotonic()
        while not self._over.is_set():
            due += self._period_s
            time.sleep(max(0.0, due - time.monotonic()))
            began = time.monotonic()
            try:
                url = f"{self._endpoint.url}/predict"
                answered = self._session.post(url, self._body, headers=headers, timeout=20)
                if answered.status_code != 200:
                    self._fail(f"{answered.status_code} {answered.text[:100]}")
            except requests.RequestException as error:
                self._fail(repr(error))
            self.took.append(time.monotonic() - began)

    def _fail(self, reason: str) -> None:
        self.failed.append(reason)
        self.failed_at.append(time.monotonic())

    def end(self) -> tuple[float, int]:
        """Stop; returns the 99th percentile in milliseconds and how many requests failed."""
        self._over.set()
        self.join()
        return 1000 * float(np.quantile(self.took, 0.99)), len(self.failed)


def _hostile() -> bytes:
    """A JPEG of 200 kB and 48 million pixels whose last scan is repeated thousands of times."""
    stream = io.BytesIO()
    Image.new("RGB", (8000, 6000), (90, 120, 40)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    return data[:-2] + scan * max(1, (200_000 - len(data)) // len(scan)) + b"\xff\xd9"


def _beside_hostile(endpoint: Endpoint) -> dict[str, float]:
    quiet = Honest(endpoint)
    time.sleep(2 * SECONDS)
    p99, failed = quiet.end()
    busy, data, statuses = Honest(endpoint), _hostile(), []
    headers = {"content-type": "image/jpeg", **endpoint.headers}

    def send() -> None:
        answered = requests.post(
            f"{endpoint.url}/predict/image",
            data,
            headers=headers,
            timeout=60,
            verify=False,  # noqa: S501
        )
        statuses.append(answered.status_code)

    threads = []
    for _ in range(8 * SECONDS):
        threads.append(threading.Thread(target=send))
        threads[-1].start()
        time.sleep(0.25)
    for thread in threads:
        thread.join()
    busy_p99, busy_failed = busy.end()
    harness.say(f"hostile JPEGs were answered {dict(Counter(statuses))}")
    return {"quiet": p99, "busy": busy_p99, "failed": failed + busy_failed}


def _renewed(endpoint: Endpoint, folder: Path) -> dict[str, float]:
    """Certificate and keys are replaced again and again under fifty requests a second."""
    honest = Honest(endpoint)
    for _ in range(3):
        _certificate(folder)
        keys.new(folder / "keys", "another")
        time.sleep(2 * SECONDS)
    p99, failed = honest.end()
    harness.say(f"renewals: {len(honest.took)} requests, p99 {p99:.0f} ms, failed: {honest.failed[:3]}")
    return {"requests": len(honest.took), "failed": failed}


_CLIENTS = 5


@dataclass(frozen=True)
class _Suffered:
    """What clients saw of a fault: requests, those that failed, those of them without 503, until the last."""

    requests: int
    failed: int
    wrong: int
    seconds: float


def _under_load(endpoint: Endpoint, fault: Callable[[], object], wait_s: float) -> _Suffered:
    """Let something happen under fifty requests a second."""
    clients = [Honest(endpoint, _CLIENTS * _PERIOD_S) for _ in range(_CLIENTS)]
    time.sleep(3)
    began = time.monotonic()
    fault()
    time.sleep(wait_s)
    for client in clients:
        client.end()
    failed = [reason for client in clients for reason in client.failed]
    wrong = [reason for reason in failed if not reason.startswith("503 ")]
    for reason in wrong[:3]:
        harness.say(reason)
    last = max((at for client in clients for at in client.failed_at), default=began)
    return _Suffered(sum(len(client.took) for client in clients), len(failed), len(wrong), last - began)


def _processes(endpoint: Endpoint, word: str) -> list[psutil.Process]:
    named = []
    for child in endpoint.process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if f"ServeReplica:distml:{word}" in " ".join(child.cmdline()):
                named.append(child)
    return named


@contextlib.contextmanager
def _registry(root: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """MLflow's server over the storage's database; gives its address and what takes it away for a minute."""
    (port,) = ingress.free_ports(1)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{root}/mlflow.db"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    running: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        running.append(subprocess.Popen(command, env=environment, start_new_session=True, **quiet))

    def end() -> None:
        process = running.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def away() -> None:
        end()
        time.sleep(60)
        start()

    start()
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{url}/health", timeout=2).ok:
                    break
            if time.monotonic() > deadline:
                raise harness.BenchmarkError("mlflow server does not answer")
            time.sleep(0.2)
        yield url, away
    finally:
        end()


def _faults(root: Path, replicas: int) -> dict[str, _Suffered]:
    """What fifty requests a second with keys over TLS see of each fault."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distml-faults-")))
        _certificate(folder)
        flags = [f"--serve.auth.keys_file={folder}/keys", f'--serve.allowed_hosts=["{_HOST}"]']
        key = keys.new(folder / "keys", "bench")
        flags += [f"--serve.tls.certificate={folder}/cert.pem", f"--serve.tls.key={folder}/key.pem"]
        url, away = stack.enter_context(_registry(root))
        flags += [f"--serve.replicas.min={replicas}", f"--serve.replicas.max={replicas}"]
        flags += [f"--tracking.uri={url}", "--serve.poll_s=1"]
        endpoint = stack.enter_context(_serving(harness.ROOT, root, *flags, key=key, tls=True))
        while len(_processes(endpoint, "Replica")) < replicas:
            time.sleep(0.2)
        time.sleep(10)  # all of them answer

        def renew() -> None:
            for name in ("first", "second"):
                _certificate(folder)
                keys.new(folder / "keys", name)
                time.sleep(4)

        happened: Mapping[str, tuple[Callable[[], object], float]] = {
            "replica stopped": (lambda: _processes(endpoint, "Replica")[0].suspend(), 25),
            "replica killed": (lambda: _processes(endpoint, "Replica")[0].kill(), 20),
            "watcher killed": (lambda: _processes(endpoint, "Watcher")[0].kill(), 15),
            "registry away for 60 s": (away, 5),
            "certificate and keys renewed": (renew, 1),
        }
        suffered = {}
        for name, (fault, wait_s) in happened.items():
            suffered[name] = _under_load(endpoint, fault, wait_s)
            harness.say(f"{replicas} replicas, {name}: {suffered[name]}")
    return suffered


def _of_faults(root: Path) -> list[report.Figure]:
    figures = []
    for replicas in (2, 1):
        for name, seen in _faults(root, replicas).items():
            if replicas > 1:
                figures.append(
                    report.Figure(f"failed, two replicas: {name}", [seen.failed], [1.0], 0.0, "at most")
                )
                continue
            title = f"one replica: {name}"
            figures.append(report.Figure(f"failed without 503, {title}", [seen.wrong], [1.0], 0.0, "at most"))
            figures.append(report.Figure(f"s to recover, {title}", [seen.seconds], [20.0], 1.0, "at most"))
    return figures


def _certificate(folder: Path) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    made += ["-days", "2", "-subj", f"/CN={_HOST}", "-keyout", str(folder / "new.key"), "-out"]
    subprocess.run([*made, str(folder / "new.pem")], check=True, capture_output=True)
    (folder / "new.key").chmod(0o600)
    (folder / "new.key").replace(folder / "key.pem")
    (folder / "new.pem").replace(folder / "cert.pem")


def _requests() -> list[tuple[str, dict[str, str], bytes]]:
    """Requests as clients of each protocol send them."""
    pixels, picture = _IMAGE[..., 0].tolist(), io.BytesIO()
    Image.fromarray(_IMAGE[..., 0]).save(picture, "PNG")
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1]}
    inferred = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 784}}]}).encode()
    form = requests.Request("POST", "http://x/", files={"files": ("a.png", picture.getvalue(), "image/png")})
    prepared = form.prepare()
    plain = {"content-type": "application/json"}
    length = {"inference-header-content-length": str(len(inferred))}
    assert isinstance(prepared.body, bytes)
    return [
        ("/predict", plain, json.dumps({"instances": [pixels]}).encode()),
        ("/v1/models/fashion-mnist:predict", plain, json.dumps({"instances": [pixels]}).encode()),
        (
            "/v2/models/fashion-mnist/infer",
            plain,
            json.dumps({"inputs": [tensor | {"data": pixels}]}).encode(),
        ),
        ("/v2/models/fashion-mnist/infer", length, inferred + _IMAGE.tobytes()),
        ("/predict/image", {"content-type": prepared.headers["content-type"]}, prepared.body),
        ("/predict/image", {"content-type": "image/png"}, picture.getvalue()),
    ]


def _mutated(endpoint: Endpoint) -> dict[str, float]:
    """Bodies of real clients with some bits flipped; no answer may be a failure of ours."""
    drawn, known = random.Random(0), _requests()
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=20)
    bad, before, statuses = 0, 0, dict.fromkeys((200, 400), 0)
    for number in range(MUTATED):
        if number == MUTATED // 10:
            before = ours.memory_bytes(endpoint.process)
        path, headers, body = drawn.choice(known)
        changed = bytearray(body)
        for _ in range(drawn.randint(1, 8)):
            changed[drawn.randrange(len(changed))] ^= 1 << drawn.randrange(8)
        try:
            connection.request("POST", path, bytes(changed), headers)
            answered = connection.getresponse()
            answered.read()
            statuses[answered.status] = statuses.get(answered.status, 0) + 1
            bad += answered.status >= 500 and answered.status != 503
        except (OSError, http.client.HTTPException) as error:
            harness.say(f"request {number} to {path}: {error!r}")
            bad += 1
            connection.close()
    grown = (ours.memory_bytes(endpoint.process) - before) / 1e6
    harness.say(f"{MUTATED} mutated requests: {statuses}; memory grew by {grown:.1f} MB")
    return {"bad": bad, "grown_mb": grown}


def _generated(endpoint: Endpoint) -> int:
    """Requests that schemathesis makes of the description, with three seeds; returns what it objected to."""
    program = Path(sys.executable).absolute().with_name("schemathesis")
    objected = 0
    for seed in ("1", "2", "3"):
        command = [str(program), "run", f"{endpoint.url}/openapi.json", f"--seed={seed}", "--max-examples=5"]
        command += [
            "--exclude-checks=positive_data_acceptance",
            "--phases=fuzzing",
            "--request-timeout=10",
            "--suppress-health-check=all",
        ]
        with tempfile.TemporaryDirectory() as folder:  # it keeps what it learns where it runs
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            harness.say(done.stdout[-3000:])
        objected += done.returncode != 0
    return objected


def measure() -> Sequence[report.Figure]:
    """Start the endpoints and measure one thing after another."""
    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # the certificate is its own
    if os.environ.get("ONLY") == "faults":
        return _of_faults(Path(os.environ["ROOT"]) if "ROOT" in os.environ else _champion())
    if shutil.which("h2load") is None:
        raise harness.BenchmarkError("h2load is not installed; Debian has it in the package nghttp2-client")
    root = Path(os.environ["ROOT"]) if "ROOT" in os.environ else _champion()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distml-hardened-")))
        bodies = _bodies(folder)
        _certificate(folder)
        key = keys.new(folder / "keys", "bench")
        secured = [f"--serve.auth.keys_file={folder}/keys", f'--serve.allowed_hosts=["{_HOST}"]']
        tls = [f"--serve.tls.certificate={folder}/cert.pem", f"--serve.tls.key={folder}/key.pem"]
        plain = stack.enter_context(_serving(harness.ROOT, root, grpc=True))
        hard = stack.enter_context(_serving(harness.ROOT, root, *secured, *tls, key=key, tls=True))
        calls = {
            "plain": _http(plain, bodies),
            "keys, hosts, TLS": _http(hard, bodies),
            "grpc": _grpc(plain, bodies),
        }
        if "BEFORE" in os.environ:
            other = stack.enter_context(_serving(Path(os.environ["BEFORE"]), root))
            calls["before"] = _http(other, bodies)
        for call in calls.values():
            call()  # warm
        loaded = harness.alternate(calls, REPEATS)
        hostile, renewed = _beside_hostile(plain), _renewed(hard, folder)
        mutated, objected = _mutated(plain), _generated(plain)
    return [*_figures(loaded, hostile, renewed, mutated, objected), *_of_faults(root)]


def _champion() -> Path:
    root = ours.root()
    ours.train(root, "--train.epochs=1")()
    ours.promoted(root)
    return root


def _figures(
    loaded: Mapping[str, Sequence[Mapping[str, float]]],
    hostile: Mapping[str, float],
    renewed: Mapping[str, float],
    mutated: Mapping[str, float],
    objected: int,
) -> list[report.Figure]:
    if sum(result["bad"] for results in loaded.values() for result in results):
        raise harness.BenchmarkError("requests failed under load")
    rps = {name: report.pick(results, "rps") for name, results in loaded.items()}
    p50 = {name: report.pick(results, "p50_ms") for name, results in loaded.items()}
    none = [1.0]  # a ratio needs a divisor; what must not happen is counted beside one
    figures = [
        report.Figure("requests/s with keys, hosts and TLS", rps["keys, hosts, TLS"], rps["plain"], 0.85),
        report.Figure("requests/s by gRPC", rps["grpc"], rps["plain"], 1.3),
        report.Figure("p50 ms by gRPC, 64 connections", p50["grpc"], p50["plain"], 1.0, "at most"),
        report.Figure(
            "p99 ms beside 4 hostile JPEGs a second", [hostile["busy"]], [hostile["quiet"]], 3.0, "at most"
        ),
        report.Figure("requests that failed beside them", [hostile["failed"]], none, 0.0, "at most"),
        report.Figure("requests that failed during renewals", [renewed["failed"]], none, 0.0, "at most"),
        report.Figure(f"of {MUTATED} mutated requests, failed", [mutated["bad"]], none, 0.0, "at most"),
        report.Figure("memory growth MB meanwhile", [mutated["grown_mb"]], [50.0], 1.0, "at most"),
        report.Figure("seeds of schemathesis with objections", [objected], none, 0.0, "at most"),
    ]
    if "before" in rps:
        figures.append(report.Figure("requests/s against before", rps["plain"], rps["before"], 1.0))
    return figures


if __name__ == "__main__":
    raise SystemExit(report.main(measure))
