"""TensorFlow Serving's REST protocol (replica).

The model takes uint8 images; of its two signatures `serving_default` takes them raw and `image_bytes` takes
encoded pictures. Paths, bodies and statuses were read in TensorFlow Serving's http_rest_api_handler.cc and
json_tensor.cc. As there, members that mean nothing are ignored, and so is the content type.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request

from distml.config import ServeConfig
from distml.data import plausible
from distml.data.schema import Images
from distml.serving import encoded, exchange, openapi, pixels
from distml.serving.asgi import Route
from distml.serving.exchange import Answer, RejectedError, answer
from distml.serving.openapi import Encoded, Image, Probability, Schema
from distml.serving.service import Models, Served, choose, number, warn

Signature = Literal["", "serving_default", "image_bytes"]


class NamedImage(Schema):
    """An image under the name of the signature's input."""

    image: Image
    """For `serving_default`."""


class NamedPicture(Schema):
    """An encoded picture under the name of the signature's input."""

    image_bytes: Encoded
    """For `image_bytes`."""


class TfRows(Schema):
    """The row format."""

    signature_name: Signature = "serving_default"
    """`serving_default` takes raw pixel values, `image_bytes` encoded pictures."""
    instances: Annotated[
        list[Image] | list[NamedImage] | list[Encoded] | list[NamedPicture], Field(min_length=1)
    ]
    """One entry for each image."""


class ImageColumn(Schema):
    """The tensor of `serving_default` under its name."""

    image: Annotated[list[Image], Field(min_length=1)]
    """N images."""


class PictureColumn(Schema):
    """The tensor of `image_bytes` under its name."""

    image_bytes: Annotated[list[Encoded], Field(min_length=1)]
    """N pictures."""


class TfColumns(Schema):
    """The columnar format."""

    signature_name: Signature = "serving_default"
    """`serving_default` takes raw pixel values, `image_bytes` encoded pictures."""
    inputs: Annotated[list[Image], Field(min_length=1)] | ImageColumn | list[Encoded] | PictureColumn
    """The whole input tensor, bare or under its name."""


class TfRowAnswers(Schema):
    """The answer to the row format."""

    predictions: list[list[Probability]]
    """For each image every output: the probability of each class or label, or each number."""


class TfColumnAnswers(Schema):
    """The answer to the columnar format."""

    outputs: list[list[Probability]]
    """The whole output tensor: for each image the probability of each class or label, or each number."""


class TfStatusOk(Schema):
    """How a version is."""

    error_code: Literal["OK"]
    """Always OK: what cannot be loaded is not listed."""
    error_message: str
    """Empty."""


class TfVersionState(Schema):
    """A loaded version."""

    version: str
    """Its number."""
    state: Literal["AVAILABLE"]
    """It answers."""
    status: TfStatusOk
    """How it is."""


class TfModelStatus(Schema):
    """The loaded versions of a model; KServe asks here whether it is ready."""

    name: str
    """Of the model."""
    ready: Literal[True]
    """It answers."""
    model_version_status: list[TfVersionState]
    """One entry for each, newest first."""


class TfModels(Schema):
    """The models."""

    models: list[str]
    """Their names."""


class TfModelSpec(Schema):
    """Which version is described."""

    name: str
    """Of the model."""
    signature_name: str
    """Empty: all signatures are described."""
    version: str
    """Its number."""


class TfMetadata(Schema):
    """The signatures of a version, as TensorFlow writes them."""

    model_spec: TfModelSpec
    """Which version is described."""
    metadata: dict[str, Any]
    """`signature_def`: name, type and shape of every input and output."""


RAW, ENCODED = "image", "image_bytes"
"""Names of the tensors, as `distml.artifacts.export` wrote them into the SavedModel."""
_SIGNATURES = {"": RAW, "serving_default": RAW, "image_bytes": ENCODED}
_PATHS = {
    "/v1/models/{name}": ("name",),
    "/v1/models/{name}/versions/{version}": ("name", "version"),
    "/v1/models/{name}/labels/{label}": ("name", "label"),
}


async def images(document: exchange.Document, served: Served, decode: encoded.Decode) -> tuple[str, Images]:
    """Read a request in row or columnar format.

    Returns:
        The member under which the answer goes, and uint8 [N, H, W, C].

    Raises:
        RejectedError: 400, at the first fault.
    """
    members = document.members
    signature = members.get("signature_name", "")
    if not isinstance(signature, str) or signature not in _SIGNATURES:
        known = "serving_default and image_bytes"
        raise RejectedError(
            400, f"the signature_name {str(signature)[:80]!r} is not known; known are {known}"
        )
    tensor = _SIGNATURES[signature]
    if ("instances" in members) == ("inputs" in members):
        raise RejectedError(400, "the body must hold either 'instances' or 'inputs'")
    if "instances" in members:
        tensor, values = _rows(members["instances"], tensor)
        return "predictions", await _tensor(values, tensor, "instances", document, served, decode)
    tensor, values = _columns(members["inputs"], tensor)
    return "outputs", await _tensor(values, tensor, "inputs", document, served, decode)


def _rows(values: Any, tensor: str) -> tuple[str, Any]:
    """Take every instance out of its object, where it stands in one; say which tensor they are of.

    Encoded images fit the input `image_bytes` alone, so it need not be named.
    """
    first = values[0] if isinstance(values, list) and values else None
    if not isinstance(first, dict):
        return tensor, values
    if first.keys() == {"b64"}:
        return ENCODED, values
    tensor = ENCODED if first.keys() == {ENCODED} else tensor
    for index, value in enumerate(values):
        if not isinstance(value, dict) or value.keys() != {tensor}:
            sentence = f"instances[{index}] must be an object with the one key {tensor!r}"
            raise RejectedError(400, sentence + ' or, of encoded pictures, "b64"' * (tensor == RAW))
    inner = [value[tensor] for value in values]
    return _encoded(inner[0], tensor), inner


