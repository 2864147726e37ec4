"""The user's own data: IDX files, a folder of pictures, Parquet, or a function (driver).

In every format the data may come divided into train, validation and test; what is missing is cut from train.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from distml.config import Config
from distml.data.formats.idx import gunzip, parse
from distml.data.formats.image_folder import open_pictures
from distml.data.formats.parquet import open_parquet
from distml.data.listing import IDX, Folder, split_of
from distml.data.schema import Images
from distml.data.source import Origin, Source, encode, of_arrays, to_nhwc
from distml.errors import ConfigError, DataError


def open_source(config: Config) -> Source:
    """Look at the user's data and number its labels.

    Raises:
        DataError: Missing, damaged, of unknown format, or with labels or sizes that do not fit together.
        ConfigError: A format that needs `data.path`.
    """
    path, form = config.data.path, config.data.format
    if ":" in form:
        return _called(form, path)
    if path is None:
        raise ConfigError(f"data.format = {form} needs data.path.", "Give the folder or URI of your data.")
    folder = Folder(path)
    if form == "auto":
        form = folder.format()
    if form == "idx":
        return _idx(folder)
    return {"image_folder": open_pictures, "parquet": open_parquet}[form](folder, config.data)


def _idx(folder: Folder) -> Source:
    """Read pairs like `train-images-idx3-ubyte.gz` and `train-labels-idx1-ubyte.gz`."""
    found: dict[str, dict[str, Images]] = {}
    origins = []
    for name in folder.sizes:
        match = IDX.fullmatch(PurePosixPath(name).name)
        if match is None:
            continue
        packed = folder.read(name)
        content = gunzip(name, packed) if match[3] else packed
        split = split_of(f"{match[1]}/{name}") or "train"
        found.setdefault(split, {})[match[2]] = parse(name, content, (3, 4) if match[2] == "images" else (1,))
        origins.append(Origin(name, f"{folder.root}/{name}", hashlib.sha256(content).hexdigest()))
    for split, pair in found.items():
        if set(pair) != {"images", "labels"}:
            raise DataError(f"{folder.root} has no {split} {'labels' if 'images' in pair else 'images'}.")
    return _source(
        {split: (pair["images"], pair["labels"]) for split, pair in found.items()},
        None,
        tuple(origins),
        folder.root,
    )


def _called(form: str, path: str | None) -> Source:
    """Call the user's function, with `data.path` where that is set."""
    module, _, name = form.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"data.format = {form}: {error}.", "Run where the module can be imported, or set PYTHONPATH."
        ) from None
    given = function() if path is None else function(path)
    if not isinstance(given, Mapping) or "train" not in given:
        raise DataError(f"{form} returned {type(given).__name__}, not a dict with 'train'.")
    unknown = set(given) - {"train", "validation", "test", "classes"}
    if unknown:
        raise DataError(f"{form} returned unknown entries {sorted(map(str, unknown))}.")
    parts = {split: _pair(given[split], form, split) for split in given if split != "classes"}
    digest = hashlib.sha256()
    for images, labels in parts.values():
        digest.update(images.tobytes())
        digest.update(labels.tobytes())
    names = given.get("classes")
    return _source(parts, names, (Origin(name, form, digest.hexdigest()),), form)


def _pair(given: Any, form: str, split: str) -> tuple[Any, Any]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise DataError(f"{form} returned no (images, labels) for {split}.")
    return np.asarray(given[0]), np.asarray(given[1])


def _source(parts: dict[str, tuple[Any, Any]], names: Any, origins: tuple[Origin, ...], where: str) -> Source:
    if "train" not in parts:
        raise DataError(f"{where} has no train.")
    images = {split: to_nhwc(x, f"{where} {split}") for split, (x, _) in parts.items()}
    shapes = {x.shape[1:] for x in images.values()}
    if len(shapes) > 1:
        raise DataError(f"{where}: the splits have different shapes {sorted(shapes)}.")
    for split, (x, y) in parts.items():
        if len(x) != len(y) or not len(x):
            raise DataError(f"{where}: {split} has {len(x)} images and {len(y)} labels.")
    classes, labels = encode({split: y for split, (_, y) in parts.items()}, names)
    height, width, depth = shapes.pop()
    rows = {split: of_arrays(images[split], labels[split]) for split in parts}
    return Source((height, width, depth), classes, rows, origins)
