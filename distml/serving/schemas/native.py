"""Bodies of the native protocol (any process)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distml.serving.openapi import Encoded, Image, Probability, Request, Schema


class Instances(Request):
    """Images to classify: all as numbers, or all encoded."""

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


class Identity(Schema):
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

    model: Identity
    """Which model answered."""
    predictions: list[Prediction]
    """One for each image."""
    warnings: list[Doubt] = Field(default_factory=list)
    """Only where images are probably not what their sender means."""


class Policy(Schema):
    """How a picture of any size and mode becomes an image."""

    shape: Annotated[list[int], Field(min_length=3, max_length=3)]
    """Height, width and channels of the image."""
    fit: Literal["crop", "letterbox", "stretch"]
    """What happens to a picture of another shape."""
    background: Annotated[list[int], Field(min_length=3, max_length=3)]
    """Red, green and blue behind transparent parts and in the bars of a letterbox."""


class Described(Identity):
    """A loaded version of the model."""

    classes: list[str]
    """Name of each class, by label."""
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
    policy: Policy | None = None
    """How pictures become images; none stretches them, over black."""


class Refused(Schema):
    """A version that an alias points at and that was refused."""

    version: int
    """Its version."""
    alias: str
    """What points at it."""
    reason: str
    """Why it does not answer."""
    at: float
    """Seconds since 1970 when it was refused."""


class RegistryStatus(Schema):
    """Whether what is served is what the registry says now."""

    answers: bool
    """False while it is away: what was served last goes on answering."""
    age_s: float | None
    """Seconds since it answered; none where it never did."""
    missing: list[str]
    """Aliases that are followed and not set there."""


class Model(Described):
    """The champion, and what else is there."""

    versions: list[Described]
    """Every loaded version, the champion first."""
    refused: list[Refused]
    """Versions that should be loaded and are not."""
    registry: RegistryStatus
    """The registry that names the champion."""


class Health(Schema):
    """A sign of life."""

    status: str
    """`ok`, or why not."""
