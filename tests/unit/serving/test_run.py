"""What the person who started an endpoint hears of it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from rich.console import Console

from distml import cli
from distml.artifacts.predictor import Choice, Figure
from distml.config import AuthConfig, Config, ServeConfig, TlsConfig
from distml.serving import client, haproxy, run
from distml.serving.metrics import Metrics
from distml.serving.service import Loss, Models, Refusal, RegistryState, Standing
from tests import certificates, serving


def described(
    version: int = 3, answers: bool = True, missing: tuple[str, ...] = (), **more: Any
) -> dict[str, Any]:
    registry = {"answers": answers, "age_s": 1.0 if answers else 42.0, "missing": list(missing)}
    return {"name": "pets", "version": version, "refused": [], "losses": [], "registry": registry, **more}


def test_an_unchanged_state_prints_nothing() -> None:
    assert run.changes(described(), described()) == []
    assert run.changes(None, None) == []


def test_each_change_of_the_model_set_is_printed_once() -> None:
    assert run.changes(described(3), described(4)) == ["version 4 of pets answers now, before it 3"]
    bad = {"version": 5, "alias": "champion", "reason": "its files are gone."}
    refused = described(refused=[bad])
    assert run.changes(described(), refused) == [
        "refused: version 5 (champion): its files are gone. version 3 is still served"
    ]
    assert run.changes(refused, described(refused=[bad])) == []
    assert run.changes(refused, described(4)) == ["version 4 of pets answers now, before it 3"]
    same = described(refused=[{**bad, "version": 3}])
    assert run.changes(same, described(aliases={"champion": 3})) == [
        "version 3 (champion) is not refused any more"
    ]
    away = described(answers=False)
    said = "the registry has not responded for 42 s; version 3 is still served"
    assert run.changes(described(), away) == [said]
    assert run.changes(away, described(answers=False)) == []
    assert run.changes(away, described()) == ["the registry responds again"]
    assert run.changes(described(), described(missing=("champion",))) == [
        "the registry has no champion any more; version 3 is still served"
    ]


def test_deaths_of_replicas_are_printed_with_the_version_at_work() -> None:
    loss = {"version": 3, "doing": "predicting", "replicas": 1, "at": 1.0}
    once, twice = described(losses=[loss]), described(losses=[{**loss, "replicas": 2}])
    sentence = "version 3: a replica died while computing its predictions"
    assert run.changes(described(), once) == [sentence]
    assert run.changes(once, described(losses=[loss])) == []
    assert run.changes(once, twice) == [f"{sentence}, 2 by now"]
    assert run.changes(twice, twice) == [f"{sentence}, 2 by now"]
    loading = described(losses=[loss, {**loss, "doing": "loading"}])
    assert run.changes(once, loading) == ["version 3: a replica died while loading it"]


def test_an_alias_that_moves_goes_and_returns_is_printed() -> None:
    first, second = (
        described(aliases={"champion": 3, "next": 4}),
        described(aliases={"champion": 3, "next": 5}),
    )
    gone = described(aliases={"champion": 3}, missing=("next",))
    assert run.changes(first, second) == ["next is version 5 now"]
    assert run.changes(second, gone) == [
        "next is not loaded any more",
        "the registry has no next any more; version 3 is still served",
    ]
    assert run.changes(gone, first) == ["next is version 4 now", "the registry has next again"]


def test_problems_at_the_start_are_printed() -> None:
    start = described(answers=False, missing=("challenger",))
    assert len(run.changes(start, start)) == 2


def test_a_lost_and_returned_endpoint_is_printed() -> None:
    assert run.changes(described(), None) == ["the endpoint does not respond"]
    assert run.changes(None, described()) == ["the endpoint responds again"]


def test_following_ends_at_once_with_its_event() -> None:
    ended = threading.Event()
    ended.set()
    stream = io.StringIO()
    run.follow(Console(file=stream), "http://127.0.0.1:9", ended)
    assert stream.getvalue() == ""


def test_troubles_of_keys_and_certificate_are_printed_when_they_stay(tmp_path: Path) -> None:
    file, line = tmp_path / "keys", f"shop sha256:{'0' * 64}\n"
    file.touch(0o600)
    file.write_text(line)
    certificates.write(tmp_path, 1)
    tls = TlsConfig(certificate=str(tmp_path / "cert.pem"), key=str(tmp_path / "key.pem"))
    files = run._Files(ServeConfig(auth=AuthConfig(keys_file=str(file)), tls=tls))

    def after(change: Callable[[], Any]) -> str:
        change()
        assert files.changes() == []  # it may be half written
        (told,) = files.changes()
        assert files.changes() == []
        return str(told)

    told = after(lambda: file.write_text("shop\n"))
    assert "has 1 words" in told
    assert told.endswith("The previous keys stay valid.")
    assert after(lambda: file.write_text("")).endswith("Until then every request is rejected.")
    assert after(lambda: file.write_text(line)) == "the keys file is in order again"
    certificate = (tmp_path / "cert.pem").read_bytes()
    told = after(lambda: (tmp_path / "cert.pem").write_text("half"))
    assert told.endswith("The previous certificate stays in use.")
    assert (
        after(lambda: (tmp_path / "cert.pem").write_bytes(certificate)) == "the certificate is in order again"
    )
    assert after(lambda: (tmp_path / "key.pem").chmod(0o644)).endswith("key.pem.")
    assert files.troubles() == [run._of_certificate(tls)]


def test_the_dates_of_a_certificate_are_judged(tmp_path: Path) -> None:
    tls = TlsConfig(certificate=str(tmp_path / "cert.pem"), key=str(tmp_path / "key.pem"))
    since_2020 = (datetime.now(UTC) - datetime(2020, 1, 1, tzinfo=UTC)).days
    for days, expected in ((since_2020 - 1, "expired on 20"), (since_2020 + 9, "expires on 20")):
        certificates.write(tmp_path, days=days)
        assert expected in run._of_certificate(tls)
    certificates.write(tmp_path, days=since_2020 + 60)
    assert run._of_certificate(tls) == ""
    certificates.write(tmp_path, days=6, begin=datetime.now(UTC) - timedelta(days=1))
    assert run._of_certificate(tls) == "", "renewed by an agent every few days"
    expired, issuer = tmp_path / "old", (tmp_path / "cert.pem").read_bytes()
    expired.mkdir()
    certificate, _ = certificates.write(expired, days=since_2020 - 1)
    both = certificate.read_bytes() + issuer  # the first is the server's own
    certificate.write_bytes(both)
    own = TlsConfig(certificate=str(certificate), key=str(expired / "key.pem"))
    assert "so clients reject it" in run._of_certificate(own)


def test_the_status_is_one_screen_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    core = serving.core()
    core.swap(core._loaded, core.aliases(), (Refusal(9, "champion", "its files are gone.", 1.0),))
    core.learn(Standing(RegistryState(1.0), (), (Loss(7, "predicting", replicas=2, at=1.0),)))
    with serving.running(core) as url:
        for _ in range(3):
            assert requests.post(f"{url}/predict", json={"instances": [[[3] * 5] * 4]}, timeout=10).ok
        flags = ["--url", url, "--storage.root", str(tmp_path), "--over-s", "0.2"]
        assert cli.run("status", flags) == 0
        printed = capsys.readouterr()
        assert "distml_replica_last_answer_age_seconds " in requests.get(f"{url}/metrics", timeout=10).text
    state = json.loads(printed.out)
    assert (state["model"], state["version"], state["aliases"]) == ("pets", 7, {"champion": 7, "previous": 5})
    assert (state["replicas"], state["loaded"], state["drifted"]) == (1, [7, 5], None)
    assert 0 < state["p50_s"] <= state["p99_s"] <= 5
    assert "version 9 (champion): its files are gone." in printed.err
    assert "lost      version 7: 2 replicas died while computing its predictions\n" in printed.err
    assert state["losses"] == [{"version": 7, "doing": "predicting", "replicas": 2, "at": 1.0}]
    assert cli.run("status", ["--url", url, "--storage.root", str(tmp_path)]) == 1
    assert "does not respond" in capsys.readouterr().err


def test_the_engine_and_the_times_of_others_are_printed() -> None:
    taken = Figure("onnx", 2, 16, 0.25, 0.061)
    others = (Figure("litert", 1, 4, 0.5, 0.07), Figure("openvino", 1, note="its outputs differ by 0.01"))
    assert run.engine(Choice("onnx", 2, 16, (taken, *others)).described()) == [
        "onnx, 2 threads, 16 images a call",
        "  onnx (2): 0.25 ms alone, 0.061 ms in 16",
        "  litert (1): 0.5 ms alone, 0.07 ms in 4",
        "  openvino (1): its outputs differ by 0.01",
    ]
    assert run.engine(Choice("litert", 1).described()) == ["litert, 1 thread"]
    assert run.engine(None) == []


def test_rates_come_from_two_scrapes_of_all_replicas() -> None:
    def samples(good: float, bad: float) -> client.Samples:
        return [
            ("distml_champion_version", {"replica": "a"}, 3.0),
            ("distml_champion_version", {"replica": "b"}, 3.0),
            ("distml_requests_total", {"status": "200", "replica": "a"}, good),
            ("distml_requests_total", {"status": "503", "replica": "b"}, bad),
            ("distml_request_seconds_bucket", {"route": "/predict", "le": "0.01", "replica": "a"}, 98.0),
            ("distml_request_seconds_bucket", {"route": "/predict", "le": "+Inf", "replica": "a"}, 100.0),
            ("distml_request_seconds_bucket", {"route": "/healthz", "le": "0.001", "replica": "a"}, 900.0),
        ]

    state = run.measured(samples(10, 1), samples(30, 2), 2.0)
    assert (state["replicas"], state["requests_per_s"], state["failed_per_s"]) == (2, 10.5, 0.5)
    assert (state["p50_s"], state["p99_s"]) == (0.01, float("inf"))


SIGNALS = """
import signal
from distml.serving import run