def _columns(value: Any, tensor: str) -> tuple[str, Any]:
    """Take the tensor out of its object, where it stands in one; say which it is."""
    if isinstance(value, dict) and value.keys() != {"b64"}:
        tensor = ENCODED if value.keys() == {ENCODED} else tensor
        if value.keys() != {tensor}:
            raise RejectedError(400, f"inputs must hold the one key {tensor!r}")
        value = value[tensor]
    return _encoded(value[0] if isinstance(value, list) and value else value, tensor), value


def _encoded(first: Any, tensor: str) -> str:
    return ENCODED if isinstance(first, dict) and first.keys() == {"b64"} else tensor


async def _tensor(
    values: Any, tensor: str, where: str, document: exchange.Document, served: Served, decode: encoded.Decode
) -> Images:
    if tensor == RAW:
        return pixels.images(values, served.shape, where, document.booleans)
    if not isinstance(values, list) or not values:
        raise RejectedError(400, f'{where} must be a list of at least one {{"b64": "…"}}')
    names = [f"{where}[{index}]" for index in range(len(values))]
    files = [encoded.unwrap(value, name) for value, name in zip(values, names, strict=True)]
    return await decode(files, served.pictures, names)


def definition(served: Served) -> dict[str, Any]:
    """Describe both signatures in the JSON form of TensorFlow's SignatureDef."""

    def info(name: str, kind: str, *sizes: int) -> dict[str, Any]:
        dimensions = [{"size": str(size), "name": ""} for size in (-1, *sizes)]
        return {"dtype": kind, "tensor_shape": {"dim": dimensions, "unknown_rank": False}, "name": name}

    def signature(name: str, call: str, **inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = {
            served.task.output: info(f"StatefulPartitionedCall{call}:0", "DT_FLOAT", len(served.classes))
        }
        return {name: {"inputs": inputs, "outputs": outputs, "method_name": "tensorflow/serving/predict"}}

    raw = info("serving_default_image:0", "DT_UINT8", *served.shape)
    pictures = info("image_bytes_image_bytes:0", "DT_STRING")
    return signature("serving_default", "_1", image=raw) | signature("image_bytes", "", image_bytes=pictures)


def examples(image: Any, coded: dict[str, str], _output: str) -> openapi.Examples:
    """Show the bodies of this protocol with one image, as nested lists and encoded."""
    signature = {"signature_name": "image_bytes"}
    return {
        ":predict": {
            "rows": {"instances": [image]},
            "columns": {"inputs": {RAW: [image]}},
            "encoded rows": {**signature, "instances": [coded]},
            "encoded columns": {**signature, "inputs": {ENCODED: [coded]}},
        }
    }


def router(models: Models, config: ServeConfig, decode: encoded.Decode) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(route_class=Route, tags=["TensorFlow Serving"])
    limits = exchange.Limits(config.max_body_bytes, config.read_timeout_s)
    body = openapi.accepts({"application/json": TfRows | TfColumns})

    async def predict(request: Request) -> Answer:
        """Predict for images, in row or columnar format."""
        service = models.asked(request)
        wanted = number(service, request)
        served = choose(service, request, wanted)
        under, given = await images(exchange.parse_json(await exchange.body(request, limits)), served, decode)
        outputs, served = await service.classify(given, wanted, exchange.identity(request))
        answered = answer({under: outputs}, served.version, images=len(given))
        return warn(request, answered, plausible.doubts(given, served.usual))

    for path, names in _PATHS.items():
        parameters = {"parameters": openapi.in_path(*names)}
        routes.post(
            f"{path}:predict",
            response_model=TfRowAnswers | TfColumnAnswers,
            responses=openapi.CLASSIFYING,
            openapi_extra=parameters | body,
        )(predict)
    _add_description(routes, models)
    return routes


def _add_description(routes: APIRouter, models: Models) -> None:
    async def status(request: Request) -> Answer:
        """Say which versions are loaded."""
        service = models.asked(request)
        wanted = number(service, request)
        choose(service, request, wanted)
        fine = {"error_code": "OK", "error_message": ""}
        versions = [model.version for model in service.served() if wanted in (None, model.version)]
        states = [
            {"version": str(version), "state": "AVAILABLE", "status": fine}
            for version in sorted(versions, reverse=True)
        ]
        return answer({"name": service.served()[0].name, "ready": True, "model_version_status": states})

    @routes.get("/v1/models", response_model=TfModels)
    async def listed(request: Request) -> Answer:
        """List the models."""
        return answer({"models": models.loaded()})

    async def metadata(request: Request) -> Answer:
        """Describe the signatures."""
        service = models.asked(request)
        served = choose(service, request, number(service, request))
        spec = {"name": served.name, "signature_name": "", "version": str(served.version)}
        signatures = {"signature_def": {"signature_def": definition(served)}}
        return answer({"model_spec": spec, "metadata": signatures}, served.version)

    for path, names in _PATHS.items():
        described: dict[str, Any] = {
            "responses": openapi.ASKING,
            "openapi_extra": {"parameters": openapi.in_path(*names)},
        }
        routes.get(path, response_model=TfModelStatus, **described)(status)
        routes.get(f"{path}/metadata", response_model=TfMetadata, **described)(metadata)
