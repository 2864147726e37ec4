"""The rules of the house that a reader cannot be trusted to remember, held by reading the source.

Imports inside functions count like those on top: they load the same modules. Imports that only a type
checker sees (`if TYPE_CHECKING`) do not.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distml import cli

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "distml"

VERBS = {f"distml.{cli.MODULES.get(verb, verb)}" for verb in cli.VERBS}
COMMAND_LINE = {
    "distml.cli",
    "distml.cli.command",
    "distml.cli.flags",
    "distml.__main__",
}

NOT_FROM = {  # who must not import whom; lower layers first
    "distml.errors": ("distml",),
    "distml.config": ("distml.data", "distml.models", "distml.training", "distml.serving"),
    "distml.config.load": ("distml.config.schema", "distml.config.binding"),
    "distml.storage": ("distml.data", "distml.models", "distml.training", "distml.serving"),
    "distml.tasks": ("distml.data", "distml.models", "distml.training", "distml.serving", "distml.tracking"),
    "distml.data": ("distml.models", "distml.training", "distml.serving", "distml.tracking"),
    "distml.models": ("distml.training", "distml.serving", "distml.tracking", "distml.storage"),
    "distml.tracking": ("distml.training", "distml.serving", "distml.runtime.cluster"),
    "distml.training": ("distml.serving",),
    # Values cross processes, not clients.
    "distml.training.worker": ("distml.tracking", "distml.runtime.cluster"),
    "distml.training.step": ("distml.tracking", "distml.runtime.cluster", "distml.storage"),
    # Measuring must not cost the serving process a model or a client.
    "distml.serving.request_log": ("distml.models", "distml.training", "distml.tracking"),
    # What training leaves behind is read through `artifacts` alone, by all who score, predict or serve.
    "distml.artifacts": ("distml.training", "distml.serving", "distml.tracking", "distml.selection"),
    "distml.serving": ("distml.training",),
    "distml.selection": ("distml.serving",),
    "distml.batch": ("distml.serving", "distml.training"),
}
ABOVE = {"distml.selection.pipeline": "runs every stage, so it knows the endpoint, too"}

OWNERS = {  # heavy imports and who may make them
    "tensorflow": (
        *(
            "distml.data.feed",
            "distml.artifacts.export",
            "distml.models",
            "distml.training",
            "distml.tasks.losses",
        ),
        "distml.artifacts",
    ),
    "keras": (
        *("distml.data.feed", "distml.models", "distml.training", "distml.artifacts"),
        "distml.tasks.losses",
    ),
    "ray.train.tensorflow": (),  # imports TensorFlow in the driver and in the controller
    "tf_keras": (),
    "ai_edge_litert": ("distml.artifacts.predictor",),
    "onnxruntime": ("distml.artifacts.predictor",),
    "openvino": ("distml.artifacts.predictor",),
    "tf2onnx": ("distml.artifacts.export",),
    "mlflow": ("distml.tracking",),
}

CALL_OWNERS = {  # calls and who may make them
    "ray.init": ("distml.runtime.cluster",),
    "FileSystem.from_uri": ("distml.storage",),
    "S3FileSystem": ("distml.storage",),
    "GcsFileSystem": ("distml.storage",),
}

UNSAFE_CALLS = {
    "pickle.load",
    "pickle.loads",
    "cloudpickle.load",
    "cloudpickle.loads",
    "dill.load",
    "joblib.load",
}
UNSAFE_FLAGS = {("safe_mode", False), ("allow_pickle", True)}

NOT_NAMES = {"found", "got", "one"}
"""Names that say nothing of what they stand for: a variable is named after the thing."""
_PRIVATE = "aloud board bystander bystanders conclude entrant got journal lineup nobody room whoever"
NOT_WORDS = set(_PRIVATE.split())
"""Words that no name of a function, a class or a test has, because the field has others."""

NOT_IN_MESSAGES = re.compile(
    r"\b(goes on|going on|asks? again|is away|was away|been away|nobody|whoever|somebody|looked at"
    r"|passed over|of yours|by hand|from noise|by heart|other way round|do(es)? not answer|refuse[sd]?"
    r"|told|mend|mirrors? answers?|stands? twice|try again|is no [a-z]+ of)\b",
    re.IGNORECASE,
)
"""What errors, log lines and help texts do not say: servers respond, requests are rejected, runs resume."""

NOT_IN_TESTS = {"refused", "refuses", "said", "says", "told", "tells"}
"""Words that no name of a test has: what is rejected, reported or printed is called so."""

FUNCTION_LINES = 40
MODULES = 140
"""Modules of the package at most, `__init__` not counted."""
SINGLE_IMPORTERS = 0.25
"""Share of modules at most that a single module imports; the number may only sink."""


def modules(*folders: str) -> dict[str, Path]:
    """Dotted name and file of every module under the given folders of the repository."""
    result = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            result[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    assert result, f"no Python files under {folders}"
    return result


OURS = modules("distml")
SOURCES = modules("distml", "benchmarks")


@functools.cache
def tree(name: str) -> ast.Module:
    """The parsed source of a module."""
    return ast.parse(SOURCES[name].read_text(encoding="utf-8"))


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those in `if TYPE_CHECKING` blocks."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (node for branch in child.orelse for node in ast.walk(branch))
            continue
        yield child
        yield from executed(child)


@functools.cache
def imports(name: str) -> frozenset[str]:
    """Dotted names a module imports, `from a import b` as both a and a.b."""
    result: set[str] = set()
    package = name if OURS.get(name, Path()).name == "__init__.py" else name.rpartition(".")[0]
    for node in executed(tree(name)):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            result |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            result |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return frozenset(result)


def inside(name: str, owners: tuple[str, ...]) -> bool:
    return any(name == owner or name.startswith(f"{owner}.") for owner in owners)


def known(imported: frozenset[str]) -> set[str]:
    """The modules of ours among imported names."""
    return {name for name in imported if name in OURS and name != "distml"}


@pytest.mark.parametrize("name", OURS)
def test_verbs_import_nouns_and_never_the_reverse(name: str) -> None:
    above = VERBS | COMMAND_LINE
    if name in VERBS:
        above = VERBS - {name}
    elif name in COMMAND_LINE:
        above = VERBS
    assert not known(imports(name)) & (above - {name})


@pytest.mark.parametrize("name", OURS)
def test_lower_layers_do_not_know_higher_ones(name: str) -> None:
    for lower, higher in NOT_FROM.items():
        if inside(name, (lower,)) and name not in ABOVE:
            assert not {item for item in known(imports(name)) if inside(item, higher)}


def test_imports_have_no_cycles() -> None:
    waiting = {name: known(imports(name)) - {name} for name in OURS}
    while ready := {name for name, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {name: needs for name, needs in waiting.items() if name not in ready}
    assert not waiting


@pytest.mark.parametrize("name", OURS)
def test_heavy_imports_have_owners(name: str) -> None:
    for heavy, owners in OWNERS.items():
        taken = {item for item in imports(name) if inside(item, (heavy,))}
        assert not taken or inside(name, owners), f"{name} imports {taken}; its owners are {owners}"


@pytest.mark.parametrize("name", SOURCES)
def test_calls_have_owners_and_none_is_unsafe(name: str) -> None:
    for node in ast.walk(tree(name)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in UNSAFE_CALLS, f"{name}:{node.lineno}"
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            assert (keyword.arg, value) not in UNSAFE_FLAGS, f"{name}:{node.lineno}"
        for owned, owners in CALL_OWNERS.items():
            if name in OURS and (called == owned or called.endswith(f".{owned}")):
                assert inside(name, owners), f"{name}:{node.lineno} calls {called}"


def test_ray_init_is_not_imported_by_name() -> None:
    assert not {name for name in OURS if "ray.init" in imports(name)}


def own_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    described = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if described else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_the_root_holds_what_people_type_and_verbs_are_thin() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert len(entries) <= 30
    verbs = [PACKAGE / f"{verb}.py" for verb in cli.VERBS if verb not in cli.MODULES]
    assert len(verbs) == 8
    assert {path.name for path in verbs if len(path.read_text().splitlines()) > 40} == set()


def test_a_verb_names_the_module_that_does_its_work() -> None:
    for verb in (verb for verb in cli.VERBS if verb not in cli.MODULES):
        text = (PACKAGE / f"{verb}.py").read_text(encoding="utf-8")
        named = re.search(r"by `([a-z_.]+)`", text.splitlines()[0])
        assert named, verb
        package, _, module = f"distml.{named[1]}".rpartition(".")
        imported = rf"from {re.escape(package)} import {module}\b|from {re.escape(package)}\.{module} import "
        assert re.search(imported, text), f"{verb} does not import {named[1]}"


def test_modules_are_few_and_few_of_them_serve_a_single_importer() -> None:
    counted = [name for name, path in OURS.items() if path.name != "__init__.py"]
    importers: dict[str, set[str]] = {}
    for name in OURS:
        for imported in known(imports(name)) - {name}:
            importers.setdefault(imported, set()).add(name)
    for name, path in OURS.items():  # what a package hands on is imported by those who import the package
        if path.name == "__init__.py":
            for imported in known(imports(name)) - {name}:
                importers[imported] |= importers.get(name, set())
    single = sorted(name for name in counted if len(importers.get(name, ())) == 1)
    assert len(counted) <= MODULES, "merge what is one subject"
    assert len(single) <= SINGLE_IMPORTERS * len(counted), single


def test_text_files_are_utf_8_in_any_locale() -> None:
    wrong = []
    for name in modules("distml"):
        for node in ast.walk(tree(name)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            given = len(node.args) + len(node.keywords)
            if (node.func.attr, given) in (("read_text", 0), ("write_text", 1)):
                wrong.append(f"{name}:{node.lineno} {node.func.attr}")
    assert not wrong, "without an encoding, a file is read as the locale of the machine says"


def test_functions_are_short() -> None:
    long = {
        f"{name}.{node.name}": own_lines(node)
        for name in SOURCES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and own_lines(node) > FUNCTION_LINES
    }
    assert not long


def test_names_say_what_the_thing_is() -> None:
    empty, private = [], []
    for name, path in modules("distml", "benchmarks", "tests").items():
        for node in ast.walk(tree(name) if name in SOURCES else ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                words = set(node.name.lower().split("_"))
                if NOT_WORDS & words or (node.name.startswith("test_") and NOT_IN_TESTS & words):
                    private.append(f"{name}:{node.lineno} {node.name}")
            elif isinstance(node, ast.arg | ast.Name):
                given = node.arg if isinstance(node, ast.arg) else node.id
                if given in NOT_NAMES:
                    empty.append(f"{name}:{node.lineno} {given}")
    assert not empty, "name each after what it holds"
    assert not private, "style: the words of the field"


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Texts that people read: of errors, of log calls, and of help."""
    levels = {"debug", "info", "warning", "error", "exception", "critical", "log"}
    for node in ast.walk(tree):
        shown: list[ast.expr] = []
        if isinstance(node, ast.Raise) and node.exc is not None:
            shown = [node.exc]
        elif isinstance(node, ast.keyword) and node.arg == "help":
            shown = [node.value]
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            shown = node.args if called in levels | {"problem", "Check", "Choice", "Line"} else []
        for part in (part for expression in shown for part in ast.walk(expression)):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.lineno, part.value


