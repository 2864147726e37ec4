"""`distml.data.image` as TensorFlow operations, for the SavedModel's `image_bytes` signature (rank 0).

A SavedModel runs where neither Python nor Pillow is, so the same arithmetic is written out once more here.
TensorFlow decodes JPEG, PNG, BMP, GIF and WebP only, and does not tell which colour of a GIF is transparent.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from distml.data.image import Policy

Tensor = Any
_HEAD_BYTES = 1 << 17
"""Where EXIF stands in a JPEG or PNG: one segment of at most 64 KB near the beginning."""


def fit(data: Tensor, policy: Policy) -> Tensor:
    """Decode one picture and bring it to a data set's shape.

    Args:
        data: Scalar string, the encoded picture.
        policy: The shape, and how it is reached.

    Returns:
        uint8 (H, W, C).
    """
    is_jpeg = tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(data, 0, 4) == b"\x89PNG"
    is_webp = tf.strings.substr(data, 8, 4 * tf.cast(tf.strings.length(data) >= 12, tf.int32)) == b"WEBP"
    turn = _orientation(data, is_jpeg, is_webp)
    image = tf.case(
        [
            (is_jpeg, lambda: _jpeg(data, turn, policy)),
            (is_png, lambda: _png(data, policy)),
            (is_webp, lambda: _webp(data, policy)),
        ],
        lambda: tf.ensure_shape(
            tf.io.decode_image(data, channels=3, expand_animations=False), (None, None, 3)
        ),
    )
    image = _turned(image, tf.where(is_jpeg | is_png | is_webp, turn, 1))
    if policy.shape[2] == 1:
        image = _gray(image)
    return tf.ensure_shape(_placed(image, policy), policy.shape)


def _jpeg(data: Tensor, turn: Tensor, policy: Policy) -> Tensor:
    shape = tf.image.extract_jpeg_shape(data)
    size = tf.where(turn >= 5, shape[:2][::-1], shape[:2])
    across, down = size[1] // policy.shape[1], size[0] // policy.shape[0]
    most = tf.minimum(across, down)
    if policy.fit == "letterbox":
        most = tf.minimum(tf.maximum(across, down), tf.minimum(size[0], size[1]) // 2)
    power = sum(tf.cast(most >= 2 * factor, tf.int32) for factor in (2, 4, 8))

    def decoded(ratio: int) -> Tensor:
        return tf.io.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    # One branch a ratio, since it is an attribute of the operation; the default argument binds each.
    return tf.switch_case(power, [lambda ratio=ratio: decoded(ratio) for ratio in (1, 2, 4, 8)])


def _png(data: Tensor, policy: Policy) -> Tensor:
    pixels = tf.cast(tf.io.decode_png(data, channels=4), tf.int32)
    # TensorFlow gives opaque pixels (1 << depth) - 1 as alpha, although it has widened the others to 8 bits.
    depth = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 24, 1), tf.uint8)[0], tf.int32)
    alpha = pixels[..., 3:]
    narrow = tf.reduce_max(alpha) == tf.bitwise.left_shift(1, tf.minimum(depth, 8)) - 1
    alpha = tf.where(narrow & (depth < 8), 255, alpha)
    return _over(pixels[..., :3], alpha, policy)


def _webp(data: Tensor, policy: Policy) -> Tensor:
    pixels = tf.cast(tf.io.decode_image(data, channels=0, expand_animations=False), tf.int32)
    pixels = tf.concat([pixels, tf.fill(tf.concat([tf.shape(pixels)[:2], [1]], 0), 255)], -1)[..., :4]
    return _over(tf.ensure_shape(pixels[..., :3], (None, None, 3)), pixels[..., 3:], policy)


def _over(colour: Tensor, alpha: Tensor, policy: Policy) -> Tensor:
    mixed = colour * alpha + tf.constant(policy.background, tf.int32) * (255 - alpha)
    return tf.cast((2 * mixed + 255) // 510, tf.uint8)


def _gray(image: Tensor) -> Tensor:
    """ITU-R 601 luma in Pillow's integers."""
    weighted = tf.cast(image, tf.int32) * tf.constant([19595, 38470, 7471], tf.int32)
    return tf.cast((tf.reduce_sum(weighted, -1, keepdims=True) + 0x8000) // 0x10000, tf.uint8)


def _turned(image: Tensor, orientation: Tensor) -> Tensor:
    across = tf.transpose(image, (1, 0, 2))
    turns = [image, image[:, ::-1], image[::-1, ::-1], image[::-1], across]
    turns += [across[:, ::-1], across[::-1, ::-1], across[::-1]]
    return tf.switch_case(orientation - 1, [lambda turned=turned: turned for turned in turns])


def _orientation(data: Tensor, is_jpeg: Tensor, is_webp: Tensor) -> Tensor:
    """EXIF's orientation of a JPEG, PNG or WebP, 1 to 8, found without walking through the segments."""
    length = tf.where(is_webp, tf.strings.length(data), _HEAD_BYTES)  # in WebP it comes last
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, length), tf.uint8), tf.int32)
    head = tf.concat([head, tf.zeros(16, tf.int32)], 0)

    def first(pattern: bytes) -> Tensor:
        last = tf.size(head) - len(pattern)
        same = [head[at : last + at] == value for at, value in enumerate(pattern)]
        places = tf.where(tf.reduce_all(same, 0))[:, 0]
        return tf.cast(tf.concat([places, [-1]], 0)[0], tf.int32)

    named, chunk = first(b"Exif\0\0"), first(b"eXIf")
    chunk = tf.where(is_webp, first(b"EXIF") + 4, chunk)  # the chunk's size stands before its content
    exif = tf.where(is_jpeg | (is_webp & (named >= 0)), named, chunk)
    base = exif + tf.where(is_jpeg | (is_webp & (named >= 0)), 6, 4)

    def number(at: Tensor, size: int) -> Tensor:
        places = tf.clip_by_value(at[..., None] + tf.range(size), 0, tf.size(head) - 1)
        values = tf.gather(head, places)
        little = tf.gather(head, tf.maximum(base, 0)) == ord("I")
        shifts = 8 * tf.range(size)
        return tf.reduce_sum(tf.bitwise.left_shift(values, tf.where(little, shifts, shifts[::-1])), -1)

    entries = base + number(base + 4, 4)
    places = entries + 2 + 12 * tf.range(tf.minimum(number(entries, 2), 512))
    wanted = tf.where(number(places, 2) == 0x0112, number(places + 8, 2), 0)
    value = tf.reduce_max(tf.concat([wanted, [0]], 0))
    return tf.where((exif >= 0) & (value >= 1) & (value <= 8), value, 1)


