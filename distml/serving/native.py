"""distml's own HTTP protocol: /predict, /model, /explain and their schemas (replica)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from distml.config import ServeConfig
from distml.data import plausible
from distml.data.schema import Images
from distml.errors import OverloadedError
from distml.serving import encoded, exchange, openapi, pixels
from distml.serving.asgi import Route
from distml.serving.exchange import Answer, RejectedError, answer
from distml.serving.metrics import KIND, Metrics
from distml.serving.openapi import Encoded, Image, Probability, RequestBody, Schema
from distml.serving.service import Models, Served, Service, champion, warn
from distml.tasks import Outputs


class Instances(RequestBody):
    """Images to predict for: all as numbers, or all encoded."""

    instances: Annotated[list[Image] | list[Encoded], Field(min_length=1)]
    """Raw pixel values, H rows of W pixels (of C channels each); or `{"b64": …}`."""


class Prediction(Schema):
    """The answer for one image."""

    class_: Annotated[str, Field(alias="class")]
    """Name of the most probable class."""
    label: Annotated[int, Field(ge=0)]
    """Its number."""
    probability: Probability
    """Its probability."""
    probabilities: list[Probability]
    """Of every class, by label."""


class LabelsPrediction(Schema):
    """The answer of a multilabel model for one image."""

    labels: list[str]
    """Those whose probability reaches their threshold."""
    probabilities: list[Probability]
    """Of every label, by its number."""


class NumbersPrediction(Schema):
    """The answer of a regression model for one image."""

    values: list[float]
    """The numbers, in their order."""
    named: dict[str, float]
    """The numbers by name."""


class ModelIdentity(Schema):
    """Which model answered."""

    name: str
    """Of the registered model."""
    version: int
    """Its version."""
    run_id: str | None
    """MLflow run that trained it."""
    sha256: str
    """Stands for every byte of the model."""


class Doubt(Schema):
    """What is odd about some images, and answered all the same."""

    code: str
    """`constant`, `values_0_to_1` or `very_dark`."""
    sentence: str
    """Which images, and why."""


class Predictions(Schema):
    """Answers in the order of the images."""

    model: ModelIdentity
    """Which model answered."""
    predictions: list[Prediction] | list[LabelsPrediction] | list[NumbersPrediction]
    """One for each image."""
    warnings: list[Doubt] = Field(default_factory=list)
    """Only where images are probably not what their sender means."""


class Explanation(Schema):
    """Which parts of a picture a prediction depends on."""

    model: ModelIdentity
    """Which model answered."""
    prediction: Prediction | LabelsPrediction | NumbersPrediction
    """Of the picture as it is."""
    of: str
    """The class, label or number that is explained."""
    output: float
    """Its probability or value for the picture as it is."""
    influence: list[list[float]]
    """By row and column of a grid over the image: by how much the output falls, or a number changes, on
    average where the cell and what is around it are covered."""
    covered_with: list[int]
    """What cells are covered with: the mean of each channel of the picture."""


class PicturePolicy(Schema):
    """How a picture of any size and mode becomes an image."""

    shape: Annotated[list[int], Field(min_length=3, max_length=3)]
    """Height, width and channels of the image."""
    fit: Literal["crop", "letterbox", "stretch"]
    """What happens to a picture of another shape."""
    background: Annotated[list[int], Field(min_length=3, max_length=3)]
    """Red, green and blue behind transparent parts and in the bars of a letterbox."""


class VersionDescription(ModelIdentity):
    """A loaded version of the model."""

    classes: list[str]
    """Names of classes, labels or numbers, in the order of the outputs."""
    shape: Annotated[list[int], Field(min_length=3, max_length=3)]
    """Height, width and channels of an image."""
    metrics: dict[str, float]
    """Of the run that trained it."""
    data_digest: str | None
    """Of the data set's manifest."""
    loaded_at: float
    """Seconds since 1970 when this replica had it ready."""
    confusion: list[list[int]] | None = None
    """Counts on held-out rows by true class (outer) and predicted class (inner)."""
    policy: PicturePolicy | None = None
    """How pictures become images; none stretches them, over black."""
    target: dict[str, Any] | None = None
    """What is predicted: `kind` and what was chosen for it; none is classification."""
    engine: dict[str, Any] | None = None
    """`name`, `threads` and `batch` of the engine that computes; `figures` of those that were measured."""


class RefusedVersion(Schema):
    """A version that an alias points at and that was rejected."""

    version: int
    """Its version."""
    alias: str
    """What points at it."""
    reason: str
    """Why it is rejected."""
    at: float
    """Seconds since 1970 when it was rejected."""


