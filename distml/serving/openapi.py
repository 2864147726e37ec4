"""The OpenAPI document of the endpoint, and the base schemas of all protocols' bodies (replica)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, RootModel, TypeAdapter

from distml.serving.service import Served
from distml.tasks import Task

Pixel = Annotated[float, Field(ge=0, le=255, multiple_of=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Schema(BaseModel):
    """Base of all bodies: field docstrings are the descriptions."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


class RequestBody(Schema):
    """Base of bodies that clients send; unknown members are rejected."""

    model_config = ConfigDict(extra="forbid")


class Image(RootModel[list[list[Pixel | list[Pixel]]]]):
    """Raw pixel values, H rows of W pixels; the description of a running endpoint gives the exact shape."""


class Failure(Schema):
    """Every answer that is no success."""

    error: str
    """One sentence: what is wrong, with the offending value."""


class Encoded(RequestBody):
    """An encoded picture."""

    b64: Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
    """A PNG, JPEG, WebP, BMP or GIF file of any size up to a million pixels, in base64."""


_REASONS = {
    400: "The request is invalid; `error` names the first fault and where it is.",
    401: "The request has no valid API key, where `serve.auth.keys_file` asks for one.",
    403: "The request comes from a page of another origin; `serve.cors_origins` lists those allowed.",
    404: "No model or version of that name is loaded.",
    408: "The body did not arrive in time.",
    413: "The body is larger than `serve.max_body_bytes`.",
    415: "The content type or encoding is not supported.",
    421: "The name in `Host` is not one of the endpoint's; `serve.allowed_hosts` lists its names.",
    429: "More images are waiting than the endpoint keeps; `Retry-After` says when to retry.",
    500: "The endpoint failed; its log says why.",
    503: "No model has been loaded yet.",
    504: "No answer within `serve.request_timeout_s`.",
}
BINARY: Mapping[str, Any] = {"type": "string", "format": "binary"}
"""JSON schema of a file."""
_REFERENCE = "#/components/schemas/"
Responses = dict[int | str, dict[str, Any]]


def failures(*statuses: int) -> Responses:
    """Describe answers that are no success."""
    return {status: {"model": Failure, "description": _REASONS[status]} for status in statuses}


CLASSIFYING = failures(400, 401, 403, 404, 408, 413, 415, 421, 429, 500, 503, 504)
"""What can go wrong where images are classified."""
ASKING = failures(401, 404, 421, 429, 503)
"""What can go wrong where a model is asked about."""


def accepts(contents: Mapping[str, Any], required: bool = True) -> dict[str, Any]:
    """Describe the body of a request.

    Args:
        contents: A model, a union of models or a JSON schema for each content type.
        required: Whether an empty body is an error.
    """
    described: dict[str, Any] = {}
    for kind, schema in contents.items():
        if not isinstance(schema, Mapping):
            schema = TypeAdapter(schema).json_schema(ref_template=_REFERENCE + "{model}")
        described[kind] = {"schema": schema}
    return {"requestBody": {"required": required, "content": described}}


def in_path(*names: str) -> list[dict[str, Any]]:
    """Describe the parameters of a path: `name` of the model, `version` of it or the `label` of one."""
    number = {"type": "string", "pattern": "^[0-9]{1,18}$"}
    schemas = {"name": {"type": "string"}, "version": number, "label": {"type": "string"}}
    return [{"name": name, "in": "path", "required": True, "schema": schemas[name]} for name in names]


Examples = Mapping[str, Mapping[str, Any]]
"""Bodies by name, by the end of the path that takes them."""


def specialise(
    plain: dict[str, Any], served: Sequence[Served], examples: Examples, labels: Sequence[str] = ()
) -> dict[str, Any]:
    """Say of the loaded models what holds for them alone: names, versions, the shape of an image, examples.

    Args:
        plain: As FastAPI describes the routes.
        served: The champion first; empty leaves the description general.
        examples: JSON bodies that fit the champion.
        labels: Aliases of loaded versions.
    """
    document = copy.deepcopy(plain)
    _lift(document)
    if not served:
        return document
    versions = [str(model.version) for model in served]
    # Versions and labels come and go: a client generated from an enumeration could not name the next.
    loaded = {
        "name": {"enum": [served[0].name]},
        "version": {"examples": versions},
        "label": {"examples": list(labels)},
    }
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["schema"] |= loaded[parameter["name"]]
    for path, operations in document["paths"].items():
        for end, bodies in examples.items():
            if path.endswith(end):
                content = operations["post"]["requestBody"]["content"]["application/json"]
                content["examples"] = {name: {"value": body} for name, body in bodies.items()}
    schemas = document["components"]["schemas"]
    schemas["Image"] = image(served[0].shape)
    schemas["V2RequestedOutput"]["properties"]["name"]["enum"] = list(served[0].task.tensors)
    _narrow(document, served[0].task)
    return document


