from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

PINNED = Path(__file__).parents[2] / "requirements" / "cpu.txt"

KEY = "Requires-Python"


def installed() -> list[metadata.Distribution]:
    names = set(re.findall(r"^([a-z0-9-]+)==", PINNED.read_text(), re.MULTILINE))
    return [found for found in metadata.distributions() if found.name.lower().replace(".", "-") in names]


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_what_uv_pinned_can_be_installed_by_pip(python: str) -> None:
    """`uv pip compile` overlooks upper bounds of Requires-Python, and pip then refuses the file."""
    packages = installed()
    assert len(packages) > 100
    bounds = {one.name: one.metadata[KEY] for one in packages if KEY in one.metadata}
    refused = {name: bound for name, bound in bounds.items() if python not in SpecifierSet(bound)}
    assert not refused
