"""What the bodies of all protocols share (any process)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, RootModel

Pixel = Annotated[float, Field(ge=0, le=255, multiple_of=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Schema(BaseModel):
    """Base of all bodies: field docstrings are the descriptions."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


class Request(Schema):
    """Base of bodies that clients send; unknown members are refused."""

    model_config = ConfigDict(extra="forbid")


class Image(RootModel[list[list[Pixel | list[Pixel]]]]):
    """Raw pixel values, H rows of W pixels; the description of a running endpoint gives the exact shape."""


class Failure(Schema):
    """Every answer that is no success."""

    error: str
    """One sentence: what is wrong, with the offending value."""


class Encoded(Request):
    """An encoded picture."""

    b64: Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
    """A PNG, JPEG, WebP, BMP or GIF file of any size up to a million pixels, in base64."""