def interrupted(number):
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        return True
    return False

before = signal.getsignal(signal.SIGTERM)
with run._signals() as answering:
    assert interrupted(signal.SIGTERM)
    ended = answering()
    assert not interrupted(signal.SIGINT)
    assert ended.wait(10)
    assert interrupted(signal.SIGINT)
assert signal.getsignal(signal.SIGTERM) is before
print("as expected")
"""


def test_a_signal_stops_a_ready_endpoint() -> None:
    # In a process of its own: a worker of pytest-xdist has ended by these signals.
    done = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, check=False)
    assert done.stdout == "as expected\n", done.stderr


@pytest.mark.parametrize("several", [False, True])
def test_the_end_of_the_certificate_is_in_metrics_and_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], several: bool
) -> None:
    days = (datetime.now(UTC) - certificates.SINCE).days + 60
    certificate, _ = certificates.write(tmp_path, days=days)
    config = Config.resolve({"storage": {"root": str(tmp_path)}})
    cores = {"pets": serving.core(), "cars": serving.core()}
    for name, core in cores.items():
        core.metrics = Metrics("a", name)
    parts = {name: core.metrics for name, core in cores.items()}
    metrics = Metrics("a", parts=list(parts.values())) if several else cores["pets"].metrics
    service = Models(dict(cores), parts, several=True) if several else cores["pets"]
    with serving.running(service, metrics=metrics) as url:
        assert run.status(config, url, own=False, over_s=0.01)["certificate_until"] is None
        assert "certificate" not in capsys.readouterr().err
        metrics.certificate.set_function(partial(haproxy.expiry, str(certificate)))
        ends = f"{certificates.SINCE + timedelta(days=days):%Y-%m-%d %H:%M} UTC"
        assert run.status(config, url, own=False, over_s=0.01)["certificate_until"] == ends
        assert f"certificate valid until {ends}" in capsys.readouterr().err
        certificate.unlink()
        assert run.status(config, url, own=False, over_s=0.01)["certificate_until"] is None
