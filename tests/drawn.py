"""Folders of drawn pictures with several labels, or a number, in `metadata.csv`."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 70, 220),
    "yellow": (230, 220, 50),
}


def colours(folder: Path, count: int, side: int = 32, seed: int = 0) -> Path:
    """Draw squares of some colours on gray; the column `labels` lists the colours."""
    random, rows = np.random.default_rng(seed), []
    for number in range(count):
        picture = Image.new("RGB", (side, side), (int(random.integers(90, 160)),) * 3)
        pen = ImageDraw.Draw(picture)
        shown = [name for name in COLOURS if random.random() < 0.4]
        places = random.permutation(4)[: len(shown)]
        for name, place in zip(shown, places, strict=True):
            x, y = (place % 2) * side // 2, (place // 2) * side // 2
            left, top = x + random.integers(0, side // 4), y + random.integers(0, side // 4)
            size = int(random.integers(side // 5, side // 4))
            pen.rectangle((int(left), int(top), int(left) + size, int(top) + size), fill=COLOURS[name])
        rows.append((_save(picture, folder, number), "|".join(shown)))
    return _table(folder, ("file_name", "labels"), rows)


def bars(folder: Path, count: int, side: int = 32, seed: int = 0) -> Path:
    """Draw a bar through the middle; the column `angle` has its angle in degrees, from 15 to 165."""
    random, rows, large = np.random.default_rng(seed), [], 4 * side
    for number in range(count):
        angle = float(random.uniform(15, 165))
        picture = Image.new("L", (large, large), 20)
        x, y = 0.42 * large * math.cos(math.radians(angle)), 0.42 * large * math.sin(math.radians(angle))
        middle = large / 2
        ends = (middle - x, middle + y, middle + x, middle - y)
        ImageDraw.Draw(picture).line(ends, fill=235, width=int(random.integers(large // 10, large // 6)))
        rows.append(
            (_save(picture.resize((side, side), Image.Resampling.BOX), folder, number), f"{angle:.3f}")
        )
    return _table(folder, ("file_name", "angle"), rows)


def _save(picture: Image.Image, folder: Path, number: int) -> str:
    """Save with noise of its own in every picture: without it they would be near duplicates."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.asarray(picture, np.int16)
    noise = np.random.default_rng(number).integers(-12, 13, values.shape)
    picture = Image.fromarray(np.clip(values + noise, 0, 255).astype(np.uint8))
    picture.save(folder / f"{number:05d}.png")
    return f"{number:05d}.png"


def _table(folder: Path, header: tuple[str, str], rows: list[tuple[str, str]]) -> Path:
    with (folder / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return folder
