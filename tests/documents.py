"""The documents of the repository, their blocks of code, and what a shell block would start."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path
    for folder in (".", "benchmarks", "docs", "kuberay", ".github")
    for path in sorted((ROOT / folder).glob("*.md" if folder == "." else "**/*.md"))
]
_FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"^(.*)<<-?'?(\w+)'?([^\n]*)\n(.*?)^\2$", re.MULTILINE | re.DOTALL)
_OPERATORS = frozenset({"|", "||", "&", "&&", ";", ";;", "(", ")"})
_REDIRECTIONS = frozenset({">", ">>", "<", ">&", "&>"})


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        path: Of its document.
        line: Of its fence, from 1.
        language: Word after the fence.
        title: File name under which the reader saves it; empty where there is none.
        text: What it holds, with its line breaks.
    """

    path: Path
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """Every fenced block of a document."""
    text = path.read_text()
    return [
        Block(path, text.count("\n", 0, fence.start()) + 1, *_information(fence[2]), fence[3])
        for fence in _FENCE.finditer(text)
    ]


def _information(words: str) -> tuple[str, str]:
    title = re.search(r'title="([^"]+)"', words)
    return (words.split() or [""])[0], title[1] if title else ""


def spans(path: Path) -> list[str]:
    """Every piece of inline code of a document."""
    return re.findall(r"`([^`\n]+)`", _FENCE.sub("", path.read_text()))


def heredocs(text: str) -> list[str]:
    """What a shell block hands to its commands by `<<`."""
    return [match[4] for match in _HEREDOC.finditer(text)]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command of a shell block, assignments before it included."""
    text = _HEREDOC.sub(r"\1\3", text).replace("\\\n", " ")
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        command: list[str] = []
        skip = False
        for word in lexer:
            if word in _OPERATORS:
                if command:
                    yield command
                command = []
            elif word in _REDIRECTIONS:
                skip = True
            elif not skip:
                command.append(word)
            else:
                skip = False
        if command:
            yield command
