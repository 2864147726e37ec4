"""The report of a run as one self-contained HTML file: charts as SVG, images embedded (driver)."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from PIL import Image

from distml.config import Config
from distml.data.manifest import Manifest
from distml.data.schema import Images
from distml.reports import charts, tables
from distml.training import metrics as catalogue

FILE = "report.html"
FOLDER = "report"
"""The file below a run's export, and among its artifacts."""
_CELLS = 40  # with more classes the confusion matrix is left out


@dataclass(frozen=True)
class Facts:
    """What the report shows beside the evaluation.

    Args:
        run: Name of the run.
        run_id: MLflow run id, None where the tracking server could not be reached.
        commit: Of the checkout, None outside one.
        attempts: Starts of the run.
        started_at: Seconds since the epoch.
        steady: Samples per second.
        parameters: Number of weights of the network, None where no worker started.
        times: Seconds by part.
    """

    run: str
    run_id: str | None
    commit: str | None
    attempts: int
    started_at: float
    steady: float
    parameters: int | None
    times: Mapping[str, float]


def embedded(image: Images) -> str:
    """Encode an image, uint8 [H, W, C], as a data URL; channels other than 1 or 3 become their mean."""
    if image.shape[2] not in (1, 3):
        image = image.mean(2, keepdims=True).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _columns(epoch: Mapping[str, Any]) -> list[tuple[str, str, Callable[[float], str]]]:
    """Name, heading and format of the metrics in the table by epoch."""
    headings = {"samples_per_s": "samples/s"}
    return [
        (name, headings.get(name, name.replace("val_", "validation ")), catalogue.get(name).text)
        for name in catalogue.shown(epoch)
    ]


def _mistakes(images: Images, worst: Sequence[Sequence[Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"image": embedded(image), "true": names[true], "predicted": names[predicted], "loss": loss}
        for image, (_, true, predicted, loss) in zip(images, worst, strict=True)
    ]


def render(
    config: Config, manifest: Manifest, report: Mapping[str, Any], facts: Facts, images: Images
) -> str:
    """Render a run's report.

    Args:
        config: Of the run.
        manifest: Of its data.
        report: The content of `report.json`: `evaluation` by split, `history` by epoch, `worst` mistakes.
        facts: The rest.
        images: uint8 [N, H, W, C], the images of the worst mistakes in their order.

    Returns:
        A whole HTML document.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("distml.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    evaluation, history = report["evaluation"], report["history"]
    split = "test" if "test" in evaluation else "validation"
    confusion = evaluation[split]["confusion"]
    return environment.get_template("report.html.j2").render(
        config=config,
        settings=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        manifest=manifest,
        evaluation=evaluation,
        split=split,
        history=history,
        facts=facts,
        started=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(facts.started_at)),
        charts=[
            charts.curve(history, metric.name, metric.title, metric.unit == "share")
            for metric in reversed(catalogue.charted(history[-1]))
        ],
        columns=_columns(history[-1]),
        size=(charts.WIDTH, charts.HEIGHT),
        classes=tables.classes(confusion, manifest.classes),
        confusion=confusion if manifest.num_classes <= _CELLS else None,
        mistakes=_mistakes(images, report["worst"], manifest.classes),
        times=tables.times(facts.times),
        versions=tables.versions(),
    )
