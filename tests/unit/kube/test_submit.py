"""The Argo step against an API server and a dashboard over real HTTP."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from distml import submit
from distml.cli import flags as arguments
from distml.kube import submit as submission
from distml.kube.submit import Submission
from tests import apiserver
from tests.apiserver import Cluster, Course, endless, failure, success

ROOT = Path(__file__).parents[3]
JOB = ROOT / "kuberay" / "overlays" / "k3d" / "rayjob.yaml"
OWNER = "--owner=Workflow/nightly-1/uid-1"
Outcome = tuple[int, dict[str, Any], str]


@pytest.fixture(autouse=True)
def _account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_logging: None) -> None:
    (tmp_path / "token").write_text("secret-canary\n")
    monkeypatch.setenv("DISTML_ACCOUNT", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-canary")
    monkeypatch.setenv("DISTML_PATIENCE_S", "3")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., Cluster]]:
    with ExitStack() as until:
        yield lambda *courses, **how: until.enter_context(apiserver.serving(Cluster([*courses], **how)))


def words(cluster: Cluster, *more: str, name: str = "nightly-1") -> list[str]:
    fast = ["--poll-s=0.01", "--pause-s=0.01"]
    return [f"--job={JOB}", f"--job-name={name}", f"--api-server={cluster.url}", *fast, *more]


@contextmanager
def pod(cluster: Cluster, *more: str, looks: int = 3) -> Iterator[subprocess.Popen[str]]:
    """A step's pod, which has looked at its job."""
    seen = len(cluster.asked)
    step = subprocess.Popen(
        [sys.executable, "-m", "distml.submit", *words(cluster, *more)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait(lambda: sum(item.startswith("GET rayjobs/") for item in cluster.asked[seen:]) >= looks)
        yield step
    finally:
        step.kill()
        step.communicate()


def wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def told_to_end(cluster: Cluster, *more: str) -> Outcome:
    """How a pod ends that gets SIGTERM while its job runs."""
    with pod(cluster, *more) as step:
        step.send_signal(signal.SIGTERM)
        out, said = step.communicate(timeout=30)
        return step.returncode, json.loads(out), said


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def execute(cluster: Cluster, *more: str, name: str = "nightly-1") -> Outcome:
        code = submit.main(words(cluster, *more, name=name))
        said = capsys.readouterr()
        assert "secret-canary" not in said.out + said.err
        return code, json.loads(said.out.splitlines()[-1]), said.err

    return execute


def test_a_job_is_created_followed_and_its_results_handed_on(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome], tmp_path: Path
) -> None:
    cluster = serve(success())
    flags = ["--config", str(ROOT / "configs" / "k3d.yaml"), "--overrides=--train.epochs 1 --run.name=ab"]
    code, result, said = ran(cluster, *flags, OWNER, f"--outputs={tmp_path / 'out'}")
    assert (code, result["champion_version"], result["test_accuracy"]) == (0, 3, 0.91)
    files = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert files == {"champion_version": "3", "test_accuracy": "0.91", "endpoint": "http://127.0.0.1:8000"}
    assert said.count("epoch 1\n") == said.count("epoch 2\n") == 1
    assert "The job continues" not in said
    made = cluster.jobs["nightly-1"]["body"]
    assert made["spec"]["entrypoint"] == (
        f"python -m distml.pipeline --config {ROOT}/configs/k3d.yaml --train.epochs=1 --run.name=ab"
    )
    assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    assert "jobId" not in made["spec"]
    assert "backoffLimit" not in made["spec"]


@pytest.mark.parametrize(("deadline_s", "limit_s"), [("60", 14400), ("20000.5", 23601)])
def test_the_operator_gives_up_after_the_step(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome], deadline_s: str, limit_s: int
) -> None:
    cluster = serve(success())
    assert ran(cluster, f"--deadline-s={deadline_s}")[0] == 0
    assert cluster.jobs["nightly-1"]["body"]["spec"]["activeDeadlineSeconds"] == limit_s


