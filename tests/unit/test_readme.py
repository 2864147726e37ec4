"""What the documents tell a person to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distml import cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = [path for folder in (".", "docs", "kuberay") for path in sorted((ROOT / folder).glob("*.md"))]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def code(path: Path) -> str:
    """Blocks and spans of code of a document."""
    found = re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", path.read_text(), re.DOTALL)
    return "\n".join(block or span for block, span in found)


def test_there_are_documents() -> None:
    assert {"README", "CONTRIBUTING", "CHANGELOG", "architecture"} <= {path.stem for path in DOCUMENTS}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_make_target_verb_and_file_exists(path: Path) -> None:
    shown = code(path)
    assert set(re.findall(r"\bmake ([a-z-]+)", shown)) <= TARGETS
    verbs = re.findall(r"^distml ([a-z]+)|python -m distml\.([a-z]+)", shown, re.MULTILINE)
    assert {one or other for one, other in verbs} <= set(cli.VERBS)
    named = re.findall(r"\b((?:configs|docs|requirements|benchmarks|tests)/[\w./]+\.\w+)", shown)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()) if "://" not in link]
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in links if not (path.parent / link).exists()]
    assert not missing


def test_the_readme_shows_the_two_commands_and_the_figures_first() -> None:
    top = (ROOT / "README.md").read_text().splitlines()[:40]
    assert any(line.startswith("make train") for line in top)
    assert any(line.startswith("make test") for line in top)
    assert any(line.startswith("## Measured") for line in top)


def test_every_make_target_with_a_description_is_declared_phony() -> None:
    text = (ROOT / "Makefile").read_text()
    described = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    assert described == set(phony[1].split())
