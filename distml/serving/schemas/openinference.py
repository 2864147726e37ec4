"""Bodies of the Open Inference Protocol, version 2 (any process)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from distml.serving.openapi import Schema

Number = float | str
Tensor = list[Number] | list[list[Number]] | list[list[list[Number]]] | list[list[list[list[Number]]]]


class Server(Schema):
    """The server."""

    name: str
    """Of the server."""
    version: str
    """Of the server."""
    extensions: list[str]
    """`binary_tensor_data`: tensors may follow the JSON as bytes; `classification`: outputs by rank."""


class Live(Schema):
    """A sign of life."""

    live: bool
    """Whether the server can answer."""


class Ready(Schema):
    """Whether requests are answered."""

    ready: bool
    """Whether a champion, or this model, is loaded."""


class ModelReady(Ready):
    """Whether a model answers."""

    name: str
    """Of the model."""


class Models(Schema):
    """The models."""

    models: list[str]
    """Their names."""


class Indexed(Schema):
    """A version in the index of the repository."""

    name: str
    """Of the model."""
    version: str
    """Its number."""
    state: Literal["READY", "UNAVAILABLE"]
    """Whether it answers."""
    reason: str
    """Why not, empty where it does."""


class TensorConfig(Schema):
    """An input or output, without the dimension of the batch."""

    name: str
    """Of the tensor."""
    data_type: str
    """Triton's, as `TYPE_UINT8`."""
    dims: list[int]
    """Its sizes."""


class Config(Schema):
    """A model as Triton's model configuration describes it."""

    name: str
    """Of the model."""
    platform: str
    """Of its export."""
    max_batch_size: int
    """Images of one request that are taken."""
    input: list[TensorConfig]
    """What it takes."""
    output: list[TensorConfig]
    """What it gives."""


class Statistics(Schema):
    """What this replica has been asked."""

    model_stats: list[dict[str, Any]]
    """An entry a version: `inference_count` images, `execution_count` calls of the model, times."""


class TensorMetadata(Schema):
    """An input or output."""

    name: str
    """Of the tensor."""
    datatype: str
    """UINT8, FP32, INT32 or BYTES."""
    shape: list[int]
    """-1 stands for the number of images."""


class Metadata(Schema):
    """A model."""

    name: str
    """Of the model."""
    versions: list[str]
    """Those that are loaded, the champion first."""
    platform: str
    """What it was made with."""
    inputs: list[TensorMetadata]
    """What it takes."""
    outputs: list[TensorMetadata]
    """What it gives."""


class Input(Schema):
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


class Output(Schema):
    """An output to return."""

    name: Literal["probabilities", "label", "class"]
    """Of the tensor."""
    parameters: dict[str, Any] | None = None
    """`binary_data`: as bytes after the JSON; `classification`: only this many, as `value:label:class`."""


class Request(Schema):
    """Images to classify."""

    id: str | None = None
    """Comes back with the answer."""
    parameters: dict[str, Any] | None = None
    """`binary_data_output`: return all outputs as bytes."""
    inputs: Annotated[list[Input], Field(min_length=1, max_length=1)]
    """One tensor."""
    outputs: list[Output] | None = None
    """What to return; nothing returns everything."""


class OutputTensor(Schema):
    """An output."""

    name: str
    """Of the tensor."""
    datatype: str
    """FP32, INT32 or BYTES."""
    shape: list[int]
    """[N, classes] or [N]."""
    parameters: dict[str, Any] | None = None
    """`binary_data_size`: bytes of this tensor after the JSON, instead of `data`."""
    data: list[Number] | None = None
    """Flat, row by row."""


class Answer(Schema):
    """The answer."""

    model_name: str
    """Which model answered."""
    model_version: str
    """Which version of it."""
    id: str | None = None
    """As in the request."""
    outputs: list[OutputTensor]
    """As asked for."""
