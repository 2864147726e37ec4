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
    return [
        distribution
        for distribution in metadata.distributions()
        if distribution.name.lower().replace(".", "-") in names
    ]


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_what_uv_pinned_can_be_installed_by_pip(python: str) -> None:
    """`uv pip compile` overlooks upper bounds of Requires-Python, and pip then rejects the file."""
    packages = installed()
    assert len(packages) > 100
    bounds = {package.name: package.metadata[KEY] for package in packages if KEY in package.metadata}
    refused = {name: bound for name, bound in bounds.items() if python not in SpecifierSet(bound)}
    assert not refused
