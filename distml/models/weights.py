"""Loads weights from a file into a network layer by layer, and reports what was loaded (worker).

Three kinds of file. `.npz`: arrays named `layer/weight`, where further slashes count as underscores.
`.weights.h5` and `.h5`: as Keras saves weights, now or before version 3. `.keras`: a whole model, loaded in
safe mode. Layers are matched by name, those that Keras has numbered (`conv2d_7`) by their place among
their kind, and weights only where the shapes agree.
"""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distml.errors import ModelError
from distml.models.backbones import BACKBONE, BACKBONES, built_by_keras
from distml.runtime import compat

if TYPE_CHECKING:
    import keras

SUFFIXES = (".keras", ".weights.h5", ".h5", ".npz")
"""Kinds of file, by the end of their name."""

_SHOWN = 6
_NUMBERED = re.compile(
    r"(conv\dd|conv\dd_transpose|depthwise_conv\dd|separable_conv\dd|dense|batch_normalization|"
    r"layer_normalization|group_normalization|normalization|embedding|prelu)(?:_(\d+))?"
)
"""Names that Keras makes up by counting what a process has built so far."""

Arrays = list[tuple[str, np.ndarray]]
"""Weights of a layer by name; a name is empty where the file knows only their order."""


@dataclass(frozen=True)
class Loaded:
    """What became of a network's weights and of a file's.

    Attributes:
        loaded: Arrays of the network that were taken from the file.
        total: Arrays of the network.
        fresh: Names of those that were not, and keep their initial values.
        unused: Names of layers of the file that fit nowhere.
    """

    loaded: int
    total: int
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        said = f"{self.loaded} of {self.total} arrays loaded"
        if self.fresh:
            said += f"; {len(self.fresh)} start from random weights ({_some(self.fresh)})"
        if self.unused:
            said += f"; {len(self.unused)} layers of the file are not used ({_some(self.unused)})"
        return said


def load(
    network: keras.Model, path: Path, source: str, name: str = "", options: Mapping[str, Any] | None = None
) -> Loaded:
    """Load weights into a network that has just been built.

    Args:
        network: As `registry.build` returns it.
        path: The file; its name ends in one of `SUFFIXES`.
        source: What the user wrote, for messages.
        name: Of the network, for messages; its own where none is given.
        options: Of the network's builder.

    Returns:
        What was loaded and what not.

    Raises:
        ModelError: The file cannot be read, holds another network's weights, or a backbone's only in part.
    """
    try:
        layers = _read(network, path, options or {})
    except ModelError:
        raise
    except Exception as error:  # zipfile, h5py, NumPy and Keras raise nearly anything on a wrong file
        remedy = _ALONE if path.name.endswith(".keras") else _REMEDY
        raise ModelError(f"weights {source} cannot be read: {_first_sentence(error)}.", remedy) from error
    taken: dict[str, np.ndarray] = {}
    used: set[str] = set()
    wrong: list[str] = []
    turned = False
    for layer, like in _pairs(network, layers):
        used.add(like)
        for variable, array in _fitting(compat.own_variables(layer), layers[like]):
            if array.shape == tuple(variable.shape):
                taken[variable.path] = array
            else:
                turned |= sorted(array.shape) == sorted(variable.shape)
                wrong.append(f"{variable.path} is {list(variable.shape)} here, {list(array.shape)} there")
    _require_enough(network, taken, wrong, source, name or network.name, _TURNED if turned else _REMEDY)
    _require_finite(taken, source)
    for variable in network.variables:
        if variable.path in taken:
            variable.assign(taken[variable.path])
    names = [weight.path for weight in network.weights]
    fresh = tuple(name for name in names if name not in taken)
    return Loaded(len(names) - len(fresh), len(names), fresh, tuple(sorted(layers.keys() - used)))


_REMEDY = "Give a .keras, .weights.h5 or .npz file of this model."
_ALONE = 'Save its weights alone, by model.save_weights("NAME.weights.h5"), and give that file.'
_TURNED = "Axes are in another order: a kernel is (height, width, in, out), that of a dense layer (in, out)."
_LEAST = 0.25
"""Share of a network's arrays that a file must have; a few fit by chance, as a last layer of equal width."""


def _first_sentence(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    whole = line if len(line) <= 200 else line[: line.rfind(". ", 0, 200) + 1] or line[:200]
    return whole.rstrip(". :")


def _require_finite(taken: Mapping[str, np.ndarray], source: str) -> None:
    """Reject weights of a run that diverged: the first loss would be NaN, whatever the learning rate."""
    for path, array in taken.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ModelError(
                f"weights {source} have numbers in {path} that are not finite.",
                "Give a file of a training that did not diverge.",
            )


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:_SHOWN]) + (", …" if len(shown) > _SHOWN else "")


