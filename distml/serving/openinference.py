"""The Open Inference Protocol, version 2, over HTTP, as KServe and Triton speak it (replica).

Specification: kserve/open-inference-protocol, specification/protocol/inference_rest.md. Members that mean
nothing are ignored, as the servers that share it do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request

import distml
from distml.config import ServeConfig
from distml.data.schema import Images
from distml.serving import encoded, exchange, openapi, plausible, strict, tensors
from distml.serving.exchange import Answer, RejectedError, answer
from distml.serving.route import Route
from distml.serving.schemas import openinference as schemas
from distml.serving.service import Served, Service, choose, number
from distml.serving.strict import kind

_PATHS = {"/v2/models/{name}": ("name",), "/v2/models/{name}/versions/{version}": ("name", "version")}
_EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
]


def split(body: bytes, declared: bytes) -> tuple[memoryview, memoryview]:
    """Split a body into its JSON and the bytes that follow.

    Args:
        body: The whole.
        declared: Value of the header that gives the length of the JSON, empty where all of it is.

    Raises:
        RejectedError: 400, the header is no such length.
    """
    whole = memoryview(body)
    if not declared:
        return whole, whole[len(whole) :]
    if not declared.isdigit() or len(declared) > 18 or int(declared) > len(body):
        sentence = (
            f"Inference-Header-Content-Length is {declared[:40].decode('latin-1')!r} of {len(body)} bytes"
        )
        raise RejectedError(400, sentence)
    return whole[: int(declared)], whole[int(declared) :]


async def images(
    document: strict.Document, rest: memoryview, served: Served, decode: encoded.Decode
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


def _identity(document: strict.Document) -> dict[str, str]:
    if "id" not in document.members or document.members["id"] is None:
        return {}
    if not isinstance(document.members["id"], str):
        raise RejectedError(400, f"the id is {kind(document.members['id'])}, not a string")
    return {"id": document.members["id"]}


def _metadata(service: Service, served: Served) -> dict[str, Any]:
    shapes = {"probabilities": [-1, len(served.classes)]}
    return {
        "name": served.name,
        "versions": [str(one.version) for one in service.served()],
        "platform": "tensorflow_savedmodel",
        "inputs": [{"name": tensors.RAW, "datatype": "UINT8", "shape": [-1, *served.shape]}],
        "outputs": [
            {"name": called, "datatype": datatype, "shape": shapes.get(called, [-1])}
            for called, datatype in tensors.OUTPUTS.items()
        ],
    }


def examples(image: Any, coded: dict[str, str]) -> openapi.Examples:
    """Show the bodies of this protocol with one image, as nested lists and encoded."""
    array = np.asarray(image)
    raw = {"name": tensors.RAW, "datatype": "UINT8", "shape": [1, *array.shape], "data": [image]}
    picture = {"name": tensors.ENCODED, "datatype": "BYTES", "shape": [1], "data": [coded["b64"]]}
    return {
        "/infer": {
            "pixels": {"id": "1", "inputs": [raw], "outputs": [{"name": "probabilities"}]},
            "picture": {"inputs": [picture]},
        }
    }


def router(service: Service, config: ServeConfig, decode: encoded.Decode) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(route_class=Route, tags=["Open Inference Protocol"])
    limits = exchange.Limits(config.max_body_bytes, config.read_timeout_s)

    async def infer(request: Request) -> Answer:
        """Classify images given as a tensor, in JSON or as bytes after it."""
        version = number(service, request)
        served = choose(service, request, version)
        text, rest = split(await exchange.body(request, limits), exchange.header(request, tensors.HEADER))
        document = strict.parse(text)
        identity, wanted = _identity(document), tensors.wanted(document)
        given = await images(document, rest, served, decode)
        probabilities, served = await service.classify(given, version, exchange.identity(request))
        answered = plausible.tell(
            request, tensors.render(identity, wanted, probabilities, served), plausible.doubts(given)
        )
        return exchange.compress(request, answered)

    _add_repository(routes, service)
    for path, names in _PATHS.items():
        parameters = {"parameters": openapi.in_path(*names)}
        body = openapi.accepts({"application/json": schemas.Request})
        routes.post(
            f"{path}/infer",
            response_model=schemas.Answer,
            responses=openapi.CLASSIFYING,
            openapi_extra=parameters | body,
        )(infer)
    _add_models(routes, service, config)
    _add_server(routes, service)
    return routes


def _add_models(routes: APIRouter, service: Service, config: ServeConfig) -> None:
    async def metadata(request: Request) -> Answer:
        """Describe the tensors of a model."""
        served = choose(service, request, number(service, request))
        return answer(_metadata(service, served), served.version)

    async def ready(request: Request) -> Answer:
        """Say that a model answers."""
        served = choose(service, request, number(service, request))
        return answer({"name": served.name, "ready": True}, served.version)

    async def configuration(request: Request) -> Answer:
        """Describe a model as Triton's model configuration does."""
        served = choose(service, request, number(service, request))
        return answer(_configuration(_metadata(service, served), config.max_queued_images), served.version)

    async def statistics(request: Request) -> Answer:
        """Say what the versions of a model have been asked of this replica, as Triton's statistics do."""
        wanted = number(service, request)
        choose(service, request, wanted)
        return answer(_statistics(service, wanted))

    for path, names in _PATHS.items():
        parameters = {"parameters": openapi.in_path(*names)}
        asking: dict[str, Any] = {"responses": openapi.ASKING, "openapi_extra": parameters}
        routes.get(path, response_model=schemas.Metadata, **asking)(metadata)
        routes.get(f"{path}/ready", response_model=schemas.ModelReady, **asking)(ready)
        routes.get(f"{path}/config", response_model=schemas.Config, **asking)(configuration)
        routes.get(f"{path}/stats", response_model=schemas.Statistics, **asking)(statistics)


