"""Configuration files are YAML without its surprises; each refusal says where."""

from __future__ import annotations

from typing import Any

import pytest

from distml.config import load
from distml.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-3", {"a": 1e-3}),
        ("a: 1.5E+3", {"a": 1500.0}),
        ("a: 1_000_000_000", {"a": 1_000_000_000}),
        ("a: 2026-01-31", {"a": "2026-01-31"}),
        ("1: x", {"1": "x"}),
        ("a: [1, {b: null}]", {"a": [1, {"b": None}]}),
        ("\ufeffa: true", {"a": True}),
        ("", None),
        ("a: e-3", {"a": "e-3"}),
    ],
)
def test_plain_values_are_read(text: str, value: Any) -> None:
    assert load.parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train:\n  epochs: 1\n  epochs: 2", r"duplicate key train\.epochs \(line 3\)"),
        ("a: [{b: 1, b: 2}]", r"duplicate key a\.0\.b"),
        ("a: {1: x, '1': y}", r"duplicate key a\.1"),
        ("a: &x 1\nb: *x", r"aliases are not accepted \(line 2\)"),
        ("a: !!python/object/apply:os.system [id]", r"a \(line 1\) has the YAML tag !!python/object/apply"),
        ("a: !!binary AAAA", r"a \(line 1\) has the YAML tag !!binary"),
        ("a: !mine 1", "the YAML tag !mine"),
        ("!!set {a, b}", "the file .* has the YAML tag !!set"),
        ("[1, 2]: 3", "a key below the file .* is not a word"),
        ("? {a: 1}\n: 2", "is not a word"),
        ("a: " + "9" * 65, "a .* is a number of 65 digits"),
        ("a: 0x" + "f" * 99, "is a number of"),
        ("a: " + "1:" * 3000 + "1", "is a number of"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "[" * 40 + "]" * 40, "nested too deeply"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a:\n\tb: 1", r"cannot start any token \(line 2\)"),
        ("a: \x01", "not usable YAML"),
        ("a: {", "not usable YAML"),
        ("a: " + "x" * load.MAX_BYTES, "larger than"),
    ],
)
def test_a_surprise_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load.parse_yaml(text)


def test_a_merge_key_is_a_key_like_any_other() -> None:
    assert load.parse_yaml("<<: {a: 1}") == {"<<": {"a": 1}}
