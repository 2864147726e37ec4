"""Run the pipeline as a Ray job on Kubernetes and end as it ends (driver).

What the step of kuberay/workflow.yaml runs. It creates a RayJob of a name that follows from the workflow's,
or finds the one that an earlier pod of the same step created; so it can be lost and started again. A pod
that is told to end asks the workflow why: it stops the Ray job when the workflow ends, and leaves it to the
next pod when only this pod does.
"""

from __future__ import annotations

import itertools
import logging
import os
import shlex
import signal
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from distml import cli
from distml.config import Config
from distml.errors import ClusterError, ConfigError, JobError
from distml.kube import rayjob, server, workflow
from distml.kube.follow import Ended, Follower
from distml.kube.server import ConflictError, Server

logger = logging.getLogger("distml.submit")  # also where `python -m` calls this module __main__

OUTPUTS = {"champion_version": "champion", "test_accuracy": "champion_test_accuracy", "endpoint": "endpoint"}
"""Files handed on to Argo and where the pipeline's result line has their content."""
_INVALID = 2  # exit code of a configuration that nobody can run
_EVICTED = 143  # exit code of a process that SIGTERM ended; the retryStrategy of the workflow knows it
_LONGEST_PAUSE_S = 120.0
_ASK_S = 10.0
"""For how long the workflow is asked why this pod is to end: the grace period has to do for stopping, too."""


def _arguments(parser: cli.Parser) -> None:
    parser.add_argument("--job", metavar="FILE", required=True, help="manifest of the RayJob to start")
    parser.add_argument("--job-name", metavar="NAME", required=True, help="name the RayJob is found by again")
    parser.add_argument("--owner", metavar="Workflow/NAME/UID", help="whose deletion deletes the RayJob")
    parser.add_argument("--retry", metavar="N", type=int, default=0, help="pods of this step before this one")
    parser.add_argument("--retry-limit", metavar="N", type=int, default=0, help="then there is no next pod")
    parser.add_argument(
        "--only-stop", choices=["true", "false"], default="false", help="stop what is left running"
    )
    parser.add_argument("--overrides=", metavar="TEXT", help="flags of the pipeline, all in one word")
    parser.add_argument("--attempts", metavar="N", type=int, default=2, help="Ray jobs before giving up")
    parser.add_argument(
        "--pause-s", metavar="S", type=float, default=10.0, help="before the next; doubled each time"
    )
    parser.add_argument("--deadline-s", metavar="S", type=float, default=7200.0, help="then it is stopped")
    parser.add_argument("--outputs", metavar="FOLDER", help="one file for each result Argo hands on")
    parser.add_argument("--image", metavar="NAME", help="image of pods the job brings; $DISTML_IMAGE")
    parser.add_argument("--namespace", metavar="NAME", help="$POD_NAMESPACE, or distml")
    parser.add_argument("--api-server", metavar="URL", help="that of this pod by default")
    parser.add_argument("--dashboard", metavar="URL", help="Ray's, where it is reached by another address")
    parser.add_argument("--poll-s", metavar="S", type=float, default=3.0, help="seconds between two looks")


def entrypoint(namespace: Namespace) -> str:
    """Command line of the pipeline with the configuration and flags that this command was given."""
    words = ["python", "-m", "distml.pipeline"]
    if namespace.config:
        words += ["--config", namespace.config]
    for key, given in vars(namespace).items():
        if "." in key:
            words += [f"--{key}={one}" for one in ([given] if isinstance(given, str) else given)]
    return shlex.join(words)


def _template(path: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the job {path}: {str(error).splitlines()[0]}.") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is not a RayJob.")
    return found


