"""The shared main of every verb: configuration, overrides, logging, exit codes, the result line (driver).

Standard output carries one JSON object as its last line; everything else goes to standard error.
Exit codes: 0 finished, 1 the run failed, 2 the configuration or the command line cannot be used.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import yaml
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from distml import __version__, loading, log, plain
from distml.config import Config
from distml.errors import ConfigError, DistmlError

logger = logging.getLogger(__name__)

VERBS = {
    "doctor": "say whether a configuration can run here, before anything is spent",
    "ingest": "bring the configured data into the storage",
    "train": "train, evaluate, track and register a model",
    "predict": "classify image files with a trained model",
    "validate": "check a configuration without starting anything",
    "sync": "send to the tracking server what runs recorded while it was away",
}
"""The verbs of the console script, each the module of the same name, and what it does."""

Result = dict[str, Any]


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

    # A flag for each key and none for whole sections: `--run` and its like stay free for the verbs.
    model_config = SettingsConfigDict(cli_avoid_json=True, cli_implicit_flags=False, frozen=True)


_METAVARS = {
    "str": "TEXT",
    "int": "N",
    "float": "X",
    "bool": "true|false",
    "{int,list[int]}": "N|[N,N]",
    "list[str]": "[TEXT,...]",
    "list[float]": "[X,...]",
    "dict[str,Any]": "{KEY: VALUE}",
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
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    if "--version" not in parser.format_usage():  # a verb may ask for the version of a model
        parser.add_argument("--version", action="version", version=f"distml {__version__}")
    usage = parser.format_usage().removeprefix("usage: ").strip()
    CliSettingsSource(_Settings, cli_parse_args=[], root_parser=parser, cli_hide_none_type=True)
    parser.usage = f"{usage} [--SECTION.KEY VALUE ...]".replace("%", "%%")
    _tidy(parser)
    return parser


def _tidy(parser: Parser) -> None:
    """Make the generated help readable."""
    for action in parser.actions():
        if "." in action.dest:
            action.help = str(action.help).replace("(default: None)", "(default: null)")
            action.metavar = _METAVARS.get(str(action.metavar), action.metavar)


def _require_known(parser: Parser, words: Sequence[str]) -> None:
    """Refuse unknown flags with the nearest known one; argparse would only say that they are unknown."""
    known = {flag for action in parser.actions() for flag in action.option_strings}
    for word in words:
        flag = word.split("=", 1)[0]
        if flag == "--":
            return
        if flag.startswith("--") and flag not in known:
            close = difflib.get_close_matches(flag, known, 1, 0.75)
            guess = loading.nearest(flag.removeprefix("--"))
            guess = close[0] if close else f"--{guess}" if guess else None
            raise ConfigError(f"unknown flag {word}.", f"Did you mean {guess}?" if guess else f"See {parser.prog} --help.")


def _read(word: str) -> Any:
    """Read one word as the configuration file would be read: null and flow lists and mappings."""
    if word.lower() in ("null", "none"):
        return None
    if word[:1] not in ("[", "{"):
        return word  # the field's type decides what it becomes
    value = plain.parse(word)
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
    namespace = parser.parse_args(list(words))
    lists = {action.dest for action in parser.actions() if str(action.metavar).startswith("[")}
    flags = {key: _value(given, key in lists) for key, given in vars(namespace).items() if "." in key}
    values = loading.load_file(namespace.config) if namespace.config else {}
    return loading.resolve(loading.merge(values, loading.nest(flags))), namespace


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not a number is null."""
    if isinstance(value, dict):
        return {key: _finite(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(below) for below in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finish(result: Result) -> None:
    """Print the result line, the last line on standard output."""
    print(json.dumps(_finite(result), default=str, allow_nan=False), flush=True)


def fail(verb: str, error: DistmlError) -> int:
    """Print an error to standard error and as the result line; returns its exit code."""
    _say(f"distml {verb}: {error}")
    status = "invalid" if error.exit_code == 2 else "failed"
    finish({"verb": verb, "status": status, "error": str(error), "kind": type(error).__name__})
    return error.exit_code


def main(
    verb: str,
    run: Callable[..., Result],
    argv: Sequence[str] | None = None,
    arguments: Callable[[Parser], None] | None = None,
) -> int:
    """Run one verb from the command line.

    Args:
        verb: Name shown in messages and in the result line.
        run: Takes the `Config` (and the namespace when `arguments` is given); returns the result. A
            `status` in it other than finished makes the exit code 1.
        argv: Words after the program name; `sys.argv` by default.
        arguments: Adds the verb's own arguments to the parser.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    log.configure("driver")
    parser = make_parser(verb, (sys.modules[run.__module__].__doc__ or "").split("\n")[0], arguments)
    try:
        return _attempt(verb, run, parser, words, arguments is not None)
    except DistmlError as error:
        return fail(verb, error)
    except KeyboardInterrupt:
        _say(f"distml {verb}: interrupted; the same command goes on with it.")
        finish({"verb": verb, "status": "interrupted"})
        return 130
    except BrokenPipeError:  # whoever read the output has left, and Python would complain when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # a bug of ours: the traceback for us, the result line for whoever waits
        logger.exception("distml %s stopped on an unexpected error", verb)
        finish({"verb": verb, "status": "failed", "error": str(error), "kind": type(error).__name__})
        return 1


def _attempt(verb: str, run: Callable[..., Result], parser: Parser, words: list[str], own: bool) -> int:
    config, namespace = parse(parser, words)
    if namespace.print_config:
        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
        return 0
    result = run(config, namespace) if own else run(config)
    finish({"verb": verb, "status": "finished"} | result)
    return 0 if result.get("status", "finished") == "finished" else 1


def entry() -> int:
    """The console script: `distml VERB ...`."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        _say(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"distml {__version__}")
        return 0
    if words[0] not in VERBS:
        guess = difflib.get_close_matches(words[0], VERBS, 1)
        remedy = f"Did you mean {guess[0]}?" if guess else f"Choose one of {', '.join(VERBS)}."
        return fail(words[0], ConfigError(f"unknown verb {words[0]}.", remedy))
    sys.argv = [f"distml {words[0]}", *words[1:]]
    return int(importlib.import_module(f"distml.{words[0]}").main())


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {does}" for verb, does in VERBS.items()]
    usage = "usage: distml VERB --config FILE [--SECTION.KEY VALUE ...]"
    return "\n".join([usage, "", *lines, "", "`distml VERB --help` lists every key."])
