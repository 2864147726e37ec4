"""One process, one handler, on standard error, marked with what the process is."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys

import pytest

from distml import log

pytestmark = pytest.mark.usefixtures("plain_logging")


@pytest.mark.parametrize(("process", "rank", "mark"), [("driver", None, "driver"), ("worker", 3, "worker3")])
def test_a_log_record_goes_to_stderr_with_its_level(
    capsys: pytest.CaptureFixture[str], process: str, rank: int | None, mark: str
) -> None:
    log.configure(process, rank)
    logging.getLogger("distml.some").info("said %d", 7)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(f" I {mark} distml.some: said 7\n")


def test_configuring_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("driver")
    log.configure("driver")
    logging.getLogger("distml").info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_other_loggers_are_limited_to_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("driver", level=logging.DEBUG)
    logging.getLogger("distml").debug("ours")
    logging.getLogger("somebody.else").info("theirs")
    logging.getLogger("somebody.else").warning("their warning")
    err = capsys.readouterr().err
    assert "ours" in err
    assert "theirs" not in err
    assert "their warning" in err


def test_output_of_libraries_is_shown_only_after_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    with log.quietly():
        os.write(2, b"noise\n")
    sys.stderr.write("after\n")
    assert capfd.readouterr().err == "after\n"
    with pytest.raises(ZeroDivisionError), log.quietly():
        _ = os.write(2, b"the cause\n") // 0
    assert capfd.readouterr().err == "the cause\n"


def test_the_raylets_log_is_left_out_of_what_libraries_print(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.redirect_stdout(log.Aside()):
        print("(raylet) It is terminated. (1) SIGKILL. Last 20 lines of the Raylet logs:\n    [x] a\n    b\n")
        print("somebody else's\nlines")
        assert not sys.stdout.isatty()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "(raylet) It is terminated. (1) SIGKILL.\n\nsomebody else's\nlines\n"


def test_records_go_to_the_standard_error_of_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    log.configure("driver")
    first.close()
    monkeypatch.setattr(sys, "stderr", second)
    logging.getLogger("distml.some").info("said")
    assert second.getvalue().endswith("distml.some: said\n")
