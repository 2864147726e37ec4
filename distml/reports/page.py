"""The report of a run as one HTML file: curves, confusion table, mistakes with heat maps (driver)."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image

from distml.config import Config
from distml.data import image
from distml.data.fetch import is_archive, is_remote
from distml.data.image import to_jpeg
from distml.data.manifest import Manifest
from distml.data.opening import folder_at
from distml.data.schema import Images
from distml.errors import DistmlError
from distml.storage import Storage
from distml.tasks import quality
from distml.training import metrics as catalogue

if TYPE_CHECKING:
    import jinja2

FILE = "report.html"
FOLDER = "report"
"""The file below a run's export, and among its artifacts."""
_SMALL = 64  # images up to this side are shown pixel by pixel
_CELLS = 40  # with more classes the confusion matrix is left out
_PACKAGES = ("distml", "ray", "tensorflow-cpu", "tensorflow", "keras", "mlflow", "numpy", "pyarrow")

WIDTH, HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 26
_TICKS = 5
_DOTS = 1000  # of a scatter; more make a heavy page


@dataclass(frozen=True)
class Point:
    """A point of a chart and its label."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """One series of a chart: a curve, dots, or both.

    Attributes:
        name: Chooses the colours: training, validation or ideal.
        points: In their order.
        joined: Whether a curve goes through them.
        dotted: Whether each has a dot.
    """

    name: str
    points: tuple[Point, ...]
    joined: bool = True
    dotted: bool = True

    @property
    def path(self) -> str:
        """The `d` of an SVG path."""
        return " ".join(
            f"{'L' if at else 'M'}{point.x:.1f} {point.y:.1f}" for at, point in enumerate(self.points)
        )


@dataclass(frozen=True)
class Chart:
    """Series within `WIDTH` by `HEIGHT`."""

    title: str
    lines: tuple[Line, ...]
    across: tuple[Point, ...]
    up: tuple[Point, ...]


def ticks(low: float, high: float, most: int = _TICKS) -> list[float]:
    """Round numbers that span an interval: at most `most` + 2 of them, the outer ones beyond it."""
    span = (high - low) or abs(high) or 1.0
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(at * step, 12) for at in range(first, max(last, first + 1) + 1)]


def _placer(along: tuple[float, float], above: tuple[float, float]) -> Callable[[float, float, str], Point]:
    """Return what places a value between the ends of the two axes."""

    def place(x: float, y: float, text: str) -> Point:
        right = (x - along[0]) / (along[1] - along[0]) if along[1] > along[0] else 0.5
        high = (y - above[0]) / (above[1] - above[0])
        across = _LEFT + right * (WIDTH - _LEFT - _RIGHT)
        return Point(across, HEIGHT - _BOTTOM - high * (HEIGHT - _TOP - _BOTTOM), text)

    return place


def _finite(history: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """Epochs and values that can be drawn."""
    pairs = [(metrics["epoch"], metrics.get(key)) for metrics in history]
    return [(epoch, float(value)) for epoch, value in pairs if value is not None and math.isfinite(value)]


def curve(history: Sequence[dict[str, Any]], key: str, title: str, share: bool = False) -> Chart:
    """Chart a metric of the training and of the validation rows by epoch.

    Args:
        history: One entry per epoch with `epoch`, `key` and `val_` + `key`.
        key: Of the metric.
        title: Above the chart.
        share: Whether values are shown in percent.
    """
    series = {"training": _finite(history, key), "validation": _finite(history, f"val_{key}")}
    values = [value for pairs in series.values() for _, value in pairs] or [0.0, 1.0]
    scale = ticks(min(values), max(values))
    last = max(metrics["epoch"] for metrics in history)
    first = min(metrics["epoch"] for metrics in history)
    place = _placer((first, last), (scale[0], scale[-1]))

    def text(value: float) -> str:
        return f"{value:.2%}" if share else quality.digits(value)

    lines = tuple(
        Line(name, tuple(place(epoch, value, f"epoch {epoch}: {text(value)}") for epoch, value in pairs))
        for name, pairs in series.items()
    )
    step = max(1, round((last - first) / 8))
    across = tuple(place(epoch, scale[0], f"{epoch}") for epoch in range(first, last + 1, step))
    digits = max(0, -math.floor(math.log10(scale[1] - scale[0]) + 1e-9) - 2 * share)
    up = tuple(place(first, value, f"{value:.{digits}{'%' if share else 'f'}}") for value in scale)
    return Chart(title, lines, across, up)


def _against_ideal(title: str, points: Sequence[tuple[float, float, str]], at: list[float]) -> Chart:
    """Dots over the line on which both values are equal."""
    ends = (at[0], at[-1])
    place = _placer(ends, ends)
    ideal = Line("ideal", tuple(place(end, end, "") for end in ends), dotted=False)
    dots = Line("training", tuple(place(*point) for point in points), joined=False)
    across = tuple(place(value, at[0], f"{value:g}") for value in at)
    return Chart(title, (ideal, dots), across, tuple(place(at[0], value, f"{value:g}") for value in at))


def reliability(bins: Sequence[Sequence[float]]) -> Chart:
    """Chart the share of correct predictions by confidence.

    Args:
        bins: Mean confidence, share correct and rows of each.
    """
    dots = [
        (confidence, correct, f"{rows:,.0f} rows: confidence {confidence:.1%}, correct {correct:.1%}")
        for confidence, correct, rows in bins
    ]
    return _against_ideal("Share correct by confidence", dots, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


def scatter(name: str, pairs: Sequence[Sequence[float]]) -> Chart:
    """Chart the predicted by the true values of a number."""
    values = [value for pair in pairs for value in pair]
    dots = [
        (true, predicted, f"true {true:.4g}, predicted {predicted:.4g}") for true, predicted in pairs[:_DOTS]
    ]
    return _against_ideal(f"{name}: predicted by true", dots, ticks(min(values), max(values)))


@dataclass(frozen=True)
class Tradeoff:
    """The precision-recall curve of a class or label.

    Attributes:
        name: Of the class or label.
        path: The `d` of its SVG path in a square of 100.
        area: Below the curve.
    """

    name: str
    path: str
    area: float


def tradeoffs(curves: Mapping[str, Sequence[Sequence[float]]]) -> list[Tradeoff]:
    """Draw precision-recall curves.

    Args:
        curves: Precision and recall at falling thresholds, by name; empty without rows of that name.
    """
    drawn = []
    for name, points in curves.items():
        if points:
            precision, recall = np.asarray([[points[0][0], 0.0], *points], float).T
            steps = zip(100 * recall, 100 - 100 * precision, strict=True)
            path = " ".join(f"{'L' if at else 'M'}{x:.1f} {y:.1f}" for at, (x, y) in enumerate(steps))
            drawn.append(Tradeoff(name, path, float(np.sum(precision[1:] * np.diff(recall)))))
    return drawn


@dataclass(frozen=True)
class Class:
    """Metrics of a class.

    Attributes:
        name: Of the class.
        rows: Held-out rows of it.
        recall: Share of them that were predicted as this class, None without such rows.
        precision: Share of the rows predicted as this class that belong to it, None without such rows.
        f1: Harmonic mean of precision and recall.
        mistake: The class that it was most often confused with, and how often; empty without mistakes.
    """

    name: str
    rows: int
    recall: float | None
    precision: float | None
    f1: float
    mistake: str


def classes(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> list[Class]:
    """Compute the metrics of each class.

    Args:
        confusion: Counts by true class (row) and predicted class (column).
        names: By label.
    """
    counts = np.asarray(confusion)
    described = []
    for label, name in enumerate(names):
        correct, rows = int(counts[label, label]), int(counts[label].sum())
        predicted = int(counts[:, label].sum())
        wrong = counts[label].copy()
        wrong[label] = 0
        worst = int(wrong.argmax())
        mistake = f"{names[worst]} ({wrong[worst] / rows:.1%})" if wrong[worst] else ""
        f1 = 2 * correct / max(1, rows + predicted)
        precision = correct / predicted if predicted else None
        recall = correct / rows if rows else None
        described.append(Class(name, rows, recall, precision, f1, mistake))
    return described


@dataclass(frozen=True)
class Part:
    """A part of the wall time: its name, its seconds and its share of all of them."""

    name: str
    seconds: float
    share: float


def times(seconds: Mapping[str, float]) -> list[Part]:
    """Return the parts of the wall time, the longest first; parts below 0.05 s are left out."""
    known = {name: value for name, value in seconds.items() if value >= 0.05}
    total = sum(known.values()) or 1.0
    order = sorted(known, key=lambda name: -known[name])
    return [Part(name, known[name], known[name] / total) for name in order]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run depends on."""
    installed = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