class ReplicaLoss(Schema):
    """Replicas that died with a version at work: its engine crashed, or memory ran out."""

    version: int
    """Its version."""
    doing: Literal["loading", "predicting"]
    """What they did with it."""
    replicas: int
    """How many, since the endpoint's watcher started."""
    at: float
    """Seconds since 1970 when the last was noticed."""


class RegistryStatus(Schema):
    """Whether what is served is what the registry says now."""

    answers: bool
    """False while it is unreachable: the versions served last keep answering."""
    age_s: float | None
    """Seconds since it answered; none where it never did."""
    missing: list[str]
    """Aliases that are followed and not set there."""


class ModelDescription(VersionDescription):
    """The champion, and what else is there."""

    aliases: dict[str, int]
    """Loaded version of each alias that is followed, the champion first."""
    what: str
    """What `classes` are: classes, labels or numbers."""
    versions: list[VersionDescription]
    """Every loaded version, the champion first."""
    refused: list[RefusedVersion]
    """Versions that should be loaded and are not."""
    losses: list[ReplicaLoss]
    """What replicas did with this model when they died."""
    registry: RegistryStatus
    """The registry that names the champion."""


class Health(Schema):
    """A sign of life."""

    status: str
    """`ok`, or why not."""


_JSON = ("", "application/json", "text/json")
_PICTURES = (
    "image/png",
    "image/jpeg",
    "image/webp",
    "image/bmp",
    "image/gif",
    "application/octet-stream",
    "",
)

_DESCRIBED = (*_PICTURES[:3], "application/octet-stream")
"""Generators of clients know the last one as any file."""
_LATE_S = 10.0
"""Of an answer of the registry, beside two looks: replicas receive one every two seconds."""


def predictions(outputs: Outputs, served: Served) -> dict[str, Any]:
    """Describe answers.

    Args:
        outputs: float32 [N, K].
        served: What computed them.
    """
    return {"model": identity(served), "predictions": served.task.predictions(outputs)}


def identity(served: Served) -> dict[str, Any]:
    """Say which model it is."""
    return {
        "name": served.name,
        "version": served.version,
        "run_id": served.run_id,
        "sha256": served.sha256,
    }


async def images(document: exchange.Document, served: Served, decode: encoded.Decode) -> Images:
    """Read `{"instances": […]}`, uint8 [N, H, W, C].

    Raises:
        RejectedError: 400, at the first fault.
    """
    members = document.members
    if members.keys() != {"instances"}:
        unknown = sorted(members.keys() - {"instances"})
        problem = f"the key {unknown[0][:80]!r} is not known" if unknown else "the key 'instances' is missing"
        raise RejectedError(400, f'{problem}; send {{"instances": […]}}')
    values = members["instances"]
    if isinstance(values, list) and values and isinstance(values[0], dict):
        names = [f"instances[{index}]" for index in range(len(values))]
        files = [encoded.unwrap(value, name) for value, name in zip(values, names, strict=True)]
        return await decode(files, served.pictures, names)
    return pixels.images(values, served.shape, "instances", document.booleans)


def examples(image: Any, coded: dict[str, str], _output: str) -> openapi.Examples:
    """Show the bodies of this protocol with one image, as nested lists and encoded."""
    return {"/predict": {"numbers": {"instances": [image]}, "base64": {"instances": [coded]}}}


def _files(content: bytes, request: Request) -> tuple[Sequence[bytes], Sequence[str]]:
    """Return the pictures of a body and what to call them."""
    kind = exchange.kind(request)
    if kind == "multipart/form-data":
        return encoded.form_files(content, exchange.header(request, b"content-type"))
    if kind not in _PICTURES and not kind.startswith("image/"):
        raise RejectedError(
            415, f"the content type {kind!r} is not a picture; send {', '.join(_PICTURES[:3])} or a form"
        )
    if not content:
        raise RejectedError(400, "the body is empty; send a picture")
    return [content], ["the picture"]


def _answered(request: Request, given: Images, outputs: Outputs, served: Served) -> Answer:
    doubts = plausible.doubts(given, served.usual)
    document = predictions(outputs, served) | plausible.described(doubts)
    return warn(request, answer(document, served.version, images=len(given)), doubts)


_FORM = {
    "type": "object",
    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
}


def router(models: Models, config: ServeConfig, decode: encoded.Decode) -> APIRouter:
    """Make the routes: of several models, those of each below `/models/NAME` beside those of the first."""
    routes = APIRouter(route_class=Route, tags=["native"])
    for below, names in _places(models):
        parameters: dict[str, Any] = {"parameters": openapi.in_path(*names)} if names else {}
        _add_predict(routes, models, config, decode, below, parameters)
        _add_explain(routes, models, config, decode, below, parameters)
        _add_model(routes, models, config, below, parameters)
    _add_health(routes, models)
    return routes


BELOW = "/models/{name}"
"""Where each of several models has the routes of an endpoint that is its own."""


