"""The argument parsers: a typed flag for every configuration key, and the arguments of each verb (driver)."""

from __future__ import annotations

import argparse
import difflib
import functools
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from distml import __version__
from distml.config import Config, load
from distml.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises, so that a misspelt flag raises the same error as a misspelt key."""

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


@functools.cache  # 0.08 s of a core for the flags of 150 keys
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
        epilog="A flag is the path of a key of the configuration file and overrides it; values as there.",
        allow_abbrev=False,
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=38),
    )
    if arguments:
        arguments(parser)
    parser.add_argument("--config", metavar="FILE", help="YAML file (default: every key's default)")
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
    """Reject unknown flags with the nearest known one; argparse would only say that they are unknown."""
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
            raise ConfigError(f"{word} has no value for {key}.", "YAML needs a space after the colon.")
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


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError(word)
    return number


_positive.__name__ = "number from 1"  # argparse says this in its complaint


def predict(parser: Parser) -> None:
    """Add the arguments of `predict`."""
    add = parser.add_argument
    add(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="picture files, folders, patterns; - reads paths from standard input",
    )
    add(
        "--data",
        metavar="URI",
        help="predict all pictures or rows of a folder, archive, Parquet, tar or array file",
    )
    add("--output", metavar="URI", help="folder for the predictions for --data; the same command resumes")
    add(
        "--embeddings",
        action="store_true",
        help="with --data: also the embeddings, the features in front of the head",
    )
    add("--run", metavar="NAME", help="name of a run, or an MLflow run id, whose model is used")
    add("--version", type=_positive, metavar="N", help="version of the registered model to use")
    add("--url", metavar="URL", help="use a running endpoint; its address as `distml serve` prints it")
    add("--top", type=_positive, default=3, metavar="K", help="classes listed for a file (default: 3)")


def require_images_or_data(given: argparse.Namespace) -> None:
    """Reject arguments of `predict` that do not belong together.

    Raises:
        ConfigError: Neither files nor a data set are given, or both; or `--output` or `--url` does not fit.
    """
    if bool(given.images) == bool(given.data):
        raise ConfigError("give picture files, or a data set by --data.", "Give one of the two.")
    if bool(given.data) != bool(given.output):
        raise ConfigError("--data and --output belong together.", "Give both.")
    if given.embeddings and not given.data:
        raise ConfigError("--embeddings goes with --data.", "Give --data and --output, too.")
    if given.url and (given.data or given.run or given.version):
        raise ConfigError("--url uses the model of that endpoint.", "Leave out --run, --version and --data.")


def serve(parser: Parser) -> None:
    """Add the arguments of `serve`."""
    add = parser.add_argument
    add("--detach", action="store_true", help="leave the endpoint running on the cluster")
    add("--stop", action="store_true", help="end the endpoint that runs on the cluster")


def promote(parser: Parser) -> None:
    """Add the arguments of `promote`."""
    add = parser.add_argument
    add(
        "--run",
        metavar="NAME",
        help="sweep, run or MLflow run id to choose from; '*': every version",
    )
    add("--version", type=int, metavar="N", help="this version is the only candidate")
    add("--dry-run", action="store_true", help="print the decision without changing anything")
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
    text = "keep serving until Ctrl-C where the command starts its own Ray"
    parser.add_argument("--stay", action="store_true", help=text)


def submit(parser: Parser) -> None:
    """Add the arguments of `submit`."""
    add = parser.add_argument
    add("--job", metavar="FILE", required=True, help="manifest of the RayJob to start")
    add("--job-name", metavar="NAME", required=True, help="name the RayJob is found by again")
    add("--owner", metavar="Workflow/NAME/UID", help="whose deletion deletes the RayJob")
    add("--retry", metavar="N", type=int, default=0, help="pods of this step before this one")
    add("--retry-limit", metavar="N", type=int, default=0, help="then there is no next pod")
    add("--only-stop", choices=["true", "false"], default="false", help="stop what is left running")
    add("--overrides=", metavar="TEXT", help="flags of the pipeline, all in one word")
    add("--attempts", metavar="N", type=int, default=2, help="Ray jobs before giving up")
    add("--pause-s", metavar="S", type=float, default=10.0, help="before the next; doubled each time")
    add("--deadline-s", metavar="S", type=float, default=7200.0, help="then it is stopped")
    add("--outputs", metavar="FOLDER", help="one file for each result Argo hands on")
    add("--image", metavar="NAME", help="image of pods the job brings; $DISTML_IMAGE")
    add("--namespace", metavar="NAME", help="$POD_NAMESPACE, or distml")
    add("--api-server", metavar="URL", help="that of this pod by default")
    add("--dashboard", metavar="URL", help="Ray's, where it is reached by another address")
    add("--poll-s", metavar="S", type=float, default=3.0, help="seconds between two polls")


_SUBMISSION = (
    *("job", "job_name", "owner", "retry", "retry_limit", "attempts", "pause_s", "deadline_s"),
    *("outputs", "image", "namespace", "api_server", "dashboard", "poll_s"),
)


def submission(given: argparse.Namespace) -> dict[str, Any]:
    """Fields of `kube.submit.Submission`; its command hands configuration and flags to the pipeline."""
    words = ["python", "-m", "distml.pipeline"]
    if given.config:
        words += ["--config", given.config]
    for key, value in vars(given).items():
        if "." in key:
            words += [f"--{key}={each}" for each in ([value] if isinstance(value, str) else value)]
    return {"command": shlex.join(words)} | {name: getattr(given, name) for name in _SUBMISSION}


def expanded(words: Sequence[str]) -> list[str]:
    """Put the flags inside `--overrides=` in its place, so that they are checked before anything starts."""
    overrides = [word for word in words if word.startswith("--overrides=")]
    flags = [flag for word in overrides for flag in shlex.split(word.removeprefix("--overrides="))]
    return [word for word in words if word not in overrides] + flags


def cluster(parser: Parser) -> None:
    """Add the arguments of `cluster`."""
    add = parser.add_argument
    verbs = ["up", "down", "status", "secrets", "database"]
    add(
        "what",
        choices=verbs,
        help="status exits 1 when something needs attention; secrets and database run in pods",
    )
    add("--context", metavar="NAME", help="an existing cluster instead of k3d's")
    add("--overlay", metavar="FOLDER", default="kuberay/overlays/k3d", help="what is applied")
    add("--folder", metavar="PATH", help="shared by k3d's nodes; ~/.local/share/distml/k3d")
    add("--operators", metavar="true|false", default="true", help="install KubeRay and Argo")
    add("--base-image", metavar="NAME", help="Debian or Ubuntu to build the images on")


def report(parser: Parser) -> None:
    """Add the arguments of `report`."""
    add = parser.add_argument
    add("run", metavar="RUN", help="name of a run, or an MLflow run id")
    add("--open", action="store_true", help="open it in a browser")
    add("--to", metavar="FILE", help="copy it there; without it, only what is elsewhere is copied")


def init(parser: Parser) -> None:
    """Add the arguments of `init`."""
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="folder, archive, file or URI of the data")
    add("--to", metavar="FILE", help="the file to write; without it NAME.yaml in the current folder")


def inspect(parser: Parser) -> None:
    """Add the arguments of `inspect`."""
    add = parser.add_argument
    add("folder", nargs="?", metavar="FOLDER", help="folder, archive, file or URI; without it data.path")
    add("--to", metavar="FILE", help="the page; its JSON lies beside it; NAME-inspection.html without it")


def models(parser: Parser) -> None:
    """Add the arguments of `models`."""
    parser.add_argument("word", nargs="?", default="", help="list only names that contain it")


def fetch_weights(parser: Parser) -> None:
    """Add the arguments of `fetch-weights`."""
    add = parser.add_argument
    add("name", nargs="?", help="a backbone of `distml models`; without it model.name")
    add("--file", metavar="FILE", help="take this file or URI instead of Keras's own")


def keys(parser: Parser) -> None:
    """Add the arguments of `keys`."""
    add = parser.add_argument
    add("what", choices=["new", "list", "remove"], help="of the file serve.auth.keys_file")
    add("name", nargs="?", metavar="NAME", help="owner of the key; several keys may have the same one")
    add("--expires", metavar="DATE", help="expiry of a new key, a date or a time")


def sync(parser: Parser) -> None:
    """Add the arguments of `sync`."""
    parser.add_argument("--dry-run", action="store_true", help="only count what is not sent yet")


_ARTIFACTS = "where the tracking server keeps artifacts (default: mlflow-artifacts below storage.root)"


def backup(parser: Parser) -> None:
    """Add the arguments of `backup`."""
    add = parser.add_argument
    add("to", metavar="URI", help="folder or URI that holds backups, outside storage.root")
    add("--artifacts", metavar="URI", help=_ARTIFACTS)
    add("--keep", type=_positive, metavar="N", help="delete all but the newest N backups")


def restore(parser: Parser) -> None:
    """Add the arguments of `restore`."""
    add = parser.add_argument
    add("source", metavar="URI", help="folder or URI that holds backups")
    add("--at", metavar="NAME", help="name of a backup (default: the newest)")
    add("--artifacts", metavar="URI", help=_ARTIFACTS)


def feedback(parser: Parser) -> None:
    """Add the arguments of `feedback`."""
    parser.add_argument("file", metavar="FILE", help="CSV or Parquet with the columns id, label and position")


def status(parser: Parser) -> None:
    """Add the arguments of `status`."""
    parser.add_argument(
        "--url", metavar="URL", help="of the endpoint; without it serve.url, else this machine's"
    )
    parser.add_argument("--over-s", metavar="S", type=float, default=2.0, help="seconds to count requests in")


OWN: dict[str, Callable[[Parser], None]] = {
    "backup": backup,
    "cluster": cluster,
    "fetch-weights": fetch_weights,
    "init": init,
    "inspect": inspect,
    "feedback": feedback,
    "keys": keys,
    "status": status,
    "models": models,
    "pipeline": pipeline,
    "predict": predict,
    "promote": promote,
    "report": report,
    "restore": restore,
    "serve": serve,
    "submit": submit,
    "sync": sync,
}
"""Verbs that take arguments of their own, and what adds them to a parser."""