def _require_enough(
    network: keras.Model,
    taken: dict[str, np.ndarray],
    wrong: list[str],
    source: str,
    name: str,
    remedy: str,
) -> None:
    """Reject a file that would leave a backbone half trained, or everything at its initial values."""
    needed = [weight.path for weight in _backbone_weights(network)]
    absent = [path for path in needed if path not in taken]
    if absent:
        why = next((text for text in wrong if text.split()[0] in absent), f"it has no {absent[0]}")
        raise ModelError(
            f"weights {source} are not of {name}: {len(needed) - len(absent)} of the "
            f"{len(needed)} arrays of its backbone fit; {why}.",
            remedy,
        )
    why = f" ({wrong[0]})" if wrong else ""
    if not taken:
        raise ModelError(f"weights {source} fit no layer of {name}{why}.", remedy)
    if len(taken) < _LEAST * len(network.weights):
        few = f"{len(taken)} of its {len(network.weights)} arrays fit{why}"
        raise ModelError(f"weights {source} are not of {name}: {few}.", remedy)


def _backbone_weights(network: keras.Model) -> list[Any]:
    return next((list(layer.weights) for layer in network.layers if layer.name == BACKBONE), [])


def _read(network: keras.Model, path: Path, options: Mapping[str, Any]) -> dict[str, Arrays]:
    """The file's layers and their weights, in the file's order."""
    if path.name.endswith(".npz"):
        return _read_npz(path)
    if path.name.endswith(".keras"):
        import keras

        return _of_network(keras.saving.load_model(path, compile=False, safe_mode=True))
    if BACKBONES.get(network.name) and BACKBONES[network.name].function:
        # Keras reads files of its own in its own order; those with another head it rejects.
        with contextlib.suppress(ValueError):
            return _of_network(built_by_keras(network.name, path, options.get("alpha", 1.0)))
    return _read_h5(path)


def _read_npz(path: Path) -> dict[str, Arrays]:
    layers: defaultdict[str, Arrays] = defaultdict(list)
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a NumPy archive")
    with np.load(path, allow_pickle=False) as archive:
        for key in archive.files:
            layer, _, weight = key.rpartition("/")
            layers[layer.replace("/", "_")].append((weight, archive[key]))
    return dict(layers)


def _of_network(network: keras.Model) -> dict[str, Arrays]:
    return {
        layer.name: [(variable.name, variable.numpy()) for variable in compat.own_variables(layer)]
        for layer in _leaves(network)
    }


def _read_h5(path: Path) -> dict[str, Arrays]:
    import h5py

    with h5py.File(path, "r") as file:
        before_3 = file if "layer_names" in file.attrs else file.get("model_weights")
        if before_3 is not None:
            return _read_before_3(before_3)
        return dict(_walk(file))


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _read_before_3(file: Any) -> dict[str, Arrays]:
    """Layers as Keras wrote them before version 3; nested layers are recognised by their weights' names."""
    layers: defaultdict[str, Arrays] = defaultdict(list)
    for group in (file[_text(name)] for name in file.attrs["layer_names"]):
        for name in map(_text, group.attrs["weight_names"]):
            *within, weight = name.partition(":")[0].split("/")
            layer = within[-1] if within else group.name.rpartition("/")[2]
            layers[layer].append((weight, np.asarray(group[name])))
    return dict(layers)


def _walk(file: Any) -> Iterator[tuple[str, Arrays]]:
    """Layers as Keras 3 writes them: the group `vars` has the weights by number and the layer's name."""
    groups: list[Any] = []

    def visit(path: str, group: Any) -> None:
        if path.rpartition("/")[2] == "vars" and len(group):
            groups.append(group)

    file.visititems(visit)
    for group in sorted(groups, key=lambda group: _natural(group.name)):
        name = group.attrs.get("name") or group.parent.attrs.get("name")
        arrays: Arrays = [("", np.asarray(group[key])) for key in sorted(group, key=int)]
        yield _text(name) if name else group.parent.name.rpartition("/")[2], arrays


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _leaves(network: keras.Model) -> list[Any]:
    """Layers with weights of their own, at any depth, each once."""
    layers: dict[int, Any] = {}
    for layer in compat.layers(network, include_self=False):
        if compat.own_variables(layer):
            layers.setdefault(id(layer), layer)
    return list(layers.values())


def _fitting(variables: list[Any], arrays: Arrays) -> Iterator[tuple[Any, np.ndarray]]:
    """Weights of a layer beside those of the file: by name, or in order where the file has no names."""
    named = {name: array for name, array in arrays if name}
    for position, variable in enumerate(variables):
        if variable.name in named:
            yield variable, named[variable.name]
        elif not named and position < len(arrays):
            yield variable, arrays[position][1]


def _pairs(network: keras.Model, layers: dict[str, Arrays]) -> Iterator[tuple[Any, str]]:
    """Layers of the network with the names of their like in the file."""
    here: defaultdict[str, list[Any]] = defaultdict(list)
    there: defaultdict[str, list[str]] = defaultdict(list)
    leaves = _leaves(network)
    times = Counter(layer.name for layer in leaves)
    for layer in leaves:
        if numbered := _NUMBERED.fullmatch(layer.name):
            here[numbered[1]].append(layer)
        elif layer.name in layers and times[layer.name] == 1:
            yield layer, layer.name
    for name in layers:
        if numbered := _NUMBERED.fullmatch(name):
            there[numbered[1]].append(name)
    for kind, many in here.items():
        names = sorted(there[kind], key=_natural)
        if len(names) == len(many):
            yield from zip(sorted(many, key=lambda layer: _natural(layer.name)), names, strict=True)
