"""The console script: finds a verb and runs it; logging, exit code, printing the result line (driver).

Standard output carries one line, a JSON object; everything else, what libraries print too, goes to standard
error.
Exit codes: 0 finished, 1 the run failed, 2 the configuration or the command line cannot be used.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import gc
import importlib
import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from distml import __version__, log
from distml.errors import ConfigError, DistmlError

if TYPE_CHECKING:  # the schema and its flags take 0.18 of the 0.22 CPU-seconds that `distml --help` took
    from distml.cli.flags import Parser

logger = logging.getLogger(__name__)

VERBS = {
    "init": "inspect a folder of pictures and this machine, and write a configuration for them",
    "inspect": "check the data for damaged files, duplicates, leakage and suspect labels",
    "doctor": "check whether a configuration can run here, before it uses resources",
    "ingest": "bring the configured data into the storage",
    "train": "train, evaluate, track and register a model",
    "pipeline": "the whole pipeline: data, training, promotion, endpoint, smoke test",
    "promote": "promote the best model to champion if it beats the present champion",
    "serve": "serve the champion over HTTP",
    "status": "show the versions, rejections, request rate and latency of an endpoint",
    "keys": "create, list or remove the API keys of an endpoint",
    "predict": "classify image files with a trained model",
    "report": "show the report of a finished run",
    "drift": "compare logged requests with the training data",
    "feedback": "join labels that arrive later with logged predictions: live accuracy by version",
    "validate": "check a configuration without starting anything",
    "models": "list the networks that can be trained, with their parameters and GFLOPs",
    "sync": "send what runs recorded while the tracking server was unreachable",
    "backup": "copy registry, runs and champion to another place",
    "restore": "restore a backup into an empty storage root",
    "submit": "run the pipeline as a Ray job on Kubernetes and exit with its status",
    "fetch-weights": "put a backbone's ImageNet weights under the storage root",
    "cluster": "bring up, examine or take down the Kubernetes cluster of kuberay/",
}
"""The verbs of the console script and what each does."""

MODULES = {
    "backup": "cli.commands",
    "cluster": "cli.commands",
    "drift": "cli.commands",
    "fetch-weights": "cli.commands",
    "init": "checks.proposal",
    "inspect": "reports.inspection",
    "feedback": "cli.commands",
    "keys": "cli.commands",
    "status": "cli.commands",
    "models": "cli.commands",
    "report": "cli.commands",
    "restore": "cli.commands",
    "sync": "cli.commands",
    "validate": "cli.commands",
}
"""Verbs that are no module of the package's root: functions of these modules, `-` written as `_`."""

Result = dict[str, Any]


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
) -> int:
    """Run one verb from the command line.

    Args:
        verb: Name shown in messages and in the result line.
        run: Takes the `Config`, and the namespace where the verb has arguments of its own (`flags.OWN`);
            returns the result. A `status` in it other than finished makes the exit code 1.
        argv: Words after the program name; `sys.argv` by default.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    log.configure("driver")
    from distml.runtime import processes  # psutil: a tenth of the time of `distml --help`

    processes.reach_this_machine()
    if threading.current_thread() is threading.main_thread():
        # A cluster ends a job with SIGTERM, which means what Ctrl-C means: close the record, then leave.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with processes.interruptible(at_end=False):  # what was done after all is told
            return _attempt(verb, run, parser(verb), words)
    except DistmlError as error:
        return fail(verb, error)
    except KeyboardInterrupt:
        _say(f"distml {verb}: interrupted; the same command resumes it.")
        finish({"verb": verb, "status": "interrupted"})
        return 130
    except BrokenPipeError:  # the reader closed the pipe, and Python would report it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (
        Exception
    ) as error:  # an internal error: the traceback for a report, the result line for the caller
        logger.exception("distml %s stopped on an unexpected error", verb)
        finish({"verb": verb, "status": "failed", "error": str(error), "kind": type(error).__name__})
        return 1


def _attempt(verb: str, run: Callable[..., Result], parser: Parser, words: list[str]) -> int:
    from distml.cli.flags import OWN, parse

    config, namespace = parse(parser, words)
    if namespace.print_config:
        import yaml

        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
        return 0
    with contextlib.redirect_stdout(log.Aside()):  # Ray reports lost nodes there, users' code prints anything
        result = run(config, namespace) if verb in OWN else run(config)
    finish({"verb": verb, "status": "finished"} | result)
    return 0 if result.get("status", "finished") == "finished" else 1


_THRESHOLD = 50_000
"""Objects created between two collections of garbage. With Python's default of 700 it scans what Ray and
MLflow import many times, 3 of the 16 CPU-seconds of `distml train` itself."""


def exit_with(program: Callable[[], int]) -> NoReturn:
    """Run a program and end this process with its exit code, without freeing its memory piece by piece.

    What Ray and MLflow import takes Python 0.5 s to free, 2.5 s on two slow cores: a third of the time from
    Ctrl-C to the prompt. Threads are waited for and functions of `atexit` run as ever, this one, which is
    registered first, at last.

    Args:
        program: Imports what it needs when it is called.

    Raises:
        SystemExit: Always.
    """
    codes: list[int] = []

    def leave() -> None:
        if codes:
            logging.shutdown()  # registered when `logging` was imported, before this
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(codes[0])

    atexit.register(leave)
    gc.set_threshold(_THRESHOLD)
    codes.append(program())
    raise SystemExit(codes[0])


def console() -> NoReturn:
    """The console script: `distml VERB ...`."""
    exit_with(entry)


def entry() -> int:
    """Run the verb that the command line names; returns its exit code."""
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
    return run(words[0], words[1:])


def run(verb: str, argv: Sequence[str]) -> int:
    """Run a verb by its name; returns its exit code.

    Args:
        verb: One of `VERBS`.
        argv: Words after the verb.
    """
    module = importlib.import_module(f"distml.{MODULES.get(verb, verb)}")
    if verb in MODULES:
        return main(verb, getattr(module, verb.replace("-", "_")), argv)
    return int(module.main(argv))


def parser(verb: str) -> Parser:
    """Make the parser of a verb.

    Args:
        verb: One of `VERBS`; another name has no arguments of its own.
    """
    from distml.cli.flags import OWN, make_parser

    does = VERBS.get(verb, "")
    return make_parser(verb, f"{does[:1].upper()}{does[1:]}." if does else "", OWN.get(verb))


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {does}" for verb, does in VERBS.items()]
    usage = "usage: distml VERB --config FILE [--SECTION.KEY VALUE ...]"
    return "\n".join([usage, "", *lines, "", "`distml VERB --help` lists every key."])
