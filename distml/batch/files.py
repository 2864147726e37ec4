"""Predictions for image files, or for a whole data set on Ray, by a trained model (driver)."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distml import log
from distml.artifacts import digests
from distml.batch import run as batch
from distml.config import Config
from distml.data import image, schema
from distml.data.image import Images, Policy
from distml.errors import ConfigError, DataError
from distml.serving import client
from distml.serving.client import Model
from distml.tracking.locate import Chosen, choose


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
    for prediction in predictions:
        then = ", ".join(f"{other['class']} {other['probability']:.3f}" for other in prediction["top"][1:])
        table.add_row(
            escape(prediction["file"]),
            escape(prediction["class"]),
            f"{prediction['probability']:.3f}",
            escape(then),
        )
    console.print(table)


def predict_files(
    config: Config,
    images: Sequence[str],
    *,
    run: str | None = None,
    version: int | None = None,
    url: str | None = None,
    top: int = 3,
) -> dict[str, Any]:
    """Classify image files with a model in this process, or by a running endpoint.

    Args:
        config: Names storage and registry.
        images: Paths of image files.
        run: Name of a run, or an MLflow run id, whose model is asked.
        version: Registered version that is asked; without run and version the champion is.
        url: Address of an endpoint that is asked instead.
        top: Classes listed for a file.

    Returns:
        `model`, `version`, `predictions` in the files' order, and `failed` with the files that could not be
        read; then the status is failed, too.

    Raises:
        ConfigError: The endpoint's address is none, or a model is named besides it.
        DistmlError: There is no model to ask, or it cannot be trusted.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if url:
        _require_address(url, run, version)
        address = url.rstrip("/")
        served = client.describe(address)
        return _classify(
            console, images, top, served, lambda pixels: client.probabilities(address, pixels, served)
        )
    with _model(config, run, version, console) as (chosen, export):
        here = Model(
            chosen.model, chosen.version, export.shape, tuple(export.classes), policy=export.pictures
        )
        return _classify(console, images, top, here, lambda pixels: _ask(export, pixels))


def predict_data(
    config: Config, data: str, output: str, *, run: str | None = None, version: int | None = None
) -> dict[str, Any]:
    """Classify every row of a data set on Ray; the same call again goes on after an interruption.

    Args:
        config: Names storage, registry and resources.
        data: Folder or URI of Parquet files or images.
        output: Folder or URI for the predictions.
        run: As in `predict_files`.
        version: As in `predict_files`.

    Returns:
        `model`, `version`, `rows`, `failed` (how many could not be read), `parts`, `done_before` and
        `manifest`.

    Raises:
        DistmlError: There is no model to ask, it cannot be trusted, or the data cannot be read.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _model(config, run, version, console) as (chosen, export):
        named = (chosen.model, chosen.version)
        answered = batch.predict(config, export, *named, data, output, console.print)
        return {"model": chosen.model, "version": chosen.version} | answered


@contextlib.contextmanager
def _model(
    config: Config, run: str | None, version: int | None, console: Console
) -> Iterator[tuple[Chosen, digests.Export]]:
    """The model that is meant and its verified export, both as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="distml-predict-") as folder:
        chosen = choose(config, run, version, Path(folder))
        if chosen.why:
            console.print(f"{chosen.why}: version {chosen.version}")
        yield chosen, digests.verify(chosen.folder, chosen.sha256)


def _classify(
    console: Console,
    files: Sequence[str],
    top: int,
    model: Model,
    ask: Callable[[schema.Images], npt.NDArray[np.float32]],
) -> dict[str, Any]:
    """Read the files, ask about those that can be read, and tell of all."""
    images, failed = read_all(files, model.pictures)
    predictions = []
    if images:
        answers = ask(np.stack(list(images.values())))
        predictions = [
            answer(file, row, model.classes, top) for file, row in zip(images, answers, strict=True)
        ]
        _show(console, predictions)
    for failure in failed:
        console.print(f"[red]{escape(failure['error'])}[/red]")
    result = {"model": model.name, "version": model.version, "predictions": predictions}
    return result | ({"status": "failed", "failed": failed} if failed else {})


def _require_address(url: str, run: str | None, version: int | None) -> None:
    if run or version:
        raise ConfigError("--url asks what is served there.", "Leave out --run, --version and --data.")
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url is {url}, which is no address.", "Write http://HOST:PORT.")


def _ask(export: digests.Export, images: schema.Images) -> npt.NDArray[np.float32]:
    from distml.artifacts.predictor import Predictor

    with log.quietly():
        return Predictor.of(export).predict(images)


MAX_FILE_BYTES = 64 << 20


def read_picture(path: str, policy: Policy) -> Images:
    """Read one picture of any size and mode as the model wants it.

    Args:
        path: A picture file.
        policy: How the model had its pictures fitted.

    Returns:
        uint8 [H, W, C].

    Raises:
        DataError: Unreadable, not a picture, or far too large.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {cause}.", "Give existing picture files.") from None
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes.", "Scale it down.")
    return image.read(data, policy, path)


def read_all(files: Sequence[str], policy: Policy) -> tuple[dict[str, Images], list[dict[str, str]]]:
    """Read what can be read.

    Returns:
        The images by file, and `file` and `error` of each that could not be read.
    """
    images: dict[str, Images] = {}
    failed = []
    for file in dict.fromkeys(files):
        try:
            images[file] = read_picture(file, policy)
        except DataError as error:
            failed.append({"file": file, "error": str(error)})
    return images, failed
