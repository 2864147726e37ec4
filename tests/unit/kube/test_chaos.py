"""The chaos suite: its plan fits the overlays, its judgement is right, and a cell runs to its end."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from distml.errors import ClusterError
from tests.chaos import load, plan, record
from tests.chaos.__main__ import main
from tests.chaos.cluster import Cluster, restarts
from tests.chaos.plan import Cell
from tests.chaos.record import Record
from tests.chaos.run import Settings, longest_gap, perform, requests
from tests.manifests import rules
from tests.manifests.render import KUBERAY, render

CELL = Cell("k3d", "training worker", "SIGTERM", "training")
ONCE = ("setup", "folder", "backup")


@pytest.mark.parametrize("overlay", sorted(plan.SELECTORS))
def test_the_plan_has_every_kind_of_pod_of_the_overlay(overlay: str) -> None:
    pods = [labels for each in render(KUBERAY / "overlays" / overlay) for _, _, labels in rules.pods(each)]
    standing = [labels for labels in pods if labels.get(plan.COMPONENT) not in ONCE]
    chosen: set[int] = set()
    for kind, selector in plan.SELECTORS[overlay].items():
        wanted = dict(pair.split("=") for pair in selector.split(","))
        fits = {at for at, labels in enumerate(standing) if wanted.items() <= labels.items()}
        assert fits, f"no pod of {overlay} is a {kind}"
        chosen |= fits
    assert chosen == set(range(len(standing))), "pods that nothing kills"


@pytest.mark.parametrize("overlay", sorted(plan.SELECTORS))
def test_a_dry_run_prints_the_plan_and_asks_no_question(
    overlay: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", None)
    assert main(["--dry-run", "--overlay", overlay]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    kinds, moments = len(plan.SELECTORS[overlay]), len(plan.MOMENTS)
    assert len(lines) == kinds * moments * len(plan.FAULTS)
    without_run = len(plan.OF_A_RUN[overlay]) * 2 * len(plan.FAULTS)
    assert total == f"{len(lines) - without_run} cells to run, {len(lines)} in all"
    assert sum("no workflow runs" in line for line in lines) == without_run


def test_the_command_rejects_an_unknown_kind_and_a_missing_context(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words, said in (
        (["--kinds", "moon"], "'moon' is no kind of pod; there are"),
        ([], "--context is missing"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert said in capsys.readouterr().err


ENDPOINT = Cell("k3d", "endpoint", "SIGKILL", "training")


def _healed(**parts: Any) -> Record:
    made: dict[str, Any] = {"recovery_s": 30.0, "workflow": "Succeeded", "versions": 1, "requests": 90}
    made |= {"cell": CELL, "date": "2026-11-28"} | parts
    return Record(**made)


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ({}, "healed"),
        ({"recovery_s": None}, "no new pod became ready"),
        ({"workflow": "Failed"}, "the workflow is Failed"),
        ({"twice": 2, "never": 1}, "2 epochs twice; 1 epochs never"),
        ({"versions": 2}, "2 versions instead of 1"),
        ({"lost": 3}, "3 requests lost"),
        ({"lost": 3, "cell": ENDPOINT}, "healed"),
        ({"lost": 3, "outage_s": 89.0, "cell": ENDPOINT}, "healed"),
        ({"lost": 3, "outage_s": 91.0, "cell": ENDPOINT}, "no answer for 91 s"),
        ({"lost": 3, "cell": Cell("production", "serving head", "SIGKILL", "training")}, "3 requests lost"),
        ({"workflow": "", "versions": 0}, "healed"),
        ({"recovery_s": None, "error": "waited in vain"}, "waited in vain"),
    ],
)
def test_the_verdict_names_what_is_wrong(parts: dict[str, Any], verdict: str) -> None:
    assert _healed(**parts).verdict == verdict


def test_the_table_has_the_last_record_of_each_cell_and_lists_what_was_not_run(tmp_path: Path) -> None:
    path = tmp_path / "chaos.jsonl"
    assert record.load(path) == {}
    for made in (_healed(lost=5), _healed()):
        record.save(path, made)
    rows = record.table(plan.cells("k3d", kinds=["training worker"], moments=["training"]), record.load(path))
    _, _, first, *others = rows.splitlines()
    assert "| 30 s | 0 of 90 |" in first
    assert first.endswith("| healed |")
    assert [line.split(" | ")[1] for line in others] == ["SIGKILL", "drain"]
    assert all(line.endswith("| not run |") for line in others)
    step = record.table(plan.cells("k3d", kinds=["step"], moments=["idle"]), {})
    assert len(step.splitlines()) == 2  # no such pod: no row


def test_the_matrix_has_a_column_for_each_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chaos.jsonl"
    record.save(path, _healed(lost=4))
    assert main(["--table", "--records", str(path), "--kinds", "training worker", "step"]) == 0
    head, _, first, *rest = capsys.readouterr().out.splitlines()
    assert head == "| pod | fault | ingest | training | promotion | serving | idle |"
    said = "4 requests lost, ready again after 30 s, 4 of 90 lost"
    assert first == f"| training worker | SIGTERM | not run | {said} | not run | not run | not run |"
    assert rest[-1] == "| step | drain | not run | not run | not run | no such pod | no such pod |"


def test_the_longest_gap_is_between_answers_and_restarts_leave_out_what_was_killed() -> None:
    assert longest_gap([(0.0, 200, 0.5), (1.0, 0, 3.0), (5.0, 503, 0.1), (6.0, 200, 0.5)]) == 6.0
    assert longest_gap([(0.0, 0, 1.0)]) == 0.0
    old, new = _pod("a", "1", restarted=1), _pod("a", "1", restarted=3)
    assert restarts([old], [new, _pod("b", "2")], expected=1) == 2
    assert restarts([old], [new, _pod("b", "2"), _pod("c", "3")], expected=1) == 3


def _pod(name: str, uid: str, restarted: int = 0, component: str = "ray") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": uid, "labels": {plan.COMPONENT: component}},
        "spec": {"nodeName": "node", "containers": [{"image": "distml:1"}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"restartCount": restarted}],
        },
    }


class Fake(Cluster):
    """A cluster of two workers and MLflow, which puts a new pod in the place of the first that goes."""

    def __init__(self) -> None:
        super().__init__("fake")
        self.calls: list[str] = []
        self.worker, self.other, self.heals, self.looks = 1, 1, True, 0

    def kubectl(self, *words: str, given: str | None = None, limit_s: float = 60.0) -> str:
        call = " ".join(words)
        self.calls.append(call.partition("import")[0])
        match words:
            case [_, _, "get", "pods", *selector]:
                return json.dumps({"items": self._pods(" ".join(selector))})
            case [_, _, "get", "secret", *_]:
                return json.dumps({"data": {"key": ""}})
            case ["create", *_]:
                self.workflow = json.loads(given or "")
                return json.dumps({"metadata": {"name": "chaos-1"}})
            case [_, _, "get", "workflow", *_]:
                return json.dumps({"status": {"phase": "Succeeded"}})
            case [_, _, "logs", "-l", *_]:
                return "\ningest\n\ntrain\nepoch 1 of 4\n"
            case [_, _, "logs", "chaos", *_]:
                self.looks += 1
                late = "first 1.000 503 30.000\n" if self.looks > 60 else ""
                later = range(20 * self.looks)
                return "first 1.000\n" + late + "".join(f"{at} {4e9 + at:.3f} 200 0.010\n" for at in later)
            case [_, _, "exec", *_]:
                self.looks += 1
                return f"a warning\n{json.dumps(self.records())}\n"
            case [_, _, "delete", "pod", *_]:
                self.worker += self.heals
            case ["drain", *_]:
                self.worker, self.other = self.worker + 1, self.other + 1
        return ""

    def records(self) -> dict[str, Any]:
        return {"steps": [1, 2, 3, 4], "versions": 6 if hasattr(self, "workflow") and self.looks > 1 else 5}

    def _pods(self, selector: str) -> list[dict[str, Any]]:
        worker = _pod("worker", f"worker-{self.worker}")
        mlflow = _pod("mlflow", "mlflow-1", component="mlflow")
        workers = [worker, _pod("other", f"other-{self.other}")]
        return [mlflow] if "mlflow" in selector else workers if "training" in selector else [*workers, mlflow]


QUICK = Settings(limit_s=5, poll_s=0.001, requests=40)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("SIGTERM", "-n distml delete pod worker --wait=false"),
        ("SIGKILL", "-n distml delete pod worker --wait=false --grace-period=0 --force"),
        ("drain", "drain node --pod-selector=app.kubernetes.io/name=training,ray.io/node-type=worker"),
    ],
)
def test_a_cell_runs_to_its_end_and_is_recorded(fault: str, words: str) -> None:
    cluster, said = Fake(), list[str]()
    made = perform(cluster, Cell("k3d", "training worker", fault, "training"), QUICK, 7, said.append)
    # One that was in flight when there were enough requests is waited for, and counts.
    assert (made.verdict, made.workflow, made.versions) == ("1 requests lost", "Succeeded", 1), made
    assert made.requests >= 20
    assert any(call.startswith(words) for call in cluster.calls)
    assert ("uncordon node" in cluster.calls) is (fault == "drain")
    assert cluster.calls[-1].startswith("delete namespace distml-chaos")
    parameters = cluster.workflow["spec"]["arguments"]["parameters"]
    expected = f"--run.name chaos-training-worker-{fault.lower()}-training-7 --train.epochs 4"
    assert parameters[0]["value"].startswith(expected)


def test_only_the_pods_of_this_workflow_are_killed_where_a_run_brings_its_own() -> None:
    cluster = Fake()
    trained = [_pod(name, name) for name in ("earlier-x-worker", "chaos-1-x-worker")]
    for pod in trained:
        pod["metadata"]["labels"]["app.kubernetes.io/name"] = "training"
    mlflow = _pod("mlflow", "mlflow-1", component="mlflow")

    def pods(selector: str) -> list[dict[str, Any]]:
        return trained if "training" in selector else [mlflow] if selector else [mlflow, *trained]

    cluster._pods = pods  # type: ignore[method-assign]
    made = perform(cluster, Cell("production", "training worker", "SIGKILL", "training"), QUICK, 7, print)
    assert (made.verdict, made.restarts) == ("1 requests lost", 0), made
    assert any("delete pod chaos-1-x-worker" in call for call in cluster.calls)


def test_a_pod_that_does_not_come_back_is_no_healed_cell() -> None:
    cluster = Fake()
    cluster.heals = False
    settings = Settings(limit_s=0.2, poll_s=0.001)
    made = perform(cluster, CELL, settings, 1, lambda _: None)
    assert made.verdict == "waited 0.2 s in vain for as many pods as before"
    assert cluster.calls[-1].startswith("delete namespace distml-chaos")


def test_a_failure_of_kubectl_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="kubectl cannot be started: No such file"):
        Cluster("mine").pods()
    (tmp_path / "kubectl").write_text("#!/bin/sh\necho no such context >&2\nexit 1\n")
    (tmp_path / "kubectl").chmod(0o755)
    with pytest.raises(ClusterError, match="get pods -o json` failed: no such context"):
        Cluster("mine").pods()


def test_requests_in_flight_are_no_answers() -> None:
    log = "0 1.000\n1 1.500\n0 1.000 200 0.250\n2 2.000\n2 2.000 0 30.000\n"
    assert requests(log) == ([(1.0, 200, 0.25), (2.0, 0, 30.0)], [1.5])


def test_a_request_without_an_answer_is_in_the_log_from_its_beginning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        asking = [sys.executable, load.__file__, host, "50"]
        with subprocess.Popen(asking, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(5)]
            process.kill()
    assert len(requests("".join(lines))[1]) == 5, lines


class _Answers(BaseHTTPRequestHandler):
    bodies: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        given = self.rfile.read(int(self.headers["Content-Length"]))
        self.bodies.append((self.path, given))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


def test_the_requests_carry_a_picture_and_count_silence_as_lost() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_address[1]}"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert load.ask(host, load.body(), headers) == 200
    server.shutdown()
    server.server_close()
    assert load.ask(host, load.body(), headers) == 0
    ((path, given),) = _Answers.bodies
    assert path == "/predict/image"
    assert load.picture() in given
    with Image.open(io.BytesIO(load.picture())) as picture:
        picture.load()
        assert (picture.size, picture.mode) == ((28, 28), "L")