@dataclass(frozen=True)
class Facts:
    """What the report shows beside the evaluation.

    Attributes:
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
    """Encode an image, uint8 [H, W, C], as a data URL; channels other than 1 or 3 become their mean.

    PNG keeps each pixel of a small one; of a photograph of 192 x 192 it takes 35 ms and many times the bytes.
    """
    if image.shape[2] not in (1, 3):
        image = image.mean(2, keepdims=True).astype(np.uint8)
    if max(image.shape[:2]) > _SMALL:
        return "data:image/jpeg;base64," + base64.b64encode(to_jpeg(image)).decode()
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


PHOTO = 256
"""Longest side of a photograph on the page."""


@dataclass(frozen=True)
class Photo:
    """A picture as it was.

    Args:
        name: Of the file.
        url: Data URL, empty where the file cannot be read any more.
    """

    name: str
    url: str


def photos(config: Config, storage: Storage, names: Sequence[str]) -> list[Photo]:
    """Read pictures of the configured data as they are: whole, upright, in their own proportions."""
    data = config.data
    if data.path is None or not names:
        return []
    place = data.path
    with suppress(DistmlError):
        if is_remote(place) or is_archive(place):
            place = folder_at(place, data.format, storage)[1].root
    return [Photo(name, _photo(Storage(place), name, data.max_pixels)) for name in names]


def _photo(place: Storage, name: str, max_pixels: int) -> str:
    try:
        # The user's links are followed, as ingest follows them; `Storage` follows none out of its root.
        given = Path(place.root, name).read_bytes() if place.local else place.read_bytes(name)
        opened = image.open_picture(given, name, max_pixels)
        width, height = image.upright_size(opened)
        scale = min(1.0, PHOTO / max(width, height))
        sides = (max(1, round(height * scale)), max(1, round(width * scale)))
        content = to_jpeg(image.fit(opened, image.Policy((*sides, 3), "stretch"), name))
    except (DistmlError, OSError):
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def _columns(epoch: Mapping[str, Any]) -> list[tuple[str, str, Callable[[float], str]]]:
    """Name, heading and format of the metrics in the table by epoch."""
    headings = {"samples_per_s": "samples/s"}
    return [
        (name, headings.get(name, name.replace("val_", "validation ")), catalogue.get(name).text)
        for name in catalogue.shown(epoch)
    ]


def heated(image: Images, heat: Sequence[Sequence[float]]) -> Images:
    """Lay heat over an image, uint8 [H, W, 3]: red where it is 1, the image in gray where it is 0.

    Args:
        image: uint8 [H, W, C].
        heat: 0 to 1 by row and column of a grid over the image.
    """
    size = (image.shape[1], image.shape[0])
    grid = Image.fromarray((255 * np.asarray(heat)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    weight = 0.75 * np.asarray(grid, np.float32)[..., None] / 255
    gray = np.repeat(image.mean(2, keepdims=True), 3, 2)
    mixed: Images = ((1 - weight) * gray + weight * np.asarray([225, 45, 30])).astype(np.uint8)
    return mixed


def _boundary(config: Config, history: Sequence[Mapping[str, Any]]) -> str:
    """What is said below the curves of a run that first trained the head alone."""
    frozen = config.model.freeze_epochs
    text = catalogue.boundary(frozen) if 0 < frozen < history[-1]["epoch"] else ""
    return text[:1].upper() + text[1:]


Known = Mapping[int, tuple[Images, str]]
"""Pictures of training rows and what is true of them."""


def _mistakes(
    images: Images, report: Mapping[str, Any], photos: Sequence[Photo], known: Known
) -> list[dict[str, Any]]:
    small, blank, worst = max(images.shape[1:3]) <= _SMALL, Photo("", ""), report["worst"]
    heat, nearest = (report.get(name) or [None] * len(worst) for name in ("heat", "nearest"))
    shown = photos or [blank] * len(images)
    return [
        {
            "image": photo.url or embedded(image),
            "small": small and not photo.url,
            "name": photo.name,
            "true": true,
            "predicted": predicted,
            "loss": loss,
            "heat": embedded(heated(image, warm)) if warm else None,
            "nearest": [(embedded(known[row][0]), known[row][1]) for row in near or () if row in known],
        }
        for image, photo, (_, true, predicted, loss), warm, near in zip(
            images, shown, worst, heat, nearest, strict=True
        )
    ]


def _evaluated(manifest: Manifest, shown: Mapping[str, Any]) -> dict[str, Any]:
    """What the template takes of the evaluation of the split that is shown."""
    confusion = shown["confusion"]
    return {
        "classes": classes(confusion, manifest.classes) if confusion else [],
        "what": manifest.task.what,
        "table": shown["table"],
        "headings": list(next(iter(shown["table"].values()), {})),
        "headline": catalogue.get(shown["main"]),
        "others": [
            (metric.help.rstrip("."), metric.text(shown[metric.name]))
            for metric in catalogue.CATALOGUE
            if metric.name in shown and metric.name not in ("loss", shown["main"])
        ]
        + [(name, quality.digits(value)) for name, value in shown.get("own", {}).items()],
        "confusion": confusion if confusion and manifest.num_classes <= _CELLS else None,
        "tradeoffs": tradeoffs(shown["curves"]),
        "judged": [
            *([reliability(shown["reliability"])] if shown["reliability"] else []),
            *(scatter(name, pairs) for name, pairs in shown["scatter"].items() if pairs),
        ],
    }


def template(name: str) -> jinja2.Template:
    """Return a template of a page by its file name."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("distml.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def render(
    config: Config,
    manifest: Manifest,
    report: Mapping[str, Any],
    facts: Facts,
    images: Images,
    photos: Sequence[Photo] = (),
    known: Known | None = None,
) -> str:
    """Render a run's report.

    Args:
        config: Of the run.
        manifest: Of its data.
        report: The content of `report.json`: `evaluation` by split, `history` by epoch, `worst` mistakes,
            their `heat` and their `nearest` training rows.
        facts: The rest.
        images: uint8 [N, H, W, C], the images of the worst mistakes in their order.
        photos: The same as they were, where they are files.
        known: The training rows that `report` calls the nearest.

    Returns:
        A whole HTML document.
    """
    evaluation, history = report["evaluation"], report["history"]
    split = "test" if "test" in evaluation else "validation"
    return template("report.html.j2").render(
        config=config,
        settings=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        manifest=manifest,
        evaluation=evaluation,
        split=split,
        history=history,
        facts=facts,
        started=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(facts.started_at)),
        charts=[
            curve(history, metric.name, metric.title, metric.unit == "share")
            for metric in reversed(catalogue.charted(history[-1]))
        ],
        columns=_columns(history[-1]),
        boundary=_boundary(config, history),
        size=(WIDTH, HEIGHT),
        **_evaluated(manifest, evaluation[split]),
        mistakes=_mistakes(images, report, photos, known or {}),
        times=times(facts.times),
        versions=versions(),
    )
