"""The Open Inference Protocol (KServe V2) over HTTP (replica).

Specification: kserve/open-inference-protocol, specification/protocol/inference_rest.md. Members that mean
nothing are ignored, as the servers that share it do.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request

import distml
from distml.config import ServeConfig
from distml.data import plausible
from distml.data.schema import Images
from distml.serving import encoded, exchange, openapi, tensors
from distml.serving.asgi import Route
from distml.serving.exchange import Answer, RejectedError, answer, json_type
from distml.serving.openapi import Schema
from distml.serving.service import Models, Served, Service, choose, number, warn

Number = float | str
Tensor = list[Number] | list[list[Number]] | list[list[list[Number]]] | list[list[list[list[Number]]]]


class V2Server(Schema):
    """The server."""

    name: str
    """Of the server."""
    version: str
    """Of the server."""
    extensions: list[str]
    """`binary_tensor_data`: tensors may follow the JSON as bytes; `classification`: outputs by rank."""


class V2Live(Schema):
    """A sign of life."""

    live: bool
    """Whether the server can answer."""


class V2Ready(Schema):
    """Whether requests are answered."""

    ready: bool
    """Whether a champion, or this model, is loaded."""


class V2ModelReady(V2Ready):
    """Whether a model answers."""

    name: str
    """Of the model."""


class V2Models(Schema):
    """The models."""

    models: list[str]
    """Their names."""


class V2Index(Schema):
    """Which versions to list."""

    ready: bool = False
    """Only those that answer."""


class V2IndexEntry(Schema):
    """A version in the index of the repository."""

    name: str
    """Of the model."""
    version: str
    """Its number."""
    state: Literal["READY", "UNAVAILABLE"]
    """Whether it answers."""
    reason: str
    """Why not, empty where it does."""


class V2TensorConfig(Schema):
    """An input or output, without the dimension of the batch."""

    name: str
    """Of the tensor."""
    data_type: str
    """Triton's, as `TYPE_UINT8`."""
    dims: list[int]
    """Its sizes."""


class V2ModelConfig(Schema):
    """A model as Triton's model configuration describes it."""

    name: str
    """Of the model."""
    platform: str
    """Of its export."""
    max_batch_size: int
    """Images of one request that are taken."""
    input: list[V2TensorConfig]
    """What it takes."""
    output: list[V2TensorConfig]
    """What it gives."""


class V2Statistics(Schema):
    """What this replica has been asked."""

    model_stats: list[dict[str, Any]]
    """An entry a version: `inference_count` images, `execution_count` calls of the model, times."""


class V2TensorMetadata(Schema):
    """An input or output."""

    name: str
    """Of the tensor."""
    datatype: str
    """UINT8, FP32, INT32 or BYTES."""
    shape: list[int]
    """-1 stands for the number of images."""


class V2ModelMetadata(Schema):
    """A model."""

    name: str
    """Of the model."""
    versions: list[str]
    """Those that are loaded, the champion first."""
    platform: str
    """What it was made with."""
    inputs: list[V2TensorMetadata]
    """What it takes."""
    outputs: list[V2TensorMetadata]
    """What it gives."""


class V2Input(Schema):
    """An input tensor: `image` with pixel values, or `image_bytes` (BYTES) with encoded pictures."""

    name: Literal["image", "image_bytes"]
    """Of the tensor."""
    datatype: Literal["UINT8", "INT32", "INT64", "FP32", "FP64", "BYTES"]
    """UINT8 is the model's own; in the other number types only whole values from 0 to 255 are taken."""
    shape: Annotated[list[int], Field(min_length=1, max_length=4)]
    """[N, H, W, C]; [N, H, W] where C is 1; [N] for `image_bytes`."""
    parameters: dict[str, Any] | None = None
    """`binary_data_size`: bytes of this tensor after the JSON, instead of `data`."""
    data: Tensor | None = None
    """Flat or nested, row by row; pictures in base64."""


