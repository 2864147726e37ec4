"""What a run takes from a cluster whose nodes may still be on their way (driver)."""

from __future__ import annotations

import logging
import os
import time

from distml.config import Config
from distml.errors import ResourceError
from distml.runtime import cluster

logger = logging.getLogger(__name__)

JOIN_S = 90.0
"""How long a run waits for nodes of its cluster: pods of Ray's workers are ready after the head's."""


def require_plan(config: Config, connected: cluster.Cluster) -> cluster.Plan:
    """`plan` for a live connection; the nodes of a cluster that has just come up are given time to join.

    Raises:
        ResourceError: A local Ray that was made too small is a configuration matter, told at once.
    """
    # KubeRay sets the variable on the head, where drivers run, when an autoscaler runs beside it.
    autoscaled = not connected.local and "RAY_ENABLE_AUTOSCALER_V2" in os.environ
    until, resources = time.monotonic() + JOIN_S, connected.resources
    while True:
        try:
            return cluster.plan(config.train, resources, grows=not connected.local, autoscaled=autoscaled)
        except ResourceError as error:
            if connected.local and config.train.device != "gpu":
                remedy = f"This machine has {os.cpu_count()} cores; take fewer train.workers."
                raise ResourceError(error.message, remedy) from None
            if connected.local or time.monotonic() > until:
                raise
            resources = _joined(resources, error.message)


def _joined(before: dict[str, float], short: str) -> dict[str, float]:
    """The cluster's totals a moment later; says once what is waited for."""
    import ray

    level = logging.DEBUG if before.get("waited") else logging.WARNING
    logger.log(level, "%s Waiting up to %g s for nodes to join.", short, JOIN_S)
    time.sleep(1)
    return {**ray.cluster_resources(), "waited": 1.0}