def _places(models: Models) -> list[tuple[str, tuple[str, ...]]]:
    return [("", ()), (BELOW, ("name",))] if models.several else [("", ())]


def _add_predict(
    routes: APIRouter,
    models: Models,
    config: ServeConfig,
    decode: encoded.Decode,
    below: str,
    parameters: dict[str, Any],
) -> None:
    limits = exchange.Limits(config.max_body_bytes, config.read_timeout_s)

    async def predict(request: Request) -> Answer:
        """Predict for images given as numbers or in base64."""
        if (kind := exchange.kind(request)) not in _JSON:
            raise RejectedError(
                415, f"the content type {kind[:80]!r} is not supported; send application/json"
            )
        service = models.asked(request)
        document = exchange.parse_json(await exchange.body(request, limits))
        return await _classified(request, service, await images(document, champion(service), decode))

    async def predict_image(request: Request) -> Answer:
        """Predict for a picture, or every picture of a form."""
        service = models.asked(request)
        files, names = _files(await exchange.body(request, limits), request)
        return await _classified(request, service, await decode(files, champion(service).pictures, names))

    pictures = dict.fromkeys(_DESCRIBED, openapi.BINARY) | {"multipart/form-data": _FORM}
    taken: dict[str, Any] = {"application/json": Instances}
    for path, endpoint, contents in (("", predict, taken), ("/image", predict_image, pictures)):
        routes.post(
            f"{below}/predict{path}",
            response_model=Predictions,
            responses=openapi.CLASSIFYING,
            openapi_extra=parameters | openapi.accepts(contents),
        )(endpoint)


async def _classified(request: Request, service: Service, given: Images) -> Answer:
    outputs, served = await service.classify(given, None, exchange.identity(request))
    return _answered(request, given, outputs, served)


GRID = 8
"""Cells of an explanation's grid along a side, fewer in images of fewer pixels."""
_AT_ONCE = 16
"""Covered images that wait for the model together: other requests come in between."""


