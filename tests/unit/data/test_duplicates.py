"""Pictures that show the same, matched across encodings, and never on both sides of a cut."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from distml.config import Config
from distml.data import duplicates, ingestion, shards
from distml.data.image import Policy, read
from distml.data.split import held_out, plan
from distml.storage import Storage

SMALL = Policy((32, 32, 3), "stretch")


def scene(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A drawn picture with soft and hard parts, another for each seed."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (5, 6, 3), np.uint8))
    picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (int(value) for value in random.integers(0, 60, 2))
    picture.paste(tuple(int(v) for v in random.integers(0, 255, 3)), (left, top, left + 50, top + 40))
    return picture


def encoded(picture: Image.Image, form: str = "JPEG", **options: int) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, form, **options)
    return sink.getvalue()


def looked(files: list[bytes]) -> duplicates.Signatures:
    return duplicates.signatures(np.stack([read(data, SMALL) for data in files]))


def test_copies_are_matched_and_other_pictures_are_not() -> None:
    original = scene(1)
    larger = original.resize((96, 72))
    brighter = original.point(lambda value: min(255, int(value * 1.1)))
    files = [encoded(scene(seed), "PNG") for seed in (0, 1, 2, 3)]
    files += [encoded(original, quality=40), encoded(larger, quality=85), encoded(brighter, quality=85)]
    same = {1, 4, 5, 6}
    alike = duplicates.pairs(looked(files))
    assert {tuple(pair) for pair in alike.tolist()} == {(a, b) for a in same for b in same if a < b}
    assert duplicates.groups(len(files), alike).tolist() == [0, 1, 2, 3, 1, 1, 1]


def test_equal_shapes_in_other_colours_are_not_copies() -> None:
    gray = scene(5).convert("L")
    red = Image.merge("RGB", (gray, gray.point(lambda v: v // 2), gray.point(lambda v: v // 2)))
    blue = Image.merge("RGB", (gray.point(lambda v: v // 2), gray.point(lambda v: v // 2), gray))
    files = [encoded(red, "PNG"), encoded(blue, "PNG"), encoded(red, quality=60)]
    assert duplicates.pairs(looked(files)).tolist() == [[0, 2]]


def test_close_hashes_are_copies_only_with_equal_colours() -> None:
    random = np.random.default_rng(4)
    first, other = random.integers(0, 200, (2, 8, 8, 3), np.uint8)
    red = first + np.array([22, 0, 0], np.uint8)
    colours = np.stack([first, other, red, first + np.uint8(9)])
    seen = duplicates.Signatures(np.zeros(4, np.uint64), colours, np.ones(4, bool))
    assert duplicates.pairs(seen).tolist() == [[0, 3]]


def test_uniform_images_are_no_copies() -> None:
    plain = np.full((3, 64, 64, 3), 250, np.uint8)
    assert not duplicates.pairs(duplicates.signatures(plain)).size
    assert not duplicates.pairs(duplicates.signatures(plain[:0])).size


def test_the_hash_has_the_bits_of_imagehash() -> None:
    """Recorded from imagehash 4.3.2's `phash` of these pixels."""
    down, across = np.mgrid[0:32, 0:32]
    gray = ((across * 7 + down * 3 + (across * down) % 50) % 256).astype(np.uint8)
    hashes = duplicates.signatures(np.repeat(gray[None, ..., None], 3, axis=3)).hashes
    assert [f"{value:016x}" for value in hashes.tolist()] == ["90252b1a2c3f7a7d"]


def test_blocks_of_a_fitted_image_are_averaged_like_its_scaling() -> None:
    pictures = np.stack([np.asarray(scene(seed, 224, 224)) for seed in range(6)])
    fast = duplicates.signatures(pictures)
    slow = duplicates.signatures(
        np.stack([np.asarray(Image.fromarray(p).resize((100, 100))) for p in pictures])
    )
    assert (np.bitwise_count(fast.hashes ^ slow.hashes) <= duplicates.DISTANCE).all()
    assert np.abs(fast.colours.astype(int) - slow.colours).max() < 30


