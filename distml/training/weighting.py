"""Class weights: computes them for `tasks.network`'s loss (worker), checks their names (driver)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from distml.errors import ConfigError

Wanted = str | Mapping[str, float] | None


def check(wanted: Wanted, classes: Sequence[str]) -> None:
    """Check that the data have every class that is given a weight.

    Raises:
        ConfigError: They lack one.
    """
    for name in wanted if isinstance(wanted, Mapping) else ():
        if name not in classes:
            near = difflib.get_close_matches(name, classes, 1)
            raise ConfigError(
                f"train.class_weights names {name!r}, which is not a class of the data.",
                f"Did you mean {near[0]}?" if near else f"Classes are {', '.join(classes[:20])}.",
            )


def weights(wanted: Wanted, classes: Sequence[str], counts: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """Return the weight of each class, () where all rows have equal weight.

    Args:
        wanted: `balanced` gives each class the same sum of weights, and all rows a mean weight of one; a
            mapping gives weights by name and one to the rest.
        classes: Names by label.
        counts: Training rows of each class.
    """
    if wanted is None:
        return ()
    if isinstance(wanted, Mapping):
        return tuple(float(wanted.get(name, 1.0)) for name in classes)
    present = np.count_nonzero(counts)
    return tuple(float(counts.sum() / (present * count)) if count else 1.0 for count in counts)
