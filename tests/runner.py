"""Runs `python -m distml.train`, or another verb, as a person would, and hurts its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from tests import fashion
from tests.mlflow_server import new_database

REPOSITORY = Path(__file__).resolve().parent.parent

SMALL = [
    "--data.name=fashion-some",  # an epoch takes a second or some, not tens of them
    "--data.format=tests.fashion:some",
    "--train.epochs=4",
    "--train.global_batch_size=256",
    "--tracking.system_metrics=false",
    "--export.formats=[keras]",  # the others take longer than the training
]
STEPS_PER_EPOCH = fashion.TRAINED // 256


def command(verb: str, *flags: str) -> list[str]:
    """The command line of a verb in this interpreter."""
    return [sys.executable, "-m", f"distml.{verb}", *flags]


def environment(**variables: str) -> dict[str, str]:
    """This process's variables, with this checkout's package to be imported."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY)} | variables


class Training:
    """The process group of one `distml.train`, or of another verb."""

    def __init__(
        self, root: Path, name: str, *flags: str, env: dict[str, str] | None = None, verb: str = "train"
    ) -> None:
        self.root = root
        if not root.exists() and not any(flag.startswith("--tracking.uri") for flag in flags):
            new_database(root)
        self.process = subprocess.Popen(
            command(verb, f"--storage.root={root}", f"--run.name={name}", *SMALL, *flags),
            cwd=root.parent,
            env=os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{root.parent}"} | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def wait_for(self, text: str, timeout_s: float = 240, times: int = 1) -> None:
        """Wait until so many lines hold a text; fail with everything said when the process ends first."""
        deadline = time.monotonic() + timeout_s
        while sum(text in line for line in list(self.lines)) < times:
            ended = self.process.poll() is not None
            assert not ended, f"ended with {self.process.returncode} before {text!r}:\n" + "\n".join(
                self.lines
            )
            assert time.monotonic() < deadline, f"no {text!r} in {timeout_s} s:\n" + "\n".join(self.lines)
            time.sleep(0.02)

    def said(self, text: str) -> int:
        """How many lines hold a text."""
        return sum(text in line for line in self.lines)

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Descendants whose title or command line holds a name."""
        result = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in " ".join(process.cmdline()) or name in process.name():
                    result.append(process)
            except psutil.Error:
                continue
        return result

    def workers(self) -> list[psutil.Process]:
        """The training workers' processes."""
        return sorted(self.processes("RayTrainWorker"), key=lambda process: process.pid)

    def kill_all(self) -> None:
        """SIGKILL the driver and everything it started, as a machine that loses power."""
        everything = [*self.processes(), psutil.Process(self.process.pid)]
        for process in everything:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(everything, timeout=20)
        self.process.wait(20)

    def finish(self, timeout_s: float = 300) -> tuple[int, dict[str, Any]]:
        """Wait for the end; returns the exit code and the result line."""
        assert self.process.stdout is not None
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise AssertionError(f"not ended after {timeout_s} s:\n" + "\n".join(self.lines)) from None
        self._reader.join(10)
        out = self.process.stdout.read().strip().splitlines()
        return self.process.returncode, json.loads(out[-1]) if out else {}

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            for process in self.processes():
                try:
                    process.send_signal(signal.SIGCONT)
                except psutil.Error:
                    continue
            self.kill_all()
        self._reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def recorded(root: Path, name: str) -> tuple[Any, dict[str, list[int]]]:
    """The one MLflow run of that name and the steps on record of its two curves."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`mlflow.runName` = '{name}'")
    assert len(runs) == 1, [run.info for run in runs]
    run_id = runs[0].info.run_id
    steps = {
        key: [metric.step for metric in client.get_metric_history(run_id, key)]
        for key in ("loss", "step/loss")
    }
    return runs[0], steps


def assert_logged_once(
    steps: dict[str, list[int]], epochs: int = 4, per_epoch: int = STEPS_PER_EPOCH
) -> None:
    """Each epoch once, each point of the step curve once, in order, to the last step."""
    assert steps["loss"] == list(range(1, epochs + 1))
    assert steps["step/loss"] == sorted(set(steps["step/loss"]))
    assert steps["step/loss"][-1] == epochs * per_epoch
