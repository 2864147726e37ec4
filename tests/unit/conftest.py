"""What unit tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def plain_logging() -> Iterator[None]:
    """Undo what `log.configure` does to this process, which has pytest's handlers."""
    root, ours = logging.getLogger(), logging.getLogger("distml")
    before = (list(root.handlers), root.level, ours.level)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
