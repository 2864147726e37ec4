"""Obtains the built-in Fashion-MNIST: from the cache, a system package or mirrors (driver).

The only module that knows what Fashion-MNIST is. Its files are looked for in the cache, in the installed
system package, on HTTP mirrors and in the package archive, in this order; whatever place they come from,
they are checked before anything is written.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distml.config import Config
from distml.data import fetch
from distml.data.fetch import UnavailableError
from distml.data.formats.arrays import gunzip, parse
from distml.data.schema import Images, Labels
from distml.data.source import Origin, Source, of_arrays
from distml.errors import DataError, StorageError
from distml.runtime import environment
from distml.storage import Storage
from distml.tasks.classification import Classification

UPDATE_TIMEOUT_S = 90.0
DOWNLOAD_TIMEOUT_S = 300.0
# A dead network gives up after seconds; and as root, apt would hand the private folder to another user.
_OPTIONS = (
    "-qq",
    "-o", "Acquire::http::Timeout=5",
    "-o", "Acquire::https::Timeout=5",
    "-o", "Acquire::Retries=1",
    "-o", "APT::Sandbox::User=root",
)  # fmt: skip


def installed(folder: Path, name: str) -> bytes:
    """Return a file that an installed package put there.

    Raises:
        UnavailableError: There is none, or it cannot be read.
    """
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise UnavailableError(f"not installed ({name}: {error.strerror})") from None


def download(package: str, names: Sequence[str]) -> dict[str, bytes]:
    """Fetch a Debian package and return files out of it; nothing is installed and nothing is left behind.

    Where the machine's package lists are missing (as in most container images) or do not know the package,
    lists are fetched into a temporary folder, which needs no root.

    Raises:
        UnavailableError: No apt here, no such package, no network, or a package without these files.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise UnavailableError("there is no apt-get here")
    try:
        with tempfile.TemporaryDirectory(prefix="distml-apt-") as folder:
            archive = _archive(package, Path(folder))
            _run(["dpkg-deb", "-x", str(archive), f"{folder}/root"], folder, DOWNLOAD_TIMEOUT_S)
            return {name: _find(Path(folder, "root"), name).read_bytes() for name in names}
    except OSError as error:
        raise UnavailableError(f"no temporary folder: {error.strerror}") from None


