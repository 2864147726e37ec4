"""Output tensors of the Open Inference Protocol, in JSON or as bytes (replica)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from distml.serving.exchange import JSON, OCTETS, Answer, RejectedError
from distml.serving.service import Probabilities, Served
from distml.serving.strict import Document, kind

OUTPUTS = {"probabilities": "FP32", "label": "INT32", "class": "BYTES"}
HEADER = b"inference-header-content-length"
"""Length of the JSON, where bytes follow it."""
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that a client asks for.

    Args:
        name: Of the tensor.
        binary: As bytes after the JSON.
        ranked: This many of the most probable classes instead, 0 for the tensor itself.
    """

    name: str
    binary: bool
    ranked: int


def wanted(document: Document) -> list[Wanted]:
    """Read which outputs are wanted, and how.

    Raises:
        RejectedError: 400, at the first fault.
    """
    parameters = _parameters(document.members, "the request")
    binary = _flag(parameters, "binary_data_output", False)
    listed = document.members.get("outputs")
    if listed in (None, []):
        listed = [{"name": called} for called in OUTPUTS]
    if not isinstance(listed, list):
        raise RejectedError(400, f"outputs is {kind(listed)}, not an array")
    found: list[Wanted] = []
    for index, member in enumerate(listed):
        called = member.get("name") if isinstance(member, dict) else None
        if not isinstance(called, str) or called not in OUTPUTS or called in {one.name for one in found}:
            known = ", ".join(OUTPUTS)
            raise RejectedError(
                400, f"outputs[{index}] names {str(called)[:80]!r}; each of {known} may stand once"
            )
        own = _parameters(member, f"outputs[{index}]")
        ranked = own.get("classification", 0)
        if type(ranked) is not int or ranked < 0 or (ranked and called != "probabilities"):
            sentence = (
                f"classification is {str(ranked)[:40]} for {called!r}; it is a number, for 'probabilities'"
            )
            raise RejectedError(400, sentence)
        if "shared_memory_region" in own:
            raise RejectedError(400, "shared memory is not offered; leave it out")
        found.append(Wanted(called, _flag(own, "binary_data", binary), ranked))
    return found


def _parameters(member: dict[str, Any], where: str) -> dict[str, Any]:
    found = member.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise RejectedError(400, f"the parameters of {where} are {kind(found)}, not an object")
    return found


def _flag(parameters: dict[str, Any], key: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise RejectedError(400, f"the parameter {key} is {kind(value)}, not true or false")
    return value


def render(
    identity: dict[str, str], asked: list[Wanted], probabilities: Probabilities, served: Served
) -> Answer:
    """Answer with the wanted outputs, those in binary after the JSON."""
    described, following = [], []
    for one in asked:
        datatype, values = _values(one, probabilities, served)
        member: dict[str, Any] = {"name": one.name, "datatype": datatype, "shape": _sizes(values)}
        if one.binary:
            following.append(_to_bytes(values))
            member["parameters"] = {"binary_data_size": len(following[-1])}
        else:
            member["data"] = _flat(values)
        described.append(member)
    document = {
        "model_name": served.name,
        "model_version": str(served.version),
        **identity,
        "outputs": described,
    }
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    count = len(probabilities)
    if not following:
        return Answer(text, kind=JSON, version=served.version, images=count)
    length = ((HEADER, b"%d" % len(text)),)
    return Answer(b"".join([text, *following]), 200, OCTETS, length, served.version, count)


def _values(one: Wanted, probabilities: Probabilities, served: Served) -> tuple[str, Any]:
    """Return datatype and elements of an output, [N] or [N, classes]."""
    if one.ranked:
        order = np.argsort(-probabilities, 1, kind="stable")[:, : one.ranked]
        return "BYTES", [
            [f"{row[label]:f}:{label}:{served.classes[label]}" for label in labels]
            for row, labels in zip(probabilities, order.tolist(), strict=True)
        ]
    if one.name == "probabilities":
        return "FP32", probabilities
    labels = probabilities.argmax(1).astype(np.int32)
    return (
        ("INT32", labels) if one.name == "label" else ("BYTES", [served.classes[label] for label in labels])
    )


def _sizes(values: Any) -> list[int]:
    if isinstance(values, np.ndarray):
        return list(values.shape)
    return [len(values), len(values[0])] if isinstance(values[0], list) else [len(values)]


def _flat(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values).reshape(-1)
    return list(chain.from_iterable(values)) if isinstance(values[0], list) else values


def _to_bytes(values: Any) -> bytes:
    flat: Sequence[str] | npt.NDArray[Any] = _flat(values)
    if isinstance(flat, np.ndarray):
        return flat.astype(flat.dtype.newbyteorder("<"), copy=False).tobytes()
    words = [word.encode() for word in flat]
    return b"".join(len(word).to_bytes(_LENGTH_BYTES, "little") + word for word in words)
