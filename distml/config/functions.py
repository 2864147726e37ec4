"""Users' `module:function` names: checked by reading source (driver), imported and called (worker).

`inspect.signature` would need the module imported and with it TensorFlow: 2.5 CPU-seconds and 560 MiB at best
(compiled, 2 cores) in a driver that has neither. Reading the source takes 1.2 to 1.7 ms.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import importlib
import importlib.util
import math
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distml.errors import ConfigError, DistmlError, ModelError
from distml.runtime import compat

if TYPE_CHECKING:
    from distml.config.schema import TrainConfig

_parsing = threading.Lock()

_ANYTHING = "**"
"""Stands for the options of a function that takes any."""
_FLIPS = ("horizontal", "vertical", "horizontal_and_vertical")
"""Of Keras 3.15's RandomFlip, which takes any other text and then flips nothing."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FRAMES = ("in user code:", "Graph execution error:")
"""How TensorFlow begins errors of a graph, whose last line says what is wrong."""
_MIXING = {"MixUp": "train.augment.mixup", "CutMix": "train.augment.cutmix"}
_CROPS = ("RandomCrop", "CenterCrop")


@dataclass(frozen=True)
class Use:
    """Where a configuration names a function or a class, and what that is called with.

    Attributes:
        key: Dotted path of the name, for messages.
        options: Dotted path of the options, for messages.
        arguments: Leading arguments that are given by us and are no options.
        given: What these are, in words.
    """

    key: str
    options: str
    arguments: int = 0
    given: str = ""


MODEL = Use("model.name", "model.options", 2, "the shape of an image and the number of classes")
OPTIMIZER = Use("train.optimizer", "train.optimizer_options", 1, "the learning rate")
SCHEDULE = Use("train.schedule", "train.schedule_options.own", 3, "step, total steps and learning rate")
LOSS = Use("train.loss", "train.loss", 2, "targets and logits")
METRIC = Use("evaluate.metrics", "evaluate.metrics", 2, "targets and outputs")
LAYERS = Use("train.augment.layers", "train.augment.layers")


def check(name: str, module: str, function: str, options: Mapping[str, Any], use: Use = MODEL) -> None:
    """Check a function's or a class's existence and options against its source.

    An option must have the type of its default; what is imported or decorated is taken to exist, and its
    options are checked when it is called.

    Args:
        name: As the user wrote it.
        module: Importable module.
        function: Name in that module.
        options: Keyword options.
        use: Where it is named.

    Raises:
        ConfigError: Missing module or function, unknown option or an option of the wrong type, or a function
            that cannot be called with what it is given.
    """
    tree = _parse(name, module, use)
    _require_callable(name, tree, function, options, use)
    accepted = _accepted(tree, function, use)
    if accepted is None:
        _require_bound(name, tree, function, use)
        return
    require_accepted(name, accepted, options, use)


def check_own(name: str, options: Mapping[str, Any], use: Use) -> None:
    """Check `module:function` as `check` does."""
    module, _, function = name.partition(":")
    check(name, module, function, options, use)


def load(name: str, use: Use) -> Callable[..., Any]:
    """Import what `module:function` names (worker).

    Raises:
        ModelError: Importing the module fails, or it has no such function.
    """
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return imported(name, module, function, use, ModelError)


def imported(name: str, module: str, function: str, use: Use, kind: type[DistmlError]) -> Callable[..., Any]:
    """Import a module and return a function of it.

    Args:
        name: As the user wrote it.
        module: Importable module.
        function: Name in that module.
        use: Where it is named.
        kind: Of the error.

    Raises:
        DistmlError: Of that kind: importing the module fails, or it has no such function.
    """
    try:
        given = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # the user's module may raise anything, and it is the user who reads this
        raise kind(f"{use.key} = {name!r}: importing {module} fails: {error!r}.") from error
    if not callable(given):
        raise kind(f"{use.key} = {name!r}: {function} is not a function of {module}.")
    return given  # type: ignore[no-any-return]


def called(name: str, function: Callable[..., Any], use: Use, *given: Any, **options: Any) -> Any:
    """Call what a configuration names; whatever it raises becomes one sentence (worker).

    Raises:
        ModelError: It raises.
    """
    try:
        return function(*given, **options)
    except Exception as error:
        remedy = f"Its options were {options}." if options else ""
        if use in (LOSS, METRIC):
            remedy = f"It is given {_described(use, given)}, in this order."
        if "No module named" in str(error):  # in a graph it is another type
            remedy = "Install that package into the environment of distml, on every node."
        raise ModelError(f"{use.key}: {name} fails: {cause(error)}", remedy) from error


