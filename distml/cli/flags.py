"""The command line generated from the schema of the configuration: one typed flag for every key (driver)."""

from __future__ import annotations

import argparse
import difflib
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from distml import __version__
from distml.config import Config, load
from distml.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises, so that a misspelt flag gets the same answer as a misspelt key."""

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint as a `ConfigError`."""
        raise ConfigError(message.rstrip(".") + ".", f"See {self.prog} --help.")

    def actions(self) -> list[argparse.Action]:
        """Every argument; argparse has no public way to list them."""
        return list(self._actions)


class _Settings(Config, BaseSettings):
    """`Config` as pydantic-settings sees it, to generate the flags from."""

    model_config = SettingsConfigDict(cli_implicit_flags=False, frozen=True)


_METAVARS = {
    "str": "TEXT",
    "int": "N",
    "float": "X",
    "bool": "true|false",
    "{int,list[int]}": "N|[N,N]",
    "list[str]": "[TEXT,...]",
    "list[float]": "[X,...]",
    "dict[str,Any]": "{KEY: VALUE}",
    "{auto,int}": "auto|N",
    "dict[str,JSON]": "{PATH: {KIND: VALUES},...}",
    "list[dict[str,Any]]": "[{PATH: VALUE},...]",
}


def make_parser(verb: str, doc: str, arguments: Callable[[Parser], None] | None = None) -> Parser:
    """Make the parser of a verb: its own arguments and one flag for every key of the configuration.

    Args:
        verb: Name shown in messages.
        doc: What it does, in one sentence.
        arguments: Adds the verb's own arguments.
    """
    parser = Parser(
        prog=f"distml {verb}",
        description=re.sub(r" \([a-z ,]+\)\.?$", ".", doc),
        epilog="A flag is a path in the configuration file and wins over it; its value is written as there.",
        allow_abbrev=False,
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=38),
    )
    if arguments:
        arguments(parser)
    parser.add_argument("--config", metavar="FILE", help="YAML file; without it the defaults hold")
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and stop"
    )
    if "--version" not in parser.format_usage():  # a verb may ask for the version of a model
        parser.add_argument("--version", action="version", version=f"distml {__version__}")
    usage = parser.format_usage().removeprefix("usage: ").strip()
    CliSettingsSource(
        _Settings,
        cli_parse_args=False,
        root_parser=parser,
        add_argument_method=_add_flag,
        cli_hide_none_type=True,
        cli_use_class_docs_for_groups=True,
    )
    parser.usage = f"{usage} [--SECTION.KEY VALUE ...]".replace("%", "%%")
    return parser


def _add_flag(group: Any, *names: str, **options: Any) -> None:
    """Add one generated flag, readable; none for a whole section: `--run` stays free for the verbs."""
    if options.get("nargs") == "?":
        return
    options["metavar"] = _METAVARS.get(options["metavar"], options["metavar"])
    options["help"] = (
        options["help"].replace("(default: None)", "(default: null)").removesuffix(" (ifdef: required)")
    )
    group.add_argument(*names, **options)


def _require_known(parser: Parser, words: Sequence[str]) -> None:
    """Refuse unknown flags with the nearest known one; argparse would only say that they are unknown."""
    known = {flag for action in parser.actions() for flag in action.option_strings}
    for word in words:
        flag = word.split("=", 1)[0]
        if flag == "--":
            return
        if flag.startswith("--") and flag not in known:
            close = difflib.get_close_matches(flag, known, 1, 0.75)
            guess = Config.nearest(flag.removeprefix("--"))
            guess = close[0] if close else f"--{guess}" if guess else None
            raise ConfigError(
                f"unknown flag {word}.", f"Did you mean {guess}?" if guess else f"See {parser.prog} --help."
            )


def _read(word: str) -> Any:
    """Read one word as the configuration file would be read: null and flow lists and mappings."""
    if word.lower() in ("null", "none"):
        return None
    if word[:1] not in ("[", "{"):
        return word  # the field's type decides what it becomes
    value = load.parse_yaml(word)
    for key, below in value.items() if isinstance(value, dict) else ():
        if below is None and ":" in key:
            raise ConfigError(f"{word} has no value for {key}.", "YAML wants a space after the colon.")
    return value


def _value(given: str | list[str], several: bool) -> Any:
    """Value of a flag: the last one given, or all of them where the field is a list."""
    values = [_read(word) for word in ([given] if isinstance(given, str) else given)]
    plural = several and (len(values) > 1 or isinstance(values[0], str | dict))
    return values if plural else values[-1]


def parse(parser: Parser, words: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """Read the command line and the file it names.

    Args:
        parser: Of `make_parser`.
        words: What follows the verb.

    Returns:
        The validated configuration and the parser's own arguments.

    Raises:
        ConfigError: Anything the user has to correct.
    """
    _require_known(parser, words)
    namespace = parser.parse_intermixed_args(list(words))  # options may stand between two images
    lists = {action.dest for action in parser.actions() if str(action.metavar).startswith("[")}
    flags = {key: _value(given, key in lists) for key, given in vars(namespace).items() if "." in key}
    return Config.load(namespace.config, **flags), namespace
