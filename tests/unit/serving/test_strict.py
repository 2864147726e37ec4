"""JSON is taken as it is written, or not at all."""

from __future__ import annotations

import pytest

from distml.serving import strict
from distml.serving.exchange import RejectedError


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '{"a": {"b": 1, "b": 2}}',
        '{"a": [{"b": 1}, {"b": 1, "b": 1}]}',
        '{"a": [1, {"b": 1, "b": 1}]}',
        '{"a": [[{"b": 1, "b": 1}]]}',
        '{"a": ":", "\\u0061": 1}',
        '{"a:": ":::", "b": {"c": 1, "c": 1}}',
    ],
)
def test_a_key_that_stands_twice_is_found_anywhere(text: str) -> None:
    with pytest.raises(RejectedError, match="stands twice in one object"):
        strict.parse(text.encode())


@pytest.mark.parametrize(
    ("text", "members", "booleans"),
    [
        ('{"a": {"a": {"a": 1}}}', {"a": {"a": {"a": 1}}}, False),
        ('{"a": "x: y", "b": ":"}', {"a": "x: y", "b": ":"}, False),
        ('{"a": [{"b": 1}, {"b": 1}]}', {"a": [{"b": 1}, {"b": 1}]}, False),
        ('{"a": [true]}', {"a": [True]}, True),
        ('{"a": "false"}', {"a": "false"}, True),
    ],
)
def test_the_rest_is_parsed(text: str, members: object, booleans: bool) -> None:
    document = strict.parse(memoryview(text.encode()))
    assert (document.members, document.booleans) == (members, booleans)


def test_depth_ends_in_a_sentence_whoever_parses() -> None:
    deep = '{"x:": ' + "[" * 900 + "]" * 900 + "}"
    assert strict.parse(deep.encode()).members
    for depth in (1_100, 100_000):
        with pytest.raises(RejectedError, match="nested too deeply"):
            strict.parse(('{"x:": ' + "[" * depth + "]" * depth + "}").encode())


def test_kinds_have_names() -> None:
    values: list[object] = [True, 1, 1.5, "", [], {}, None]
    named = [strict.kind(value) for value in values]
    assert named == ["a boolean", "a number", "a number", "a string", "an array", "an object", "null"]


def test_more_numbers_than_can_be_parsed_in_time_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict, "MAX_VALUES", 3)
    assert strict.parse(b'{"a": [1, 2, 3, 4]}').members == {"a": [1, 2, 3, 4]}
    with pytest.raises(RejectedError, match="more than 3 numbers; send fewer images") as caught:
        strict.parse(b'{"a": [1, 2, 3, 4, 5]}')
    assert caught.value.status == 413
