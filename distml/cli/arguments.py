"""The arguments of the verbs, beside the flags that the configuration's schema generates (driver)."""

from __future__ import annotations

import argparse

from distml.cli.flags import Parser
from distml.errors import ConfigError


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError(word)
    return number


_positive.__name__ = "number from 1"  # argparse says this in its complaint


def predict(parser: Parser) -> None:
    """Add the arguments of `predict`."""
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="picture files of any size and format")
    add("--data", metavar="URI", help="classify all rows of these Parquet files or pictures instead")
    add("--output", metavar="URI", help="folder for the answers to --data; the same again goes on with it")
    add("--run", metavar="NAME", help="ask what this run trained; an MLflow run id does, too")
    add("--version", type=_positive, metavar="N", help="ask this version of the registered model")
    add("--url", metavar="URL", help="ask a running endpoint, as distml serve gives its address")
    add("--top", type=_positive, default=3, metavar="K", help="classes listed for a file (default: 3)")


def require_images_or_data(given: argparse.Namespace) -> None:
    """Refuse arguments of `predict` that do not belong together.

    Raises:
        ConfigError: Neither files nor a data set are given, or both; or `--output` or `--url` does not fit.
    """
    if bool(given.images) == bool(given.data):
        raise ConfigError("give picture files, or a data set by --data.", "Give one of the two.")
    if bool(given.data) != bool(given.output):
        raise ConfigError("--data and --output belong together.", "Give both.")
    if given.url and given.data:
        raise ConfigError("--url asks what is served there.", "Leave out --run, --version and --data.")


def serve(parser: Parser) -> None:
    """Add the arguments of `serve`."""
    add = parser.add_argument
    add("--detach", action="store_true", help="leave the endpoint running on the cluster")
    add("--stop", action="store_true", help="end the endpoint that runs on the cluster")


def promote(parser: Parser) -> None:
    """Add the arguments of `promote`."""
    add = parser.add_argument
    add("--run", metavar="NAME", help="sweep, run or MLflow run id that competes; '*': every version")
    add("--version", type=int, metavar="N", help="this version competes alone")
    add("--dry-run", action="store_true", help="say what would happen and change nothing")
    add("--replace", action="store_true", help="promote even where the champion cannot be measured")
    add("--rollback", action="store_true", help="return to the previous champion, or to --version")


def require_rollback_alone(given: argparse.Namespace) -> None:
    """Reject arguments of `promote` that an evaluation would need, beside `--rollback`.

    Raises:
        ConfigError: `--run` or `--replace` stands beside `--rollback`.
    """
    if given.rollback and (given.run is not None or given.replace):
        raise ConfigError("--rollback takes no --run and no --replace.", "Name the version with --version.")


def pipeline(parser: Parser) -> None:
    """Add the arguments of `pipeline`."""
    text = "on a Ray of this command's own: answer until Ctrl-C"
    parser.add_argument("--stay", action="store_true", help=text)
