"""TensorFlow is imported when a test asks for it, not when the tests are collected."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def keras() -> Any:
    """The Keras 3 module."""
    import keras

    return keras
