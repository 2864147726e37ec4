"""One table holds every variable that is set, and what it says is what processes get."""

from __future__ import annotations

import ast
import json
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from distml.config import Config, ServeConfig
from distml.runtime import environment, processes
from distml.runtime.environment import Group, Variable
from distml.serving import haproxy, ingress
from distml.training import group, launch

ROOT = Path(__file__).parents[3]
OWNER = ROOT / "distml" / "runtime" / "environment.py"
WRITES = {"setdefault", "update", "pop", "popitem", "clear", "putenv", "unsetenv", "setenv"}
VARIABLE = re.compile(r"(RAY|TF|TUNE|KERAS|MLFLOW|CUDA|GRPC|GIT|DISTML|LC)_\w+|TMPDIR|PATH|HOME")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sets is gone after it."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(environment, "_APPLIED", {})


def settings(source: str) -> Iterator[int]:
    """Lines that set an environment variable: in this process, or by name in a child's environment."""
    nodes = list(ast.walk(ast.parse(source)))
    checked = {node.args[0] for node in nodes if isinstance(node, ast.Call) and is_group(node)}
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if node.func.attr in WRITES and (owner == "os" or owner.endswith("environ")):
                yield node.lineno
        elif isinstance(node, ast.Subscript | ast.AugAssign):
            target = node.value if isinstance(node, ast.Subscript) else node.target
            read = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load)
            if ast.unparse(target).endswith("environ") and not read:
                yield node.lineno
        elif isinstance(node, ast.Dict) and node not in checked:
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            if any(isinstance(key, str) and VARIABLE.fullmatch(key) for key in keys):
                yield node.lineno


def is_group(call: ast.Call) -> bool:
    """Whether a call is one of a group of the table, which checks the names in its argument."""
    group = re.fullmatch(r"environment\.(\w+)\.(?:values|apply)", ast.unparse(call.func))
    return bool(group and group[1] in environment.GROUPS and call.args)


def test_no_variable_is_set_outside_the_table() -> None:
    files = [path for path in sorted((ROOT / "distml").rglob("*.py")) if path != OWNER]
    assert len(files) > 100
    outside = {f"{path.relative_to(ROOT)}:{line}" for path in files for line in settings(path.read_text())}
    assert not outside, "set it by a group of distml/runtime/environment.py"


@pytest.mark.parametrize(
    "line",
    [
        "os.environ['A'] = '1'",
        "del os.environ['A']",
        "os.environ.setdefault('A', '1')",
        "os.environ.update(values)",
        "os.environ |= values",
        "os.putenv('A', '1')",
        "run(command, env=os.environ | {'TF_CONFIG': '1'})",
        "run(command, env={**os.environ, 'KERAS_HOME': home})",
        "ray.init(runtime_env={'env_vars': {'RAY_worker_niceness': '0'}})",
    ],
)
def test_every_way_to_set_a_variable_is_detected(line: str) -> None:
    assert list(settings(line)) == [1]


@pytest.mark.parametrize(
    "line", ["os.environ.get('A')", "os.environ['A']", "environment.RANK.apply({'TF_CONFIG': text})"]
)
def test_reading_and_the_table_are_allowed(line: str) -> None:
    assert not list(settings(line))


def test_every_group_of_variables_is_used_and_documents_its_end() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "distml").rglob("*.py") if path != OWNER)
    for name, variables in environment.GROUPS.items():
        assert re.search(rf"\benvironment\.{name}\.(apply|values)\(", sources), name
        assert variables.process
        assert variables.put_back
        for variable in variables.variables:
            assert variable.why, variable.name
        assert len({variable.name for variable in variables.variables}) == len(variables.variables)


