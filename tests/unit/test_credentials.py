"""The token of a local Ray: made once, its owner's alone, and not where one was chosen."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from distml.runtime import processes


def test_the_token_of_a_local_ray_is_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    old = os.umask(0)
    try:
        processes.authenticate()
    finally:
        os.umask(old)
    path = tmp_path / ".ray" / "auth_token"
    token = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token) == 64
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(path)
    path.chmod(0o644)
    processes.authenticate()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == token
    assert processes.token_is_generated()


@pytest.mark.parametrize("variable", ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN"])
def test_a_choice_already_made_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "disabled" if variable.endswith("MODE") else "a" * 64)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    processes.authenticate()
    assert not processes.token_is_generated()
    assert not list(tmp_path.iterdir())
