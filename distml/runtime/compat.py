"""Importing TensorFlow and Keras without what a worker never uses (worker)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

OPTIONAL = ("sklearn", "matplotlib", "scipy")
"""Packages Keras imports when it finds them, for wrappers and plots. MLflow brings them all along, and they
were 7 of the 16 s of an uncompiled `import tensorflow` (2 cores, TensorFlow 2.21, Keras 3.15.1)."""


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Hide `OPTIONAL` while the body imports; afterwards they can be imported as usual."""
    hidden = [name for name in OPTIONAL if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type] # None means "cannot be imported"
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
