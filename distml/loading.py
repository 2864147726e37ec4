"""Reading configurations: YAML in, a validated `Config` or one clear sentence out (any process)."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from distml.config import Config
from distml.errors import ConfigError

MAX_CONFIG_BYTES = 1_048_576
"""A configuration is a page of text; a larger file is a mistake or an attack."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and aliases and reads 1e-3 as a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark
            raise ConfigError(
                f"YAML aliases are not accepted (line {mark.line + 1}).", "Write the value out."
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise ConfigError(
                    f"duplicate key '{key}' (line {key_node.start_mark.line + 1}).",
                    "Keep one of the two.",
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Any:
    """Parse YAML text as configuration files are parsed.

    Raises:
        ConfigError: Not YAML, a tag, an alias, a duplicate key or nesting too deep to be meant.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"the text is larger than {MAX_CONFIG_BYTES} bytes.", "Configurations are short.")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader of our own
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"not usable YAML: {problem}{where}.") from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"not usable YAML: {error}.") from None


def load_file(path: str) -> dict[str, Any]:
    """Read a configuration file into nested dictionaries, unvalidated.

    Raises:
        ConfigError: Unreadable, too large, not YAML, or not a mapping of sections.
    """
    try:
        with open(path, "rb") as stream:
            raw = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}.", "Give an existing file to --config."
        ) from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"{path} is larger than {MAX_CONFIG_BYTES} bytes.", "Configurations are a page of text."
        )
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
    """Turn `{'train.epochs': 3}` into `{'train': {'epochs': 3}}`."""
    nested: dict[str, Any] = {}
    for path, value in dotted.items():
        *parents, leaf = path.split(".")
        here = nested
        for parent in parents:
            here = here.setdefault(parent, {})
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
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _paths(field.annotation, f"{prefix}{key}.")


def nearest(path: str) -> str | None:
    """Return the known dotted path closest to a misspelt one, or None when none is close."""
    known = list(_paths(Config))
    close = difflib.get_close_matches(path, known, 1, 0.75)
    if not close:
        leaf = path.rsplit(".", 1)[-1]
        by_leaf = [known_path for known_path in known if known_path.rsplit(".", 1)[-1] == leaf]
        close = by_leaf[:1]
    return close[0] if close else None


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _sentence(error: Any) -> tuple[str, str]:
    """Say one pydantic error as (sentence, remedy)."""
    path = ".".join(str(part) for part in error["loc"] if not _is_branch(part))
    if error["type"] == "extra_forbidden":
        guess = nearest(path)
        return f"unknown key {path} (value {_shown(error['input'])}).", (
            f"Did you mean {guess}?" if guess else "See --help for the known keys."
        )
    problem = error["msg"].removeprefix("Value error, ")
    return f"{path} = {_shown(error['input'])} is not accepted: {problem}.", ""


def _is_branch(part: Any) -> bool:
    """Pydantic puts the tried member of a union into the location; users do not type it."""
    return isinstance(part, str) and ("[" in part or part in ("int", "float", "str", "constrained-int"))


def resolve(values: Mapping[str, Any]) -> Config:
    """Validate nested values into a `Config`.

    Raises:
        ConfigError: Every problem in one text, each with its dotted path and value.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as failure:
        said: dict[str, str] = {}
        for error in failure.errors():
            sentence, remedy = _sentence(error)
            said.setdefault(sentence.split(" is not accepted")[0], f"{sentence} {remedy}".strip())
        raise ConfigError("\n".join(said.values())) from None