def _placed(image: Tensor, policy: Policy) -> Tensor:
    rows, columns, depth = policy.shape
    size = tf.shape(image)
    kept_height, kept_width, height, width = _placement(policy, size[0], size[1])
    top, left = (size[0] - kept_height) // 2, (size[1] - kept_width) // 2
    image = image[top : top + kept_height, left : left + kept_width]
    fitted = _resized(_resized(image, [kept_height, width]), [height, width])
    if policy.fit != "letterbox":
        return fitted
    bars = tf.constant(policy.background, tf.uint8)[None, None]
    bars = _gray(bars) if depth == 1 else bars
    above, before = (rows - height) // 2, (columns - width) // 2
    around = [[above, rows - height - above], [before, columns - width - before], [0, 0]]
    inside = tf.pad(tf.ones_like(fitted), around)
    return tf.where(inside == 1, tf.pad(fitted, around), bars)


def _resized(image: Tensor, size: list[Any]) -> Tensor:
    """One pass of a resize; Pillow, too, rounds after each of its two."""
    scaled = tf.image.resize(image, size, "bicubic", antialias=True)
    return tf.cast(tf.clip_by_value(tf.floor(scaled + 0.5), 0, 255), tf.uint8)


def _placement(policy: Policy, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Any, Any]:
    """`image.placement`, with heights before widths."""
    rows, columns = policy.shape[:2]
    wider = width * rows > height * columns
    if policy.fit == "stretch":
        return height, width, rows, columns
    if policy.fit == "crop":
        kept_width = tf.where(wider, tf.maximum(1, (2 * height * columns + rows) // (2 * rows)), width)
        kept_height = tf.where(wider, height, tf.maximum(1, (2 * width * rows + columns) // (2 * columns)))
        return kept_height, kept_width, rows, columns
    to_height = tf.where(wider, tf.maximum(1, (2 * height * columns + width) // (2 * width)), rows)
    to_width = tf.where(wider, columns, tf.maximum(1, (2 * width * rows + height) // (2 * height)))
    return height, width, to_height, to_width
