"""Cores, GPUs and ports, against what a run takes (driver)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from distml.checks.check import Check, failed, ok, problem, warning
from distml.config import Config
from distml.errors import ResourceError
from distml.runtime import cluster

DASHBOARD_PORT = 8265


def gpus(devices: Path = Path("/dev")) -> int:
    """Count the NVIDIA GPUs that this process may use, without importing TensorFlow.

    Args:
        devices: Where the system has its device files.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    nodes = [path for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    count = len(nodes) or _listed_gpus()
    if visible is None:
        return count
    named = [one for one in visible.split(",") if one.strip() not in ("", "-1", "NoDevFiles")]
    return min(count, len(named))


def _listed_gpus() -> int:
    """Count what nvidia-smi lists, where there are no device files (WSL)."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return 0
    try:
        done = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=4, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def workers(config: Config, resources: Mapping[str, float], where: str) -> Check:
    """Room for the workers and for Ray Data.

    Args:
        config: `train` says what is wanted.
        resources: Totals as Ray counts them.
        where: Said of the place that has them.
    """
    try:
        plan = cluster.plan(config.train, resources)
    except ResourceError as error:
        return failed("workers", error)
    least, most = plan.workers
    count = str(least) if least == most else f"{least} to {most}"
    device = "one GPU each" if plan.use_gpu else "CPU"
    cpus, spare = resources.get("CPU", 0), resources.get("CPU", 0) - most * plan.cpus_per_worker
    detail = f"{count} on {device}; {spare:g} of {cpus:g} Ray CPUs are left for Ray Data on {where}"
    return ok("workers", detail)


def batch(config: Config, rows: int | None) -> Check:
    """Rows of a step against the workers and the data.

    Args:
        config: `train` says how many.
        rows: Training rows where they are known.
    """
    train = config.train
    if rows is not None and rows < train.global_batch_size:
        detail = f"train.global_batch_size = {train.global_batch_size} is more than the {rows} training rows"
        return problem("batch", detail, f"Set it to {rows} or less.")
    each = train.global_batch_size / train.max_workers
    return ok(
        "batch", f"{train.global_batch_size} rows a step, {each:g} on each of {train.max_workers} workers"
    )


def ports(config: Config, dashboard: bool, serve: bool) -> Check:
    """The ports of the dashboard and the endpoint.

    Args:
        config: `serve` says which.
        dashboard: Whether the dashboard's port is free.
        serve: Whether the endpoint's port is free.
    """
    place = f"{config.serve.host}:{config.serve.port}"
    taken = [f"127.0.0.1:{DASHBOARD_PORT} (Ray dashboard)"] * (not dashboard) + [f"{place} (serve)"] * (
        not serve
    )
    if not taken:
        return ok("ports", f"127.0.0.1:{DASHBOARD_PORT} (Ray dashboard) and {place} (serve) are free")
    remedy = "" if dashboard else "Ray takes the next free port. "
    remedy += "" if serve else "End what listens there, or choose another --serve.port."
    return warning("ports", f"in use: {', '.join(taken)}", remedy.strip())