def test_a_restarted_pod_rejoins_its_job(serve: Callable[..., Cluster], ran: Callable[..., Outcome]) -> None:
    cluster = serve(Course([apiserver.RUNNING] * 30 + [apiserver.SUCCEEDED], success().logs[-1:]))
    with pod(cluster, OWNER, "--poll-s=0.1") as first:
        first.kill()  # as a node that is lost
    code, result, said = ran(cluster, OWNER)
    assert (code, result["job"]) == (0, "nightly-1")
    assert "re-attached to RayJob" in said
    assert cluster.asked.count("POST rayjobs") == 1


def test_a_job_that_ended_while_the_pod_was_gone_counts(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve(success())
    assert ran(cluster)[0] == 0
    code, result, _ = ran(cluster)
    assert (code, result["champion_version"]) == (0, 3)
    assert cluster.asked.count("POST rayjobs") == 1


def test_a_failed_job_is_retried_under_a_new_name(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve(failure(), success())
    code, result, said = ran(cluster)
    assert (code, result["job"]) == (0, "nightly-1-2")
    assert "retrying" in said


@pytest.mark.parametrize(("driver", "ours"), [(1, 1), (3, 3), (137, 1), (143, 1), (-9, 1)])
def test_after_the_last_attempt_submit_exits_as_the_job(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome], driver: int, ours: int
) -> None:
    """But for a driver that was killed: at 137 and 143 Argo takes our own pod for lost and starts others."""
    cluster = serve(failure(), failure(driver))
    code, result, _ = ran(cluster)
    assert (code, result["status"], result["kind"]) == (ours, "failed", "JobError")
    assert "no data" in result["error"]
    assert sorted(cluster.jobs) == ["nightly-1", "nightly-1-2"]
    assert ran(cluster)[0] == ours, "a new pod of the same step must not begin anew"
    assert len(cluster.jobs) == 2


def test_an_invalid_configuration_is_not_retried(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve(failure(2))
    assert ran(cluster)[0] == 2
    assert len(cluster.jobs) == 1


def test_a_job_rejected_by_kuberay_is_reported_with_the_reason(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    code, result, _ = ran(serve(Course([apiserver.INVALID], [""], None)), "--attempts=1")
    assert code == 1
    assert "The RayJob spec is invalid" in result["error"]


def test_a_job_stopped_by_a_user_is_not_restarted(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve(Course([apiserver.RUNNING, apiserver.STOPPED], [""], None))
    code, result, _ = ran(cluster)
    assert code == 1
    assert "was stopped" in result["error"]
    assert len(cluster.jobs) == 1


def test_at_the_deadline_the_ray_job_is_stopped(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve(endless())
    code, result, _ = ran(cluster, "--deadline-s=0.5")
    assert code == 1
    assert "deadline" in result["error"]
    assert cluster.stopped == ["nightly-1-x7k2p"]


def test_a_restarted_pod_keeps_the_deadline(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve(endless())
    code, result, _ = ran(cluster, "--deadline-s=100", name="old")  # created long ago, as the server says
    assert code == 1
    assert "deadline" in result["error"]


def test_a_job_that_cannot_be_reached_is_stopped_by_deleting_it(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve(endless())
    cluster.dashboard_away = True
    assert ran(cluster, "--deadline-s=0.3")[0] == 1
    assert cluster.deleted == ["nightly-1"]


def test_sigterm_stops_a_job_that_no_workflow_owns(serve: Callable[..., Cluster]) -> None:
    cluster = serve(endless())
    code, result, _ = told_to_end(cluster)
    assert code == 143
    assert cluster.stopped == ["nightly-1-x7k2p"]
    assert "cancelled" in result["error"]


def test_evicted_pods_hand_over_the_job_without_using_an_attempt(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve(endless(), workflows={"nightly-1": apiserver.workflow()})
    for retry in range(2):
        flags = [OWNER, "--attempts=1", f"--retry={retry}", "--retry-limit=2"]
        code, result, _ = told_to_end(cluster, *flags)
        assert code == 143, "the retryStrategy knows a lost pod by it"
        assert "continues" in result["error"]
    assert cluster.stopped + cluster.deleted == []
    cluster.jobs["nightly-1"]["course"] = success()
    code, result, _ = ran(cluster, OWNER, "--attempts=1", "--retry=2", "--retry-limit=2")
    assert (code, result["job"], cluster.asked.count("POST rayjobs")) == (0, "nightly-1", 1)


@pytest.mark.parametrize(
    "workflows",
    [{"nightly-1": apiserver.workflow(shutdown="Stop")}, {}],
    ids=["argo stop", "workflow deleted"],
)
def test_a_workflow_that_ends_stops_its_job(serve: Callable[..., Cluster], workflows: dict[str, Any]) -> None:
    cluster = serve(endless(), workflows=workflows)
    code, result, _ = told_to_end(cluster, OWNER)
    assert (code, cluster.stopped) == (143, ["nightly-1-x7k2p"])
    assert "cancelled" in result["error"]


def test_the_last_pod_stops_its_job(serve: Callable[..., Cluster]) -> None:
    cluster = serve(endless(), workflows={"nightly-1": apiserver.workflow()})
    code, _, said = told_to_end(cluster, OWNER, "--retry=3", "--retry-limit=3")
    assert (code, cluster.stopped) == (143, ["nightly-1-x7k2p"])
    assert "last pod" in said


def test_a_forbidden_workflow_read_stops_the_job_and_names_the_missing_right(
    serve: Callable[..., Cluster],
) -> None:
    cluster = serve(endless(), workflows={"nightly-1": apiserver.workflow()}, errors={"workflows": [403]})
    code, _, said = told_to_end(cluster, OWNER)
    assert (code, cluster.stopped) == (143, ["nightly-1-x7k2p"])
    assert "accounts.yaml" in said


def test_an_unreachable_api_server_stops_the_job_without_using_an_attempt(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    jobs = [endless(), failure(), success()]
    cluster = serve(*jobs, workflows={"nightly-1": apiserver.workflow()})
    with pod(cluster, OWNER) as step:
        cluster.api_away = True
        wait(lambda: "nobody" in cluster.asked)
        step.send_signal(signal.SIGTERM)
        wait(lambda: bool(cluster.stopped))
        cluster.api_away = False
        assert step.wait(timeout=30) == 143
    code, result, _ = ran(cluster, OWNER, "--attempts=2")
    assert (code, result["job"]) == (0, "nightly-1-3")


@pytest.mark.parametrize("moment", ["before the job was found", "while it runs"])
def test_a_terminated_pod_without_api_server_counts_as_lost(
    serve: Callable[..., Cluster], moment: str
) -> None:
    cluster = serve(endless(), workflows={"nightly-1": apiserver.workflow()})
    early = moment.startswith("before")
    cluster.api_away = early
    with pod(cluster, OWNER, looks=0 if early else 3) as step:
        cluster.api_away = cluster.dashboard_away = True
        wait(lambda: "nobody" in cluster.asked)
        step.send_signal(signal.SIGTERM)
        assert step.wait(timeout=30) == 143, "the retryStrategy would not replace it"


def test_a_restarted_pod_shows_the_end_of_the_log_and_follows_it(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    log = "".join(f"line {number}\n" for number in range(1000))
    cluster = serve(Course([apiserver.RUNNING], [log]), workflows={"nightly-1": apiserver.workflow()})
    _, _, said = told_to_end(cluster, OWNER)
    assert said.count("line 0\n") == said.count("line 999\n") == 1, "the first pod shows all of it"
    more = f"{log}new\n{json.dumps(apiserver.SUMMARY)}\n"
    course = Course([apiserver.RUNNING] * 3 + [apiserver.SUCCEEDED], [log, more])
    cluster.jobs["nightly-1"]["course"] = course
    code, _, said = ran(cluster, OWNER)
    assert code == 0
    shown = [line for line in said.splitlines() if line.startswith(("line ", "new"))]
    assert shown == [f"line {number}" for number in range(800, 1000)] + ["new"]
    assert "800 lines are omitted here" in said


def test_a_pod_terminated_between_attempts_starts_none(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve(failure(), success(), workflows={"nightly-1": apiserver.workflow()})
    with pod(cluster, OWNER, "--pause-s=60", looks=2) as step:
        assert step.stderr
        for line in step.stderr:
            if "retrying in 60 s" in line:
                break
        step.send_signal(signal.SIGTERM)
        assert step.wait(timeout=10) == 143
    assert list(cluster.jobs) == ["nightly-1"]
    assert ran(cluster, OWNER)[0] == 0


def test_there_is_no_retry_after_the_deadline(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve(failure(), success())
    code, result, _ = ran(cluster, "--deadline-s=30", "--pause-s=60")
    assert (code, list(cluster.jobs)) == (1, ["nightly-1"])
    assert "no data" in result["error"]


def test_a_workflow_that_ended_without_a_pod_stops_what_it_left_running(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve(failure(), endless(), workflows={"nightly-1": apiserver.workflow()})
    with pod(cluster, OWNER, looks=6) as step:  # of the second job, too
        wait(lambda: cluster.looks("nightly-1-2") > 2)
        step.kill()
    code, result, _ = ran(cluster, OWNER, "--only-stop=true")
    assert (code, result["stopped"], cluster.stopped) == (0, ["nightly-1-2"], ["nightly-1-2-x7k2p"])
    assert ran(cluster, OWNER, "--only-stop=true")[1]["stopped"] == []
    assert cluster.asked.count("POST rayjobs") == 2


def test_only_what_the_workflow_owns_is_stopped(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve(endless())
    with pod(cluster, OWNER) as step:
        step.kill()
    assert ran(cluster, "--owner=Workflow/nightly-1/uid-2", "--only-stop=true")[1]["stopped"] == []
    assert cluster.stopped == []


def test_a_lost_connection_is_resumed(serve: Callable[..., Cluster], ran: Callable[..., Outcome]) -> None:
    cluster = serve(success(), errors={"GET": [0, 503], "POST": [0, 500]})
    code, result, said = ran(cluster)
    assert (code, result["champion_version"]) == (0, 3)
    assert "does not respond" in said


def test_an_unreachable_api_server_is_an_error_message(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    code, result, _ = ran(serve(errors={"GET": [0] * 99}))
    assert (code, result["kind"]) == (75, "ClusterError"), "the retryStrategy tries again later"
    assert re.search(r"has not responded for [123] s", result["error"])


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "automountServiceAccountToken"), (403, "accounts.yaml")]
)
def test_a_rejection_names_the_status_and_the_remedy(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome], status: int, remedy: str
) -> None:
    cluster = serve(success(), errors={"POST": [status]})
    code, result, _ = ran(cluster)
    assert (code, result["kind"]) == (1, "ClusterError")
    assert str(status) in result["error"]
    assert remedy in result["error"]
    assert cluster.asked == ["GET rayjobs/nightly-1", "POST rayjobs"], "a refusal is not tried again"


def test_a_job_created_concurrently_is_joined(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve(success())
    assert ran(cluster, OWNER)[0] == 0
    cluster.errors["GET"] = [404]  # as if it had appeared between our look and our creation
    code, _, said = ran(cluster, OWNER)
    assert code == 0
    assert "re-attached to RayJob" in said


def test_a_job_of_another_workflow_is_left_alone(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve(success())
    ran(cluster, OWNER)
    code, result, _ = ran(cluster, "--owner=Workflow/nightly-1/uid-2")
    assert code == 1
    assert "another workflow" in result["error"]
    assert not cluster.stopped + cluster.deleted


def test_a_deleted_job_is_a_failure(serve: Callable[..., Cluster], ran: Callable[..., Outcome]) -> None:
    cluster = serve(endless(), errors={"GET": [404]})
    cluster.errors["GET"] = [404, 404]
    code, result, _ = ran(cluster)
    assert code == 1
    assert "was deleted" in result["error"]


def test_a_wrong_flag_of_the_pipeline_starts_nothing(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome]
) -> None:
    cluster = serve()
    code, result, _ = ran(cluster, "--overrides=--train.epoch 3")
    assert code == 2
    assert "--train.epochs" in result["error"]
    assert not cluster.asked


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--owner=Job/a", "Workflow/NAME/UID"),
        ("--job=/nowhere.yaml", "/nowhere.yaml"),
        ("--attempts=0", "--attempts"),
    ],
)
def test_a_flag_that_cannot_be_used_is_a_configuration_error(
    serve: Callable[..., Cluster], ran: Callable[..., Outcome], flag: str, said: str
) -> None:
    code, result, _ = ran(serve(), flag)
    assert code == 2
    assert said in result["error"]


def test_every_field_of_a_submission_comes_from_the_command_line() -> None:
    parser = arguments.Parser("submit")
    parser.add_argument("--config")
    arguments.submit(parser)
    given = arguments.submission(parser.parse_args(["--job=a.yaml", "--job-name=a"]))
    assert set(given) == {field.name for field in dataclasses.fields(Submission)}
    assert Submission(**given) == Submission("python -m distml.pipeline", "a.yaml", "a"), "the same defaults"


def test_outside_a_pod_an_address_is_needed(ran: Callable[..., Outcome]) -> None:
    code, result, _ = ran(Cluster([]), "--api-server=")
    assert code == 1
    assert "kubectl proxy" in result["error"]


STARTED = {"phase": "Running", "startedAt": "2026-11-28T13:00:00Z"}
NOW = submission.seconds("2026-11-28T14:00:00Z")


def changed(**parts: dict[str, Any]) -> dict[str, Any]:
    made = apiserver.workflow()
    for name, more in parts.items():
        made[name] |= more
    return made


@pytest.mark.parametrize(
    "workflow",
    [
        changed(),
        changed(spec={"shutdown": ""}),
        changed(status={"phase": ""}),
        changed(spec={"activeDeadlineSeconds": 3700}, status=STARTED),
        changed(spec={"activeDeadlineSeconds": 60}),  # not started yet
    ],
)
def test_a_running_workflow_is_recognised(workflow: dict[str, Any]) -> None:
    assert submission.ending(workflow, "uid-1", NOW) == ""


@pytest.mark.parametrize(
    ("workflow", "why"),
    [
        (None, "was deleted"),
        (apiserver.workflow("uid-2"), "was deleted"),
        (changed(metadata={"deletionTimestamp": "2026-11-28T13:59:00Z"}), "is being deleted"),
        (apiserver.workflow(shutdown="Stop"), "shut down (Stop)"),
        (apiserver.workflow(shutdown="Terminate"), "shut down (Terminate)"),
        (changed(status={"phase": "Failed"}), "ended as Failed"),
        (changed(status={"phase": "Error"}), "ended as Error"),
        (changed(spec={"activeDeadlineSeconds": 3600}, status=STARTED), "deadline of 3600 s"),
        (
            changed(status={**STARTED, "storedWorkflowTemplateSpec": {"activeDeadlineSeconds": 3600}}),
            "deadline of 3600 s",
        ),
    ],
)
def test_an_ended_workflow_is_recognised(workflow: dict[str, Any] | None, why: str) -> None:
    assert why in submission.ending(workflow, "uid-1", NOW)