def _described(use: Use, given: Sequence[Any]) -> str:
    """Types and shapes of what a function is given, as `targets, int32 [N], and logits, float32 [N, 3]`."""
    names = use.given.split(" and ")
    kinds = [getattr(value.dtype, "name", str(value.dtype)) for value in given]
    shapes = [", ".join(["N", *(str(int(size)) for size in value.shape[1:])]) for value in given]
    return ", and ".join(
        f"{name}, {kind} [{shape}]" for name, kind, shape in zip(names, kinds, shapes, strict=False)
    )


def cause(error: Exception) -> str:
    """What an error of the user's code says, in a line; one inside a graph says it last."""
    lines = _lines(error)
    if not lines:
        return type(error).__name__
    return lines[-1][:300] if _in_graph(error) else f"{type(error).__name__}: {lines[0]}"[:300]


def brief(error: Exception) -> str:
    """All that an error of Keras says, in a line, without the arguments and the stack that it repeats."""
    lines = _lines(error)
    if not lines:
        return type(error).__name__
    text = lines[-1] if _in_graph(error) else " ".join(lines)
    return text if len(text) <= _LONGEST else f"{text[: text.rfind(' ', 0, _LONGEST)]} ..."


_LONGEST = 300
_ARGUMENTS = "Arguments received by"
"""How Keras goes on after what is wrong."""


def _in_graph(error: Exception) -> bool:
    return _COLOURS.sub("", str(error)).lstrip().startswith(_FRAMES)


def _lines(error: Exception) -> list[str]:
    """Lines of a message that say something."""
    plain = _COLOURS.sub("", str(error)).partition(_ARGUMENTS)[0]
    lines = [line for text in plain.splitlines() if (line := text.strip()) and not line.startswith("[[")]
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):  # Keras, of a layer
        lines = lines[1:]
    return lines


def raised_at(name: str, error: Exception) -> str:
    """Say which line of the user's module an error comes from, as ` (mine.py line 7)`; "" where none does.

    Args:
        name: `module:function`.
        error: As it was caught; one of a graph names the line in its text alone.
    """
    path = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
    if path is None:
        return ""
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    frames = frames or [int(line) for line in re.findall(re.escape(path) + r'", line (\d+)', str(error))]
    return f" ({Path(path).name} line {frames[-1]})" if frames else ""


def check_metrics(names: Sequence[str]) -> None:
    """Check metrics of the user's, as `check` does.

    Raises:
        ConfigError: One cannot be used.
    """
    for name in names:
        check_own(name, {}, METRIC)


def measured(name: str, targets: Any, outputs: Any) -> float:
    """A metric of the user's on rows.

    Args:
        name: `module:function`.
        targets: As the task has them, [N] or [N, K].
        outputs: As an export gives them, float32 [N, K].

    Raises:
        ModelError: It fails, or returns something else than a number.
    """
    value = called(name, load(name, METRIC), METRIC, targets.copy(), outputs.copy())
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        shown = " ".join(repr(value).split())[:80]
        raise ModelError(f"{METRIC.key}: {name} returns {shown}.", "Return one finite number.")
    return number


def check_train(train: TrainConfig) -> None:
    """Check the functions, classes and layers that the section of training names.

    Raises:
        ConfigError: One does not exist or does not take its options, or a value would not be used.
    """
    if ":" in train.loss:
        check_own(train.loss, {}, LOSS)
        _require_used(train)
    check_layers(train.augment.layers)
    if ":" in train.schedule:
        check_own(train.schedule, train.schedule_options.own, SCHEDULE)
    elif train.schedule_options.own:
        raise _unused("train.schedule_options.own", train.schedule_options.own, "train.schedule")
    if ":" not in train.optimizer:
        if train.optimizer_options:
            raise _unused("train.optimizer_options", train.optimizer_options, "train.optimizer")
        return
    check_own(train.optimizer, train.optimizer_options, OPTIMIZER)
    for key in ("weight_decay", "clip_norm"):
        if value := getattr(train, key):
            raise ConfigError(
                f"train.{key} = {value} is not given to {train.optimizer}.",
                "Make it a parameter of your function and set it in train.optimizer_options.",
            )


def _require_used(train: TrainConfig) -> None:
    """Reject what a loss of the user's is not given."""
    if train.label_smoothing:
        raise ConfigError(
            f"train.label_smoothing = {train.label_smoothing} is not given to {train.loss}.",
            "Smooth the targets in your function, and leave it out.",
        )


