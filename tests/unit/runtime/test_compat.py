"""What is used of other packages beyond their public interfaces is where, and as, the table says."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import re
import signal
import socket
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from distml.runtime import compat
from distml.runtime.compat import Private
from tests import serving

ROOT = Path(__file__).parents[3]
COMPAT = ROOT / "distml" / "runtime" / "compat.py"
NAMES = [(entry, name) for entry in compat.PRIVATE for name in entry.names]
IMPORTED = [name for _, name in NAMES if ": " not in name and not name.startswith("keras")]


def test_each_entry_was_read_in_the_installed_version() -> None:
    for entry in compat.PRIVATE:
        assert metadata.version(entry.package) == entry.version, f"read again: {entry.use}"
        assert entry.gain
        assert entry.names


@pytest.mark.parametrize(("entry", "name"), [pair for pair in NAMES if ": " in pair[1]])
def test_a_file_of_the_package_still_holds_the_text(entry: Private, name: str) -> None:
    path, _, text = name.partition(": ")
    files = metadata.files(entry.package) or []
    [file] = [file for file in files if str(file) == path]
    assert text in Path(str(file.locate())).read_text()


def resolve(name: str) -> Any:
    module, _, path = name.partition(":")
    value = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", IMPORTED)
def test_a_private_name_is_still_there(name: str) -> None:
    assert resolve(name)


@pytest.mark.tensorflow
def test_what_is_used_of_keras_is_still_there() -> None:
    import keras

    for _, name in NAMES:
        if ": " not in name and name.startswith("keras"):
            assert resolve(name)
    image = keras.layers.Input((2,))
    inner = keras.Model(image, keras.layers.Dense(3)(keras.layers.Dense(2)(image)))
    model = keras.Model(image, keras.layers.Dense(4)(inner(image)))
    shapes = [
        [tuple(variable.shape) for variable in compat.own_variables(layer)] for layer in compat.layers(model)
    ]
    assert sorted(shape for shape in shapes if shape) == [[(2, 2), (2,)], [(2, 3), (3,)], [(3, 4), (4,)]]
    dense: Any = compat.layers(model)[-1]
    before = [tuple(variable.shape) for variable in dense.variables]
    kind = type("Kind", (keras.layers.Dense,), {})
    compat.swap_class(dense, kind)
    after = [tuple(variable.shape) for variable in dense.variables]
    assert after == before
    assert type(dense) is kind


def test_keras_imports_without_its_optional_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in compat.OPTIONAL:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with compat.imports():
        for name in compat.OPTIONAL:
            with pytest.raises(ImportError):
                importlib.import_module(name)
    assert not set(compat.OPTIONAL) & sys.modules.keys()


def test_a_package_that_is_imported_already_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", sys)
    with compat.imports():
        assert sys.modules["scipy"] is sys
    assert sys.modules["scipy"] is sys


def test_ray_calls_what_the_local_trainer_overrides() -> None:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    fit = inspect.getsource(DataParallelTrainer.fit)
    assert "self._create_default_callbacks()" in fit
    assert "self._initialize_and_run_controller(" in fit
    assert "scaling_policy=" in fit


def test_the_local_trainer_skips_exactly_the_listed_steps() -> None:
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    trainer = compat.trainer(local=True)

    def kinds(trainer: DataParallelTrainer) -> list[type]:
        return [type(callback) for callback in trainer._create_default_callbacks()]

    everything, mine = kinds(DataParallelTrainer(lambda: None)), kinds(trainer(lambda: None))
    assert set(everything) - set(mine) == {PlacementGroupCleanerCallback, DatasetsCallback}
    assert set(mine) < set(everything)


@pytest.mark.parametrize("local", [True, False])
def test_a_trainer_leaves_ctrl_c_as_it_is(local: bool) -> None:
    before = signal.getsignal(signal.SIGINT)
    compat.trainer(local)(lambda: None)._register_sigint_handler(None)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_attribute_is_replaced_within_the_body_alone() -> None:
    class Kind:
        name = property(lambda self: "own")

    with contextlib.suppress(KeyError), compat._replaced(Kind, {"name": None}):
        assert Kind().name is None
        raise KeyError
    assert Kind().name == "own"


def test_a_deployment_keeps_the_version_it_is_given() -> None:
    from ray import serve

    made = serve.deployment(type("Replica", (), {})).options(**compat.serve_version("a" * 8))
    assert made.version == "a" * 8


def reaching(source: str) -> Iterator[int]:
    """Lines that reach for a private name of another package, swap a class or hide a module."""
    tree = ast.parse(source)
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names]
            parts = {part for name in names for part in name.split(".")}
            if any(part.startswith("_") and not part.startswith("__") for part in parts):
                yield node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute | ast.Call):
            hidden = node.attr.startswith("_") and not node.attr.startswith("__")
            own = ast.unparse(node.value) in {"self", "cls", "super()", "other", *classes}
            documented = node.attr == "_replace" or ast.unparse(node) == "os._exit"
            if (hidden and not own and not documented) or node.attr == "__class__":
                yield node.lineno
            if ast.unparse(node) == "sys.modules" and not isinstance(node.ctx, ast.Load):
                yield node.lineno
        elif isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            swaps = "setattr" in text and "'__class__'" in map(ast.unparse, node.args)
            hides = text.startswith("sys.modules.") and text != "sys.modules.get"
            keywords = any((keyword.arg or "").startswith("_") for keyword in node.keywords)
            if swaps or hides or keywords:
                yield node.lineno


def test_no_other_module_uses_a_private_name() -> None:
    files = [path for path in sorted((ROOT / "distml").rglob("*.py")) if path != COMPAT]
    assert len(files) > 100
    elsewhere = {f"{path.relative_to(ROOT)}:{line}" for path in files for line in reaching(path.read_text())}
    assert not elsewhere, "put it into distml/runtime/compat.py, with its version, its gain and a test"


@pytest.mark.parametrize(
    "line",
    [
        "from ray._private import state",
        "from ray.train.v2._internal.callbacks import datasets",
        "import ray._private.worker",
        "model._flatten_layers()",
        "layer.__class__ = Other",
        "object.__setattr__(layer, '__class__', Other)",
        "sys.modules.update(hidden)",
        "deployment.options(_internal=True)",
    ],
)
def test_every_use_of_a_private_name_is_detected(line: str) -> None:
    assert set(reaching(line)) == {1}


@pytest.mark.parametrize("line", ["self._own()", "super()._own()", "row._replace(a=1)", "sys.modules[name]"])
def test_own_private_names_are_allowed(line: str) -> None:
    assert not list(reaching(line))


async def _several_answers(scope: Any, receive: Any, send: Any) -> None:
    path, head = scope["path"], {"type": "http.response.start", "status": 200, "headers": []}
    if path == "/empty":
        head |= {"status": 204}
    if path == "/close":
        head |= {"headers": [(b"connection", b"close"), (b"content-length", b"2")]}
    await send(head)
    for part in (b"one", b"two") if path == "/stream" else ():
        await send({"type": "http.response.body", "body": part, "more_body": True})
    body = b"" if path in ("/empty", "/stream") else b"ok"
    await send({"type": "http.response.body", "body": body})


def _raw(port: int) -> list[bytes]:
    said = []
    for path in (b"/plain", b"/stream", b"/empty", b"/close"):
        for method in (b"GET", b"HEAD"):
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                # Both in one write: a second one after the server has closed would be answered by a reset.
                first = method + b" " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n"
                connection.sendall(first + b"GET /close HTTP/1.1\r\nhost: x\r\n\r\n")
                said.append(b"".join(iter(lambda: connection.recv(4096), b"")))
    return [re.sub(rb"date: [^\r]*", b"date:", part) for part in said]


def test_responses_in_one_write_are_those_of_uvicorn() -> None:
    with serving.listening(_several_answers) as port:
        before = _raw(port)
    assert all(part.count(b"HTTP/1.1 20") == (1 if index >= 6 else 2) for index, part in enumerate(before))
    compat.http_in_one_write()
    with serving.listening(_several_answers) as port:
        assert _raw(port) == before


@pytest.mark.parametrize(("dashboard", "count"), [(True, 1), (False, 3)])
def test_processes_are_left_out_of_a_ray_that_starts_meanwhile_alone(dashboard: bool, count: int) -> None:
    from ray._private.node import Node

    starts = ("start_log_monitor", "start_api_server", "start_monitor", "start_gcs_server")
    own = {name: getattr(Node, name) for name in starts}
    with compat.few_processes(dashboard):
        changed = [name for name in starts if getattr(Node, name) is not own[name]]
    assert len(changed) == count
    assert all(getattr(Node, name) is own[name] for name in starts)
