"""The endpoint beside its peers: one model, one JSON image a request, one replica or process, wrk as client.

Peers: FastAPI with TensorFlow, LitServe, BentoML, MLServer, and Ray Serve as its documentation shows it. The
first four need an environment of their own, `make bench` makes it in .venv-peers; `$PEERS` names another.
The limit is a bare server in Rust (`peers/bare`, built where cargo is installed): it parses the JSON and runs
ONNX Runtime, one process a core.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from benchmarks import harness, ours, report
from benchmarks.load import Load
from distml.serving import ingress

REPEATS = int(os.environ.get("REPEATS", "2"))
SECONDS = int(os.environ.get("SECONDS_EACH", "6"))
BATCH = 256
_START_S = 120
_OPEN = "v2/models/model/infer"


def _champion() -> tuple[Path, Path]:
    """Train `convnet` for an epoch and promote it; its storage root, and its Keras file for the peers."""
    root = ours.root()
    result = ours.train(root, "--train.epochs=1")()  # the first version of its registered model
    ours.promoted(root)
    return root, Path(result["artifacts"]) / "data" / "model.keras"


SERVERS = {"fastapi_tf": "fastapi_tf", "litserve": "lit", "bentoml": "bento:Service", "mlserver": "ml"}
"""Peers, and their module below `benchmarks.peers.servers`."""


def commands(root: Path, modules: Mapping[str, str] = SERVERS) -> dict[str, Any]:
    """How each server is started on a port.

    Args:
        root: The storage root that ours serves.
        modules: Of the peers.

    Raises:
        BenchmarkError: The environment of the peers is not there.
    """
    peers = Path(os.environ.get("PEERS", harness.ROOT / ".venv-peers")) / "bin"
    if not (peers / "python").exists():
        raise harness.BenchmarkError(f"the peers are not installed in {peers}; `make bench` does it")
    servers, python = "benchmarks.peers.servers", str(peers / "python")
    flags = ["--serve.replicas.min=1", "--serve.replicas.max=1", f"--storage.root={root}"]

    def run(module: str) -> Any:
        return lambda port: [python, "-m", f"{servers}.{module}", str(port)]

    return {name: run(module) for name, module in modules.items()} | {
        "distml": lambda port: [sys.executable, "-m", "distml.serve", *flags, f"--serve.port={port}"],
        "bentoml": lambda port: [
            *(python, "-m", "bentoml", "serve", f"{servers}.{modules['bentoml']}"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
    }


@contextlib.contextmanager
def running(name: str, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[None]:
    """Run a server until the body ends; its output goes to `$LOGS` of its environment."""
    log = Path(environment["LOGS"]) / f"{name}.log"
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command, cwd=harness.ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        yield
        if process.poll() is not None:
            raise harness.BenchmarkError(f"{name} ended by itself:\n{log.read_text()[-2000:]}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)  # ours ends its Ray and its proxy itself
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def warm(url: str, load: Load, least: float, limit_s: float = _START_S) -> None:
    """Wait until a server answers so many requests a second to one connection, then warm it by sixteen.

    Raises:
        BenchmarkError: It does not within the limit.
    """
    deadline = time.monotonic() + limit_s
    while True:
        with contextlib.suppress(harness.BenchmarkError):  # nobody listens yet
            answered = load.run(url, 1, 1)
            if answered["rps"] > least and not answered["errors"]:
                break
        if time.monotonic() > deadline:
            raise harness.BenchmarkError(f"{url} does not respond after {limit_s:g} s")
        time.sleep(0.5)
    load.run(url, 16, 3)


def _measured(url: str, single: Load, many: Load) -> dict[str, float]:
    """Wait until a server answers, warm it, then measure it at 1 and at 64 connections."""
    warm(url, single, 10)
    alone, busy, batch = single.run(url, 1, SECONDS), single.run(url, 64, SECONDS), many.run(url, 1, SECONDS)
    return {
        "p50_ms_1": alone["p50_ms"],
        "rps_64": busy["rps"],
        "p99_ms_64": busy["p99_ms"],
        "errors": alone["errors"] + busy["errors"],
        "images_per_s": 0.0 if batch["errors"] else batch["rps"] * BATCH,
    }


def _bare(folder: Path, model: Path) -> Any:
    """Build the bare server; how it is started on a port, or None without cargo."""
    if shutil.which("cargo") is None:
        harness.say("cargo is not installed: no figure beside a bare server")
        return None
    onnx = model.with_suffix(".onnx")
    build = ["cargo", "build", "--release", "--quiet", "--target-dir", str(folder / "target")]
    # A copy, since cargo writes a lock file, with addresses, beside its manifest.
    shutil.copytree(harness.ROOT / "benchmarks/peers/bare", folder / "bare")
    subprocess.run(build, cwd=folder / "bare", check=True)
    library = Path(onnxruntime.__file__).with_name("capi") / f"libonnxruntime.so.{onnxruntime.__version__}"
    program = f"ORT_DYLIB_PATH={library} {folder}/target/release/bare"
    return lambda port: ["sh", "-c", f"{program} $0 $1 & {program} $0 $1 & wait", str(port), str(onnx)]


def environment(model: Path, logs: Path) -> dict[str, str]:
    """The variables of every server: the model it answers with, where its output goes."""
    return os.environ | {
        "MODEL": str(model),
        "LOGS": str(logs),
        "PYTHONPATH": str(harness.ROOT),
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
        "BENTOML_DO_NOT_TRACK": "1",
    }


def measure() -> Sequence[report.Figure]:
    """Measure all servers in turn, each alone."""
    root, model = _champion()
    single, many = Load.of(1), Load.of(BATCH)
    asked = {"mlserver": (_OPEN, Load.open_inference(1), Load.open_inference(BATCH))}
    known = environment(model, single.folder)

    def call(name: str, command: Any) -> Any:
        def measured() -> dict[str, float]:
            port = ingress.free_ports()[0]
            route, *loads = asked.get(name, ("predict", single, many))
            with running(name, command(port), known):
                return _measured(f"http://127.0.0.1:{port}/{route}", *loads)

        return measured

    servers = commands(root) | {
        "ray_docs": lambda port: [sys.executable, "-m", "benchmarks.peers.servers.ray_docs", str(port)]
    }
    if bare := _bare(single.folder, model):
        servers |= {
            "bare": bare,
            "distml_onnx": lambda port: [*servers["distml"](port), "--serve.engine=onnx"],
        }
    calls = {name: call(name, command) for name, command in servers.items()}
    return _figures(harness.alternate(calls, REPEATS))


def _share(measured: Mapping[str, Sequence[Mapping[str, float]]]) -> list[report.Figure]:
    """The share of what a server can do at most, where that was measured."""
    if "bare" not in measured:
        return []
    ours_rps, bare = (report.pick(measured[name], "rps_64") for name in ("distml_onnx", "bare"))
    return [report.Figure("requests/s with ONNX Runtime vs a bare Rust server", ours_rps, bare, 0.5)]


def _figures(measured: Mapping[str, Sequence[Mapping[str, float]]]) -> Sequence[report.Figure]:
    mine = measured["distml"]
    if sum(report.pick(mine, "errors")):
        raise harness.BenchmarkError("requests to distml failed")
    peers = {name: measured[name] for name in SERVERS}
    rps = {name: report.pick(results, "rps_64") for name, results in peers.items()}
    best = max(rps, key=lambda name: sorted(rps[name])[len(rps[name]) // 2])
    figures = [
        *_share(measured),
        report.Figure(f"requests/s, 64 connections, vs {best}", report.pick(mine, "rps_64"), rps[best], 3.0),
        report.Figure(
            "the same vs Ray Serve as documented",
            report.pick(mine, "rps_64"),
            report.pick(measured["ray_docs"], "rps_64"),
            5.0,
        ),
        report.Figure("p50 ms, 1 connection", report.pick(mine, "p50_ms_1"), [2.5], 1.0, "at most"),
        report.Figure(f"images/s, {BATCH} a request", report.pick(mine, "images_per_s"), [5000], 1.0),
    ]
    for name in ("litserve", "bentoml", "mlserver"):
        theirs = report.pick(measured[name], "p50_ms_1")
        figures.append(
            report.Figure(
                f"p50 ms, 1 connection, vs {name}", report.pick(mine, "p50_ms_1"), theirs, 1.0, "at most"
            )
        )
    for name in (*peers, "ray_docs"):
        theirs = report.pick(measured[name], "p99_ms_64")
        figures.append(
            report.Figure(
                f"p99 ms, 64 connections, vs {name}", report.pick(mine, "p99_ms_64"), theirs, 1.0, "at most"
            )
        )
    return figures


if __name__ == "__main__":
    raise SystemExit(report.main(measure))
