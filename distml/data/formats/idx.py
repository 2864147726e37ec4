"""The IDX format of the MNIST family: bytes in, a checked array out (driver)."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import re
import struct
import zlib
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from distml.config import DataConfig
from distml.data.formats.arrays import of_splits
from distml.data.listing import Folder
from distml.data.schema import Images
from distml.data.source import Origin, Source
from distml.data.split import split_word
from distml.errors import DataError

_UNSIGNED_BYTES = 0x0800  # third byte: element type; fourth: number of dimensions


_NAME = re.compile(r"(?P<set>.*?)(?P<kind>images|labels)[-.]?idx\d(?:[-.]u?byte)?(?P<gz>\.gz)?", re.I)


def is_idx(name: str) -> bool:
    """Whether a file is called as those of the MNIST family are, like `train-images-idx3-ubyte.gz`."""
    return _NAME.fullmatch(PurePosixPath(name).name) is not None


def open_idx(folder: Folder, data: DataConfig) -> Source:
    """Read pairs of images and labels, as `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`.

    Raises:
        DataError: Half a pair, several sets in one folder, or a damaged file.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in folder.sizes:
        match = _NAME.fullmatch(PurePosixPath(name).name)
        if match is None:
            folder.ledger.skip(name, "no IDX file")
            continue
        word = split_word(match["set"]) or split_word(PurePosixPath(name).parts[0]) or ("train", match["set"])
        kinds = found.setdefault((word[1].strip("-_. "), word[0]), {})
        if kinds.setdefault(match["kind"].lower(), name) != name:
            raise DataError(f"{kinds[match['kind'].lower()]} and {name} are the same half of one split.")
    sets = sorted({which for which, _ in found})
    if len(sets) > 1:
        shown = ", ".join(which.replace(" ", "-") or "one without a name" for which in sets)
        raise DataError(f"{folder.root} holds several data sets: {shown}.", "Give each a folder of its own.")
    parts, origins = {}, []
    for (_, split), pair in found.items():
        if set(pair) != {"images", "labels"}:
            raise DataError(f"{folder.root} has no {split} {'labels' if 'images' in pair else 'images'}.")
        arrays = {}
        for kind, name in pair.items():
            packed = folder.read(name)
            content = gunzip(name, packed) if packed[:2] == b"\x1f\x8b" else packed
            arrays[kind] = parse(name, content, (3, 4) if kind == "images" else (1,))
            origins.append(Origin(name, f"{folder.root}/{name}", hashlib.sha256(content).hexdigest()))
        parts[split] = arrays["images"], arrays["labels"]
    origins.sort(key=lambda origin: origin.name)
    return replace(
        of_splits(parts, None, tuple(origins), folder.root),
        ledger=folder.ledger,
        fingerprint=folder.fingerprint(),
    )


def gunzip(name: str, data: bytes, limit: int | None = None) -> bytes:
    """Decompress a whole gzip file and check its CRC and length.

    Args:
        name: Named in the error.
        data: The compressed file.
        limit: Most bytes accepted; more is refused without being decompressed.

    Raises:
        DataError: Truncated, damaged, no gzip, or larger than `limit`.
    """
    try:
        if not data:  # which gzip takes for a file of no members
            raise EOFError("it is empty")
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            content = stream.read(-1 if limit is None else limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} is damaged: {error} ({len(data):,} bytes).", "Fetch it again.") from None
    if limit is not None and len(content) > limit:
        raise DataError(f"{name} is damaged: it holds more than the expected {limit:,} bytes.")
    return content


def parse(name: str, content: bytes, dims: tuple[int, ...]) -> Images:
    """Read IDX content.

    Args:
        name: Named in the error.
        content: The file, decompressed.
        dims: Accepted numbers of dimensions.

    Returns:
        uint8 array of the shape that the header says; a view on `content`.

    Raises:
        DataError: Another magic number, or a header whose sizes differ from the bytes that follow.
    """
    expected = " or ".join(f"0x{_UNSIGNED_BYTES + n:08x}" for n in dims)
    magic = int.from_bytes(content[:4], "big")
    rank = magic - _UNSIGNED_BYTES
    if len(content) < 4 or rank not in dims:
        raise DataError(f"{name}: the IDX magic number is 0x{magic:08x}, expected {expected}.")
    if len(content) < 4 + 4 * rank:
        raise DataError(f"{name}: the IDX header is cut off after {len(content)} bytes.")
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    present = len(content) - 4 - 4 * rank
    if math.prod(shape) != present:
        sizes = " x ".join(f"{size}" for size in shape)
        raise DataError(
            f"{name}: the header says {sizes} = {math.prod(shape):,} bytes, but {present:,} follow."
        )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
