"""Alerts and dashboard ask for metrics that exist, and Prometheus accepts them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import yaml

from distml.serving.metrics import Metrics
from distml.training.observers import exporters
from tests.manifests.render import KUBERAY, ROOT

HERE = KUBERAY / "monitoring"
DASHBOARD = json.loads((HERE / "grafana" / "distml.json").read_text())
RULES = yaml.safe_load((HERE / "rules.yaml").read_text())
OF_RAY = {  # seen in what a Ray 2.60 exports
    *("ray_node_cpu_utilization", "ray_node_mem_used", "ray_node_mem_total", "ray_object_store_used_memory"),
}


def known() -> set[str]:
    """Names of all metrics that an expression may use."""
    of_serving = set(re.findall(r"^# TYPE (\S+)", asyncio.run(Metrics().text()).decode(), re.MULTILINE))
    series = of_serving | {f"{name}{end}" for name in of_serving for end in ("_bucket", "_sum", "_count")}
    return series | {f"ray_distml_train_{name}" for name in exporters.GAUGES} | OF_RAY | {"up"}


def expressions() -> dict[str, str]:
    """Every expression by where it stands."""
    result = {rule["alert"]: rule["expr"] for group in RULES["groups"] for rule in group["rules"]}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            result[f"{panel['title']} {target['refId']}"] = target["expr"]
    return result


def test_there_are_alerts_and_panels() -> None:
    alerts = {rule["alert"] for group in RULES["groups"] for rule in group["rules"]}
    assert {"NoChampionReady", "ServingErrors", "TrainingStalled"} <= alerts
    assert len(expressions()) > 20


@pytest.mark.parametrize("where", expressions())
def test_an_expression_uses_metrics_that_exist(where: str) -> None:
    expression = re.sub(r"\{[^}]*\}|by \([^)]*\)", "", expressions()[where])
    used = set(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b|\bup\b", expression)) - {"histogram_quantile"}
    assert used
    assert used - known() == set()


def test_every_alert_describes_the_event_and_the_remedy() -> None:
    for group in RULES["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"].keys() == {"summary", "action"}
            assert rule["labels"]["severity"] in ("warning", "critical")


needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Prometheus")


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@needs_promtool
@pytest.mark.parametrize(
    "words", [["rules", "rules.yaml"], ["config", "laptop.yaml"]], ids=lambda words: words[-1]
)
def test_prometheus_accepts_the_files(words: list[str]) -> None:
    done = subprocess.run(
        ["promtool", "check", *words], cwd=HERE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


FIRED = {
    "ChampionRefused": ('distml_refused_versions{replica="a",model="pets"}', "0x4 1x10", "3m", "10m"),
    "ModelWithoutChampion": ('distml_champion_version{replica="a",model="pets"}', "3x4 0x20", "3m", "15m"),
    "AliasMissing": ('distml_missing_versions{replica="a",model="pets"}', "0x4 1x10", "3m", "10m"),
    "RegistryAway": ('distml_registry_age_seconds{replica="a"}', "2x4 400x10", "3m", "10m"),
    "CertificateExpires": (
        'distml_certificate_expiry_timestamp_seconds{replica="a"}',
        f"{14 * 86400 + 300}x20",  # time() is 0 at first
        "3m",
        "10m",
    ),
    "NoChampionReady": ('up{job="serve"}', "1x4 0x10", "3m", "10m"),
    "ServingErrors": ('distml_requests_total{status="500",version=""}', "0+100x30", "0m", "25m"),
    "ServingSlow": ('distml_request_seconds_bucket{le="5.0"}', "0+100x40", "0m", "35m"),
    "ReplicaSilent": ('distml_replica_last_answer_age_seconds{replica="a"}', "5x4 400x10", "3m", "10m"),
}
"""By alert: a series, its values minute by minute, a time at which it is quiet and one at which it fires."""


@needs_promtool
def test_each_alert_of_the_endpoint_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    answers = {"series": 'distml_requests_total{status="200",version="1"}', "values": "0+60x60"}
    quick = {"series": 'distml_request_seconds_bucket{le="0.5"}', "values": "0x60"}
    all_of_them = {"series": 'distml_request_seconds_bucket{le="+Inf"}', "values": "0+100x60"}
    rules = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
    cases = []
    for name, (series, values, quiet, fired) in FIRED.items():
        labels = dict(rules[name]["labels"])
        labels |= {"replica": "a"} if name == "ReplicaSilent" else {}
        labels |= {"model": "pets"} if 'model="pets"' in series else {}
        notes = {
            key: text.replace("{{ $labels.replica }}", "a").replace("{{ $labels.model }}", "pets")
            for key, text in rules[name]["annotations"].items()
        }
        expected = [{"exp_labels": labels, "exp_annotations": notes}]
        cases.append(
            {
                "interval": "1m",
                "input_series": [{"series": series, "values": values}, answers, quick, all_of_them],
                "alert_rule_test": [
                    {"eval_time": quiet, "alertname": name, "exp_alerts": []},
                    {"eval_time": fired, "alertname": name, "exp_alerts": expected},
                ],
            }
        )
    file = tmp_path / "alerts.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(HERE / "rules.yaml")], "tests": cases}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_laptop_script_is_executable_and_called_by_make() -> None:
    script = HERE / "laptop"
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
    assert str(script.relative_to(ROOT)) in (Path(ROOT) / "Makefile").read_text()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_processes_of_the_laptop_script_end_with_it(tmp_path: Path, how: signal.Signals) -> None:
    for name in ("prometheus", "grafana"):
        program = tmp_path / name
        program.write_text('#!/bin/sh\necho "$0 $$"\nexec sleep 60\n')
        program.chmod(0o755)
    with subprocess.Popen(
        ["sh", str(HERE / "laptop")],
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as script:
        assert script.stdout
        lines = [script.stdout.readline().split() for _ in range(2)]
        assert {Path(line[0]).name for line in lines} == {"prometheus", "grafana"}
        script.send_signal(how)
        script.wait(10)
    assert not any(psutil.pid_exists(int(line[1])) for line in lines)
    assert {item.name for item in tmp_path.iterdir()} == {"prometheus", "grafana"}
