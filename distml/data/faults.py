"""Rows that cannot be used: how many are borne, and what is said of them (driver)."""

from __future__ import annotations

from collections.abc import Sequence

from distml.config import DataConfig
from distml.data.source import Fault
from distml.errors import DataError

SHOWN = 20
"""Named in a message; the manifest lists all."""
ENOUGH = 100
"""Where `data.on_error` is fail, so many damaged rows are looked for before the run ends."""


def require(faults: Sequence[Fault], looked_at: int, data: DataConfig) -> None:
    """Let a bounded share of unusable rows pass where the configuration says so.

    Raises:
        DataError: It says no, or there are too many.
    """
    if not faults:
        return
    if data.on_error == "fail":
        if len(faults) == 1 and looked_at == 1:
            raise DataError(faults[0].reason, faults[0].remedy)
        raise DataError(
            _listed(faults, f"of {looked_at} that were looked at"),
            "Mend or remove them, or set data.on_error: skip.",
        )
    if len(faults) > data.max_error_fraction * looked_at:
        limit = f"more than data.max_error_fraction = {data.max_error_fraction:g} of {looked_at}"
        raise DataError(_listed(faults, limit), "Mend or remove them, or allow more.")


def _listed(faults: Sequence[Fault], of: str) -> str:
    if len(faults) == 1:
        return f"{faults[0].reason.rstrip('.')} (1 {of})."
    shown = "".join(f"\n- {fault.reason}" for fault in faults[:SHOWN])
    more = f"\n- and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return f"{len(faults)} pictures cannot be used, {of}:{shown}{more}\n"
