"""Exit codes, and one JSON line as the last of standard output however a verb ends."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from distml import cli
from distml.config import Config
from distml.errors import ConfigError, TrainingError

pytestmark = pytest.mark.usefixtures("plain_logging")


def call(capsys: pytest.CaptureFixture[str], run: Any, *words: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, result line and standard error of a verb."""
    code = cli.main("test", run, list(words))
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_a_finished_verb(capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Config) -> dict[str, Any]:
        print("something on the way")
        return {"epochs": config.train.epochs, "loss": math.nan, "more": [math.inf, 1.5]}

    code, result, err = call(capsys, run, "--train.epochs", "3")
    assert code == 0
    assert err == "something on the way\n"
    more = {"epochs": 3, "loss": None, "more": [None, 1.5]}
    assert result == {"verb": "test", "status": "finished", **more}


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [(TrainingError("it broke.", "Mend it."), 1, "failed"), (ConfigError("no.", "Yes."), 2, "invalid")],
)
def test_a_failure_is_a_message_without_traceback(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, status: str
) -> None:
    def run(config: Config) -> dict[str, Any]:
        raise error

    done, result, err = call(capsys, run)
    assert (done, result["status"], result["error"]) == (code, status, str(error))
    assert result["kind"] == type(error).__name__
    assert err == f"distml test: {error}\n"


def test_a_mistake_of_the_user_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Config) -> dict[str, Any]:
        raise AssertionError("must not run")

    code, result, _ = call(capsys, run, "--train.epohcs", "3")
    assert (code, result["status"], result["kind"]) == (2, "invalid", "ConfigError")
    assert "--train.epochs" in result["error"]


def test_an_unfinished_verb_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    code, result, _ = call(capsys, lambda config: {"status": "failed", "checks": []})
    assert (code, result["status"]) == (1, "failed")


def test_an_internal_error_shows_traceback_and_result_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, result, err = call(capsys, lambda config: {"x": 1 // 0})
    assert (code, result["status"], result["kind"]) == (1, "failed", "ZeroDivisionError")
    assert "Traceback" in err


def test_an_interrupted_verb_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Config) -> dict[str, Any]:
        raise KeyboardInterrupt

    code, result, err = call(capsys, run)
    assert (code, result["status"]) == (130, "interrupted")
    assert "interrupted" in err


def test_the_printed_configuration_is_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--train.workers", "[1, 2]", "--model.options", "{dense: 8}", "--train.clip_norm", "1e-5"]
    words += ["--sweep.candidates", "[{model.name: cnn}]", "--tracking.uri", "null", "--run.name", "7"]
    assert cli.main("test", lambda config: {}, [*words, "--print-config"]) == 0
    printed = Config.resolve(yaml.safe_load(capsys.readouterr().out))
    seen: list[Config] = []

    def run(config: Config) -> dict[str, Any]:
        seen.append(config)
        return {}

    call(capsys, run, *words)
    assert printed == seen[0]
    assert printed.digest() == seen[0].digest()


def test_the_printed_configuration_can_be_read_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    path = tmp_path / "config.yaml"
    cli.main("test", lambda config: {}, ["--train.learning_rate", "1e-7", "--print-config"])
    path.write_text(capsys.readouterr().out)
    cli.main("test", lambda config: {}, ["--config", str(path), "--print-config"])
    assert capsys.readouterr().out == path.read_text()


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["--version"]])
def test_help_and_version_go_to_standard_output(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main("test", lambda config: {}, words)
    assert caught.value.code == 0
    assert "distml" in capsys.readouterr().out


def console(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["distml", *words])
    return cli.entry(), *capsys.readouterr()


def test_the_console_script_lists_its_verbs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = console(capsys, monkeypatch)
    assert code == 2
    assert all(f"  {verb} " in err for verb in cli.VERBS)
    assert console(capsys, monkeypatch, "--help")[0] == 0
    assert console(capsys, monkeypatch, "--version")[1].startswith("distml ")


def test_a_misspelt_verb_gets_a_suggestion(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = console(capsys, monkeypatch, "trian")
    assert code == 2
    assert json.loads(out)["status"] == "invalid"
    assert "Did you mean train?" in err


def test_the_console_script_runs_a_verb_with_the_rest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = console(capsys, monkeypatch, "validate", "--run.name", "mine")
    assert (code, json.loads(out)["run"]) == (0, "mine")


@pytest.mark.parametrize("verb", ["validate", "train"])
def test_python_dash_m_distml_reaches_every_verb(verb: str) -> None:
    command = [sys.executable, "-m", "distml", verb, "--print-config", "--run.name=mine"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert yaml.safe_load(ran.stdout)["run"]["name"] == "mine"


ENDING = """
import atexit, logging, os, sys, tempfile, threading, time
from pathlib import Path
from distml import cli

place = Path(sys.argv[1])

class Kept:
    def __del__(self, make=os.mkdir, name=str(place / "freed")):
        make(name)

class Late(logging.StreamHandler):
    def close(self):
        (place / "log closed").touch()

def program():
    global kept, folder
    kept, folder = Kept(), tempfile.TemporaryDirectory(dir=place)
    atexit.register((place / "exit function ran").touch)
    logging.getLogger().addHandler(Late())
    threading.Thread(target=lambda: (time.sleep(0.5), (place / "thread ended").touch())).start()
    sys.stdout.write("x" * 100_000)
    if len(sys.argv) > 2:
        raise ValueError("unexpected")
    return 5

cli.exit_with(program)
"""


def test_a_program_ends_with_its_code_and_is_not_freed_piece_by_piece(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDING, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, len(ran.stdout), ran.stderr) == (5, 100_000, "")
    assert {path.name for path in tmp_path.iterdir()} == {"exit function ran", "log closed", "thread ended"}


def test_an_unexpected_error_ends_as_python_ends_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDING, str(tmp_path), "raise"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, len(ran.stdout)) == (1, 100_000)
    assert "ValueError: unexpected" in ran.stderr
    assert (tmp_path / "freed").exists()


def test_a_closed_output_pipe_is_no_crash() -> None:
    program = (
        "from distml import cli\n"
        "def run(config):\n"
        "    return {'long': 'x' * 10_000_000}\n"
        "raise SystemExit(cli.main('x', run, []))"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == ""