class V2RequestedOutput(Schema):
    """An output to return."""

    name: Literal["probabilities", "label", "class", "labels", "values"]
    """Of the tensor."""
    parameters: dict[str, Any] | None = None
    """`binary_data`: as bytes after the JSON; `classification`: only this many, as `value:label:class`."""


class V2Request(Schema):
    """Images to predict for."""

    id: str | None = None
    """Comes back with the answer."""
    parameters: dict[str, Any] | None = None
    """`binary_data_output`: return all outputs as bytes."""
    inputs: Annotated[list[V2Input], Field(min_length=1, max_length=1)]
    """One tensor."""
    outputs: list[V2RequestedOutput] | None = None
    """What to return; nothing returns everything."""


class V2OutputTensor(Schema):
    """An output."""

    name: str
    """Of the tensor."""
    datatype: str
    """FP32, INT32 or BYTES."""
    shape: list[int]
    """[N, K] for K classes, labels or numbers, or [N]."""
    parameters: dict[str, Any] | None = None
    """`binary_data_size`: bytes of this tensor after the JSON, instead of `data`."""
    data: list[Number] | None = None
    """Flat, row by row."""


class V2Answer(Schema):
    """The answer."""

    model_name: str
    """Which model answered."""
    model_version: str
    """Which version of it."""
    id: str | None = None
    """As in the request."""
    outputs: list[V2OutputTensor]
    """As asked for."""


_PATHS = {"/v2/models/{name}": ("name",), "/v2/models/{name}/versions/{version}": ("name", "version")}
EXTENSIONS = ["classification", "model_configuration", "model_repository", "statistics"]
"""Of the protocol that both of its forms have."""


_SPACES = 100


def split(body: bytes, declared: bytes) -> tuple[memoryview, memoryview]:
    """Split a body into its JSON and the bytes that follow.

    Args:
        body: The whole.
        declared: Value of the header that gives the length of the JSON, empty where all of it is.

    Raises:
        RejectedError: 400, the header is no such length, or is not there though bytes follow.
    """
    whole = memoryview(body)
    if not declared:
        if b'"binary_data_size"' in body and not body[-_SPACES:].rstrip().endswith(b"}"):
            sentence = "bytes follow the JSON; give its length in the header Inference-Header-Content-Length"
            raise RejectedError(400, sentence)
        return whole, whole[len(whole) :]
    if not declared.isdigit() or len(declared) > 18 or int(declared) > len(body):
        sentence = (
            f"Inference-Header-Content-Length is {declared[:40].decode('latin-1')!r} of {len(body)} bytes"
        )
        raise RejectedError(400, sentence)
    return whole[: int(declared)], whole[int(declared) :]


async def images(
    document: exchange.Document, rest: memoryview, served: Served, decode: encoded.Decode
) -> Images:
    """Read the input tensor, uint8 [N, H, W, C].

    Raises:
        RejectedError: 400, at the first fault.
    """
    inputs = document.members.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise RejectedError(400, "inputs must be a list of one tensor")
    tensor = tensors.given(inputs[0], rest)
    if tensor.name == tensors.ENCODED:
        return await tensors.pictures(tensor, served.pictures, decode)
    return tensors.pixel_values(tensor, served.shape, document.booleans)


def _identity(document: exchange.Document) -> dict[str, str]:
    if "id" not in document.members or document.members["id"] is None:
        return {}
    if not isinstance(document.members["id"], str):
        raise RejectedError(400, f"the id is {json_type(document.members['id'])}, not a string")
    return {"id": document.members["id"]}


def described(service: Service, served: Served) -> dict[str, Any]:
    """Describe the tensors of a version."""
    wide = len(served.classes)
    return {
        "name": served.name,
        "versions": [str(model.version) for model in service.served()],
        "platform": "tensorflow_savedmodel",
        "inputs": [{"name": tensors.RAW, "datatype": "UINT8", "shape": [-1, *served.shape]}],
        "outputs": [
            {
                "name": called,
                "datatype": datatype,
                "shape": [-1, wide] if called in served.task.wide else [-1],
            }
            for called, datatype in served.task.tensors.items()
        ],
    }


