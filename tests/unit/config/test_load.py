"""Files and overrides become one configuration, or sentences that name path, value and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distml.config import Config, load
from distml.errors import ConfigError


def refusal(values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Config.resolve(values)
    return str(caught.value)


def test_merging_keeps_what_is_not_overridden_and_changes_no_argument() -> None:
    base, over = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "e": 4}
    assert load.merge(base, over) == {"a": {"b": 9, "c": 2}, "d": 3, "e": 4}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
    assert load.merge({"a": None}, {"a": {"b": 1}}) == {"a": {"b": 1}}


def test_dotted_and_nested_are_the_same_thing() -> None:
    nested = {"a": {"b": {"c": 1}, "d": {}}, "e": [1]}
    flat = {"a.b.c": 1, "a.d": {}, "e": [1]}
    assert load.flatten(nested) == flat
    assert load.nest(flat) == nested


def test_a_path_below_a_value_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs lies below train, which has the value 5"):
        load.nest({"train": 5, "train.epochs": 3})


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("train.epohcs", "train.epochs"),
        ("trian.epochs", "train.epochs"),
        ("epochs", "train.epochs"),
        ("traking", "tracking"),
        ("serve.replicas.mxa", "serve.replicas.max"),
        ("zzz", None),
    ],
)
def test_the_nearest_path(path: str, near: str | None) -> None:
    assert Config.nearest(path) == near


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"train": {"epohcs": 3}}, "unknown key train.epohcs (value 3). Did you mean train.epochs?"),
        ({"train.epochs": 3}, "unknown key train.epochs (value 3). In a file, write epochs below train."),
        ({"zzz": 1}, "unknown key zzz (value 1). See --help for the known keys."),
        ({"train": {"int": 4}}, "unknown key train.int (value 4)."),
        ({"train": None}, "train = null is not accepted: it should be a section of keys and values."),
        ({"model": {"options": 3}}, "model.options = 3 is not accepted: it should be a mapping"),
        ({"data": {"mirrors": "x"}}, 'data.mirrors = "x" is not accepted: it should be a list.'),
        ({"run": {"name": "../x"}}, 'run.name = "../x" is not accepted: it should be letters, digits'),
        (
            {"train": {"workers": "two"}},
            'train.workers = "two" is not accepted. Number of workers, or [least, most] for an elastic run.',
        ),
        (
            {"data": {"image_size": [224]}},
            "data.image_size = [224] is not accepted. Side or [height, width];",
        ),
        ({"data": {"image_size": 100_000}}, "image_size = 100000 is not accepted: it should be less than or"),
        ({"train": {"workers": [2, 1]}}, "workers must be a number or [least, most]."),
        ({"train": {"device": "tpu"}}, "train.device = \"tpu\" is not accepted: it should be 'auto'"),
    ],
)
def test_a_rejection_names_path_value_and_remedy(values: dict[str, Any], said: str) -> None:
    assert said in refusal(values)


def test_of_the_members_of_a_union_the_closest_is_reported() -> None:
    assert refusal({"train": {"workers": [1, "b"]}}).startswith('train.workers.1 = "b" is not accepted')
    assert "\n" not in refusal({"train": {"workers": [1, "b"]}})


def test_problems_are_reported_together_up_to_a_limit() -> None:
    assert refusal({"run": {"seed": -1}, "train": {"epochs": 0}}).count("is not accepted") == 2
    lines = refusal({"train": {f"key{number}": 1 for number in range(500)}}).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "and 490 more."


def test_long_values_are_cut() -> None:
    assert len(refusal({"train": {"epochs": "x" * 10_000}})) < 300


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"- 1\n", "holds a list, not sections"),
        (b"train: {epochs: 1, epochs: 2}", "config.yaml: duplicate key train.epochs"),
        (b" " * (load.MAX_BYTES + 1), "is larger than"),
        (b"# " + "\u00e9".encode() * (load.MAX_BYTES // 2), "is larger than"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml") as caught:
        load.load_file(str(path))
    assert said in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=f"cannot read the configuration {path}"):
            load.load_file(str(path))


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert Config.resolve(load.load_file(str(tmp_path / "empty.yaml"))) == Config()


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
        ("a: \x01", "invalid YAML"),
        ("a: {", "invalid YAML"),
        ("a: " + "x" * load.MAX_BYTES, "larger than"),
    ],
)
def test_unsafe_yaml_is_rejected_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load.parse_yaml(text)


def test_a_yaml_merge_key_is_an_ordinary_key() -> None:
    assert load.parse_yaml("<<: {a: 1}") == {"<<": {"a": 1}}
