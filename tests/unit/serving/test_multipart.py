"""Forms as browsers, curl and libraries write them."""

from __future__ import annotations

import pytest

from distml.serving import multipart
from distml.serving.exchange import RejectedError

KIND = b"multipart/form-data; boundary=XX"
END = b"--XX--\r\n"


def part(disposition: bytes, content: bytes = b"P", kind: bytes = b"image/png") -> bytes:
    head = b"--XX\r\nContent-Disposition: form-data; " + disposition
    return head + (b"\r\nContent-Type: " + kind if kind else b"") + b"\r\n\r\n" + content + b"\r\n"


FILE = part(b'name="files"; filename="a.png"')


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (FILE, ["'a.png'"]),
        (part(b'name="user"', b"7", b"text/plain") + FILE, ["'a.png'"]),
        (FILE + part(b'name="note"', b"hello", b""), ["'a.png'"]),
        (part(b'name="files"'), ["'files'"]),
        (part(b"name=\"files\"; filename*=utf-8''gr%C3%B6%C3%9Fe.png"), ["'größe.png'"]),
        (part(b'name="files"; filename="blob"', kind=b""), ["'blob'"]),
        (part(b'name="upload[0]"; filename="C:\\\\x\\\\a b;.png"'), ["'a b;.png'"]),
        (b"This is multipart.\r\n" + FILE, ["'a.png'"]),
        (FILE + part(b'name="more"; filename=""', b"", b"application/octet-stream"), ["'a.png'"]),
        (FILE * 2, ["'a.png'", "'a.png'"]),
    ],
    ids=[
        "file",
        "text first",
        "text last",
        "no name",
        "name*",
        "blob",
        "odd",
        "preamble",
        "none chosen",
        "two",
    ],
)
def test_the_pictures_of_a_form_are_read_and_the_rest_is_not(body: bytes, names: list[str]) -> None:
    assert multipart.files(body + END, KIND) == ([b"P"] * len(names), names)


def test_a_form_without_a_picture_names_its_fields() -> None:
    body = part(b'name="user"', b"7", b"text/plain") + part(b'name="age"', b"7", b"") + END
    with pytest.raises(RejectedError, match="holds no file; its fields are 'user', 'age'"):
        multipart.files(body, KIND)
    with pytest.raises(RejectedError, match="holds no file"):
        multipart.files(part(b'name="files"; filename=""', b"", b"application/octet-stream") + END, KIND)
