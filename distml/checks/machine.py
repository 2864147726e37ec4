"""Checks of this machine: CPUs, GPUs, memory, disks, ports, installed versions, shell variables (driver)."""

from __future__ import annotations

import configparser
import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil

from distml.checks import GIB, Check, failed, ok, problem, size, warning
from distml.config import Config
from distml.errors import DistmlError, ResourceError
from distml.models import registry
from distml.runtime import cluster, environment

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
    named = [device for device in visible.split(",") if device.strip() not in ("", "-1", "NoDevFiles")]
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
    if not train.global_batch_size:
        return ok("batch", "train.global_batch_size = auto: measured when training starts")
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
    remedy += "" if serve else "Stop the process that listens there, or choose another --serve.port."
    return warning("ports", f"in use: {', '.join(taken)}", remedy.strip())


WORKER_BYTES = int(1.0 * GIB)
"""A worker with TensorFlow and a small model: 0.85 GiB (TensorFlow 2.21, Ray 2.60, Linux)."""
DRIVER_BYTES = int(2.5 * GIB)
"""The driver with MLflow, Ray's own processes and the actors of Ray Train and Ray Data."""
SHARED = Path("/dev/shm")  # noqa: S108 - a place of the system, not a file of ours
_DISK_BYTES = 2 * GIB
_RAY_FULL = 0.95
"""`local_fs_capacity_threshold` of Ray 2.60."""
_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes this process and its children may still take: of the machine, and of its container."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_CGROUP / "memory.max").read_text("utf-8"))
        used = int((_CGROUP / "memory.current").read_text("utf-8"))
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return min(free, limit - used)


def memory(config: Config, free: int, data: int) -> Check:
    """Memory for the workers, Ray and the rows they keep.

    Args:
        config: `train` says how many workers.
        free: Bytes that are free.
        data: Bytes of the training rows where they are known, else 0.
    """
    count = config.train.max_workers
    kept = 2 * min(data, count * config.data.memory_budget_bytes)  # in the object store and in the workers
    need = count * WORKER_BYTES + DRIVER_BYTES + kept
    detail = f"{size(free)} free, about {size(need)} needed for {count} worker{'s' * (count > 1)}"
    if free < count * WORKER_BYTES:
        return problem("memory", detail, "Use fewer train.workers, or a machine with more memory.")
    if free < need:
        return warning("memory", detail, "Close other programs or take fewer train.workers.")
    return ok("memory", detail)


def shared_memory(free: int | None, data: int) -> Check:
    """Room in /dev/shm, where Ray keeps objects.

    Args:
        free: Bytes, None where the system has no such place.
        data: Bytes of the training rows where they are known, else 0.
    """
    if free is None:
        return ok("shared memory", "this system has no /dev/shm; Ray keeps objects in files")
    need = max(256 << 20, 2 * data)
    detail = f"{size(free)} free in /dev/shm, about {size(need)} needed"
    if free < need:
        remedy = "Give the container more (docker run --shm-size=1g); Ray will use slow files instead."
        return warning("shared memory", detail, remedy)
    return ok("shared memory", detail)


def disk(place: Path, free: int) -> Check:
    """Room where runs are kept.

    Args:
        place: The storage root.
        free: Bytes.
    """
    detail = f"{size(free)} free at {place}"
    if free < _DISK_BYTES // 10:
        return problem("disk", detail, "Free space there, or give another storage.root.")
    if free < _DISK_BYTES:
        return warning("disk", detail, f"Keep {size(_DISK_BYTES)} free: checkpoints and models grow.")
    return ok("disk", detail)


def scratch(place: Path, used: float) -> Check:
    """Room where Ray keeps its sessions.

    Args:
        place: The folder for temporary files.
        used: Share of its disk that is taken.
    """
    detail = f"{used:.0%} of the disk of {place} is used"
    if used > _RAY_FULL:
        remedy = f"Free space: Ray writes no more objects to a disk that is more than {_RAY_FULL:.0%} full."
        return warning("scratch", detail, remedy)
    return ok("scratch", detail)


def _existing(place: Path) -> Path:
    return next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())


def free_on(place: Path) -> int:
    """Bytes free where a path is or would be made."""
    return shutil.disk_usage(_existing(place)).free


def used_on(place: Path) -> float:
    """Share that is taken of the disk where a path is or would be made."""
    usage = shutil.disk_usage(_existing(place))
    return 1 - usage.free / max(1, usage.total)