def test_messages_use_the_terms_of_the_field() -> None:
    private = {
        f"{name}:{line} {text}"
        for name in OURS
        for line, text in messages(tree(name))
        if NOT_IN_MESSAGES.search(text)
    }
    assert not private, "style: the words of the field"


IMPORTING = """
import importlib, json, logging, os, sys
def state():
    root = logging.getLogger()
    return [dict(os.environ), repr(root.handlers), root.level, repr(logging.getLogger("distml").handlers),
            os.getcwd()]
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
heavy = sorted({"tensorflow", "keras", "tf_keras", "mlflow"} & set(sys.modules))
print(json.dumps([heavy, before == state()]))
"""


@pytest.mark.parametrize("nouns", [["distml"], sorted(name for name in OURS if name.count(".") == 1)])
def test_importing_does_nothing(tmp_path: Path, nouns: list[str]) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-B", "-c", IMPORTING, *nouns]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [[], True]
    assert ran.stderr == ""
    assert not list(tmp_path.rglob("*"))


# Written without their dots, for this file is read too.
_SPELT = "pypi org,pythonhosted org,npmjs org,crates io,golang org,maven org,deb debian org,conda org"
HOSTS = [host.replace(" ", ".") for host in _SPELT.split(",")]
GENERATED = {"distml-data", "build", "dist", "node_modules"}


