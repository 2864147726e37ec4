"""A second look at rows that were prepared: what a person would notice in them at once (driver)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from distml.data.schema import Images, Labels

_FEW_LEVELS = 32
"""Pixels that use fewer values from zero on were probably never scaled to 0 to 255."""


class SecondLook:
    """Sees every row once, while it is written. Final."""

    def __init__(self) -> None:
        self._rows = 0
        self._top = 0
        self._constant: list[str] = []
        self._seen: dict[bytes, tuple[str, int]] = {}
        self._twice = self._across = self._torn = 0
        self._example = ""

    def see(self, split: str, images: Images, labels: Labels, names: Sequence[str]) -> None:
        """Look at some rows.

        Args:
            split: They belong to.
            images: uint8 [N, H, W, C].
            labels: int32 [N].
            names: What they are called, [N].
        """
        if not len(images):
            return
        flat = images.reshape(len(images), -1)
        self._rows += len(flat)
        self._top = max(self._top, int(flat.max()))
        for at in np.flatnonzero(flat.min(1) == flat.max(1)).tolist():
            self._constant.append(names[at])
        for row, label, name in zip(flat, labels.tolist(), names, strict=True):
            key = hashlib.blake2b(row.tobytes(), digest_size=12).digest()
            split_before, label_before = self._seen.setdefault(key, (split, -1))
            if label_before == -1:
                self._seen[key] = (split, label)
                continue
            self._twice += 1
            self._across += split_before != split
            self._torn += label_before != label
            self._example = self._example or name

    def warnings(self) -> tuple[str, ...]:
        """Say what was noticed, a sentence each."""
        said = []
        if self._rows and self._top < _FEW_LEVELS:
            said.append(f"all pixel values lie in 0 to {self._top}; 0 to 255 is expected.")
        if self._constant:
            many = f"{len(self._constant)} of {self._rows} images are of one colour"
            said.append(f"{many} and show nothing, like {self._constant[0]}.")
        if self._twice:
            across = (
                f", {self._across} of them in another split, where they cannot judge" if self._across else ""
            )
            torn = f", {self._torn} with another label" if self._torn else ""
            many = "1 image is" if self._twice == 1 else f"{self._twice} images are"
            said.append(f"{many} the same as an earlier one, like {self._example}{across}{torn}.")
        return tuple(said)


def of_labels(counts: dict[str, list[int]], classes: Sequence[str]) -> tuple[str, ...]:
    """Say what is odd about how the classes are divided.

    Args:
        counts: Rows of each class, by split.
        classes: Their names.
    """
    said = []
    for split, rows in counts.items():
        empty = [name for name, count in zip(classes, rows, strict=True) if not count]
        if empty:
            said.append(
                f"{split} has no row of {', '.join(empty[:5])}{' and others' if len(empty) > 5 else ''}."
            )
    return tuple(said)
