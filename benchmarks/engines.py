"""Forms of an export and the engines that load them: 8 bits against LiteRT, `auto` against LiteRT.

Weights are random: sizes and times do not depend on them. What 8 bits cost in accuracy is in the result line
of a training with `export.quantize: int8`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from distml.artifacts import layout, predictor
from distml.artifacts.layout import LITE, LITE_INT8
from distml.config import ExportConfig

REPEATS = int(os.environ.get("REPEATS", "3"))
NETWORKS = {"convnet": (28, 28, 1), "efficientnet_lite0": (224, 224, 3)}
CLASSES, CALLS = 10, 20


def _export(name: str, shape: tuple[int, int, int], folder: Path) -> layout.Export:
    from distml.artifacts.export import Rows, export
    from distml.models import registry

    network = registry.build(name, shape, CLASSES, {}, 0)
    images = np.random.default_rng(0).integers(0, 256, (32, *shape), np.uint8)
    described = {"name": name, "classes": [str(number) for number in range(CLASSES)], "shape": list(shape)}
    wanted = ExportConfig(formats=["litert", "onnx"], quantize="int8", max_loss_of_accuracy=0.999)
    export(network, folder, described, images[:2], wanted, Rows(images, images, np.zeros(32, np.int32)))
    return layout.verify(folder)


def _least_ms(functions: dict[str, Any], image: Any) -> dict[str, float]:
    """Time each function in turn, so that whatever else the machine does meets all; the least counts."""
    least = dict.fromkeys(functions, float("inf"))
    for _ in range(CALLS):
        for name, function in functions.items():
            began = time.perf_counter()
            function(image)
            least[name] = min(least[name], 1e3 * (time.perf_counter() - began))
    return least


def _figures(name: str, shape: tuple[int, int, int]) -> list[report.Figure]:
    with tempfile.TemporaryDirectory() as folder:
        export = _export(name, shape, Path(folder))
        sizes = [float((export.folder / file).stat().st_size) for file in (LITE_INT8, LITE)]
        choice = predictor.choose(export, threads=2)
        functions = {form: predictor.load(export, form) for form in ("litert", "litert_int8")}
        functions["auto"] = predictor.load(export, choice.engine, choice.threads)
    image = np.random.default_rng(1).integers(0, 256, (1, *shape), np.uint8)
    times = [_least_ms(functions, image) for _ in range(REPEATS)]
    small, plain, auto = ([values[form] for values in times] for form in ("litert_int8", "litert", "auto"))
    taken = f"{choice.engine}, {choice.threads} threads"
    return [
        report.Figure(f"{name}: bytes, int8 vs float LiteRT", sizes[:1], sizes[1:], 0.3, "at most"),
        report.Figure(f"{name}: ms alone, int8 vs float LiteRT", small, plain, 0.6, "at most"),
        report.Figure(f"{name}: ms alone, auto ({taken}) vs LiteRT", auto, plain, 1.1, "at most"),
    ]


def measure() -> Sequence[report.Figure]:
    """Measure every network."""
    return [figure for name, shape in NETWORKS.items() for figure in _figures(name, shape)]


if __name__ == "__main__":
    raise SystemExit(report.main(measure))