def _unused(key: str, options: dict[str, Any], function: str) -> ConfigError:
    return ConfigError(f"{key} = {options} is used only with a {function} of your own.", "Leave it out.")


def check_layers(layers: list[dict[str, Any]]) -> None:
    """Check that layers of augmentation exist and take their options.

    Args:
        layers: One name and its options each: a Keras layer that changes images at random and keeps their
            size, or `module:Class`.

    Raises:
        ConfigError: Names the layer or the option, and the nearest that there is.
    """
    known = keras_layers()
    for name, options in ((name, options) for layer in layers for name, options in layer.items()):
        if ":" in name:
            check_own(name, options, LAYERS)
        elif name in _MIXING:
            raise ConfigError(
                f"{LAYERS.key}: {name} mixes targets, too.", f"Set {_MIXING[name]}, as to 0.2, instead."
            )
        elif name in _CROPS:
            raise ConfigError(
                f"{LAYERS.key}: {name} is no layer here, as it changes the size of images.",
                "Set train.augment.crop_scale, as to [0.5, 1.0], instead.",
            )
        elif name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                f"{LAYERS.key}: Keras has no layer {name} for augmentation.",
                f"Did you mean {near[0]}?" if near else f"There are {', '.join(sorted(known))}.",
            )
        else:
            tree = parsed(known[name])
            accepted = _accepted(tree, name, LAYERS) or {}
            _require_given(name, tree, options)
            require_accepted(
                name, {key: accepted[key] for key in accepted if key != _ANYTHING}, options, LAYERS
            )
            _require_effective(name, options)
            _require_factor(name, accepted | dict(options))


def _require_effective(name: str, options: Mapping[str, Any]) -> None:
    """Reject values that a Keras layer takes and that make it do nothing, or flatten the images."""
    mode = options.get("mode", _FLIPS[0])
    if name == "RandomFlip" and mode not in _FLIPS:
        near = difflib.get_close_matches(str(mode), _FLIPS, 1)
        raise ConfigError(
            f"{LAYERS.key}: mode = {mode!r} is not accepted by RandomFlip.",
            f"Did you mean {near[0]}?" if near else f"It accepts {', '.join(_FLIPS)}.",
        )
    limits = options.get("value_range", [0, 255])
    if max(limits) <= 1:  # Keras would clip the images to it
        raise ConfigError(
            f"{LAYERS.key}: value_range = {limits} of {name}, but images have values from 0 to 255.",
            "Leave it out.",
        )


_ZERO_COUNTS = ("RandomSaturation", "RandomSharpness", "RandomPosterization", "Solarization")
"""Layers of Keras 3.15 that change images by a factor of 0, too; of others 0 leaves images as they are."""


def _require_factor(name: str, options: Mapping[str, Any]) -> None:
    """Reject a layer whose factors are all 0, as some are where none is given."""
    factors = {key: value for key, value in options.items() if key.endswith("factor")}
    saturated = factors.get("saturation_factor") is not None
    if name in _ZERO_COUNTS or saturated or not factors or any(map(_is_some, factors.values())):
        return
    raise ConfigError(
        f"{LAYERS.key}: {name} changes nothing without {' or '.join(factors)}.",
        f"Write {{{name}: {{{next(iter(factors))}: 0.1}}}}.",
    )


def _is_some(value: Any) -> bool:
    return any(value) if isinstance(value, list | tuple) else bool(value)


def _require_given(name: str, tree: ast.Module, options: Mapping[str, Any]) -> None:
    """Reject to leave out what a layer has no default for."""
    made = next(
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    )
    without = len(made.args.args) - len(made.args.defaults)
    for argument in made.args.args[1:without]:
        if argument.arg not in options:
            raise ConfigError(
                f"{LAYERS.key}: {name} needs {argument.arg}.", f"Write {{{name}: {{{argument.arg}: VALUE}}}}."
            )


@functools.cache
def keras_layers() -> dict[str, Path]:
    """Source files of Keras's layers that augment images of one size, by the names of the layers."""
    spec = importlib.util.find_spec("keras")
    if spec is None or not spec.origin:
        raise ConfigError("Keras is not installed.", "Install distml with one of its extras cpu or gpu.")
    return compat.augmentation_layers(Path(spec.origin).parent)