def test_a_value_missing_in_the_table_is_an_error() -> None:
    group = Group("driver", "never", (Variable("A_B", "<the time>", "test"), Variable("C_D", "1", "test")))
    assert group.values({"A_B": "7"}) == {"A_B": "7", "C_D": "1"}
    for wrong in (None, {"A_B": "7", "X": "1"}, {"A_B": "7", "C_D": "2"}):
        with pytest.raises(AssertionError):
            group.values(wrong)
    with pytest.raises(AssertionError, match="NO_SUCH"):
        environment.override({"NO_SUCH": "1"})


def test_a_value_of_the_user_overrides_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_DISABLE_SIGINT_HANDLER", "0")
    monkeypatch.delenv("RAY_AIR_NEW_OUTPUT", raising=False)
    environment.SEARCH.apply()
    assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "0"
    assert os.environ["RAY_AIR_NEW_OUTPUT"] == "0"


def test_the_second_run_of_a_process_has_its_own_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
    monkeypatch.delenv(name, raising=False)
    for stall_timeout_s in (40.0, 90.0):
        launch._environment(Config.resolve({"train": {"stall_timeout_s": stall_timeout_s}}), grows=False)
        assert os.environ[name] == f"{stall_timeout_s:g}"


def test_inherited_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/before")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    values = environment.SESSION.values({"TMPDIR": "/within", "RAY_TMPDIR": "/ray"})
    seen: list[str] = []

    def interrupted() -> None:
        with environment.inherited(values):
            seen.extend(os.environ[name] for name in values)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == list(values.values())
    assert os.environ["TMPDIR"] == "/before"
    assert "RAY_TMPDIR" not in os.environ


def test_variables_of_haproxy_use_the_names_of_its_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "uses_haproxy", lambda serve: True)
    monkeypatch.setattr(haproxy, "program", lambda: "/bin/haproxy")
    values = ingress.variables(ServeConfig(host="127.0.0.1"), local=True)
    assert values[haproxy.PROGRAM] == "/bin/haproxy"
    assert values.keys() <= environment.NAMES
    assert set(re.findall(r'"(DISTML_\w+)"', Path(haproxy.__file__).read_text())) <= environment.NAMES


def test_variables_of_the_shell_match_the_first_entry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text("{}")
    shell = {
        "AWS_PROFILE": "x",
        "TF_CONFIG": "{}",
        "TF_X": "1",
        "RAY_X": "1",
        "http_proxy": "",
        "EDITOR": "vi",
    }
    known = {name: setting.effect for name, setting in environment.user_settings(shell)}
    assert known == {
        "RAY_X": "used",
        "TF_CONFIG": "replaced",
        "~/.keras/keras.json": "replaced",
        "TF_X": "used",
        "AWS_PROFILE": "used",
    }


def test_hosts_are_added_to_what_the_user_excepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "localhost, .corp")
    assert environment.with_hosts(["10.0.0.7", "localhost"], "no_proxy") == "localhost,.corp,10.0.0.7"
    monkeypatch.setenv("no_grpc_proxy", "peer")
    assert environment.with_hosts(["10.0.0.7"], "no_grpc_proxy", "no_proxy") == "peer,10.0.0.7"


def test_workers_reach_each_other_past_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    group._join(["10.1.2.3:4000", "[fd00::2]:4000"], 1)
    assert os.environ["no_grpc_proxy"] == "localhost,127.0.0.1,10.1.2.3,fd00::2"  # noqa: SIM112 - its name
    assert json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 1


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
def test_this_machine_is_reached_past_a_proxy(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    for name in (*environment.USER_SETTINGS[0].names, "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    processes.reach_this_machine()
    assert "no_proxy" not in os.environ
    monkeypatch.setenv(proxy, "http://proxy.invalid:3128")
    monkeypatch.setenv("NO_PROXY", ".corp")
    processes.reach_this_machine()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == ".corp,localhost,127.0.0.1,::1"
    assert urllib.request.proxy_bypass("127.0.0.1")


def test_what_a_package_sets_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with environment.unchanged("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///one.db"
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine")
    with environment.unchanged("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///one.db"
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://mine"