def _narrow(document: dict[str, Any], task: Task) -> None:
    """Leave of the forms that a prediction may have the one of a task."""
    members = set(task.predictions(np.zeros((1, len(task.names)), np.float32))[0])
    schemas = document["components"]["schemas"]
    explained = schemas["Explanation"]["properties"]["prediction"]["anyOf"]
    forms = [form["$ref"].removeprefix(_REFERENCE) for form in explained]
    kept = next(name for name in forms if set(schemas[name]["required"]) == members)
    reference = {"$ref": f"{_REFERENCE}{kept}"}
    _replace(schemas["Explanation"]["properties"]["prediction"], reference)
    _replace(schemas["Predictions"]["properties"]["predictions"], {"type": "array", "items": reference})
    for name in set(forms) - {kept}:
        del schemas[name]


def _replace(schema: dict[str, Any], form: dict[str, Any]) -> None:
    del schema["anyOf"]
    schema.update(form)


def merged(documents: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Join the descriptions of an endpoint's models, each as `specialise` returns it, into one.

    A path with the name of a model becomes one for each, with schemas of its own: images have other shapes,
    and versions other numbers. Paths without a name are the first model's.

    Args:
        documents: By the model's name, the first model first.
    """
    document = copy.deepcopy(next(iter(documents.values())))
    general = {path: item for path, item in document["paths"].items() if "{name}" not in path}
    schemas = document["components"]["schemas"]
    document["paths"] = general
    for name, own in documents.items():
        for path, operations in own["paths"].items():
            if "{name}" in path:
                general[path.replace("{name}", name)] = _of_model(operations, name)
        for title, schema in own["components"]["schemas"].items():
            schemas[f"{name}.{title}"] = _of_model(schema, name)
    return document


def _of_model(value: Any, name: str) -> Any:
    """Copy a part of a description: it refers to the model's schemas, and needs no parameter for its name."""
    if isinstance(value, list):
        return [
            _of_model(part, name)
            for part in value
            if not (isinstance(part, dict) and part.get("in") == "path" and part.get("name") == "name")
        ]
    if not isinstance(value, dict):
        return value
    copied = {key: _of_model(part, name) for key, part in value.items()}
    reference = copied.get("$ref")
    if isinstance(reference, str) and reference.startswith(_REFERENCE):
        copied["$ref"] = f"{_REFERENCE}{name}.{reference.removeprefix(_REFERENCE)}"
    if isinstance(copied.get("operationId"), str):
        copied["operationId"] += f"_{name}"
    return copied


def with_keys(plain: dict[str, Any]) -> dict[str, Any]:
    """Say that requests need a key, and that the probes do not."""
    document = copy.deepcopy(plain)
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    document.setdefault("components", {})["securitySchemes"] = schemes
    document["security"] = [{scheme: []} for scheme in schemes]
    for path, operations in document["paths"].items():
        if path.endswith(("/healthz", "/readyz")):
            operations["get"]["security"] = []
    return document


def _lift(value: Any, into: dict[str, Any] | None = None) -> None:
    """Move definitions of request bodies to the components, where their references point."""
    if into is None:
        into = value.setdefault("components", {}).setdefault("schemas", {})
    if isinstance(value, dict):
        into.update(value.pop("$defs", {}))
        for part in list(value.values()):
            _lift(part, into)
    elif isinstance(value, list):
        for part in value:
            _lift(part, into)


def image(shape: tuple[int, int, int]) -> dict[str, Any]:
    """Describe one image of a shape as JSON schema."""
    pixel: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 255}
    sizes = shape[:2] if shape[2] == 1 else shape
    for size in reversed(sizes):
        pixel = {"type": "array", "items": pixel, "minItems": size, "maxItems": size}
    named = " x ".join(map(str, shape))
    return pixel | {
        "title": "Image",
        "description": f"{named} raw pixel values, whole numbers from 0 to 255 (not scaled to 0 to 1).",
        "examples": [example(shape)],
    }


def example(shape: tuple[int, int, int]) -> Any:
    """Draw a box as an image of a shape: nested lists, without the lists of one channel."""
    height, width, depth = shape

    def pixel(row: int, column: int) -> int:
        return 255 * (abs(2 * row - height + 1) < height / 2 and abs(2 * column - width + 1) < width / 2)

    rows = [[pixel(row, column) for column in range(width)] for row in range(height)]
    return rows if depth == 1 else [[[value] * depth for value in row] for row in rows]