def _archive(package: str, folder: Path) -> Path:
    """Return the downloaded package, asking the machine's own lists before fetching fresh ones."""
    own = ["-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
    try:
        _run(["apt-get", *_OPTIONS, "download", package], str(folder), DOWNLOAD_TIMEOUT_S)
    except UnavailableError as first:
        for below in ("lists/partial", "cache/archives/partial"):
            (folder / below).mkdir(parents=True)
        try:
            _run(["apt-get", *_OPTIONS, *own, "update"], str(folder), UPDATE_TIMEOUT_S)
            _run(["apt-get", *_OPTIONS, *own, "download", package], str(folder), DOWNLOAD_TIMEOUT_S)
        except UnavailableError as second:
            raise UnavailableError(f"{first.message}; after apt-get update: {second.message}") from None
    archives = sorted(folder.glob(f"{package}_*.deb"))
    if not archives:
        raise UnavailableError(f"apt-get fetched no {package}")
    return archives[-1]


def _run(command: list[str], folder: str, timeout: float) -> None:
    inherited = os.environ | environment.APT.values()
    try:
        done = subprocess.run(command, cwd=folder, env=inherited, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{command[0]} did not finish within {timeout:.0f} s") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit {done.returncode}"]
        raise UnavailableError(f"{command[0]}: {lines[-1].removeprefix('E: ')}")


def _find(root: Path, name: str) -> Path:
    for path in root.rglob(name):
        return path
    raise UnavailableError(f"the package holds no {name}")


_LOG = logging.getLogger(__name__)

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of the *decompressed* content: Debian wraps the same content in other gzip files than upstream."""
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)
PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
_LIMIT_BYTES = 64 << 20
"""More than any file of the set, compressed or not: 47 MB is the largest."""


@dataclass(frozen=True)
class _Place:
    """Somewhere the files may be.

    Args:
        name: Said in errors and recorded in the manifest.
        get: Returns a file's bytes, compressed.
        keep: Worth copying into the cache.
        final: Chosen by the user, so damaged bytes from it end the search instead of being skipped.
    """

    name: str
    get: Callable[[str], bytes]
    keep: bool = False
    final: bool = False


def caches(storage: Storage) -> list[Storage]:
    """Return the folders that keep fetched files, the preferred one first."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [Storage(os.path.join(home, "distml", PACKAGE)), Storage(storage.uri("cache", PACKAGE))]


def _places(config: Config, storage: Storage) -> Iterator[_Place]:
    for cache in caches(storage):
        yield _Place(f"the cache {cache.root}", functools.partial(_cached, cache))
    named = config.data.mirrors
    patience = fetch.Patience()
    mirrors = [fetch.Mirror(base, patience) for base in (MIRRORS if named is None else named)]
    web = [_Place(m.base, functools.partial(_mirrored, m), True, bool(named)) for m in mirrors]
    system = _Place(str(INSTALLED), functools.partial(installed, INSTALLED))
    yield from [*web, system] if named else [system, *web]
    # Last, because it may have to fetch the archive's lists; one download then serves all four files.
    archive = functools.cache(lambda: download(PACKAGE, [f"{name}.gz" for name in FILES]))
    yield _Place(f"the package {PACKAGE}", lambda name: archive()[name], keep=True)


def _cached(cache: Storage, name: str) -> bytes:
    try:
        return cache.read_bytes(name)
    except StorageError:
        raise fetch.UnavailableError("not there") from None


def _mirrored(mirror: fetch.Mirror, name: str) -> bytes:
    return mirror.get(name, _LIMIT_BYTES)


def open_builtin(config: Config, storage: Storage) -> Source:
    """Return Fashion-MNIST from the first place that has it.

    Args:
        config: `data.mirrors` may name places.
        storage: The storage root, whose `cache` folder serves where the user's cache cannot be written.

    Raises:
        DataError: Nowhere to be had, or damaged where the user says that it is.
    """
    reasons = []
    for place in _places(config, storage):
        try:
            raw, arrays = _checked(place)
        except DataError as error:
            if place.final and not isinstance(error, fetch.UnavailableError):
                raise
            # That a place has no copy matters only when none has; a damaged copy is worth a word.
            level = logging.DEBUG if isinstance(error, fetch.UnavailableError) else logging.WARNING
            _LOG.log(level, "not available from %s: %s", place.name, error.message)
            reasons.append(f"\n- {place.name}: {error.message.rstrip('.')}")
            continue
        _LOG.info("the data come from %s", place.name)
        if place.keep:
            _keep(raw, caches(storage))
        return _assembled(arrays, place.name)
    raise DataError(
        f"Fashion-MNIST cannot be obtained; tried{''.join(reasons)}\n",
        f"Install the package {PACKAGE}, set data.mirrors, or give data.path a folder with the IDX files.",
    )


def _checked(place: _Place) -> tuple[dict[str, bytes], dict[str, Images]]:
    """Return the compressed files and their arrays; every check is made file by file, before the next."""
    raw, arrays = {}, {}
    for name, expected in FILES.items():
        where = f"{name}.gz from {place.name}"
        raw[f"{name}.gz"] = data = place.get(f"{name}.gz")
        content = gunzip(where, data, _LIMIT_BYTES)
        # The header first: it says what is wrong, where a digest only says that something is.
        arrays[name] = parse(where, content, (3,) if "images" in name else (1,))
        actual = hashlib.sha256(content).hexdigest()
        if actual != expected:
            raise DataError(f"{where} has the SHA-256 {actual}, expected {expected}.", "Fetch it again.")
    return raw, arrays


def _assembled(arrays: dict[str, Images], place: str) -> Source:
    def rows(prefix: str) -> tuple[Images, Labels]:
        images = arrays[f"{prefix}-images-idx3-ubyte"][..., None]
        return images, arrays[f"{prefix}-labels-idx1-ubyte"].astype("int32")

    splits = {"train": of_arrays(*rows("train")), "test": of_arrays(*rows("t10k"))}
    origins = tuple(Origin(f"{name}.gz", f"{place}/{name}.gz", digest) for name, digest in FILES.items())
    return Source((28, 28, 1), Classification(CLASSES), splits, origins)


def _keep(raw: dict[str, bytes], folders: list[Storage]) -> None:
    """Copy fetched files into the first cache that takes them; data are not lost where none does."""
    for cache in folders:
        try:
            for name, data in raw.items():
                cache.write_bytes(data, name)
            return
        except StorageError as error:
            _LOG.info("not cached: %s", error)
            for name in raw:
                with suppress(StorageError):
                    cache.delete(name)