def examples(image: Any, coded: dict[str, str], output: str) -> openapi.Examples:
    """Show the bodies of this protocol with one image, as nested lists and encoded, and an output's name."""
    array = np.asarray(image)
    raw = {"name": tensors.RAW, "datatype": "UINT8", "shape": [1, *array.shape], "data": [image]}
    picture = {"name": tensors.ENCODED, "datatype": "BYTES", "shape": [1], "data": [coded["b64"]]}
    return {
        "/infer": {
            "pixels": {"id": "1", "inputs": [raw], "outputs": [{"name": output}]},
            "picture": {"inputs": [picture]},
        }
    }


def router(models: Models, config: ServeConfig, decode: encoded.Decode) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(route_class=Route, tags=["Open Inference Protocol"])
    limits = exchange.Limits(config.max_body_bytes, config.read_timeout_s)

    async def infer(request: Request) -> Answer:
        """Predict for images given as a tensor, in JSON or as bytes after it."""
        service = models.asked(request)
        version = number(service, request)
        served = choose(service, request, version)
        text, rest = split(await exchange.body(request, limits), exchange.header(request, tensors.HEADER))
        document = exchange.parse_json(text)
        identity, wanted = _identity(document), tensors.wanted(document, served.task)
        given = await images(document, rest, served, decode)
        outputs, served = await service.classify(given, version, exchange.identity(request))
        answered = warn(
            request,
            tensors.render(identity, wanted, outputs, served),
            plausible.doubts(given, served.usual),
        )
        return exchange.compress(request, answered)

    _add_repository(routes, models, limits)
    for path, names in _PATHS.items():
        parameters = {"parameters": openapi.in_path(*names)}
        body = openapi.accepts({"application/json": V2Request})
        routes.post(
            f"{path}/infer",
            response_model=V2Answer,
            responses=openapi.CLASSIFYING,
            openapi_extra=parameters | body,
        )(infer)
    _add_models(routes, models)
    _add_server(routes, models)
    return routes


def _add_models(routes: APIRouter, models: Models) -> None:
    async def metadata(request: Request) -> Answer:
        """Describe the tensors of a model."""
        service = models.asked(request)
        served = choose(service, request, number(service, request))
        return answer(described(service, served), served.version)

    async def ready(request: Request) -> Answer:
        """Say that a model answers."""
        service = models.asked(request)
        served = choose(service, request, number(service, request))
        return answer({"name": served.name, "ready": True}, served.version)

    async def configuration(request: Request) -> Answer:
        """Describe a model as Triton's model configuration does."""
        service = models.asked(request)
        served = choose(service, request, number(service, request))
        return answer(configured(service, served), served.version)

    async def statistics(request: Request) -> Answer:
        """Say what the versions of a model have been asked of this replica, as Triton's statistics do."""
        service = models.asked(request)
        wanted = number(service, request)
        choose(service, request, wanted)
        return answer({"model_stats": statistics_of(service, wanted)})

    for path, names in _PATHS.items():
        parameters = {"parameters": openapi.in_path(*names)}
        asking: dict[str, Any] = {"responses": openapi.ASKING, "openapi_extra": parameters}
        routes.get(path, response_model=V2ModelMetadata, **asking)(metadata)
        routes.get(f"{path}/ready", response_model=V2ModelReady, **asking)(ready)
        routes.get(f"{path}/config", response_model=V2ModelConfig, **asking)(configuration)
        routes.get(f"{path}/stats", response_model=V2Statistics, **asking)(statistics)


def configured(service: Service, served: Served) -> dict[str, Any]:
    """Describe a version as Triton's model configuration does."""
    metadata = described(service, served)

    def tensors_of(described: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                "name": tensor["name"],
                "data_type": "TYPE_STRING" if tensor["datatype"] == "BYTES" else f"TYPE_{tensor['datatype']}",
                "dims": tensor["shape"][1:] or [1],
            }
            for tensor in described
        ]

    return {
        "name": metadata["name"],
        "platform": metadata["platform"],
        "max_batch_size": service.most_images(),
        "input": tensors_of(metadata["inputs"]),
        "output": tensors_of(metadata["outputs"]),
    }


