"""The same pictures by every path: `predict`, batch prediction, the endpoint and the exported SavedModel.

Files of every format and mode that people have, for each `data.fit`. What is measured is the largest
difference between a probability and that of `distml predict`, and how many files were compared.

python -m benchmarks.parity
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq

from benchmarks import harness, ours, photos, report
from distml.data.image import Fit
from distml.serving import ingress

Probabilities = Mapping[str, np.ndarray]
"""Of each class, (K,), by the name of the file."""

_CLASSES = 10
_DRAWN = 300
_SAVED_MODEL, _SAME = 1e-2, 1e-6
"""How far a SavedModel, which decodes by TensorFlow, may be off; and the digits that `predict` prints."""
_NOT_BY_TENSORFLOW = (".tiff", ".avif", ".ppm")
_BACKGROUND = "[200, 60, 20]"


def _files(folder: Path) -> list[Path]:
    from tests import zoo

    folder.mkdir()
    paths = []
    for name, data in zoo.files().items():
        stem, _, ending = name.rpartition("-")
        paths.append(folder / f"{stem.replace(' ', '_')}.{ending}")
        paths[-1].write_bytes(data)
    return sorted(paths)


def _trained(root: Path, pictures: Path, fit: str) -> tuple[list[str], Path]:
    """Train one epoch; the flags that name the data, the model and the storage, and the run's artifacts."""
    flags = {
        "data.name": fit,
        "data.path": str(pictures),
        "data.image_size": "[24, 36]",
        "data.fit": fit,
        "data.background": _BACKGROUND,
        "train.workers": 1,
        "train.epochs": 1,
        "train.global_batch_size": 32,
        "export.formats": "[keras, litert, saved_model]",
        "tracking.registered_model": fit,
    }
    words = [f"--{key}={value}" for key, value in flags.items()]
    result = ours.train(root, *words)()
    ours.promoted(root, *words)
    return [*words, f"--storage.root={root}"], Path(result["artifacts"])


def _predicted(words: Sequence[str], paths: Iterable[Path]) -> Probabilities:
    """Probabilities as `distml predict` prints them."""
    command = [sys.executable, "-m", "distml.predict", *map(str, paths), *words, f"--top={_CLASSES}"]
    probabilities = {}
    for entry in harness.run(command)["predictions"]:
        values = np.zeros(_CLASSES)
        for each in entry["top"]:
            values[each["label"]] = each["probability"]
        probabilities[Path(entry["file"]).name] = values
    return probabilities


def _in_batch(flags: Sequence[str], folder: Path, output: Path) -> Probabilities:
    command = [sys.executable, "-m", "distml.predict", "--data", str(folder), "--output", str(output)]
    harness.run([*command, *flags])
    rows = [row for part in output.glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    return {Path(row["source"]).name: np.array(row["probabilities"]) for row in rows}


def _by_saved_model(artifacts: Path, paths: Iterable[Path]) -> Probabilities:
    import tensorflow as tf

    signature = tf.saved_model.load(str(artifacts / "saved_model")).signatures["image_bytes"]
    chosen = [path for path in paths if path.suffix not in _NOT_BY_TENSORFLOW]
    return {
        path.name: next(iter(signature(tf.constant([path.read_bytes()])).values())).numpy()[0]
        for path in chosen
    }


def _furthest(told: Probabilities, other: Probabilities) -> float:
    return max(float(np.abs(told[name] - values).max()) for name, values in other.items())


def _of_fit(root: Path, pictures: Path, paths: Sequence[Path], fit: str) -> dict[str, tuple[int, float]]:
    """Files compared and the largest difference, by path of a picture."""
    flags, artifacts = _trained(root, pictures, fit)
    told = _predicted(flags, paths)
    others: dict[str, Probabilities] = {"batch": _in_batch(flags, paths[0].parent, root / f"output-{fit}")}
    port = ingress.free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    serve = [*flags, f"--serve.port={port}", "--serve.replicas.max=1", "--serve.engine=litert"]
    with ours.endpoint(serve, url):
        others["endpoint"] = _predicted([f"--url={url}"], paths)
    others["SavedModel"] = _by_saved_model(artifacts, paths)
    return {path: (len(values), _furthest(told, values)) for path, values in others.items()}


def measure() -> Sequence[report.Figure]:
    """Compare all, one `data.fit` after the other."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="distml-bench-") as folder:
        pictures, paths = photos.draw(Path(folder, "drawn"), _DRAWN), _files(Path(folder, "zoo"))
        by_fit: dict[str, Any] = {}
        for fit in get_args(Fit):
            by_fit[fit] = _of_fit(Path(folder, "storage"), pictures, paths, fit)
            harness.say(f"{fit}: {by_fit[fit]}")
    for path, allowed in (("batch", _SAME), ("endpoint", _SAME), ("SavedModel", _SAVED_MODEL)):
        count = sum(each[path][0] for each in by_fit.values())
        off = [each[path][1] for each in by_fit.values()]
        name = f"largest difference of a probability, {path} against predict, {count} files and fits"
        figures.append(report.Figure(name, [max(off)], [allowed], 1.0, "at most"))
    return figures


if __name__ == "__main__":
    raise SystemExit(report.main(measure))
