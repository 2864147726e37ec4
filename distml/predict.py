"""Classify image files in this process, or a whole data set on Ray, with a trained model (driver).

python -m distml.predict shoe.png bag.jpg                 the registry's champion
python -m distml.predict shoe.png --run fashion-mnist     what a run of this name exported
python -m distml.predict shoe.png --version 3 --top 5     a certain version
python -m distml.predict shoe.png --url http://...:8000   what a running endpoint answers
python -m distml.predict --data FOLDER --output FOLDER    Parquet or pictures in, Parquet out, resumable
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distml import cli, log
from distml.batch import run as batch
from distml.config import Config
from distml.data import photos, schema
from distml.errors import ConfigError
from distml.serving import client, digests
from distml.serving.client import Model
from distml.tracking.choice import choose


def answer(
    file: str, probabilities: npt.NDArray[np.float32], classes: Sequence[str], top: int
) -> dict[str, Any]:
    """Describe one prediction.

    Args:
        file: As the person named it.
        probabilities: float32 [classes].
        classes: Their names.
        top: Classes listed, most probable first.
    """
    order = np.argsort(-probabilities, kind="stable")[:top]
    best = [
        {"class": classes[label], "label": int(label), "probability": round(float(probabilities[label]), 6)}
        for label in order
    ]
    return {"file": file, **best[0], "top": best}


def _show(console: Console, predictions: list[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    table.add_column("then")
    for one in predictions:
        then = ", ".join(f"{other['class']} {other['probability']:.3f}" for other in one["top"][1:])
        table.add_row(escape(one["file"]), escape(one["class"]), f"{one['probability']:.3f}", escape(then))
    console.print(table)


def run(config: Config, own: argparse.Namespace) -> dict[str, Any]:
    """Classify files, or a data set.

    Returns:
        `model`, `version`, `predictions` in the files' order, and `failed` with the files that could not be
        read; then the status is failed, too. For a data set `rows`, `failed` (how many could not be read),
        `parts`, `done_before` and `manifest`.

    Raises:
        ConfigError: Neither files nor a data set are given, or both.
        DistmlError: There is no model to ask, or it cannot be trusted.
    """
    _require_one(own)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if own.url:
        url = own.url.rstrip("/")
        served = client.describe(url)
        return _classify(console, own, served, lambda images: client.probabilities(url, images, served))
    with tempfile.TemporaryDirectory(prefix="distml-predict-") as folder:
        chosen = choose(config, own.run, own.version, Path(folder))
        if chosen.why:
            console.print(f"{chosen.why}: version {chosen.version}")
        export = digests.verify(chosen.folder, chosen.sha256)
        if own.data:
            model = (chosen.model, chosen.version)
            answered = batch.predict(config, export, *model, own.data, own.output, console.print)
            return {"model": chosen.model, "version": chosen.version} | answered
        here = Model(chosen.model, chosen.version, export.shape, tuple(export.classes))
        return _classify(console, own, here, lambda images: _ask(export, images))


def _classify(
    console: Console,
    own: argparse.Namespace,
    model: Model,
    ask: Callable[[schema.Images], npt.NDArray[np.float32]],
) -> dict[str, Any]:
    """Read the files, ask about those that can be read, and tell of all."""
    images, failed = photos.read_all(own.images, model.shape)
    predictions = []
    if images:
        answers = ask(np.stack(list(images.values())))
        predictions = [
            answer(file, row, model.classes, own.top) for file, row in zip(images, answers, strict=True)
        ]
        _show(console, predictions)
    for one in failed:
        console.print(f"[red]{escape(one['error'])}[/red]")
    found = {"model": model.name, "version": model.version, "predictions": predictions}
    return found | ({"status": "failed", "failed": failed} if failed else {})


def _require_one(own: argparse.Namespace) -> None:
    if bool(own.images) == bool(own.data):
        raise ConfigError("give picture files, or a data set by --data.", "Give one of the two.")
    if bool(own.data) != bool(own.output):
        raise ConfigError("--data and --output belong together.", "Give both.")
    if own.url and (own.run or own.version or own.data):
        raise ConfigError("--url asks what is served there.", "Leave out --run, --version and --data.")
    if own.url and not own.url.startswith(("http://", "https://")):
        raise ConfigError(f"--url is {own.url}, which is no address.", "Write http://HOST:PORT.")


def _ask(export: digests.Export, images: schema.Images) -> npt.NDArray[np.float32]:
    from distml.serving.predictor import Predictor

    with log.quietly():
        return Predictor.of(export).predict(images)


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError(word)
    return number


def _arguments(parser: cli.Parser) -> None:
    _positive.__name__ = "number from 1"  # argparse says this in its complaint
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="PNG, JPEG, BMP, GIF or WEBP files of any size"
    )
    parser.add_argument(
        "--data", metavar="URI", help="classify all rows of these Parquet files or pictures instead"
    )
    parser.add_argument(
        "--output", metavar="URI", help="folder for the answers to --data; the same again goes on with it"
    )
    parser.add_argument("--run", metavar="NAME", help="ask what this run trained; an MLflow run id does, too")
    parser.add_argument(
        "--version", type=_positive, metavar="N", help="ask this version of the registered model"
    )
    parser.add_argument(
        "--url", metavar="URL", help="ask a running endpoint, as distml serve gives its address"
    )
    parser.add_argument(
        "--top", type=_positive, default=3, metavar="K", help="classes listed for a file (default: 3)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("predict", run, argv, _arguments)


if __name__ == "__main__":
    raise SystemExit(main())