def statistics_of(service: Service, wanted: int | None) -> list[dict[str, Any]]:
    """Say what the versions of a model have been asked of this replica, one of them where it is wanted."""

    def of(served: Served) -> dict[str, Any]:
        usage = service.usage(served.version)
        return {
            "name": served.name,
            "version": str(served.version),
            "last_inference": int(usage.last_at * 1000),
            "inference_count": usage.images,
            "execution_count": usage.calls,
            "inference_stats": {
                "success": {"count": usage.requests, "ns": int(usage.seconds * 1e9)},
                "fail": {"count": usage.failed, "ns": 0},
            },
        }

    return [of(model) for model in service.served() if wanted in (None, model.version)]


def every_statistics(models: Models) -> list[dict[str, Any]]:
    """Say what the versions of all models have been asked of this replica."""
    every = [statistics_of(service, None) for service in models.services.values()]
    return list(itertools.chain.from_iterable(every))


def index(models: Models, ready: bool) -> list[dict[str, Any]]:
    """List the versions of all models: those that are loaded and, unless only these are wanted, the others.

    Args:
        models: Of the endpoint.
        ready: Whether only loaded versions are wanted.
    """
    every = [_index(name, service) for name, service in models.services.items()]
    rows = itertools.chain.from_iterable(every)
    return [row for row in rows if not ready or row["state"] == "READY"]


def _index(name: str, service: Service) -> list[dict[str, Any]]:
    """List the versions of a model: those that are loaded, and those that should be."""
    loaded, refused = service.served(), service.refused()
    name = loaded[0].name if loaded else name
    rows = [(str(model.version), "READY", "") for model in loaded]
    rows += [(str(model.version), "UNAVAILABLE", model.reason) for model in refused]
    if name and not rows:
        rows = [("", "UNAVAILABLE", "no version is loaded")]
    return [
        {"name": name, "version": version, "state": state, "reason": reason}
        for version, state, reason in rows
    ]


def _add_repository(routes: APIRouter, models: Models, limits: exchange.Limits) -> None:
    @routes.get("/v2/models", response_model=V2Models)
    async def listed(request: Request) -> Answer:
        """List the models."""
        return answer({"models": models.loaded()})

    @routes.get("/v2/models/stats", response_model=V2Statistics)
    async def all_statistics(request: Request) -> Answer:
        """Say what every version has been asked of this replica."""
        return answer({"model_stats": every_statistics(models)})

    @routes.post(
        "/v2/repository/index",
        response_model=list[V2IndexEntry],
        responses=openapi.failures(400, 401, 403, 408, 413, 415, 421, 429),
        openapi_extra=openapi.accepts({"application/json": V2Index}, required=False),
    )
    async def listed_versions(request: Request) -> Answer:
        """List loaded versions, and those that are rejected with the reason."""
        content = await exchange.body(request, limits)
        return answer(index(models, _only_ready(content)))


def _only_ready(content: bytes) -> bool:
    """Read the body of a request for the index, empty or with whether only ready versions are wanted."""
    ready = exchange.parse_json(content).members.get("ready", False) if content else False
    if not isinstance(ready, bool):
        raise RejectedError(400, f"ready is {json_type(ready)}, not true or false")
    return ready


def _add_server(routes: APIRouter, models: Models) -> None:
    @routes.get("/v2", response_model=V2Server)
    async def server(request: Request) -> Answer:
        """Describe the server."""
        extensions = sorted([*EXTENSIONS, "binary_tensor_data"])
        return answer({"name": "distml", "version": distml.__version__, "extensions": extensions})

    @routes.get("/v2/health/live", response_model=V2Live)
    async def live(request: Request) -> Answer:
        """Say that the process answers."""
        return answer({"live": True})

    @routes.get("/v2/health/ready", response_model=V2Ready, responses={503: {"model": V2Ready}})
    async def server_ready(request: Request) -> Answer:
        """Say whether a champion is loaded; of several models one is enough."""
        ready = models.ready()
        return answer({"ready": ready}, status=200 if ready else 503)
