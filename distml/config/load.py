"""Loads configurations: YAML to validated sections, errors with path, value and nearest key (any process).

Knows no section: the schema it validates by is handed to it. YAML of plain values is all that a
configuration needs; what PyYAML would expand, construct or silently overwrite is rejected with the line and
the dotted path.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from distml.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

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
            raise ConfigError("invalid YAML: it is nested too deeply.")
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
    """Reject whatever a configuration does not need, naming its dotted path, before it is constructed."""
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


def parse_yaml(text: str) -> Any:
    """Parse YAML text.

    Returns:
        Dictionaries with text keys, lists and scalars.

    Raises:
        ConfigError: Not YAML, a tag, an alias, a duplicate key or nesting that is too deep.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"the text is larger than {MAX_BYTES} bytes.", "Configurations are short.")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader of our own
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ConfigError(f"invalid YAML: {problem}{_line(getattr(error, 'problem_mark', None))}.") from None
    except RecursionError:
        raise ConfigError("invalid YAML: it is nested too deeply.") from None
    except ValueError as error:
        raise ConfigError(f"invalid YAML: {error}.") from None


_MAX_PROBLEMS = 10


def load_file(path: str) -> dict[str, Any]:
    """Read a configuration file into nested dictionaries, unvalidated.

    Raises:
        ConfigError: Unreadable, too large, not YAML, or not a mapping of sections.
    """
    try:
        with open(path, "rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}.", "Give an existing file to --config."
        ) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes.", "Configurations are a page of text.")
    try:
        loaded = parse_yaml(raw.decode())
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text.", "Save it as UTF-8.") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.remedy) from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds a {type(loaded).__name__}, not sections.", "Start with `run:`.")
    return loaded


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the leaves of `over` on top; neither argument is changed."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def nest(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Turn `{'train.epochs': 3}` into `{'train': {'epochs': 3}}`.

    Raises:
        ConfigError: A path below another one's value.
    """
    nested: dict[str, Any] = {}
    for path, value in dotted.items():
        *parents, leaf = path.split(".")
        here = nested
        for parent in parents:
            here = here.setdefault(parent, {})
            if not isinstance(here, dict):
                raise ConfigError(f"{path} lies below {parent}, which has the value {_shown(here)}.")
        here[leaf] = value
    return nested


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested dictionaries into dotted paths; empty mappings stay as leaves."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, path + "."))
        else:
            flat[path] = value
    return flat


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        yield prefix + key
        absent = get_args(field.annotation) if get_origin(field.annotation) is UnionType else ()
        for kind in (field.annotation, *absent):  # a section, or one that may be absent
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _paths(kind, f"{prefix}{key}.")


def nearest(model: type[BaseModel], path: str) -> str | None:
    """Return the dotted path in `model` closest to a misspelt path, or None when none is close."""
    known = list(_paths(model))
    close = difflib.get_close_matches(path, known, 1, 0.75)
    if not close:
        leaf = path.rsplit(".", 1)[-1]
        by_leaf = [known_path for known_path in known if known_path.rsplit(".", 1)[-1] == leaf]
        close = by_leaf[:1]
    return close[0] if close else None


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


_SAID = {
    "string_pattern_mismatch": "it should be letters, digits, '.', '-' and '_', beginning with a letter or "
    "a digit, at most 63 of them",
    "model_type": "it should be a section of keys and values",
    "dict_type": "it should be a mapping of keys and values",
    "list_type": "it should be a list",
}


def _sentence(model: type[BaseModel], error: Any) -> str:
    """Say one pydantic error with its dotted path, its value and the nearest key."""
    if error["type"] == "extra_forbidden":
        path = ".".join(map(str, error["loc"]))
        guess = nearest(model, path)
        remedy = f"Did you mean {guess}?" if guess else "See --help for the known keys."
        if guess == path:  # flags are dotted, files are not
            section, _, key = path.rpartition(".")
            remedy = f"In a file, write {key} below {section}."
        return f"unknown key {path} (value {_shown(error['input'])}). {remedy}"
    problem = re.sub("^(Input|String|List|Dictionary) should", "it should", error["msg"])
    problem = _SAID.get(error["type"], problem.removeprefix("Value error, "))
    return f"{_path(error)} = {_shown(error['input'])} is not accepted: {problem}."


def _path(error: Any) -> str:
    """Dotted path without the tried member of a union, which pydantic adds and users do not type."""
    branches = ("int", "float", "str", "constrained-int")
    return ".".join(str(part) for part in error["loc"] if part not in branches and "[" not in str(part))


def _alternatives(model: type[BaseModel], error: Any) -> tuple[str, str] | None:
    """Path and description of the key that an error is about where it may have values of several kinds."""
    kind: Any = model
    for at, key in enumerate(error["loc"]):
        field = kind.model_fields.get(key)
        if field is None:
            return None
        members = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else ()
        sections = [
            some
            for some in (field.annotation, *members)
            if isinstance(some, type) and issubclass(some, BaseModel)
        ]
        if not sections:
            several = len([some for some in members if some is not NoneType]) > 1
            return (".".join(error["loc"][: at + 1]), str(field.description)) if several else None
        kind = sections[0]
    return None


_LIMITS = ("greater_than", "less_than", "value_error", "finite_number", "too_short", "too_long")


def _about(model: type[BaseModel], errors: Sequence[Any]) -> list[tuple[str, Any, str | None]]:
    """Errors by path, those of a key of several kinds as one: the limit that is exceeded, else what it takes.

    Returns:
        The path of each, the error, and a description that says more than the error, or None.
    """
    of_key: dict[tuple[str, str | None], list[Any]] = {}
    for error in errors:
        of_key.setdefault(_alternatives(model, error) or (_path(error), None), []).append(error)
    told: list[tuple[str, Any, str | None]] = []
    for (path, description), some in of_key.items():
        said = [tried for tried in some if tried["type"].startswith(_LIMITS)]
        said = said or [tried for tried in some if _path(tried) != path and tried["type"] != "missing"]
        if description is None or not said:
            told.append((path, some[0], description))
        else:
            told.append((path, said[0], None))
    return told


def _sentences(model: type[BaseModel], failure: ValidationError) -> list[str]:
    """One sentence per problem; of a union's attempts the one that came furthest."""
    about = _about(model, failure.errors(include_url=False))
    paths = [f"{path}." for path, _, _ in about]
    said: dict[str, str] = {}
    for (key, error, description), path in zip(about, paths, strict=True):
        if len(said) == _MAX_PROBLEMS:
            return [*said.values(), f"and {len(set(paths)) - _MAX_PROBLEMS} more."]
        if any(other != path and other.startswith(path) for other in paths[: 10 * _MAX_PROBLEMS]):
            continue
        sentence = f"{key} = {_shown(error['input'])} is not accepted. {description}"
        said.setdefault(path, sentence if description else _sentence(model, error))
    return list(said.values())


def validate(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Validate nested values into `model`.

    Raises:
        ConfigError: Every problem in one text, each with its dotted path and value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as failure:
        raise ConfigError("\n".join(_sentences(model, failure))) from None