def require_accepted(
    name: str, accepted: Mapping[str, Any], options: Mapping[str, Any], use: Use = MODEL
) -> None:
    """Reject options that a function does not have or that are of another type than their default.

    Args:
        name: As the user wrote it.
        accepted: Every option and its default.
        options: What the user wrote.
        use: Where it is named.

    Raises:
        ConfigError: Names the option, its value and what is accepted.
    """
    known = [option for option in accepted if option != _ANYTHING]
    said = ", ".join(f"{option}={_shown(accepted[option])}" for option in known) or "no options"
    for option, value in options.items():
        if option not in accepted and _ANYTHING not in accepted:
            raise ConfigError(f"{use.options}.{option} is unknown to {name}.", f"It accepts {said}.")
        if not _fits(value, accepted.get(option)):
            raise ConfigError(
                f"{use.options}.{option} = {value!r} is not accepted by {name}.", f"It accepts {said}."
            )


def _require_callable(
    name: str, tree: ast.Module, function: str, options: Mapping[str, Any], use: Use
) -> None:
    """Reject a function that takes fewer arguments than it is given, or asks for more."""
    node = next((each for each in tree.body if getattr(each, "name", "") == function), None)
    if isinstance(node, ast.AsyncFunctionDef):
        raise ConfigError(f"{use.key}: {name} is a coroutine.", "Write def without async.")
    if isinstance(node, ast.ClassDef) and use in (LOSS, METRIC):
        raise ConfigError(f"{use.key}: {name} is a class.", f"Name a function of {use.given}.")
    first = 0
    if isinstance(node, ast.ClassDef):
        first = 1  # self
        made = [each for each in node.body if getattr(each, "name", "") == "__init__"]
        node = next(iter(made), node)
    if not isinstance(node, ast.FunctionDef) or node.decorator_list:
        return
    arguments = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)][first:]
    if len(arguments) < use.arguments and not node.args.vararg:
        takes = ", ".join(arguments) or "nothing"
        raise ConfigError(f"{use.key}: {name} takes {takes}.", f"It is given {use.given}.")
    needed = arguments[use.arguments : len(arguments) - len(node.args.defaults)]
    alone = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    needed += [argument.arg for argument, default in alone if default is None]
    if lacking := [argument for argument in needed if argument not in options]:
        remedy = "Give that argument a default."
        if use is LAYERS:
            remedy = f"Write {{{name}: {{{lacking[0]}: VALUE}}}}."
        elif use.options != use.key:
            remedy = f"Set {use.options}.{lacking[0]}, or give it a default."
        raise ConfigError(f"{use.key}: {name} needs {lacking[0]}, which it is not given.", remedy)


def parsed(path: Path) -> ast.Module:
    """Parse a Python file, one thread at a time.

    Candidates of a sweep are checked in threads. CPython before 3.12.1 counts the depth of a tree for the
    whole process and raises SystemError in one of two threads that parse together (its gh-106905).

    Raises:
        SyntaxError, ValueError: It is not valid Python.
    """
    with _parsing:
        return ast.parse(path.read_bytes(), str(path))


def _parse(name: str, module: str, use: Use) -> ast.Module:
    """Read a module's source without running it."""
    if os.getcwd() not in sys.path:  # a console script does not look into the current directory
        sys.path.append(os.getcwd())
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise ConfigError(
            f"{use.key} = {name!r}: there is no Python module {module}.",
            "Write module:function, where module.py is in the current directory or installed.",
        )
    try:
        return parsed(Path(spec.origin))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{use.key} = {name!r}: {spec.origin} is not valid Python: {error}.") from None


def _accepted(tree: ast.Module, function: str, use: Use) -> dict[str, Any] | None:
    """Options and literal defaults of what this module defines; None when it is not written here."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function and not node.decorator_list:
            return _options(node, use.arguments)
        if isinstance(node, ast.ClassDef) and node.name == function:
            made = [
                each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"
            ]
            return _options(made[0], use.arguments + 1) if made else None
    return None


def _options(node: ast.FunctionDef, leading: int) -> dict[str, Any]:
    arguments = [*node.args.posonlyargs, *node.args.args]
    padding: list[ast.expr | None] = [None] * (len(arguments) - len(node.args.defaults))
    pairs = list(zip(arguments, [*padding, *node.args.defaults], strict=True))[leading:]
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    options = {argument.arg: _literal(default) for argument, default in pairs}
    return options | ({_ANYTHING: None} if node.args.kwarg else {})


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


def _require_bound(name: str, tree: ast.Module, function: str, use: Use) -> None:
    """Reject a function that the module neither defines, imports nor assigns."""
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
            f"{use.key} = {name!r}: the module has no {function}.",
            f"Did you mean {close[0]}?" if close else "Name a function of that module.",
        )
