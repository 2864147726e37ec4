"""Parses and writes tensors of the Open Inference Protocol, as JSON or binary (replica)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from distml.data.image import Policy
from distml.data.schema import Images
from distml.serving import encoded, pixels
from distml.serving.exchange import JSON, OCTETS, Answer, Document, RejectedError, json_type
from distml.serving.service import Served
from distml.tasks import Outputs, Task

RAW, ENCODED = "image", "image_bytes"
_TYPES = {"UINT8": "u1", "INT32": "<i4", "INT64": "<i8", "FP32": "<f4", "FP64": "<f8"}
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Given:
    """An input tensor.

    Args:
        name: Of the tensor.
        datatype: Of its elements.
        shape: Its sizes.
        data: Elements as in the JSON, or the bytes that follow it.
    """

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | memoryview


def given(member: Any, rest: memoryview) -> Given:
    """Read the description of the only input.

    Args:
        member: An entry of `inputs`.
        rest: What follows the JSON.

    Raises:
        RejectedError: 400, at the first fault.
    """
    if not isinstance(member, dict):
        raise RejectedError(400, f"inputs[0] is {json_type(member)}, not an object")
    called, datatype, shape = (member.get(key) for key in ("name", "datatype", "shape"))
    if not isinstance(called, str) or called not in (RAW, ENCODED):
        raise RejectedError(
            400, f"there is no input {str(called)[:80]!r}; the model takes {RAW!r} or {ENCODED!r}"
        )
    if not isinstance(datatype, str) or datatype not in (_TYPES if called == RAW else ("BYTES",)):
        takes = ", ".join(_TYPES) if called == RAW else "BYTES"
        raise RejectedError(400, f"the datatype of {called!r} is {str(datatype)[:80]!r}; it may be {takes}")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise RejectedError(400, f"the shape of {called!r} is not a list of sizes")
    parameters = member.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise RejectedError(400, f"the parameters of {called!r} are {json_type(parameters)}, not an object")
    if "shared_memory_region" in parameters:
        raise RejectedError(400, "shared memory is not offered; send the tensor itself")
    size = parameters.get("binary_data_size")
    if (size is None) == ("data" not in member):
        raise RejectedError(400, f"{called!r} must have either 'data' or the parameter 'binary_data_size'")
    if size is None:
        if not isinstance(member["data"], list):
            raise RejectedError(400, f"the data of {called!r} is {json_type(member['data'])}, not an array")
        if len(rest):
            raise RejectedError(
                400, f"{len(rest)} bytes follow the JSON, but no input has a 'binary_data_size'"
            )
        return Given(called, datatype, shape, member["data"])
    if type(size) is not int or size != len(rest):
        raise RejectedError(
            400, f"the binary_data_size of {called!r} is {size!r}, but {len(rest)} bytes follow the JSON"
        )
    return Given(called, datatype, shape, rest)


def pixel_values(tensor: Given, shape: pixels.Shape, booleans: bool) -> Images:
    """Read pixel values, uint8 [N, H, W, C].

    Raises:
        RejectedError: 400, another shape, or a value that is no pixel.
    """
    expected = ["N", *shape]
    if tensor.shape[1:] not in ([*shape], [*shape][: 2 if shape[2] == 1 else 3]) or not tensor.shape[0]:
        wanted, actual = str(expected).replace("'", ""), tensor.shape
        raise RejectedError(400, f"the shape of {tensor.name!r} is {actual}; the model takes {wanted}")
    count, where = tensor.shape[0], f"{tensor.name}.data"
    if isinstance(tensor.data, memoryview):
        return _from_bytes(tensor, tensor.data).reshape(count, *shape)
    if tensor.data and isinstance(tensor.data[0], list):
        if len(tensor.data) != count:
            raise RejectedError(400, f"{where} holds {len(tensor.data)} images; its shape says {count}")
        return pixels.images(tensor.data, shape, where, booleans)
    _require_count(len(tensor.data), prod(tensor.shape), where)
    return pixels.flat(tensor.data, where, booleans).reshape(count, *shape)


def _require_count(actual: int, expected: int, where: str, unit: str = "values") -> None:
    if actual != expected:
        raise RejectedError(400, f"{where} holds {actual} {unit}; its shape asks for {expected}")


def _from_bytes(tensor: Given, data: memoryview) -> Images:
    dtype = np.dtype(_TYPES[tensor.datatype])
    _require_count(len(data), prod(tensor.shape) * dtype.itemsize, tensor.name, "bytes")
    values: npt.NDArray[Any] = np.frombuffer(data, dtype)
    if dtype == np.uint8:
        return values
    good = (values >= 0) & (values <= 255) & (values == np.floor(values))
    if not good.all():
        first = int(np.argmin(good))
        some = values[: pixels.LOOKED_AT].tolist()
        raise pixels.no_pixel(float(values[first]), f"{tensor.name}[{first}]", some)
    return values.astype(np.uint8)


async def pictures(tensor: Given, policy: Policy, decode: encoded.Decode) -> Images:
    """Decode pictures, uint8 [N, H, W, C].

    Raises:
        RejectedError: 400, at the first that is damaged.
    """
    if isinstance(tensor.data, memoryview):
        files = _strings(tensor.data)
    else:
        nested = tensor.data and all(isinstance(element, list) for element in tensor.data)
        words = list(chain.from_iterable(tensor.data)) if nested else tensor.data
        files = []
        for index, word in enumerate(words):
            where = f"{ENCODED}.data[{index}]"
            if isinstance(word, dict):  # as TensorFlow Serving has it
                files.append(encoded.unwrap(word, where))
                continue
            if not isinstance(word, str):
                raise RejectedError(400, f"{where} is {json_type(word)}, not base64")
            files.append(encoded.plain(word, where))
    if tensor.shape not in ([len(files)], [len(files), 1]) or not files:
        raise RejectedError(400, f"{ENCODED} holds {len(files)} pictures; its shape is {tensor.shape}")
    return await decode(files, policy, [f"{ENCODED}[{index}]" for index in range(len(files))])


def _strings(data: memoryview) -> list[bytes]:
    """Split elements that each follow their length, 4 bytes little-endian."""
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(data[at:start], "little")
        if at > len(data) or start > len(data):
            raise RejectedError(
                400, f"element {len(elements)} of {ENCODED} is longer than what follows the JSON"
            )
        elements.append(bytes(data[start:at]))
    return elements


HEADER = b"inference-header-content-length"
"""Length of the JSON, where bytes follow it."""


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


def wanted(document: Document, task: Task) -> list[Wanted]:
    """Read which outputs of a task are wanted, and how.

    Raises:
        RejectedError: 400, at the first fault.
    """
    parameters = _parameters(document.members, "the request")
    binary = _flag(parameters, "binary_data_output", False)
    listed = document.members.get("outputs")
    if listed in (None, []):
        listed = [{"name": called} for called in task.tensors]
    if not isinstance(listed, list):
        raise RejectedError(400, f"outputs is {json_type(listed)}, not an array")
    outputs: list[Wanted] = []
    for index, member in enumerate(listed):
        called = member.get("name") if isinstance(member, dict) else None
        if (
            not isinstance(called, str)
            or called not in task.tensors
            or called in {output.name for output in outputs}
        ):
            known = ", ".join(task.tensors)
            raise RejectedError(
                400, f"outputs[{index}] names {str(called)[:80]!r}; each of {known} may appear once"
            )
        own = _parameters(member, f"outputs[{index}]")
        ranked = own.get("classification", 0)
        if type(ranked) is not int or ranked < 0 or (ranked and called != "probabilities"):
            sentence = (
                f"classification is {str(ranked)[:40]} for {called!r}; it is a number, for 'probabilities'"
            )
            if "probabilities" not in task.tensors:
                sentence = f"classification ranks probabilities, and {called!r} has none; leave it out"
            raise RejectedError(400, sentence)
        if "shared_memory_region" in own:
            raise RejectedError(400, "shared memory is not offered; leave it out")
        outputs.append(Wanted(called, _flag(own, "binary_data", binary), ranked))
    return outputs


@cache
def every(names: tuple[str, ...]) -> tuple[Wanted, ...]:
    """All outputs, which is what a client that names none gets."""
    return tuple(Wanted(name, binary=False, ranked=0) for name in names)


def _parameters(member: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = member.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise RejectedError(400, f"the parameters of {where} are {json_type(parameters)}, not an object")
    return parameters


def _flag(parameters: dict[str, Any], key: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise RejectedError(400, f"the parameter {key} is {json_type(value)}, not true or false")
    return value


def render(identity: dict[str, str], asked: list[Wanted], outputs: Outputs, served: Served) -> Answer:
    """Answer with the wanted outputs, those in binary after the JSON."""
    described, following = [], []
    for output in asked:
        datatype, elements = values(output, outputs, served.task)
        member: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": sizes(elements)}
        if output.binary:
            following.append(to_bytes(elements))
            member["parameters"] = {"binary_data_size": len(following[-1])}
        else:
            member["data"] = _flat(elements)
        described.append(member)
    document = {
        "model_name": served.name,
        "model_version": str(served.version),
        **identity,
        "outputs": described,
    }
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    count = len(outputs)
    if not following:
        return Answer(text, kind=JSON, version=served.version, images=count)
    length = ((HEADER, b"%d" % len(text)),)
    return Answer(b"".join([text, *following]), 200, OCTETS, length, served.version, count)


def values(output: Wanted, outputs: Outputs, task: Task) -> tuple[str, Any]:
    """Return datatype and elements of an output, [N] or [N, K]."""
    if not output.ranked:
        return task.tensors[output.name], task.tensor(output.name, outputs)
    order = np.argsort(-outputs, 1, kind="stable")[:, : output.ranked]
    return "BYTES", [
        [f"{row[label]:f}:{label}:{task.names[label]}" for label in labels]
        for row, labels in zip(outputs, order.tolist(), strict=True)
    ]


def sizes(values: Any) -> list[int]:
    """Return the shape of an output's elements."""
    if isinstance(values, np.ndarray):
        return list(values.shape)
    return [len(values), len(values[0])] if isinstance(values[0], list) else [len(values)]


def _flat(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values).reshape(-1)
    return list(chain.from_iterable(values)) if isinstance(values[0], list) else values


def to_bytes(values: Any) -> bytes:
    """Return an output's elements as bytes, little-endian; each string follows its length."""
    flat: Sequence[str] | npt.NDArray[Any] = _flat(values)
    if isinstance(flat, np.ndarray):
        return flat.astype(flat.dtype.newbyteorder("<"), copy=False).tobytes()
    return joined([word.encode() for word in flat])


def joined(words: Sequence[bytes]) -> bytes:
    """Join elements of type BYTES, each after its length."""
    return b"".join(len(word).to_bytes(_LENGTH_BYTES, "little") + word for word in words)