def test_the_search_equals_comparing_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, 300, dtype=np.uint64)
    for row in range(150, 300):  # copies with 0 to 12 bits flipped
        flips = random.choice(64, random.integers(0, 13), replace=False)
        hashes[row] = hashes[row - 150] ^ np.uint64(sum(1 << int(bit) for bit in flips))
    colours = np.repeat(random.integers(0, 255, (1, 8, 8, 3), np.uint8), 300, axis=0)
    seen = duplicates.Signatures(hashes, colours, np.ones(300, bool))
    monkeypatch.setattr(duplicates, "_BLOCK", 1)
    for limit, distance in ((10**6, duplicates.DISTANCE), (10, 4)):
        monkeypatch.setattr(duplicates, "_MANY", limit)
        a, b = np.nonzero(np.triu(np.bitwise_count(hashes[:, None] ^ hashes[None]) <= distance, 1))
        assert duplicates.pairs(seen).tolist() == np.stack([a, b], 1).tolist()


LABELS = np.repeat(np.arange(3, dtype=np.int32), 60)


def straddling(parts: list[npt.NDArray[np.int64]], groups: npt.NDArray[np.int64]) -> set[int]:
    sides = [set(groups[part].tolist()) for part in parts]
    return (sides[0] & sides[1]) | (sides[0] & sides[2]) | (sides[1] & sides[2])


@pytest.mark.parametrize("size", [2, 5, 9])
def test_groups_stay_on_one_side_of_both_cuts_and_classes_keep_their_share(size: int) -> None:
    random = np.random.default_rng(1)
    groups = np.arange(180, dtype=np.int64)
    for label in range(3):
        rows = random.permutation(np.flatnonzero(label == LABELS))[: 4 * size]
        groups[rows] = rows[:4].repeat(size)
    groups[[0, 70]] = 0  # across two classes
    for seed in range(8):
        parts = plan({"train": LABELS}, 0.2, seed, groups)
        cut = [parts[split].rows for split in ("train", "validation", "test")]
        assert not straddling(cut, groups)
        assert np.sort(np.concatenate(cut)).tolist() == list(range(180))
        for part, share in ((cut[2], 10), (cut[1], 10)):
            counts = np.bincount(LABELS[part], minlength=3)
            assert (counts <= share).all()
            assert (counts >= share - size).all()


def test_rows_without_near_duplicates_are_cut_as_before() -> None:
    plain = held_out(LABELS, 0.2, np.random.default_rng(3))
    alone = held_out(LABELS, 0.2, np.random.default_rng(3), np.arange(180))
    np.testing.assert_array_equal(plain, alone)


def test_groups_larger_than_the_share_are_divided(
    caplog: pytest.LogCaptureFixture,
) -> None:
    held = held_out(LABELS, 0.2, np.random.default_rng(3), LABELS.astype(np.int64))
    assert len(held) == 36
    assert "remain in both splits" in caplog.text


def test_a_class_keeps_a_row_for_training() -> None:
    labels, groups = np.array([0, 0, 0, 0, 1], np.int32), np.array([0, 1, 2, 3, 0])
    for seed in range(20):
        assert 4 not in held_out(labels, 0.5, np.random.default_rng(seed), groups)


def write(root: Path, names: dict[str, bytes]) -> str:
    for name, data in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def ingested(path: str, root: Path) -> tuple[shards.Manifest, Storage]:
    values = {"name": "pictures", "path": path, "image_size": 32, "val_fraction": 0.3, "shards": 1}
    config = Config.model_validate({"data": values, "storage": {"root": str(root)}})
    storage = Storage(str(root))
    return ingestion.prepare(config, storage), storage


