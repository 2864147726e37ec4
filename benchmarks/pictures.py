"""JPEG requests beside peers: photographs, EfficientNet-Lite0 at 224, the same engine and threads in all.

Every server has two processes of one LiteRT thread. The engine alone, in as many processes and on batches,
is the limit. $PHOTOS names a folder of JPEGs; without it, photographs are drawn. $PEERS as in `serving`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness, ours, photos, report, serving
from benchmarks.load import Load
from benchmarks.peers.servers import photo
from distml.serving import ingress

REPEATS = int(os.environ.get("REPEATS", "2"))
SECONDS = int(os.environ.get("SECONDS_EACH", "8"))
PROCESSES, CONNECTIONS, PICTURES, SIDE, ROWS = 2, 16, 64, 224, 32
_BOUNDARY = "photograph"


def few() -> dict[str, Any]:
    """The data that the model is trained on for one epoch: its weights decide no time.

    They are photographs, since requests that look unlike the training images are measured and warned of.
    """
    images = np.stack([photo.decode(data) for data in _photographs()[:ROWS]])
    labels = (np.arange(ROWS) % 2).astype(np.int32)
    return {"classes": ["a", "b"], "train": (images, labels), "test": (images[:8], labels[:8])}


def _champion() -> tuple[Path, Path]:
    """Train the head of an EfficientNet-Lite0 for an epoch and promote it; storage root and LiteRT file."""
    root = Path(tempfile.mkdtemp(prefix="distml-bench-"))
    flags = {
        "data.name": "few",
        "data.format": "benchmarks.pictures:few",
        "model.name": "benchmarks.finetune:network",
        "model.freeze_epochs": 1,
        "train.epochs": 1,
        "train.workers": 1,
        "train.global_batch_size": 8,
    }
    result = ours.train(root, *(f"--{key}={value}" for key, value in flags.items()))()
    ours.promoted(root, "--data.name=few", "--data.format=benchmarks.pictures:few")
    return root, Path(result["artifacts"]) / "data" / "model.tflite"


def _photographs() -> list[bytes]:
    files = sorted(Path(os.environ["PHOTOS"]).rglob("*.jp*g"))
    return [path.read_bytes() for path in files[:: max(1, len(files) // PICTURES)][:PICTURES]]


def _multipart(data: bytes) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n'
    return f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + data + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _commands(root: Path) -> dict[str, Any]:
    commands = serving.commands(
        root, {"fastapi_tf": "photo_fastapi", "litserve": "photo_lit", "bentoml": "photo_bento:Service"}
    )
    replicas = [f"--serve.replicas.min={PROCESSES}", f"--serve.replicas.max={PROCESSES}"]
    flags = [*replicas, "--serve.engine=litert", f"--storage.root={root}"]
    commands["distml"] = lambda port: [
        *(sys.executable, "-m", "distml.serve", *flags, f"--serve.port={port}")
    ]
    return commands


def _alone(environment: dict[str, str]) -> float:
    """Images a second of the engine on its best batch, one process a core."""
    command = [sys.executable, "-m", "benchmarks.peers.servers.photo", str(SECONDS)]
    running = [
        subprocess.Popen(command, cwd=harness.ROOT, env=environment, stdout=subprocess.PIPE)
        for _ in range(PROCESSES)
    ]
    rates: list[dict[str, float]] = [json.loads(process.communicate()[0]) for process in running]
    return max(sum(rate[size] for rate in rates) for size in rates[0])


def _served(url: str, load: Load) -> dict[str, float]:
    serving.warm(url, load, 1, 180)
    measured: dict[str, float] = load.run(url, CONNECTIONS, SECONDS)
    return measured


def measure() -> Sequence[report.Figure]:
    """Measure the engine and all servers in turn, each alone."""
    os.environ["PHOTOS"] = str(photos.photographs())  # for the training, too
    root, model = _champion()
    bodies = _photographs()
    raw = Load.bodies(bodies, "image/jpeg")
    form = Load.bodies([_multipart(body) for body in bodies], f"multipart/form-data; boundary={_BOUNDARY}")
    environment = serving.environment(model, raw.folder)

    def call(name: str, command: Any) -> Any:
        def measured() -> dict[str, float]:
            port = ingress.free_ports()[0]
            with serving.running(name, command(port), environment):
                url = f"http://127.0.0.1:{port}/predict"
                return _served(f"{url}/image", raw) if name == "distml" else _served(url, form)

        return measured

    calls: dict[str, Any] = {name: call(name, command) for name, command in _commands(root).items()}
    calls["engine"] = lambda: {"rps": _alone(environment)}
    results = harness.alternate(calls, REPEATS)
    if any(result["errors"] for result in results["distml"]):
        raise harness.BenchmarkError("requests to distml failed")
    rps = {name: report.pick(results[name], "rps") for name in results}
    best = max(rps.keys() - {"distml", "engine"}, key=lambda name: max(rps[name]))
    return [
        report.Figure(
            f"JPEG requests/s, {CONNECTIONS} connections, vs {best}", rps["distml"], rps[best], 1.3
        ),
        report.Figure("the same vs the engine alone on batches", rps["distml"], rps["engine"], 0.9),
    ]


if __name__ == "__main__":
    raise SystemExit(report.main(measure))