def covered(image: Images, grid: tuple[int, int]) -> tuple[Images, list[tuple[slice, slice]]]:
    """Cover parts of an image with its mean, one after the other: windows of two by two cells of a grid.

    Args:
        image: uint8 [H, W, C].
        grid: Rows and columns of cells, each at least 2.

    Returns:
        uint8 [M, H, W, C], and the cells that each of them covers.
    """
    rows, columns = (
        [side * at // cells for at in range(cells + 1)]
        for side, cells in zip(image.shape, grid, strict=False)
    )
    windows = [
        (slice(row, row + 2), slice(column, column + 2))
        for row in range(grid[0] - 1)
        for column in range(grid[1] - 1)
    ]
    images = np.repeat(image[None], len(windows), 0)
    mean = np.rint(image.mean((0, 1))).astype(np.uint8)
    for at, (down, across) in enumerate(windows):
        images[at, rows[down.start] : rows[down.stop], columns[across.start] : columns[across.stop]] = mean
    return images, windows


def spread(values: np.ndarray, windows: list[tuple[slice, slice]], grid: tuple[int, int]) -> np.ndarray:
    """The mean over the windows that cover a cell, [rows, columns]; values are [M]."""
    sums, counts = np.zeros(grid), np.zeros(grid)
    for value, window in zip(values, windows, strict=True):
        sums[window] += value
        counts[window] += 1
    return sums / counts


async def _explained(service: Service, image: Images, wanted: str | None) -> Answer:
    """Explain an answer by covering parts of the picture: as many predictions as there are windows.

    Raises:
        RejectedError: 400, nothing is called as is wanted.
    """
    outputs, served = await service.classify(image[None], None, heard=False)
    task = served.task
    if wanted is not None and wanted not in task.names:
        known = ", ".join(task.names[:20]) + ", …" * (len(task.names) > 20)
        raise RejectedError(400, f"there is no {wanted[:80]!r} among the {task.what}: {known}")
    at = task.focus(outputs[0]) if wanted is None else task.names.index(wanted)
    grid = (min(GRID, image.shape[0]), min(GRID, image.shape[1]))
    images, windows = covered(image, grid)
    parts = [
        (await service.classify(images[first : first + _AT_ONCE], served.version, heard=False))[0]
        for first in range(0, len(images), _AT_ONCE)
    ]
    falls = outputs[0, at] - np.concatenate(parts)[:, at]
    document = {
        "model": identity(served),
        "prediction": task.predictions(outputs)[0],
        "of": task.names[at],
        "output": outputs[0, at],
        "influence": [
            [round(float(value), 6) for value in row] for row in task.influence(spread(falls, windows, grid))
        ],
        "covered_with": np.rint(image.mean((0, 1))).astype(int).tolist(),
    }
    return answer(document, served.version, images=1)


def _wanted(request: Request) -> str | None:
    """Return what is to be explained, None where the task chooses."""
    wanted = request.query_params.getlist("of")
    if len(wanted) > 1:
        raise RejectedError(400, f"one output is explained at a time, not {len(wanted)}; send of=NAME once")
    return wanted[0] if wanted else None


_OF = {
    "name": "of",
    "in": "query",
    "required": False,
    "schema": {"type": "string"},
    "description": "The class, label or number to explain; else the predicted class, the most probable label "
    "or the first number.",
}


def _add_explain(
    routes: APIRouter,
    models: Models,
    config: ServeConfig,
    decode: encoded.Decode,
    below: str,
    parameters: dict[str, Any],
) -> None:
    limits = exchange.Limits(config.max_body_bytes, config.read_timeout_s)
    alone = asyncio.Lock()

    @routes.post(
        f"{below}/explain",
        response_model=Explanation,
        responses=openapi.CLASSIFYING,
        openapi_extra=openapi.accepts(
            {"application/json": Instances}
            | dict.fromkeys(_DESCRIBED, openapi.BINARY)
            | {"multipart/form-data": _FORM}
        )
        | {"parameters": [*parameters.get("parameters", ()), _OF]},
    )
    async def explain(request: Request) -> Answer:
        """Say which parts of one picture the prediction depends on, by covering them one after the other."""
        service = models.asked(request)
        content, first = await exchange.body(request, limits), champion(service)
        if exchange.kind(request) in _JSON[1:]:
            given = await images(exchange.parse_json(content), first, decode)
        else:
            files, names = _files(content, request)
            given = await decode(files[:2], first.pictures, names[:2])
        if len(given) != 1:
            raise RejectedError(400, f"one picture is explained at a time, not {len(given)} and more")
        if min(first.shape[:2]) < 2:
            raise RejectedError(400, "images of one pixel have no parts")
        if alone.locked():
            raise OverloadedError("another prediction is being explained.", "Retry.")
        async with alone:
            return await _explained(service, given[0], _wanted(request))


def _add_model(
    routes: APIRouter, models: Models, config: ServeConfig, below: str, parameters: dict[str, Any]
) -> None:
    extra: dict[str, Any] = {"openapi_extra": parameters} if parameters else {}

    @routes.get(
        f"{below}/model", response_model=ModelDescription, responses=openapi.failures(401, 429, 503), **extra
    )
    async def model(request: Request) -> Answer:
        """Describe the champion and every other loaded version."""
        service = models.asked(request)
        first = champion(service)
        versions = [_version(served) for served in service.served()]
        refused = [asdict(refusal) for refusal in service.refused()]
        registry = _registry(service, config)
        described = {**_version(first), "aliases": dict(service.aliases())} | {
            "what": first.task.what,
            "versions": versions,
            "refused": refused,
            "losses": [asdict(loss) for loss in service.losses()],
            "registry": registry,
        }
        return answer(described, first.version)

    if not below:
        return

    @routes.get(f"{below}/readyz", response_model=Health, responses={503: {"model": Health}}, **extra)
    async def readyz(request: Request) -> Answer:
        """Say whether the champion of this model is loaded."""
        service = models.asked(request)
        if not service.ready():
            return answer({"status": "no champion is loaded"}, status=503)
        return answer({"status": "ok"}, champion(service).version)


def _version(served: Served) -> dict[str, Any]:
    """Describe a version, without statistics of its images and predictions."""
    described = asdict(replace(served, usual=None))
    del described["usual"], described["predicted"]
    return described


def _registry(service: Service, config: ServeConfig) -> dict[str, Any]:
    state = service.registry()
    age_s = time.time() - state.answered_at if state.answered_at else None
    return {
        "answers": age_s is not None and age_s < _LATE_S + 2 * config.poll_s,
        "age_s": None if age_s is None else round(age_s, 1),
        "missing": list(state.missing),
    }


def _add_health(routes: APIRouter, models: Models) -> None:
    @routes.get("/healthz", response_model=Health)
    async def healthz(request: Request) -> Answer:
        """Say that the process answers."""
        return answer({"status": "ok"})

    @routes.get("/readyz", response_model=Health, responses={503: {"model": Health}})
    async def readyz(request: Request) -> Answer:
        """Say whether a champion is loaded; of several models one is enough, and the others are named."""
        if not models.ready():
            return answer({"status": "no champion is loaded"}, status=503)
        if unready := models.unready():
            return answer({"status": f"ok, but no champion is loaded of {', '.join(unready)}"})
        return answer({"status": "ok"}, champion(models.first).version)

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def scrape(request: Request) -> Answer:
        """Show all metrics in Prometheus's text format."""
        metrics: Metrics = request.app.metrics
        return Answer(await metrics.text(), kind=KIND)
