"""Distributed training of image models with Keras on Ray, tracked by MLflow and served by Ray Serve.

Importing this package does nothing: no input or output, no logging set-up, no environment writes.
`distml.api` has the verbs as functions; `Config` and the types of their results can be imported from here,
too. (Not the functions: `distml.train` is the module that `python -m distml.train` runs.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distml.api import Config, Decision, Prediction, Rollback, TrainResult

__version__ = "0.1.0"
__all__ = ["Config", "Decision", "Prediction", "Rollback", "TrainResult", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `distml.api` when one of its types is first asked for."""
    if name in __all__:
        return getattr(importlib.import_module("distml.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
