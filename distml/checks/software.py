"""Which TensorFlow and Keras are installed, and whether the model exists (driver). Imports neither."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

from distml.checks.check import Check, failed, ok, problem, warning
from distml.config import Config
from distml.errors import DistmlError
from distml.models import registry

TENSORFLOW = "2.21"
"""The version everything here was measured with; our step uses what other versions may move."""
_DISTRIBUTIONS = (
    *("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tensorflow-intel", "tensorflow-macos"),
    *("tensorflow-rocm", "tf-nightly", "tf-nightly-cpu", "intel-tensorflow"),
)
_INSTALL = "Run `make venv`, or install exactly one of distml[cpu] and distml[gpu]."


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def tensorflows() -> dict[str, str]:
    """Return every installed distribution of TensorFlow with its version."""
    return installed(_DISTRIBUTIONS)


def tensorflow(found: Mapping[str, str], gpus: int, device: str) -> Check:
    """Exactly one TensorFlow, for the device that is asked for.

    Args:
        found: Versions by distribution.
        gpus: GPUs of this machine.
        device: `train.device`.
    """
    said = ", ".join(f"{name} {version}" for name, version in found.items())
    if not found:
        return problem("tensorflow", "no TensorFlow is installed", _INSTALL)
    if len(found) > 1:
        remedy = f"Uninstall all of them, then one again: they overwrite each other's files. {_INSTALL}"
        return problem("tensorflow", f"{len(found)} TensorFlows are installed: {said}", remedy)
    (name,) = found
    if name.endswith("-cpu") and (device == "gpu" or (device == "auto" and gpus)):
        detail = f"{said} computes on CPUs alone, and train.device is {device} with {gpus} GPU here"
        remedy = "Install distml[gpu] instead (make train EXTRA=gpu), or set train.device to cpu."
        return (problem if device == "gpu" else warning)("tensorflow", detail, remedy)
    if not found[name].startswith(f"{TENSORFLOW}."):
        return warning("tensorflow", f"{said} is not the {TENSORFLOW} that distml is tested with", _INSTALL)
    return ok("tensorflow", said)


def keras(found: Mapping[str, str]) -> Check:
    """Keras 3.

    Args:
        found: Versions by distribution.
    """
    version = found.get("keras")
    if version is None or not version.startswith("3."):
        return problem("keras", f"Keras {version or 'is not installed'}", "distml needs Keras 3. " + _INSTALL)
    return ok("keras", f"keras {version}")


def model(config: Config) -> Check:
    """The configured model and its options."""
    try:
        registry.check(config.model.name, config.model.options)
    except DistmlError as error:
        return failed("model", error)
    options = ", ".join(f"{key}={value}" for key, value in config.model.options.items())
    return ok("model", f"{config.model.name}({options})")
