"""The shared main of every verb: configuration, overrides, logging, exit codes, the result line (driver).

Standard output carries one JSON object as its last line; everything else goes to standard error.
Exit codes: 0 finished, 1 the run failed, 2 the configuration or the command line cannot be used.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import yaml
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from distml import __version__, loading, log
from distml.config import Config
from distml.errors import ConfigError, DistmlError

logger = logging.getLogger(__name__)

VERBS = ("train", "ingest", "predict", "doctor", "validate", "sync")
"""The verbs of the console script, each the module of the same name."""

Result = dict[str, Any]


class Parser(argparse.ArgumentParser):
    """An argument parser that raises, so that a misspelt flag gets the same answer as a misspelt key."""

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint as a `ConfigError`."""
        raise ConfigError(message.rstrip(".") + ".", f"See {self.prog} --help.")


class _Settings(Config, BaseSettings):
    """`Config` as pydantic-settings sees it, to generate the flags from."""

    model_config = SettingsConfigDict(cli_avoid_json=False, cli_implicit_flags=False, frozen=True)


def _source(parser: Parser, argv: Sequence[str]) -> CliSettingsSource[Any]:
    return CliSettingsSource(
        _Settings, cli_parse_args=list(argv), root_parser=parser, cli_hide_none_type=True, cli_exit_on_error=True
    )


def _parser(verb: str, doc: str) -> Parser:
    parser = Parser(prog=f"distml {verb}", description=doc, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file; without it the defaults hold")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--version", action="version", version=f"distml {__version__}")
    return parser


def _known_flags(argv: Sequence[str], parser: Parser) -> None:
    """Refuse unknown dotted flags with the nearest known one."""
    known = {flag for action in parser._actions for flag in action.option_strings}
    for word in argv:
        flag = word.split("=", 1)[0]
        if flag.startswith("--") and flag not in known:
            guess = loading.nearest(flag.removeprefix("--"))
            remedy = f"Did you mean --{guess}?" if guess else f"See {parser.prog} --help."
            raise ConfigError(f"unknown flag {word}.", remedy)


def _typed(value: Any) -> Any:
    """Read flag text the way a YAML file is read, so that both give one error format."""
    if isinstance(value, dict):
        return {key: _typed(below) for key, below in value.items()}
    if isinstance(value, str) and value.lower() in ("null", "none"):
        return None
    return value


def parse(parser: Parser, argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """Read the command line and the file it names.

    Args:
        parser: A parser that may already have arguments of its own.
        argv: Words after the verb.

    Returns:
        The validated configuration and the parser's own arguments.

    Raises:
        ConfigError: Anything the user has to correct.
    """
    _source(parser, [])
    if not any(word in ("-h", "--help", "--version") for word in argv):
        _known_flags(argv, parser)
    namespace = parser.parse_args(list(argv))
    flags = {
        key: _typed(_decoded(value))
        for key, value in vars(namespace).items()
        if "." in key and value is not None and key.split(".")[0] in Config.model_fields
    }
    for section in Config.model_fields:
        whole = getattr(namespace, section, None)
        if whole is not None:
            flags = {**loading.flatten({section: _decoded(whole)}), **flags}
    values = loading.load_file(namespace.config) if namespace.config else {}
    return loading.resolve(loading.merge(values, loading.nest(flags))), namespace


def _decoded(value: Any) -> Any:
    """A flag that holds a list or mapping is YAML flow text; pydantic-settings collects words in lists."""
    if isinstance(value, list):
        value = value[-1] if len(value) == 1 else value
    if isinstance(value, str) and value[:1] in "[{":
        return loading.parse_yaml(value)
    return value


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def finish(result: Result) -> None:
    """Print the result line, the last line on standard output."""
    print(json.dumps(result, default=str, allow_nan=False), flush=True)


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
        run: Takes the `Config` (and the namespace when `arguments` is given); returns the result.
        argv: Words after the program name; `sys.argv` by default.
        arguments: Adds the verb's own arguments to the parser.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    log.configure("driver")
    parser = _parser(verb, (sys.modules[run.__module__].__doc__ or "").split("\n")[0])
    if arguments:
        arguments(parser)
    try:
        config, namespace = parse(parser, words)
        if namespace.print_config:
            print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
            return 0
        result = run(config, namespace) if arguments else run(config)
    except DistmlError as error:
        return fail(verb, error)
    except KeyboardInterrupt:
        _say(f"distml {verb}: interrupted; the same command resumes it.")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finish({"verb": verb, "status": "finished"} | result)
    return 0 if result.get("status", "finished") == "finished" else 1


def entry() -> int:
    """The console script: `distml VERB …`."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        _say(f"usage: distml {{{','.join(VERBS)}}} --config FILE [--section.key VALUE …]")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"distml {__version__}")
        return 0
    if words[0] not in VERBS:
        return fail(words[0], ConfigError(f"unknown verb {words[0]}.", f"Choose one of {', '.join(VERBS)}."))
    module = importlib.import_module(f"distml.{words[0]}")
    return int(module.main(words[1:]))