TENSORFLOW = "2.21"
"""The version everything here was measured with; our step uses what other versions may move."""
_DISTRIBUTIONS = (
    *("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tensorflow-intel", "tensorflow-macos"),
    *("tensorflow-rocm", "tf-nightly", "tf-nightly-cpu", "intel-tensorflow"),
)
_INSTALL = "Run `make venv`, or install exactly one of distml[cpu] and distml[gpu]."


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def tensorflows() -> dict[str, str]:
    """Return every installed distribution of TensorFlow with its version."""
    return installed(_DISTRIBUTIONS)


def tensorflow(versions: Mapping[str, str], gpus: int, device: str) -> Check:
    """Exactly one TensorFlow, for the device that is asked for.

    Args:
        versions: Versions by distribution.
        gpus: GPUs of this machine.
        device: `train.device`.
    """
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    if not versions:
        return problem("tensorflow", "no TensorFlow is installed", _INSTALL)
    if len(versions) > 1:
        remedy = f"Uninstall all of them, then one again: they overwrite each other's files. {_INSTALL}"
        return problem("tensorflow", f"{len(versions)} TensorFlows are installed: {said}", remedy)
    (name,) = versions
    if name.endswith("-cpu") and (device == "gpu" or (device == "auto" and gpus)):
        detail = f"{said} uses CPUs only, and train.device is {device} with {gpus} GPU here"
        remedy = "Install distml[gpu] instead (make train EXTRA=gpu), or set train.device to cpu."
        return (problem if device == "gpu" else warning)("tensorflow", detail, remedy)
    if not versions[name].startswith(f"{TENSORFLOW}."):
        return warning("tensorflow", f"{said} is not the {TENSORFLOW} that distml is tested with", _INSTALL)
    return ok("tensorflow", said)


def keras(versions: Mapping[str, str]) -> Check:
    """Keras 3.

    Args:
        versions: Versions by distribution.
    """
    version = versions.get("keras")
    if version is None or not version.startswith("3."):
        return problem("keras", f"Keras {version or 'is not installed'}", "distml needs Keras 3. " + _INSTALL)
    return ok("keras", f"keras {version}")


def model(config: Config) -> Check:
    """The configured model and its options."""
    try:
        registry.check_run(config)
    except DistmlError as error:
        return failed("model", error)
    options = ", ".join(f"{key}={value}" for key, value in config.model.options.items())
    return ok("model", f"{config.model.name}({options})")


def shell(config: Config, environ: Mapping[str, str]) -> Check:
    """What this shell and the user's files set for the packages below, and its effect.

    Args:
        config: Its places say which credentials matter.
        environ: Variables of this process.
    """
    known = environment.user_settings(environ)
    parts = []
    for effect in ("used", "replaced", "not used"):
        said = [
            name if effect == "used" or not setting.why else f"{name} ({setting.why})"
            for name, setting in known
            if setting.effect == effect
        ]
        if said:
            parts.append(f"{effect}: {', '.join(said)}")
    wrong = _credentials(config, environ)
    detail = "; ".join(parts) or "is not a variable that distml or its dependencies read"
    return ok("shell", detail) if wrong is None else problem("shell", f"{wrong[0]}; {detail}", wrong[1])


def _credentials(config: Config, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """What is wrong with the credentials of stores that the configuration names, and its remedy."""
    places = [place or "" for place in (config.storage.root, config.data.path, config.model.weights)]
    key = environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if key and not Path(key).is_file() and any(place.startswith(("gs://", "gcs://")) for place in places):
        return f"GOOGLE_APPLICATION_CREDENTIALS names {key}, which is not there", "Correct it, or unset it."
    if not any(place.startswith("s3://") for place in places):
        return None
    profile = environ.get("AWS_PROFILE")
    if profile and "AWS_ACCESS_KEY_ID" not in environ and profile not in _profiles(environ):
        return (
            f"AWS_PROFILE = {profile} is in neither of the AWS files",
            "Run `aws configure --profile`, or unset it.",
        )
    ours = {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"} & set(environ)
    if "MLFLOW_S3_ENDPOINT_URL" in environ and not ours and not any("endpoint_override" in p for p in places):
        return (
            "MLFLOW_S3_ENDPOINT_URL is set, which only MLflow reads, and AWS_ENDPOINT_URL is not",
            "Set AWS_ENDPOINT_URL to the same, for the storage root.",
        )
    return None


def _profiles(environ: Mapping[str, str]) -> set[str]:
    files = (
        environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
        environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
    )
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    with contextlib.suppress(configparser.Error, UnicodeDecodeError):
        parser.read([Path(file).expanduser() for file in files])
    return {section.removeprefix("profile ").strip() for section in parser.sections()} | {"default"}
