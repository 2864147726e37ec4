"""Columns, pixels and pictures: what a row is, and how pixel values become numbers (any process).

The one definition of pixel scaling. Training, evaluation and serving call `normalise` or embed the same
two constants as a Keras `Rescaling(SCALE, OFFSET)` layer; a parity test holds them together.
"""

from __future__ import annotations

import io
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageOps, UnidentifiedImageError

from distml.errors import DataError

SCALE = 1 / 255
"""Factor on a pixel value."""
OFFSET = 0.0
"""Added to the scaled pixel value."""
VERSION = 1
"""Version of the columns; another one prepares the data anew."""

IMAGE, LABEL, ROW = "image", "label", "row"
MAX_IMAGE_PIXELS = 1_000_000
"""A larger picture is refused before it is decoded: a small file can hold gigabytes of pixels."""

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")  # Pillow knows dozens; fewer parsers face the outside
_GRAY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]
Number = TypeVar("Number", bound=np.number[Any])


def normalise(images: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Scale pixel values 0 to 255 to [0, 1].

    Args:
        images: uint8, or floats in the same units, of any shape.

    Returns:
        float32 of the same shape.
    """
    return np.asarray(images, np.float32) * np.float32(SCALE) + np.float32(OFFSET)


def tensor_type(shape: tuple[int, ...]) -> Any:
    """Return the Arrow type of the image column: a fixed-shape tensor of uint8 [H, W, C]."""
    return pa.fixed_shape_tensor(pa.uint8(), shape)


def to_table(images: Images, labels: Labels, rows: npt.NDArray[np.int64]) -> Any:
    """Wrap arrays as a `pyarrow.Table` without copying them.

    Args:
        images: uint8 [N, H, W, C], contiguous.
        labels: int32 [N].
        rows: int64 [N], each row's position in its split.
    """
    shape = images.shape[1:]
    # `FixedShapeTensorArray.from_numpy_ndarray` reads a permutation into axes of length one.
    flat = pa.FixedSizeListArray.from_arrays(to_array(images, pa.uint8()), int(np.prod(shape)))
    columns = [
        pa.ExtensionArray.from_storage(tensor_type(shape), flat),
        to_array(labels.astype(np.int32, copy=False), pa.int32()),
        to_array(rows.astype(np.int64, copy=False), pa.int64()),
    ]
    return pa.Table.from_arrays(columns, names=[IMAGE, LABEL, ROW])


def to_array(values: npt.NDArray[Any], kind: Any) -> Any:
    """Wrap numbers as an Arrow array of the same width; `pa.array` would import pandas, for seconds."""
    return pa.Array.from_buffers(kind, values.size, [None, pa.py_buffer(np.ascontiguousarray(values))])


def to_images(column: Any) -> Images:
    """Return an image column as uint8 [N, H, W, C], without a copy where it is one chunk."""
    if isinstance(column, pa.ChunkedArray):
        parts = [to_images(chunk) for chunk in column.chunks]
        return parts[0] if len(parts) == 1 else np.concatenate([_no_image(column.type.shape), *parts])
    return to_numbers(column.storage.flatten(), np.uint8).reshape(len(column), *column.type.shape)


def to_numbers(column: Any, kind: type[Number]) -> npt.NDArray[Number]:
    """Return a number column without nulls as an array [N], without a copy where it is one chunk.

    Arrow's own `to_numpy` imports pandas first.
    """
    if isinstance(column, pa.ChunkedArray):
        parts = [to_numbers(chunk, kind) for chunk in column.chunks]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, kind), *parts])
    size = np.dtype(kind).itemsize
    if column.type.bit_width != 8 * size or column.null_count:
        raise DataError(f"a column is {column.type} with {column.null_count} nulls, not {kind.__name__}.")
    return np.frombuffer(column.buffers()[1], kind, len(column), column.offset * size)


def _no_image(shape: list[int]) -> Images:
    return np.empty((0, *shape), np.uint8)


def decode(data: bytes, name: str = "the image", max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decode one picture, turned upright as its EXIF orientation says.

    Args:
        data: The encoded picture.
        name: Said in errors.
        max_pixels: A larger picture is refused; more than the default only for a person's own files.

    Raises:
        DataError: Not a PNG, JPEG, BMP, GIF or WEBP, damaged, or larger than `max_pixels`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > max_pixels:
            raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
        image.load()
        return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"{max_pixels:,} pixels"
        raise DataError(f"{name} is larger than {limit}.", "Scale it down.") from None
    except UnidentifiedImageError:  # it names the memory address of our buffer
        raise DataError(f"{name} is not a readable picture.", "Give a PNG or JPEG file.") from None
    except Exception as error:  # Pillow's parsers raise anything on damaged or hostile bytes
        raise DataError(f"{name} is not a readable picture: {error}.", "Give a PNG or JPEG file.") from None


def channels(image: Image.Image) -> int:
    """Return 1 for a picture in shades of gray, 3 for one in colour."""
    return 1 if image.mode in _GRAY else 3


def to_shape(image: Image.Image, shape: tuple[int, int, int]) -> Images:
    """Fit a picture of any size and mode to a data set's shape.

    Transparent parts become black; 16-bit gray becomes 8-bit.

    Args:
        image: As `decode` returns it.
        shape: (H, W, C) with C 1 or 3.

    Returns:
        uint8 [H, W, C].

    Raises:
        DataError: A data set of neither one nor three channels.
    """
    height, width, depth = shape
    if depth not in (1, 3):
        raise DataError(f"a picture cannot become {depth} channels.", "Send arrays instead.")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    image = image.convert("L" if depth == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8).reshape(shape)