def committed() -> Iterator[Path]:
    """Every file of ours, whatever its kind."""
    for folder, folders, names in os.walk(ROOT):
        hidden = {name for name in folders if name.startswith(".") and name != ".ci"}
        folders[:] = [name for name in folders if name not in hidden | GENERATED | {"__pycache__"}]
        yield from (Path(folder) / name for name in names)


def test_the_top_level_holds_nothing_left_over() -> None:
    folders = {"benchmarks", "configs", "distml", "docs", "kuberay", "notebooks", "requirements", "tests"}
    files = {"CHANGELOG.md", "CONTRIBUTING.md", "Dockerfile", "LICENSE", "Makefile", "README.md"}
    settings = {"mkdocs.yml", "pyproject.toml"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    paths = tracked.stdout.split("\n")[:-1] or [str(path.relative_to(ROOT)) for path in committed()]
    entries = {path.split("/")[0] for path in paths}
    assert {name for name in entries if not name.startswith(".")} == folders | files | settings


def test_no_file_names_a_package_registry() -> None:
    files = list(committed())
    assert {"pyproject.toml", "run", "cpu.txt"} <= {path.name for path in files}
    named = {
        (str(path.relative_to(ROOT)), host)
        for path in files
        for host in HOSTS
        if path.stat().st_size < 10_000_000 and host.encode() in path.read_bytes()
    }
    assert not named


def test_requirements_are_pinned_by_hash_and_hold_no_address() -> None:
    files = sorted((ROOT / "requirements").glob("*.txt"))
    assert {path.stem for path in files} == {
        "bench",
        "cpu",
        "gpu",
        "image-build",
        "image-cpu",
        "image-gpu",
        "peers",
        "uv",
    }
    for path in files:
        text = path.read_text()
        assert "://" not in text
        blocks = text.replace("\\\n", " ").splitlines()
        assert blocks
        assert all("==" in block and "--hash=sha256:" in block for block in blocks)


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_a_machine_gets_one_tensorflow_at_most(extra: str) -> None:
    lines = (ROOT / "requirements" / f"{extra}.txt").read_text().splitlines()
    actual = [line.rstrip(" \\") for line in lines if line.startswith(("tensorflow==", "tensorflow-cpu=="))]
    if extra == "gpu":
        assert actual == ["tensorflow==2.21.0 ; sys_platform == 'linux'"]
    else:
        assert actual == [
            "tensorflow==2.21.0 ; platform_machine != 'x86_64' or sys_platform != 'linux'",
            "tensorflow-cpu==2.21.0 ; platform_machine == 'x86_64' and sys_platform == 'linux'",
        ]
