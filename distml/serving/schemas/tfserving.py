"""Bodies of TensorFlow Serving's REST interface (any process)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from distml.serving.openapi import Encoded, Image, Probability, Schema

Signature = Literal["", "serving_default", "image_bytes"]


class Named(Schema):
    """An image under the name of the signature's input."""

    image: Image
    """For `serving_default`."""


class NamedBytes(Schema):
    """An encoded picture under the name of the signature's input."""

    image_bytes: Encoded
    """For `image_bytes`."""


class Rows(Schema):
    """The row format."""

    signature_name: Signature = "serving_default"
    """`serving_default` takes raw pixel values, `image_bytes` encoded pictures."""
    instances: Annotated[list[Image] | list[Named] | list[Encoded] | list[NamedBytes], Field(min_length=1)]
    """One entry for each image."""


class Images(Schema):
    """The tensor of `serving_default` under its name."""

    image: Annotated[list[Image], Field(min_length=1)]
    """N images."""


class Pictures(Schema):
    """The tensor of `image_bytes` under its name."""

    image_bytes: Annotated[list[Encoded], Field(min_length=1)]
    """N pictures."""


class Columns(Schema):
    """The columnar format."""

    signature_name: Signature = "serving_default"
    """`serving_default` takes raw pixel values, `image_bytes` encoded pictures."""
    inputs: Annotated[list[Image], Field(min_length=1)] | Images | list[Encoded] | Pictures
    """The whole input tensor, bare or under its name."""


class RowAnswers(Schema):
    """The answer to the row format."""

    predictions: list[list[Probability]]
    """For each image the probability of every class, by label."""


class ColumnAnswers(Schema):
    """The answer to the columnar format."""

    outputs: list[list[Probability]]
    """The whole output tensor: for each image the probability of every class, by label."""


class Fine(Schema):
    """How a version is."""

    error_code: Literal["OK"]
    """Always OK: what cannot be loaded is not listed."""
    error_message: str
    """Empty."""


class State(Schema):
    """A loaded version."""

    version: str
    """Its number."""
    state: Literal["AVAILABLE"]
    """It answers."""
    status: Fine
    """How it is."""


class Status(Schema):
    """The loaded versions of a model; KServe asks here whether it is ready."""

    name: str
    """Of the model."""
    ready: Literal[True]
    """It answers."""
    model_version_status: list[State]
    """One entry for each, newest first."""


class Models(Schema):
    """The models."""

    models: list[str]
    """Their names."""


class Specified(Schema):
    """Which version is described."""

    name: str
    """Of the model."""
    signature_name: str
    """Empty: all signatures are described."""
    version: str
    """Its number."""


class Metadata(Schema):
    """The signatures of a version, as TensorFlow writes them."""

    model_spec: Specified
    """Which version is described."""
    metadata: dict[str, Any]
    """`signature_def`: name, type and shape of every input and output."""