def test_ingest_keeps_copies_in_one_split_and_reports_them(
    tmp_path: Path, storage_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {}
    for label, first in (("a", 0), ("b", 100)):
        for seed in range(first, first + 6):
            picture = scene(seed, 64, 48)
            files[f"{label}/{seed}.png"] = encoded(picture, "PNG")
            files[f"{label}/{seed}-copy.jpg"] = encoded(picture, quality=70)
    manifest, storage = ingested(write(tmp_path / "photos", files), storage_root)
    seen, splits = [], []
    for split in manifest.rows:
        images, _ = shards.read(storage, manifest, split)
        seen.append(duplicates.signatures(images))
        splits += [split] * len(images)
    alike = duplicates.pairs(duplicates.concatenated(seen)).tolist()
    assert len(alike) == 12
    assert all(splits[left] == splits[right] for left, right in alike)
    assert set(splits) == {"train", "validation", "test"}
    assert "24 of 24 pictures are near duplicates" in caplog.text
    assert not any("repeats" in warning for warning in manifest.warnings)


def test_a_leak_between_given_splits_is_the_first_warning_of_the_manifest(
    tmp_path: Path, storage_root: Path
) -> None:
    files = {f"{split}/{label}/{seed}.png": encoded(scene(seed, 64, 48), "PNG")
             for split, start in (("train", 0), ("test", 50)) for label, first in (("a", 0), ("b", 100))
             for seed in range(start + first, start + first + 5)}  # fmt: skip
    files["test/a/leak.jpg"] = encoded(scene(2, 64, 48), quality=60)
    files["train/b/white.png"] = encoded(Image.new("RGB", (64, 48), "white"), "PNG")
    manifest, _ = ingested(write(tmp_path / "photos", files), storage_root)
    assert manifest.warnings[0].startswith("test repeats train: near duplicates are 1 of its pictures")
    assert "test/a/leak.jpg of train/a/2.png" in manifest.warnings[0]


def test_arrays_are_not_searched(tmp_path: Path, storage_root: Path) -> None:
    images = np.stack([np.asarray(scene(seed, 32, 32)) for seed in range(12)])
    (labels, few), test = (np.arange(12) % 2, np.arange(2)), images[:2] // 2 * 2
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=test, y_test=few)
    data = {"path": str(tmp_path / "a.npz"), "val_fraction": 0.4}
    manifest = ingestion.prepare(Config.model_validate({"data": data}), Storage(str(storage_root)))
    assert not manifest.warnings


def test_signatures_are_read_as_they_were_written() -> None:
    seen = duplicates.signatures(np.stack([np.asarray(scene(seed, 32, 32)) for seed in range(3)]))
    again = duplicates.Signatures.from_bytes(seen.to_bytes())
    for name, values in vars(seen).items():
        np.testing.assert_array_equal(getattr(again, name), values)
    assert len(duplicates.Signatures.from_bytes(b"")) == 0


def test_many_copies_of_few_images_give_linearly_many_pairs() -> None:
    few = looked([encoded(scene(seed), "PNG") for seed in range(5)])
    which = np.random.default_rng(0).integers(0, 5, 20_000)
    many = duplicates.Signatures(few.hashes[which], few.colours[which], few.usable[which])
    alike = duplicates.pairs(many)  # two hundred million pairs would not fit
    assert len(alike) == 20_000 - 5
    grouped = duplicates.groups(len(which), alike)
    assert all(len(set(which[grouped == group])) == 1 for group in set(grouped.tolist()))
    assert len(set(grouped.tolist())) == 5


def test_pictures_that_look_much_alike_are_compared_in_bounded_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hundred gray and a hundred red blots whose hashes are all close; two of them are a pair."""
    random = np.random.default_rng(0)
    asked: list[int] = []
    real = duplicates._same_colours

    def counted(colours: npt.NDArray[np.uint8], candidates: duplicates.Pairs) -> Any:
        asked.append(len(candidates))
        return real(colours, candidates)

    colours = random.integers(0, 256, (200, 8, 8, 3), np.uint8)
    colours[100:] = np.clip(colours[100:] * np.array([1.0, 0.2, 0.2]), 0, 255)
    colours[199] = colours[3] ^ 1
    seen = duplicates.Signatures(np.arange(200, dtype=np.uint64) % 8, colours, np.ones(200, bool))
    monkeypatch.setattr(duplicates, "_same_colours", counted)
    monkeypatch.setattr(duplicates, "_BLOCK", 50)
    assert duplicates.pairs(seen).tolist() == [[3, 199]]
    assert 0 < max(asked) <= 50
