"""The files of a form (replica)."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from distml.serving.exchange import RejectedError

MAX_PARTS = 1024


@dataclass(slots=True)
class _Part:
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    headers: dict[str, bytes] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)


def files(body: bytes, kind: bytes) -> tuple[list[bytes], list[str]]:
    """Return the content and the name of every file in a form; parts that are no files are refused.

    Args:
        body: Of type multipart/form-data.
        kind: Its content type, with the boundary.

    Raises:
        RejectedError: 400, not a form, or without a file.
    """
    boundary = parse_options_header(kind)[1].get(b"boundary")
    if not boundary:
        raise RejectedError(400, "the content type multipart/form-data names no boundary")
    parts = _parts(body, boundary)
    named = [_filename(part) for part in parts]
    if not parts:
        raise RejectedError(400, "the form holds no file")
    return [bytes(part.content) for part in parts], named


def _parts(body: bytes, boundary: bytes) -> list[_Part]:
    parts: list[_Part] = []
    ended = False

    def begin() -> None:
        if len(parts) == MAX_PARTS:
            raise RejectedError(400, f"the form holds more than {MAX_PARTS} files")
        parts.append(_Part())

    def header() -> None:
        part = parts[-1]
        part.headers[part.header.decode("latin-1").lower()] = bytes(part.value)
        part.header.clear()
        part.value.clear()

    def end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": lambda data, start, stop: parts[-1].header.extend(data[start:stop]),
                "on_header_value": lambda data, start, stop: parts[-1].value.extend(data[start:stop]),
                "on_header_end": header,
                "on_part_data": lambda data, start, stop: parts[-1].content.extend(data[start:stop]),
                "on_end": end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RejectedError(400, f"the body is not a form: {error}") from None
    if not ended:
        raise RejectedError(400, "the form ends before its last boundary")
    return parts


def _filename(part: _Part) -> str:
    options = parse_options_header(part.headers.get("content-disposition", b""))[1]
    field_name = options.get(b"name", b"").decode("utf-8", "replace")[:80]
    if b"filename" not in options:
        raise RejectedError(400, f"the field {field_name!r} of the form is no file")
    return repr(options[b"filename"].decode("utf-8", "replace")[:80])
