"""Requests that are wrong in one way each, with the status and the words that answer them.

The paths hold `{name}`, the images fit a model that takes 4 x 5 x 1 pixels.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

ROW, IMAGE = [0] * 5, [[0] * 5] * 4
PREDICT, PICTURE = "/predict", "/predict/image"
TENSORFLOW, INFER = "/v1/models/{name}:predict", "/v2/models/{name}/infer"


@dataclass(frozen=True)
class Case:
    """A request and what must come back.

    Args:
        title: What is wrong.
        path: Of the request.
        body: As sent.
        status: Expected.
        said: Words of the sentence.
        method: Of the request.
        headers: Of the request; the content type is application/json without any.
    """

    title: str
    path: str
    body: bytes
    said: str
    status: int = 400
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


def single(image: Any) -> bytes:
    """The native body with one image."""
    return json.dumps({"instances": [image]}).encode()


def with_pixel(text: str) -> bytes:
    """The native body whose last pixel is written like this."""
    return single(IMAGE)[: -len("0]]]}")] + text.encode() + b"]]]}"


def infer(**tensor: Any) -> bytes:
    """An Open Inference request with one tensor."""
    plain = {"name": "image", "datatype": "UINT8", "shape": [1, 4, 5, 1], "data": IMAGE}
    return json.dumps({"inputs": [{**plain, **tensor}]}).encode()


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG of this size whose pixels are cut off early, with further chunks before them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(min(width * height, 10_000_000)), 9))
    texts = b"".join(chunk(b"zTXt", data) for data in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + texts + pixels + chunk(b"IEND", b"")


def picture(kind: str, size: tuple[int, int] = (5, 4), **options: Any) -> bytes:
    """A blank picture file."""
    stream = io.BytesIO()
    Image.new("L", size).save(stream, kind, **options)
    return stream.getvalue()


def webp(width: int, height: int) -> bytes:
    """A lossless WebP that says it is of this size."""
    made = bytearray(picture("WEBP", lossless=True))
    at = made.index(b"VP8L") + 9
    flags = int.from_bytes(made[at : at + 4], "little") >> 28 << 28
    made[at : at + 4] = (flags | (height - 1) << 14 | (width - 1)).to_bytes(4, "little")
    return bytes(made)


_PNG = {"content-type": "image/png"}
_FORM = {"content-type": "multipart/form-data; boundary=x"}
_TEXT = b"k\0\0" + zlib.compress(bytes(1_000_000), 9)

BODIES = [
    Case("empty", PREDICT, b"", "the body is not JSON: it is empty"),
    Case("no JSON", PREDICT, b"instances=1", "the body is not JSON: "),
    Case("cut off", PREDICT, single(IMAGE)[:-2], "the body is not JSON: "),
    Case("no UTF-8", PREDICT, b'{"instances": "\xff"}', "not valid UTF-8"),
    Case("an array", PREDICT, b"[1]", "the body is an array, not a JSON object"),
    Case("UTF-16", PREDICT, "{}".encode("utf-16"), "it is UTF-16; send UTF-8"),
    Case("UTF-16 without its mark", PREDICT, "{}".encode("utf-16-le"), "it is UTF-16; send UTF-8"),
    Case("deep nesting", PREDICT, b"[" * 100_000, "it is nested too deeply"),
    Case("deep objects", PREDICT, b'{"a":' * 100_000, "it is nested too deeply"),
    Case("duplicate key", PREDICT, b'{"instances": [1], ' + single(IMAGE)[1:], "'instances' appears twice"),
    Case("unknown key", PREDICT, b'{"instance": []}', "the key 'instance' is not known"),
    Case("missing key", PREDICT, b"{}", "the key 'instances' is missing"),
    Case("NaN", PREDICT, with_pixel("NaN"), "the body is not JSON: NaN is not a JSON number, at line 1 column"),
    Case("Infinity", PREDICT, with_pixel("-Infinity"), "the body is not JSON: Infinity is not a JSON number"),
    Case("many members of gzip", PREDICT, gzip.compress(b"") * 50, "not one complete gzip stream", headers={"content-encoding": "gzip"}),
    Case("huge number", PREDICT, with_pixel("1e999"), "the body is not JSON: number is infinity"),
    Case("wrong content type", PREDICT, single(IMAGE), "'text/csv' is not supported", 415, headers={"content-type": "text/csv"}),
    Case("wrong encoding", PREDICT, single(IMAGE), "encoding 'br' is not known", 415, headers={"content-encoding": "br"}),
    Case("no gzip", PREDICT, single(IMAGE), "the body is not gzip data", headers={"content-encoding": "gzip"}),
    Case("cut-off gzip", PREDICT, gzip.compress(single(IMAGE))[:-9], "not one complete gzip stream", headers={"content-encoding": "gzip"}),
    Case("gzip bomb", PREDICT, gzip.compress(bytes(100_000_000), compresslevel=1), "the body is larger than", 413, headers={"content-encoding": "gzip"}),
]  # fmt: skip

PIXELS = [
    Case("no image", PREDICT, b'{"instances": []}', "instances must be a list of at least one image"),
    Case("a number", PREDICT, b'{"instances": 5}', "instances must be a list of at least one image"),
    Case("null", PREDICT, single(None), "instances[0] is null, not a list of 4 rows"),
    Case("a row too few", PREDICT, single(IMAGE[:3]), "instances[0] has 3 rows; the model takes 4"),
    Case("a short row", PREDICT, single([*IMAGE[:3], [0] * 4]), "instances[0][3] has 4 pixels; the model takes 5"),
    Case("a number for a row", PREDICT, single([5] * 4), "instances[0][0] is a number, not a list of 5 pixels"),
    Case("two channels", PREDICT, single([[[0, 0]] * 5] * 4), "instances[0][0][0] has 2 channels; the model takes 1"),
    Case("no channel", PREDICT, single([[[]] * 5] * 4), "instances[0][0][0] has 0 channels; the model takes 1"),
    Case("too large", PREDICT, with_pixel("256"), "instances[0][3][4] is 256, not a whole number from 0 to 255"),
    Case("enormous", PREDICT, with_pixel("1" + "0" * 40), "instances[0][3][4] is 1e+40, not a whole number"),
    Case("negative", PREDICT, with_pixel("-1"), "instances[0][3][4] is -1, not a whole number from 0 to 255"),
    Case("a fraction", PREDICT, single([[9, 0.5, 200, 0, 0]] * 4), "instances[0][0][1] is 0.5, not a whole number from 0 to 255; round it"),
    Case("one scaled", PREDICT, with_pixel("0.5"), "instances[0][3][4] is 0.5, not a whole number from 0 to 255; pixel"),
    Case("scaled", PREDICT, single([[0, 0.5, 1, 0, 0]] * 4), "instances[0][0][1] is 0.5, not a whole number from 0 to 255; pixel values are not scaled to 0 to 1"),
    Case("normalized", PREDICT, single([[-2.1, 0.5, 2.6, 0, 0]] * 4), "instances[0][0][0] is -2.1, not a whole number from 0 to 255; send raw"),
    Case("channels first", PREDICT, single([IMAGE]), "instances[0] has 1 rows; the model takes 4; the channels come last"),
    Case("a flat list", PREDICT, single([0] * 20), "instances[0] has 20 rows; the model takes 4; send 4 lists of 5 pixels"),
    Case("base64 alone", PREDICT, single("iVBORw0KGgo="), 'instances[0] is a string, not a list of 4 rows; an encoded picture is {"b64"'),
    Case("a boolean", PREDICT, with_pixel("true"), "instances[0][3][4] is a boolean, not a whole number"),
    Case("a string", PREDICT, with_pixel('"7"'), "instances[0][3][4] is a string, not a whole number"),
    Case("an object", PREDICT, with_pixel('{"b64": ""}'), "instances[0][3][4] is an object, not a whole number"),
    Case("base64 among numbers", PREDICT, b'{"instances": [{"b64": ""}, [[0]]]}', 'instances[1] is an array, not {"b64"'),
    Case("other key", PREDICT, b'{"instances": [{"url": "file:///etc/passwd"}]}', "instances[0] is an object with the keys ['url']"),
    Case("no base64", PREDICT, single({"b64": "@@@"}), "instances[0].b64 is not base64"),
    Case("address", PREDICT, single({"b64": "https://a.example/cat.png"}), "instances[0].b64 is an address, which is not fetched"),
    Case("cut-off base64", PREDICT, single({"b64": "abcde"}), "instances[0].b64 is not base64"),
    Case("base64 of no ASCII", PREDICT, single({"b64": "é"}), "instances[0].b64 is not base64"),
    Case("base64 of no picture", PREDICT, single({"b64": "abcd"}), "instances[0] is not a readable picture"),
]  # fmt: skip

PICTURES = [
    Case("empty picture", PICTURE, b"", "the body is empty", headers=_PNG),
    Case("no picture", PICTURE, b"GIF89a is what it says", "is not a readable picture", headers=_PNG),
    Case("a text", PICTURE, b"hello", "'text/plain' is not a picture", 415, headers={"content-type": "text/plain"}),
    Case("truncated PNG", PICTURE, picture("PNG", (300, 300))[:-60], "is not a readable picture", headers=_PNG),
    Case("truncated JPEG", PICTURE, picture("JPEG", (300, 300))[:200], "is not a readable picture", headers=_PNG),
    Case("10k x 10k", PICTURE, png(10_000, 10_000), "pixels, more than 50,000,000", headers=_PNG),
    Case("20k x 20k", PICTURE, png(20_000, 20_000), "pixels, more than 50,000,000", headers=_PNG),
    Case("2 billion wide", PICTURE, png(2**31 - 1, 1), "pixels, more than 50,000,000", headers=_PNG),
    Case("text bomb", PICTURE, png(5, 4, _TEXT), "is not a readable picture", headers=_PNG),
    Case("many texts", PICTURE, png(5, 4, *[b"k\0\0" + zlib.compress(bytes(60_000))] * 500), "is not a readable picture", headers=_PNG),
    Case("WebP bomb", PICTURE, webp(16_383, 16_383), "pixels, more than 50,000,000", headers=_PNG),
    Case("GIF bomb", PICTURE, b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02L\x01\x00;", "pixels, more than 50,000,000", headers=_PNG),
    Case("PostScript", PICTURE, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n", "is not a readable picture", headers=_PNG),
    Case("no boundary", PICTURE, b"", "names no boundary", headers={"content-type": "multipart/form-data"}),
    Case("no form", PICTURE, b"hello", "the body is not a form", headers=_FORM),
    Case("cut-off form", PICTURE, b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nhello', "the form ends before its last boundary", headers=_FORM),
    Case("a field", PICTURE, b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\nhello\r\n--x--\r\n', "the form holds no file; its fields are 'f'", headers=_FORM),
    Case("an empty form", PICTURE, b"--x--\r\n", "the form holds no file", headers=_FORM),
]  # fmt: skip

_NAMED = json.dumps({"instances": [{"image": IMAGE}, {"picture": IMAGE}]}).encode()

PROTOCOLS = [
    Case("both formats", TENSORFLOW, b'{"instances": [1], "inputs": [1]}', "either 'instances' or 'inputs'"),
    Case("neither format", TENSORFLOW, b"{}", "either 'instances' or 'inputs'"),
    Case("signature", TENSORFLOW, b'{"signature_name": "x", "instances": [1]}', "the signature_name 'x' is not known"),
    Case("signature's type", TENSORFLOW, b'{"signature_name": [], "instances": [1]}', "signature_name '[]' is not known"),
    Case("other input", TENSORFLOW, _NAMED, "instances[1] must be an object with the one key 'image'"),
    Case("raw for encoded", TENSORFLOW, b'{"signature_name": "image_bytes", "instances": [[0]]}', "instances[0] is an array"),
    Case("columnar fault", TENSORFLOW, b'{"inputs": {"image": [[[0]]]}}', "inputs[0] has 1 rows; the model takes 4"),
    Case("no model", "/v1/models/nobody:predict", b"{}", "there is no model 'nobody'", 404),
    Case("no version", "/v1/models/{name}/versions/99:predict", b"{}", "version 99 of", 404),
    Case("no number", "/v1/models/{name}/versions/x:predict", b"{}", "the version 'x' is not a number", 404),
    Case("no tensors", INFER, b"{}", "inputs must be a list of one tensor"),
    Case("two tensors", INFER, b'{"inputs": [{}, {}]}', "inputs must be a list of one tensor"),
    Case("no name", INFER, b'{"inputs": [{}]}', "there is no input 'None'"),
    Case("datatype", INFER, infer(datatype="BF16"), "the datatype of 'image' is 'BF16'"),
    Case("shape", INFER, infer(shape=[1, 5, 4, 1]), "the shape of 'image' is [1, 5, 4, 1]; the model takes [N, 4, 5, 1]"),
    Case("negative shape", INFER, infer(shape=[-1, 4, 5, 1]), "the shape of 'image' is not a list of sizes"),
    Case("enormous shape", INFER, infer(shape=[2**30, 4, 5, 1], data=[0] * 20), "holds 20 values; its shape asks for"),
    Case("no data", INFER, b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 4, 5, 1]}]}', "either 'data' or"),
    Case("pixel", INFER, infer(data=[0] * 19 + [300]), "image.data[19] is 300, not a whole number"),
    Case("boolean", INFER, infer(data=[0] * 19 + [True]), "image.data[19] is a boolean, not a whole number"),
    Case("bytes without their header", INFER, infer(parameters={"binary_data_size": 20}) + b"\1" * 20, "bytes follow the JSON; give"),
    Case("binary size", INFER, infer(parameters={"binary_data_size": 20}), "either 'data' or the parameter"),
    Case("header length", INFER, infer(), "Inference-Header-Content-Length is '9999' of", headers={"inference-header-content-length": "9999"}),
    Case("no header length", INFER, infer(), "Inference-Header-Content-Length is 'x' of", headers={"inference-header-content-length": "x"}),
    Case("trailing bytes", INFER, infer() + b"\0\0", "the body is not JSON"),
    Case("output", INFER, infer()[:-1] + b', "outputs": [{"name": "logits"}]}', "outputs[0] names 'logits'"),
    Case("output twice", INFER, infer()[:-1] + b', "outputs": [{"name": "label"}, {"name": "label"}]}', "outputs[1] names 'label'"),
    Case("shared memory", INFER, infer(parameters={"shared_memory_region": "x"}), "shared memory is not offered"),
    Case("id", INFER, infer()[:-1] + b', "id": 5}', "the id is a number, not a string"),
    Case("no such model", "/v2/models/nobody/infer", infer(), "there is no model 'nobody'", 404),
    Case("encoded shape", INFER, infer(name="image_bytes", datatype="BYTES", shape=[2], data=[base64.b64encode(picture("PNG")).decode()]), "holds 1 pictures; its shape is [2]"),
]  # fmt: skip

METHODS = [
    Case("GET", PREDICT, b"", "/predict takes POST, not GET", 405, "GET"),
    Case("PUT", INFER, b"", "takes POST, not PUT", 405, "PUT"),
    Case("DELETE", "/v2/models/{name}", b"", "takes GET, not DELETE", 405, "DELETE"),
    Case("POST", "/healthz", b"", "/healthz takes GET, not POST", 405),
    Case("nothing there", "/v3", b"", "there is nothing at /v3", 404, "GET"),
    Case("traversal", "/..%2f..%2fetc/passwd", b"", "there is nothing at", 404, "GET"),
]

CASES = [*BODIES, *PIXELS, *PICTURES, *PROTOCOLS, *METHODS]