def _attach(where: Server, manifest: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The RayJob of that name, created when there is none; and whether it was there.

    Raises:
        ClusterError: It belongs to another workflow, or cannot be created.
    """
    name = manifest["metadata"]["name"]
    found = where.read(f"{rayjob.PATH}/{name}")
    if found is None:
        try:
            found = where.create(rayjob.PATH, manifest)
            logger.info("RayJob %s created", name)
            return found, False
        except ConflictError:  # somebody was faster, our own earlier pod for one
            found = where.read(f"{rayjob.PATH}/{name}") or {}
    if not _ours(found or manifest, (manifest["metadata"].get("ownerReferences") or [None])[0]):
        raise ClusterError(
            f"a RayJob {name} of another workflow exists.",
            f"kubectl delete rayjob {name}, or take another name.",
        )
    logger.info("RayJob %s found again: %s", name, rayjob.describe(found))
    return found, True


def _ours(found: dict[str, Any], owner: dict[str, Any] | None) -> bool:
    references = found["metadata"].get("ownerReferences") or [{}]
    return owner is None or references[0].get("uid") == owner["uid"]


def _created(found: dict[str, Any]) -> float:
    text = found.get("metadata", {}).get("creationTimestamp")
    return workflow.seconds(text) if text else time.time()


@dataclass(frozen=True)
class _Owner:
    """The workflow of this pod, to be asked what becomes of the job when the pod ends.

    Args:
        server: Of the workflow.
        reference: Owner reference of its RayJobs, None for a job that somebody started by hand.
        last_pod: Argo starts no other pod of this step whatever happens.
    """

    server: Server
    reference: dict[str, Any] | None
    last_pod: bool

    def replaces_this_pod(self) -> bool:
        """Whether another pod finds the job again; no when nobody can say, for a job must have a watcher."""
        if self.reference is None:
            return False
        if self.last_pod:
            logger.warning("this is the last pod of the step that the workflow allows (--retry-limit)")
            return False
        name = self.reference["name"]
        asked = replace(
            self.server, patience_s=min(_ASK_S, self.server.patience_s), hurried=threading.Event()
        )
        try:
            why = workflow.ending(asked.read(f"{workflow.PATH}/{name}"), self.reference["uid"], time.time())
        except ClusterError as error:
            logger.warning("%s So it is not known whether the workflow %s goes on.", error, name)
            return False
        logger.warning("the workflow %s %s", name, why or "goes on: another pod takes the place of this one")
        return not why


def _failure(ended: Ended, name: str, attempts: int) -> JobError:
    """The error a job's end is: what to say, and the exit code to end with."""
    said = ended.summary.get("error") or ended.status
    words = {
        "left": "goes on; this pod was told to end, and the next pod of the workflow finds it again",
        "cancelled": "was cancelled; its Ray job is stopped",
        "deadline": "ran into its deadline; its Ray job is stopped",
        "stopped": "was stopped by somebody",
    }
    goes_on = ended.verdict not in words and ended.exit_code != _INVALID
    remedy = "Its log is above; the same run goes on from its checkpoints." if goes_on else ""
    doing = words.get(ended.verdict, f"failed (attempt {attempts}): {str(said).rstrip('.')}")
    error = JobError(f"the Ray job {name} {doing}.", remedy)
    code = ended.exit_code or 1
    # 137 and 143 tell Argo that the step's own pod was lost; a driver that was killed is another matter.
    ours = ended.verdict in ("cancelled", "left")
    error.exit_code = _EVICTED if ours else code if 0 < code < 128 else 1
    return error


def _follow(namespace: Namespace, where: Server, told_to_end: threading.Event) -> tuple[Ended, str]:
    """Start or find job after job until one has an end that counts.

    A job that was stopped while no pod looked is no attempt: an earlier pod of ours, told to end, stopped it.

    Raises:
        JobError: The last one did not succeed.
    """
    template, deadline, attempts = _template(namespace.job), 0.0, 0
    owner = rayjob.owner(namespace.owner) if namespace.owner else None
    ours = _Owner(where, owner, namespace.retry >= namespace.retry_limit > 0)
    image = namespace.image or os.environ.get("DISTML_IMAGE")
    if namespace.attempts < 1:
        raise ConfigError(f"--attempts is {namespace.attempts}.", "Give at least 1.")
    for number in itertools.count(1):
        name = rayjob.name(namespace.job_name, number)
        found, resumed = _attach(where, rayjob.manifest(template, name, entrypoint(namespace), image, owner))
        deadline = deadline or _created(found) + namespace.deadline_s
        interrupted = rayjob.verdict(found) == "stopped"
        ended = Follower(
            server=where,
            name=name,
            told_to_end=told_to_end,
            deadline=deadline,
            poll_s=namespace.poll_s,
            dashboard=namespace.dashboard,
            replaced=ours.replaces_this_pod,
            resumed=resumed,
        ).follow()
        if ended.verdict == "succeeded":
            break
        attempts += not interrupted
        pause_s = 0.0 if interrupted else min(namespace.pause_s * 2 ** (attempts - 1), _LONGEST_PAUSE_S)
        again = ended.verdict == "failed" and ended.exit_code != _INVALID and attempts < namespace.attempts
        if not (again or interrupted) or time.time() + pause_s > deadline:
            raise _failure(ended, name, attempts)
        said = _failure(ended, name, attempts).message.rstrip(".")
        logger.warning("%s; trying again in %g s", said, pause_s)
        if told_to_end.wait(pause_s):
            raise _told_to_end(f"this pod was told to end before the next try: {said}.")
    return ended, name


def _told_to_end(message: str) -> JobError:
    error = JobError(message)
    error.exit_code = _EVICTED
    return error


def _stop_left(namespace: Namespace, where: Server) -> dict[str, Any]:
    """Stop the Ray jobs that a workflow left running when it ended while it had no pod that could."""
    owner, stopped = rayjob.owner(namespace.owner) if namespace.owner else None, list[str]()
    for number in itertools.count(1):
        name = rayjob.name(namespace.job_name, number)
        found = where.read(f"{rayjob.PATH}/{name}")
        if found is None or not _ours(found, owner):
            break
        if rayjob.verdict(found) in ("waiting", "running"):
            follower = Follower(where, name, where.hurried, 0.0, namespace.poll_s, namespace.dashboard)
            follower.stop(found, "cancelled")
            stopped.append(name)
    return {"stopped": stopped}


def _hand_on(folder: str, results: dict[str, Any]) -> None:
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for name, value in results.items():
        (place / name).write_text("" if value is None else str(value))


def run(config: Config, namespace: Namespace) -> dict[str, Any]:
    """Start or find the Ray job, follow it to its end and hand on its results.

    Returns:
        The result line: the RayJob's name and what the pipeline's own result line says; with `--only-stop`,
        which RayJobs were stopped.

    Raises:
        ConfigError: The configuration, the manifest or a flag cannot be used; nothing was started.
        ClusterError: The API server refuses or is away for too long.
        JobError: The job did not succeed; carries its exit code.
    """
    told_to_end = threading.Event()
    before = {
        one: signal.signal(one, lambda *_: told_to_end.set()) for one in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        where = replace(server.here(namespace.api_server, namespace.namespace), hurried=told_to_end)
        if namespace.only_stop == "true":
            return _stop_left(namespace, where)
        ended, name = _follow(namespace, where, told_to_end)
    except ClusterError as error:
        if told_to_end.is_set():  # for the workflow it was the pod that was lost
            error.exit_code = _EVICTED
        raise
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if not ended.summary:
        raise JobError(f"the Ray job {name} succeeded, but its result line could not be read.")
    results = {name: ended.summary.get(key) for name, key in OUTPUTS.items()}
    if namespace.outputs:
        _hand_on(namespace.outputs, results)
    return {"job": name, **results, "pipeline": ended.summary}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    words = list(sys.argv[1:] if argv is None else argv)
    given = [word for word in words if word.startswith("--overrides=")]
    flags = [flag for word in given for flag in shlex.split(word.removeprefix("--overrides="))]
    # As flags of this command they are checked here, before anything is started.
    return cli.main("submit", run, [word for word in words if word not in given] + flags, _arguments)


if __name__ == "__main__":
    raise SystemExit(main())
