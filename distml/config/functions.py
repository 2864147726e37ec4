"""What a user's `module:function` accepts, read from its source without running it (driver).

`inspect.signature` would need the builder's module imported and with it TensorFlow: 2.5 CPU-seconds and
560 MiB at best (compiled, 2 cores) in a driver that has neither. Reading the source takes 1.2 to 1.7 ms.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distml.errors import ConfigError

_ANYTHING = "**"
"""Stands for the options of a builder that takes any."""


def check(name: str, module: str, function: str, options: Mapping[str, Any]) -> None:
    """Check a builder's existence and options against its source.

    An option must have the type of its default; a function that is imported or decorated is taken to
    exist, and its options are checked when it is called.

    Args:
        name: The model's name as the user wrote it.
        module: Importable module of the builder.
        function: Name in that module.
        options: Keyword options for the builder.

    Raises:
        ConfigError: Missing module or function, unknown option or an option of the wrong type.
    """
    tree = _parse(name, module)
    accepted = _accepted(tree, function)
    if accepted is None:
        _require_bound(name, tree, function)
        return
    require_accepted(name, accepted, options)


def require_accepted(name: str, accepted: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse options that a builder does not have or that are of another type than their default.

    Args:
        name: The model's name as the user wrote it.
        accepted: Every option and its default.
        options: What the user wrote.

    Raises:
        ConfigError: Names the option, its value and what is accepted.
    """
    known = [option for option in accepted if option != _ANYTHING]
    said = ", ".join(f"{option}={_shown(accepted[option])}" for option in known) or "no options"
    for option, value in options.items():
        if option not in accepted and _ANYTHING not in accepted:
            raise ConfigError(f"model.options.{option} is unknown to {name}.", f"It accepts {said}.")
        if not _fits(value, accepted.get(option)):
            raise ConfigError(
                f"model.options.{option} = {value!r} is not accepted by {name}.", f"It accepts {said}."
            )


def _parse(name: str, module: str) -> ast.Module:
    """Read a module's source without running it."""
    if os.getcwd() not in sys.path:  # a console script does not look into the current directory
        sys.path.append(os.getcwd())
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise ConfigError(
            f"model.name = {name!r}: there is no Python module {module}.",
            "Write module:function, where module.py is in the current directory or installed.",
        )
    try:
        return ast.parse(Path(spec.origin).read_bytes(), spec.origin)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"model.name = {name!r}: {spec.origin} is not usable Python: {error}.") from None


def _accepted(tree: ast.Module, function: str) -> dict[str, Any] | None:
    """Options and literal defaults of a function written in this module; None when it is not."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function and not node.decorator_list:
            arguments = [*node.args.posonlyargs, *node.args.args]
            padding: list[ast.expr | None] = [None] * (len(arguments) - len(node.args.defaults))
            pairs = list(zip(arguments, [*padding, *node.args.defaults], strict=True))[2:]
            pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            options = {argument.arg: _literal(default) for argument, default in pairs}
            return options | ({_ANYTHING: None} if node.args.kwarg else {})
    return None


def _literal(default: ast.expr | None) -> Any:
    with contextlib.suppress(ValueError, TypeError):
        return ast.literal_eval(default) if default else None
    return None


def _shown(default: Any) -> str:
    return "..." if default is None else str(list(default) if isinstance(default, tuple) else default)


def _fits(value: Any, default: Any) -> bool:
    """Whether a value is of its default's type; a default that is None says nothing."""
    if default is None:
        return True
    if isinstance(default, (list, tuple)):
        items = default[0] if default else None
        return isinstance(value, list) and bool(value) and all(_fits(item, items) for item in value)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def _require_bound(name: str, tree: ast.Module, function: str) -> None:
    """Refuse a function that the module neither defines, imports nor assigns."""
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    if function not in bound and "*" not in bound:
        close = difflib.get_close_matches(function, bound, 1)
        raise ConfigError(
            f"model.name = {name!r}: the module has no {function}.",
            f"Did you mean {close[0]}?" if close else "Name a function of that module.",
        )
