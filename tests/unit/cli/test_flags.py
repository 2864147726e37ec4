"""Every key of the configuration is a flag, typed as in a file, and a misspelt one is answered like a key."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from distml.cli import flags
from distml.config import Config, load
from distml.errors import ConfigError


def read(*words: str) -> Config:
    return flags.parse(flags.make_parser("test", "Test things (driver)."), words)[0]


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*words)
    return str(caught.value)


def test_there_is_exactly_one_flag_for_every_key() -> None:
    given = {action.dest for action in flags.make_parser("test", "").actions() if "." in action.dest}
    sections = {
        "train.schedule_options",
        "train.augment",
        "serve.replicas",
        "serve.canary",
        "serve.auth",
        "serve.tls",
        "sweep.search",
        "promote.guards",
    }
    keys = {path for path in load._paths(Config) if "." in path}
    assert given == keys - sections


def test_every_choice_of_a_flag_is_accepted_as_a_word() -> None:
    choices = [
        (action.dest, choice)
        for action in flags.make_parser("test", "").actions()
        if "." in action.dest and str(action.metavar).startswith("{")
        for choice in str(action.metavar).strip("{}").split(",")
        if choice.isdigit()
    ]
    assert choices
    for path, choice in choices:
        section, _, key = path.partition(".")
        assert read(f"--{path}={choice}").model_dump()[section][key] == int(choice)


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        (["--train.epochs", "3"], "train.epochs", 3),
        (["--train.epochs=3"], "train.epochs", 3),
        (["--train.epochs", "3", "--train.epochs", "4"], "train.epochs", 4),
        (["--train.learning_rate", "1e-4"], "train.learning_rate", 1e-4),
        (["--train.workers", "1"], "train.workers", 1),
        (["--train.workers", "[1, 4]"], "train.workers", [1, 4]),
        (["--train.device", "cpu"], "train.device", "cpu"),
        (["--train.augment.flip", "true"], "train.augment.flip", True),
        (["--train.clip_norm", "null"], "train.clip_norm", None),
        (["--tracking.uri", "none"], "tracking.uri", None),
        (["--run.name", "2026-01-31"], "run.name", "2026-01-31"),
        (["--run.name", "7"], "run.name", "7"),
        (
            ["--model.options", "{dense: 8, filters: [4, 8]}"],
            "model.options",
            {"dense": 8, "filters": [4, 8]},
        ),
        (["--model.options", '{"dense":8}'], "model.options", {"dense": 8}),
        (["--data.mirrors", "[]"], "data.mirrors", []),
        (["--data.mirrors", "null"], "data.mirrors", None),
        (["--data.mirrors", "http://a"], "data.mirrors", ["http://a"]),
        (
            ["--data.mirrors", "http://a", "--data.mirrors", "http://b"],
            "data.mirrors",
            ["http://a", "http://b"],
        ),
        (["--sweep.candidates", "{model.name: cnn}"], "sweep.candidates", [{"model.name": "cnn"}]),
        (["--serve.replicas.max", "5"], "serve.replicas.max", 5),
    ],
)
def test_a_flag_is_typed_like_its_key(words: list[str], path: str, value: Any) -> None:
    actual: Any = read(*words)
    for part in path.split("."):
        actual = getattr(actual, part)
    assert actual == value
    assert type(actual) is type(value)


def test_a_flag_overrides_the_file_and_null_clears_a_value(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train: {epochs: 7, clip_norm: 1.0}\nrun: {name: filed}\n")
    config = read("--config", str(path), "--train.epochs", "3", "--train.clip_norm", "null")
    assert (config.train.epochs, config.train.clip_norm, config.run.name) == (3, None, "filed")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--train.epohcs", "3"], "unknown flag --train.epohcs. Did you mean --train.epochs?"),
        (["--epochs=3"], "unknown flag --epochs=3. Did you mean --train.epochs?"),
        (["--confg", "x"], "unknown flag --confg. Did you mean --config?"),
        (["--train", "{epochs: 3}"], "unknown flag --train."),
        (["--zzz"], "unknown flag --zzz. See distml test --help."),
        (["--train.epochs"], "--train.epochs: expected one argument."),
        (["word"], "unrecognized arguments: word."),
        (["--train.epochs", "x"], 'train.epochs = "x" is not accepted'),
        (["--train.device", "tpu"], 'train.device = "tpu" is not accepted'),
        (["--run.name", "null"], "run.name = null is not accepted"),
        (["--model.options", "{dense:8}"], "YAML needs a space after the colon."),
        (["--model.options", "{a: 1, a: 2}"], "duplicate key a"),
        (["--model.options", "{a: "], "invalid YAML"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(words: list[str], said: str) -> None:
    assert said in refusal(*words)


def test_help_is_readable() -> None:
    text = flags.make_parser("test", "Test things (driver).").format_help()
    assert text.startswith("usage: distml test [-h] [--config FILE]")
    assert len(text.split("\n\n")[0].splitlines()) <= 3
    assert "Test things.\n" in text
    assert "(default: 0.001)" in text
    assert not {"JSON", "dict[", "list[", "None"} & set(text.replace("(", " ").replace(")", " ").split())


def test_flags_of_a_verb_may_share_a_prefix_with_keys() -> None:
    def arguments(parser: flags.Parser) -> None:
        parser.add_argument("--run")
        parser.add_argument("--version", type=int)
        parser.add_argument("images", nargs="+")

    parser = flags.make_parser("test", "", arguments)
    config, own = flags.parse(parser, ["a.png", "--run", "x", "b.png", "--version", "3"])
    assert isinstance(own, argparse.Namespace)
    assert (own.run, own.version, own.images) == ("x", 3, ["a.png", "b.png"])
    assert config == Config()
