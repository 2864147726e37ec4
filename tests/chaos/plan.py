"""What is killed, how and when: the cells of the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TRAINING = "app.kubernetes.io/name=training"
ENDPOINT = "app.kubernetes.io/name=endpoint"
COMPONENT = "app.kubernetes.io/component"
HEAD, WORKER = "ray.io/node-type=head", "ray.io/node-type=worker"

SELECTORS: dict[str, dict[str, str]] = {
    "k3d": {
        "training head": f"{TRAINING},{HEAD}",
        "training worker": f"{TRAINING},{WORKER}",
        "endpoint": f"{ENDPOINT},{HEAD}",
        "mlflow": f"{COMPONENT}=mlflow",
        "postgres": f"{COMPONENT}=postgres",
        "step": f"{COMPONENT}=step",
    },
    "production": {
        "training head": f"{TRAINING},{HEAD}",
        "training worker": f"{TRAINING},{WORKER}",
        "submitter": f"{COMPONENT}=submitter",
        "serving head": f"{ENDPOINT},{HEAD}",
        "serving worker": f"{ENDPOINT},{WORKER}",
        "mlflow": f"{COMPONENT}=mlflow",
        "step": f"{COMPONENT}=step",
    },
}
"""Labels of each kind of pod, by overlay."""

OF_A_RUN: dict[str, tuple[str, ...]] = {
    "k3d": ("step",),
    "production": ("training head", "training worker", "submitter", "step"),
}
"""Kinds of pod that are there only while a workflow runs."""

SERVICE = "serve"
"""Service that the endpoint answers at."""

FAULTS = {
    "SIGTERM": "the pod is deleted, with its grace period",
    "SIGKILL": "the pod is deleted with a grace period of 0: killed after two seconds at most",
    "drain": "the pod's node is drained of its kind, then opened again",
}
"""What is done to a pod, and how."""


@dataclass(frozen=True)
class Moment:
    """When the fault comes.

    Attributes:
        stage: Stage of the pipeline that must have begun; None where no workflow runs.
        rate: Requests a second that the endpoint is asked meanwhile.
        overrides: Flags of the pipeline, so that there is something to do in that stage.
    """

    stage: str | None
    rate: float
    overrides: str = ""


MOMENTS = {
    "ingest": Moment("ingest", 2, "--data.shards {shards}"),  # other shards: data to be prepared once more
    "training": Moment("train", 2),
    "promotion": Moment("promote", 2),
    "serving": Moment(None, 20),
    "idle": Moment(None, 0),
}


@dataclass(frozen=True)
class Cell:
    """One fault, to one kind of pod, at one moment.

    Attributes:
        overlay: k3d or production.
        kind: Of pod.
        fault: What is done to it.
        moment: When.
    """

    overlay: str
    kind: str
    fault: str
    moment: str

    @property
    def name(self) -> str:
        """What tells it from the others, in a form that may name a run."""
        return f"chaos-{self.kind}-{self.fault}-{self.moment}".replace(" ", "-").lower()

    @property
    def selector(self) -> str:
        """Labels of the pods."""
        return SELECTORS[self.overlay][self.kind]

    @property
    def missing(self) -> str:
        """Why there is nothing to kill, "" where there is."""
        needs_run = self.kind in OF_A_RUN[self.overlay]
        return "no such pod: no workflow runs" if needs_run and MOMENTS[self.moment].stage is None else ""


def cells(overlay: str, **only: list[str] | None) -> Iterator[Cell]:
    """Yield every cell of an overlay.

    Args:
        overlay: k3d or production.
        only: `kinds`, `faults` and `moments` to take, all where there is none.
    """
    for kind in only.get("kinds") or SELECTORS[overlay]:
        for moment in only.get("moments") or MOMENTS:
            for fault in only.get("faults") or FAULTS:
                yield Cell(overlay, kind, fault, moment)