def _configuration(metadata: dict[str, Any], batch: int) -> dict[str, Any]:
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
        "max_batch_size": batch,
        "input": tensors_of(metadata["inputs"]),
        "output": tensors_of(metadata["outputs"]),
    }


def _statistics(service: Service, wanted: int | None) -> dict[str, Any]:
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

    return {"model_stats": [of(one) for one in service.served() if wanted in (None, one.version)]}


def _add_repository(routes: APIRouter, service: Service) -> None:
    @routes.get("/v2/models", response_model=schemas.Models)
    async def models(request: Request) -> Answer:
        """List the models."""
        return answer({"models": [served.name for served in service.served()[:1]]})

    @routes.get("/v2/models/stats", response_model=schemas.Statistics)
    async def all_statistics(request: Request) -> Answer:
        """Say what every version has been asked of this replica."""
        return answer(_statistics(service, None))

    @routes.post(
        "/v2/repository/index", response_model=list[schemas.Indexed], responses=openapi.failures(403, 421)
    )
    async def index(request: Request) -> Answer:
        """List loaded versions, and those that are rejected with the reason."""
        named = [
            {"name": one.name, "version": str(one.version), "state": "READY", "reason": ""}
            for one in service.served()
        ]
        name = named[0]["name"] if named else ""
        named += [
            {"name": name, "version": str(one.version), "state": "UNAVAILABLE", "reason": one.reason}
            for one in service.refused()
        ]
        return answer(named)


def _add_server(routes: APIRouter, service: Service) -> None:
    @routes.get("/v2", response_model=schemas.Server)
    async def server(request: Request) -> Answer:
        """Describe the server."""
        return answer({"name": "distml", "version": distml.__version__, "extensions": _EXTENSIONS})

    @routes.get("/v2/health/live", response_model=schemas.Live)
    async def live(request: Request) -> Answer:
        """Say that the process answers."""
        return answer({"live": True})

    @routes.get("/v2/health/ready", response_model=schemas.Ready, responses={503: {"model": schemas.Ready}})
    async def server_ready(request: Request) -> Answer:
        """Say whether a champion is loaded."""
        ready = service.ready()
        return answer({"ready": ready}, status=200 if ready else 503)
