"""YAML of plain values, the only kind a configuration needs (any process).

Users' files are read with this: what PyYAML would expand, construct or silently overwrite is refused with
the line and the dotted path.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from distml.errors import ConfigError

MAX_BYTES = 131_072
"""A configuration is a page of text; a larger file is a mistake or an attack (PyYAML: 17 s per MiB)."""
_MAX_NUMBER = 64
_MAX_DEPTH = 32
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")}
_TEXT, _DATE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """Safe YAML of plain values: no aliases, tags or duplicate keys; 1e-3 is a number, a date is text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            peek: Any = self.peek_event
            where = _line(peek().start_mark)
            raise ConfigError(f"YAML aliases are not accepted{where}.", "Write the value out.")
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, kind: Any) -> Any:
        if self.flow_level >= _MAX_DEPTH:  # the scanner looks ahead, which takes seconds in deep nests
            raise ConfigError("not usable YAML: it is nested too deeply.")
        return super().fetch_flow_collection_start(kind)

    def construct_document(self, node: Any) -> Any:
        _require_plain(node, "")
        return super().construct_document(node)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _line(mark: Any) -> str:
    return f" (line {mark.line + 1})" if mark else ""


def _require_plain(node: Any, path: str) -> None:
    """Refuse whatever a configuration does not need, naming its dotted path, before it is constructed."""
    where = f"{path or 'the file'}{_line(node.start_mark)}"
    if node.tag == _DATE:  # a run may be called 2026-01-31
        node.tag = _TEXT
    if node.tag not in _PLAIN:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise ConfigError(f"{where} has the YAML tag {tag}, which is not accepted.", "Write a plain value.")
    if node.tag in _NUMBERS and len(node.value) > _MAX_NUMBER:
        raise ConfigError(f"{where} is a number of {len(node.value)} digits.", "Write it shorter.")
    if isinstance(node, yaml.MappingNode):
        _require_plain_keys(node, path)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _require_plain(item, f"{path}.{position}".lstrip("."))


def _require_plain_keys(node: Any, path: str) -> None:
    seen: set[str] = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"a key below {path or 'the file'}{_line(key.start_mark)} is not a word.")
        below = f"{path}.{key.value}".lstrip(".")
        if key.value in seen:
            raise ConfigError(f"duplicate key {below}{_line(key.start_mark)}.", "Keep one of the two.")
        seen.add(key.value)
        key.tag = _TEXT
        _require_plain(value, below)


def parse(text: str) -> Any:
    """Parse YAML text.

    Returns:
        Dictionaries with text keys, lists and scalars.

    Raises:
        ConfigError: Not YAML, a tag, an alias, a duplicate key or nesting too deep to be meant.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"the text is larger than {MAX_BYTES} bytes.", "Configurations are short.")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader of our own
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ConfigError(
            f"not usable YAML: {problem}{_line(getattr(error, 'problem_mark', None))}."
        ) from None
    except RecursionError:
        raise ConfigError("not usable YAML: it is nested too deeply.") from None
    except ValueError as error:
        raise ConfigError(f"not usable YAML: {error}.") from None
