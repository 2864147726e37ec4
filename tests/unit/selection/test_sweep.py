"""One candidate that fails leaves the others their training."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from distml.config import Config
from distml.errors import DataError
from distml.selection import sweep
from distml.selection.candidates import Candidate


def row_of(error: Exception) -> Any:
    def train() -> dict[str, Any]:
        raise error

    return sweep._row(Candidate("deep", Config(), {"model.name": "cnn"}), train)


def test_an_error_of_the_users_is_kept_in_the_candidates_row() -> None:
    row = row_of(DataError("There is no row.", "Give some."))
    assert (row.candidate, row.status, row.overrides) == ("deep", "failed", {"model.name": "cnn"})
    assert row.error == "There is no row. Give some."


def test_an_unexpected_error_ends_one_candidate_and_its_traceback_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        row = row_of(SystemError("depth mismatch"))
    assert (row.status, row.error) == ("failed", "SystemError: depth mismatch")
    assert "candidate deep stopped on an unexpected error" in caplog.text
    assert "Traceback" in caplog.text


def test_ctrl_c_ends_them_all() -> None:
    with pytest.raises(KeyboardInterrupt):
        row_of(KeyboardInterrupt())  # type: ignore[arg-type]
