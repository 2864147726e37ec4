"""One answer a question, in time, in order, whatever goes wrong."""

from __future__ import annotations

import json
import threading
import time

import pytest

from distml import doctor as verb
from distml.checks import Check, doctor, ok, problem, warning
from distml.errors import DataError


def test_results_keep_the_order_of_the_checks() -> None:
    def slow() -> list[Check]:
        time.sleep(0.2)
        return [ok("slow", "")]

    results = doctor.gather({"a": slow, "b": lambda: [ok("fast", ""), ok("fast 2", "")], "c": list})
    assert [check.name for check in results] == ["slow", "fast", "fast 2"]


def test_checks_run_concurrently() -> None:
    together = threading.Barrier(3, timeout=10)

    def meet() -> list[Check]:
        together.wait()
        return [ok("met", "")]

    assert len(doctor.gather(dict.fromkeys("abc", meet))) == 3


def test_a_check_that_fails_or_times_out_is_a_problem_and_hides_no_other() -> None:
    stop = threading.Event()

    def hangs() -> list[Check]:
        stop.wait(30)
        return []

    def refuses() -> list[Check]:
        raise DataError("it is gone.", "Bring it back.")

    def breaks() -> list[Check]:
        raise ZeroDivisionError

    began = time.monotonic()
    asked: dict[str, doctor.Question] = {"hangs": hangs, "refuses": refuses, "breaks": breaks}
    results = doctor.gather({**asked, "fine": lambda: [ok("fine", "")]}, 0.3)
    stop.set()
    assert time.monotonic() - began < 5
    assert [check.status for check in results] == ["problem", "problem", "problem", "ok"]
    assert results[0].detail == "no response within 0.3 s"
    assert (results[1].detail, results[1].remedy) == ("it is gone.", "Bring it back.")
    assert "ZeroDivisionError" in results[2].detail


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ([ok("a", "fine")], "finished"),
        ([ok("a", "fine"), warning("b", "slow", "Wait.")], "finished"),
        ([warning("b", "slow", "Wait."), problem("c", "gone [x]", "Get it.")], "failed"),
    ],
)
def test_only_a_problem_fails(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plain_logging: None,
    checks: list[Check],
    status: str,
) -> None:
    monkeypatch.setattr(doctor, "gather", lambda questions: checks)
    code = verb.main([])
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (code, result["status"]) == (int(status == "failed"), status)
    assert [check["name"] for check in result["checks"]] == [check.name for check in checks]
    for check in checks:
        assert any(line.startswith(f"{check.status:<8} {check.name}") for line in err.splitlines())
        assert check.detail in err
        assert check.remedy in err
