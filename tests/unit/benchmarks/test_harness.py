"""The harness measures alternately, reads what commands say, and lets no missed bar pass."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import __main__ as everything
from benchmarks import harness, report, startup
from benchmarks.peers import work
from benchmarks.report import Figure
from distml.training.events import Started
from distml.training.observers.display import Display


def say(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_command_is_answered_with_its_last_line() -> None:
    assert harness.run(say("print('noise'); print('{\"a\": 1.5}')")) == {"a": 1.5}
    assert harness.run(say("import os; print(os.environ['X'])"), {"X": "7"}) == 7


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit('the disk is full')", "exit code 1\nthe disk is full"),
        ("print('no figures')", "no JSON on the last line\nno figures"),
        ("pass", "no JSON"),
    ],
)
def test_a_failed_command_is_reported_with_its_output(program: str, said: str) -> None:
    with pytest.raises(harness.BenchmarkError, match=said):
        harness.run(say(program))


def test_a_command_that_hangs_is_ended() -> None:
    with pytest.raises(harness.BenchmarkError, match=r"not finished after 0\.5 s"):
        harness.run(say("import time; time.sleep(60)"), limit_s=0.5)


def test_ours_and_the_peer_alternate() -> None:
    order: list[str] = []

    def call(name: str) -> Callable[[], int]:
        return lambda: order.append(name) or len(order)  # type: ignore[func-returns-value]

    actual = harness.alternate({"ours": call("ours"), "peer": call("peer")}, 3)
    assert order == ["ours", "peer"] * 3
    assert actual == {"ours": [1, 3, 5], "peer": [2, 4, 6]}


def test_the_line_before_the_first_step_is_recognised() -> None:
    shown = io.StringIO()
    started = Started(
        world_size=2, epoch=0, steps_per_epoch=10, streaming=False, precision="bfloat16", parameters=1000
    )
    Display(1, Console(file=shown, soft_wrap=True))(started)
    assert startup.FIRST_STEP.search(shown.getvalue())
    assert not startup.FIRST_STEP.search("training failed on 2 workers")


def test_a_figure_compares_the_ratio_of_medians_with_its_limit() -> None:
    faster = Figure("speed", [10.0, 30.0, 20.0], [10.0, 9.0, 100.0], 2.0)
    assert faster.ratio == 2.0
    assert faster.holds
    assert not Figure("speed", [19.9], [10.0], 2.0).holds
    assert Figure("wall", [11.0], [10.0], 1.15, "at most").holds
    assert not Figure("wall", [12.0], [10.0], 1.15, "at most").holds
    line = faster.line()
    assert {"name", "ours", "peer", "ratio", "bar", "holds"} <= line.keys()
    assert (line["ours"], line["peer"], line["ours_all"]) == (20.0, 10.0, [10.0, 30.0, 20.0])


def test_the_last_line_is_the_result_and_a_missed_limit_exits_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad = Figure("good", [2.0], [1.0], 1.0), Figure("bad", [1.0], [2.0], 1.0)
    assert report.main(lambda: [good]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["name"] == "good"
    assert "cores" in err
    assert report.main(lambda: [good, bad]) == 1
    out, err = capsys.readouterr()
    assert [figure["holds"] for figure in json.loads(out.splitlines()[-1])] == [True, False]
    assert "NO" in err


def test_a_failed_measurement_is_an_error_message(capsys: pytest.CaptureFixture[str]) -> None:
    def measure() -> list[Figure]:
        raise harness.BenchmarkError("the peer died")

    assert report.main(measure) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "the peer died\n")


def test_an_unknown_benchmark_is_rejected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "speeed"])
    assert everything.main() == 2
    assert "speeed" in capsys.readouterr().err


def test_the_data_are_read_from_the_configured_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMNIST", str(tmp_path))
    with pytest.raises(harness.BenchmarkError, match="set FMNIST"):
        harness.data_folder()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte.gz").touch()
    assert harness.data_folder() == str(tmp_path)


def test_a_peer_reads_rows_as_they_are_stored(tmp_path: Path) -> None:
    pixels = np.arange(2 * 784, dtype=np.uint32).astype(np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes()))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + b"\x03\x09"))
    images, labels = work.train_rows(str(tmp_path))
    assert images.shape == (2, 28, 28, 1)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images.ravel(), pixels)
    np.testing.assert_array_equal(labels, np.array([3, 9], np.int32))


def test_a_peer_without_data_reports_how_to_configure_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FMNIST", raising=False)
    with pytest.raises(SystemExit, match="2"):
        work.arguments("a peer", [])
    assert "FMNIST" in capsys.readouterr().err


def test_the_first_epoch_is_not_steady() -> None:
    assert work.steady([1.0, 3.0, 2.0]) == 2.0
    assert work.steady([4.0]) == 4.0
