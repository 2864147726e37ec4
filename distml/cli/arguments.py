"""The arguments of the verbs, beside the flags that the configuration's schema generates (driver)."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

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
    add(
        "--run",
        metavar="NAME",
        help="sweep, run or MLflow run id to choose from; '*': every version",
    )
    add("--version", type=int, metavar="N", help="this version is the only candidate")
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
    add("--poll-s", metavar="S", type=float, default=3.0, help="seconds between two looks")


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
    add("what", choices=verbs, help="the last two: in the cluster")
    add("--context", metavar="NAME", help="a cluster of yours instead of k3d's")
    add("--overlay", metavar="FOLDER", default="kuberay/overlays/k3d", help="what is applied")
    add("--folder", metavar="PATH", help="shared by k3d's nodes; ~/.local/share/distml/k3d")
    add("--operators", metavar="true|false", default="true", help="install KubeRay and Argo")
    add("--base-image", metavar="NAME", help="Debian or Ubuntu to build the images on")
