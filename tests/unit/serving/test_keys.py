"""API keys: their file, who is let in, how often, and that a key shows nowhere."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from distml import cli
from distml.config import AuthConfig, ServeConfig
from distml.errors import ConfigError, ServingError
from distml.serving import client, keys, security
from distml.serving.metrics import Metrics
from distml.serving.security import KeyCheck
from tests import serving

SECRET = "a-key-of-alice-0123456789"
GONE = 1.0  # seconds since 1970


@pytest.fixture(autouse=True)
def no_keys_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", keys.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.txt"
    path.write_text(f"# ours\nalice {SECRET}\n\nbob {SECRET}-of-bob 2001-01-01\n")
    path.chmod(0o600)
    return path


def check(file: Path, **auth: float) -> KeyCheck:
    return KeyCheck(AuthConfig.model_validate({"keys_file": str(file), **auth}), Metrics())


def answered(checked: KeyCheck, path: str = "/predict", method: str = "POST", **headers: str) -> int:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    rejection = checked.reject({"path": path, "method": method, "headers": pairs})
    return 200 if rejection is None else rejection.status


def test_a_new_key_is_valid_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "keys.txt"
    first, second = keys.new(path, "alice"), keys.new(path, "alice", "2099-12-31")
    assert first != second
    assert path.stat().st_mode & 0o777 == 0o600
    assert first not in path.read_text()
    assert [key.name for key in keys.read(path)] == ["alice", "alice"]
    assert keys.read(path)[1].expires == 4102444800.0  # the end of that day
    assert answered(check(path), authorization=f"Bearer {first}") == 200
    assert answered(check(path), x_api_key=second) == 200
    path.write_text(path.read_text().rstrip("\n"))  # as some editors leave it
    third = keys.new(path, "bob")
    assert answered(check(path), x_api_key=third) == 200
    assert keys.remove(path, "alice") == 2
    assert [key.name for key in keys.read(path)] == ["bob"]
    with pytest.raises(ConfigError, match="no key of 'alice'"):
        keys.remove(path, "alice")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"alice {SECRET} tomorrow", "'tomorrow' is not a date"),
        (f"alice {SECRET} 2027-01-01 more", "has 4 words"),
        ("alice", "has 1 words"),
        ("alice sha256:abc", "64 hexadecimal digits"),
        (f"al/ice {SECRET}", "its name is not letters"),
        ("alice short", "8 to 512 visible"),
    ],
)
def test_an_invalid_key_line_is_named_without_its_content(file: Path, line: str, said: str) -> None:
    file.write_text(f"alice {SECRET}\n{line}\n")
    with pytest.raises(ConfigError, match=f"line 2 of .*{said}") as raised:
        keys.read(file)
    assert SECRET not in str(raised.value)
    assert "short" not in str(raised.value).replace("keys.txt", "")


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o620])
def test_a_file_that_others_can_read_or_change_is_rejected(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ConfigError, match=r"others can read or change it.*chmod 600"):
        keys.read(file)
    file.chmod(0o440)  # as Kubernetes mounts a Secret
    assert keys.read(file)


def test_a_keys_file_without_valid_keys_fails_the_start(file: Path, tmp_path: Path) -> None:
    keys.require(file)
    file.write_text(f"bob {SECRET} 2001-01-01\n")
    with pytest.raises(ConfigError, match=r"holds no valid key.*distml keys new NAME"):
        keys.require(file)
    with pytest.raises(ConfigError, match=r"none\.txt.*No such file.*distml keys new NAME"):
        keys.require(tmp_path / "none.txt")


def test_probes_and_the_page_need_no_key_and_other_routes_do(file: Path) -> None:
    checked = check(file)
    for path in ("/healthz", "/readyz", "/", "/page.js"):
        assert answered(checked, path, "GET") == 200
    for path in ("/predict", "/model", "/metrics", "/openapi.json", "/v2/health/ready", "//healthz", "/x"):
        assert answered(checked, path, "GET") == 401
        assert answered(checked, path, "GET", authorization=f"bearer {SECRET}") == 200
    assert answered(checked, method="OPTIONS") == 200  # browsers ask before they send a key
    assert answered(checked, authorization="Basic YTpi", x_api_key=SECRET) == 200
    for wrong in ("", SECRET[:-1], SECRET + "x", "sha256:" + keys.digest(SECRET.encode()).hex()):
        assert answered(checked, authorization=f"Bearer {wrong}") == 401
    assert answered(checked, x_api_key=f"{SECRET}-of-bob") == 401  # expired


def test_the_file_is_read_again_and_a_broken_one_changes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(security, "_LOOK_S", 0.0)
    checked = check(file)
    new = keys.new(file, "carol")
    assert answered(checked, x_api_key=new) == 401  # it may be half written
    os.utime(file, (time.time() - 5, time.time() - 5))
    assert answered(checked, x_api_key=new) == 200
    file.write_text("no key at all here\n")
    os.utime(file, (time.time() - 4, time.time() - 4))
    assert [answered(checked, x_api_key=new) for _ in range(3)] == [200] * 3
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    file.unlink()
    assert answered(checked, x_api_key=new) == 200
    file.write_text(f"dave {SECRET}\n")
    file.chmod(0o600)
    os.utime(file, (time.time() - 3, time.time() - 3))
    assert (answered(checked, x_api_key=new), answered(checked, x_api_key=SECRET)) == (401, 200)
    assert not [
        record for record in caplog.records if SECRET in record.getMessage() or new in record.getMessage()
    ]


def test_each_name_has_a_rate_that_replicas_share(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(f"alice {SECRET}\nbob {SECRET}-of-bob\n")
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    checked = check(file, requests_per_s=4.0)
    checked._metrics.replicas = 2  # two replicas: 2 a second here, and as many saved up twice
    assert [answered(checked, x_api_key=SECRET) for _ in range(6)] == [200] * 4 + [429] * 2
    assert answered(checked, x_api_key=f"{SECRET}-of-bob") == 200
    now[0] += 1.0
    assert [answered(checked, x_api_key=SECRET) for _ in range(3)] == [200, 200, 429]


@pytest.fixture
def url(file: Path) -> Iterator[str]:
    config = ServeConfig.model_validate({"auth": {"keys_file": str(file)}})
    with serving.running(serving.core(config=config), config) as url:
        yield url


def test_a_401_explains_the_header_and_requests_are_counted_by_name(url: str) -> None:
    response = requests.post(f"{url}/predict", data=b"x" * 100_000, timeout=10)
    assert (response.status_code, response.headers["www-authenticate"]) == (401, 'Bearer realm="distml"')
    assert "Authorization: Bearer" in response.json()["error"]
    assert requests.post(f"{url}/predict", headers={"X-API-Key": SECRET + "y"}, timeout=10).status_code == 401
    with_key = {"Authorization": f"Bearer {SECRET}"}
    assert requests.get(f"{url}/model", headers=with_key, timeout=10).json()["version"] == 7
    described = requests.get(f"{url}/openapi.json", headers=with_key, timeout=10).json()
    assert described["security"] == [{"bearer": []}, {"apiKey": []}]
    assert described["paths"]["/healthz"]["get"]["security"] == []
    counted = requests.get(f"{url}/metrics", headers=with_key, timeout=10).text
    assert 'distml_key_requests_total{key="alice",outcome="taken"} 3.0' in counted
    assert 'distml_unauthorized_requests_total{reason="missing"} 1.0' in counted
    assert 'distml_unauthorized_requests_total{reason="unknown"} 1.0' in counted
    assert SECRET not in counted + json.dumps(described)


def test_a_preflight_needs_no_key_and_a_401_has_cors_headers(file: Path) -> None:
    origin = "https://shop.example.com"
    config = ServeConfig.model_validate({"auth": {"keys_file": str(file)}, "cors_origins": [origin]})
    with serving.running(serving.core(config=config), config) as url:
        asked = {"origin": origin, "access-control-request-method": "POST"}
        assert requests.options(f"{url}/predict", headers=asked, timeout=10).status_code == 204
        response = requests.post(f"{url}/predict", headers={"origin": origin}, timeout=10)
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (401, origin)


def test_our_own_clients_send_the_key_of_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.version(url) == 7  # of /readyz, which is open
    with pytest.raises(ServingError, match=f"needs an API key.*{keys.VARIABLE}"):
        client.describe(url)
    monkeypatch.setenv(keys.VARIABLE, SECRET)
    assert client.describe(url).version == 7


def test_the_commands_of_this_ray_need_no_key_of_their_own(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keys.sent(own=True) == {}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the token of Ray")
    headers = keys.sent(own=True)
    assert "the token of Ray" not in headers["authorization"]
    assert keys.sent() == {}  # an endpoint of others gets no key
    assert answered(check(file, requests_per_s=0.1), **headers) == 200
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another token")
    checked = check(file)
    assert answered(checked, **headers) == 401


def test_the_command_prints_a_key_once_and_lists_names(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--serve.auth.keys_file", str(file)]
    assert cli.run("keys", ["new", "carol", "--expires", "2099-01-01", *flags]) == 0
    printed = capsys.readouterr()
    key = json.loads(printed.out)["key"]
    assert key not in printed.err
    assert answered(check(file), x_api_key=key) == 200
    assert cli.run("keys", ["list", *flags]) == 0
    listed = json.loads(capsys.readouterr().out)["keys"]
    assert [line["name"] for line in listed] == ["alice", "bob", "carol"]
    assert cli.run("keys", ["new", "no name", *flags]) == 2
    assert cli.run("keys", ["new", *flags]) == 2
    assert cli.run("keys", ["new", "dora"]) == 2
    assert "serve.auth.keys_file is not set" in capsys.readouterr().out
    assert cli.run("keys", ["remove", "carol", *flags]) == 0
    assert answered(check(file), x_api_key=key) == 401
