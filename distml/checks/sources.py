"""Checks of the data source: exists, is readable and of which format, without fetching it (driver)."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

from distml.checks import Check, failed, ok, problem, size, warning
from distml.config import Config
from distml.data.fetch import NO_ARCHIVE, direct, is_archive, is_remote, request_of
from distml.data.formats import fashion_mnist, image_folder
from distml.data.image import Header, policy
from distml.data.listing import Folder, elsewhere
from distml.data.manifest import Manifest
from distml.data.opening import choose_subset, format_of
from distml.data.source import Fault, remedy_of
from distml.errors import DistmlError, StorageError
from distml.storage import Storage

TIMEOUT_S = 3.0
SAMPLE = 500
"""Pictures whose headers are read: under a second on a local disk."""
LISTING_S, LOOKING_S = 3.0, 2.0
"""Longest time for the names in a folder and for the headers: a slow store may have any number of files."""
_AT_ONCE = 50
_NAME = "data"


def prepared(manifest: Manifest) -> Check:
    """Data that a run would find ready."""
    rows = ", ".join(f"{count:,} {split}" for split, count in manifest.rows.items())
    height, width, depth = manifest.shape
    shape, classes = f"{height}x{width}x{depth}", manifest.num_classes
    detail = f"{manifest.name}, version {manifest.digest[:8]}: {rows} rows of {shape}, {classes} classes"
    return ok(_NAME, detail)


def check(config: Config, storage: Storage) -> Check:
    """Data that are not prepared yet, and where they would come from."""
    try:
        if ":" in config.data.format:
            return function(config.data.format)
        if config.data.path is not None:
            return folder(config)
        if config.data.format not in ("auto", "idx"):
            detail = f"data.format = {config.data.format} needs data.path"
            return problem(_NAME, detail, "Give the folder or URI of your data.")
        return builtin(config, storage)
    except DistmlError as error:
        return failed(_NAME, error)


def function(name: str) -> Check:
    """A user's function: its module exists; it is not run."""
    module = name.partition(":")[0]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    with contextlib.suppress(ImportError, ValueError):
        if importlib.util.find_spec(module) is not None:
            return ok(_NAME, f"{name} will be called")
    detail = f"data.format = {name}: there is no module {module}"
    return problem(_NAME, detail, "Run where the module can be imported, or set PYTHONPATH.")


def folder(config: Config) -> Check:
    """A user's folder: it can be listed, its format is known, and a sample of its pictures is sound."""
    data = config.data
    if is_remote(data.path):
        return _remote(str(data.path))
    source = Folder(str(data.path), LISTING_S, (config.storage.root,))
    if is_archive(str(data.path)):
        return ok(_NAME, f"{source.root}: {size(sum(source.sizes.values()))}, to be unpacked once")
    choose_subset(source, data.subset)
    form = format_of(source) if data.format == "auto" else data.format
    total = size(sum(source.sizes.values()))
    more = "" if source.complete else f" in the first {LISTING_S:g} s, and more"
    detail = f"{source.root}: {len(source.sizes)} files, {total}{more}, to be read as {form}"
    if form != "image_folder":
        return ok(_NAME, detail)
    names = [*image_folder.pictures(source), *source.dangling]
    headers, bad = _looked_at(source, names, data.max_pixels)
    seen = len(headers) + len(bad)
    if bad:
        shown = "; ".join(fault.reason.rstrip(".") for fault in bad[:5])
        told = f"{detail}; {len(bad)} of {seen} that were checked cannot be used: {shown}"
        return (warning if data.on_error == "skip" else problem)(_NAME, told, remedy_of(bad))
    sizes = {(header.width, header.height) for header in headers.values()}
    height, width, depth = policy(list(headers.values()), data).shape
    shown = f"{len(sizes)} sizes among {seen} that were checked"
    return ok(_NAME, f"{detail}; {shown}, to be fitted to {height}x{width}x{depth}")


def _looked_at(
    source: Folder, names: Sequence[str], max_pixels: int
) -> tuple[dict[str, Header], list[Fault]]:
    """Read headers all over the folder, as many as there is time for."""
    step = max(1, len(names) // SAMPLE)
    sample = [name for first in range(0, _AT_ONCE * step, step) for name in names[first :: _AT_ONCE * step]]
    headers: dict[str, Header] = {}
    bad: list[Fault] = []
    end_s = time.monotonic() + LOOKING_S
    for first in range(0, len(sample), _AT_ONCE):
        some, faults = image_folder.survey(source, sample[first : first + _AT_ONCE], max_pixels)
        headers, bad = headers | some, bad + faults
        if time.monotonic() > end_s:
            break
    return headers, bad


def _remote(url: str) -> Check:
    """An archive on an HTTP server: it is called like one, and the server answers."""
    url = direct(url)
    if not is_archive(url):
        return problem(_NAME, f"{url} is not an archive", elsewhere(url) or NO_ARCHIVE)
    if reachable([url]):
        return ok(_NAME, f"{url} answers; it will be fetched and unpacked once")
    return problem(_NAME, f"{url} does not respond", "Correct data.path, or set https_proxy.")


def builtin(config: Config, storage: Storage) -> Check:
    """The embedded data set: the first place that has it, asked in the order a run asks."""
    names = [f"{name}.gz" for name in fashion_mnist.FILES]
    for cache in fashion_mnist.caches(storage):
        with contextlib.suppress(StorageError):
            if all(cache.exists(name) for name in names):
                return ok(_NAME, f"not prepared yet; the files are in the cache {cache.root}")
    if all((fashion_mnist.INSTALLED / name).exists() for name in names):
        return ok(_NAME, f"not prepared yet; the package {fashion_mnist.PACKAGE} is installed")
    mirrors = fashion_mnist.MIRRORS if config.data.mirrors is None else config.data.mirrors
    answering = reachable([f"{base.rstrip('/')}/{names[0]}" for base in mirrors])
    if answering:
        return ok(_NAME, f"not prepared yet; {answering[0]} answers")
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        detail = f"not prepared yet; no mirror responds, so apt-get will fetch {fashion_mnist.PACKAGE}"
        return warning(_NAME, detail, "Run `python -m distml.ingest` to see whether it works.")
    remedy = f"Install the package {fashion_mnist.PACKAGE}, set data.mirrors, or give data.path a folder."
    return problem(_NAME, "not prepared, not in a cache, and no mirror responds", remedy)


def reachable(urls: Sequence[str]) -> list[str]:
    """Return the URLs that answer a HEAD request, all asked at once; nothing is downloaded."""
    reachable: set[str] = set()

    def ask(url: str) -> None:
        try:
            request = request_of(url, "HEAD")
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310 - a mirror, or the user's URL
                reachable.add(url)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (405, 501):  # it is there, and knows GET alone
                reachable.add(url)
        except (OSError, ValueError, http.client.HTTPException):
            pass

    # Looking up a name has no time limit: threads that hang are left behind when the process ends.
    threads = [
        threading.Thread(target=ask, args=(url,), daemon=True) for url in urls if url.startswith("http")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S + 0.5)
    return [url for url in urls if url in reachable]
