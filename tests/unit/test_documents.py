"""Commands and code in the documents work: every block is collected and checked."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
import yaml

from distml import api, cli
from distml.cli.commands import validate
from distml.config import Config, load
from docs import hooks
from tests.documents import DOCUMENTS, ROOT, Block, blocks, commands, heredocs, spans

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
VARIABLES = set(re.findall(r"^([A-Z]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE))
STAGES = set(re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
BLOCKS = [block for path in DOCUMENTS for block in blocks(path)]
FOREIGN = {"argo", "cd", "iptables", "jq", "mlflow", "pip", "ray"}
"""Programs of others whose arguments are not looked at."""
LANGUAGES = {"json", "python", "sh", "text", "yaml"}
PLACEHOLDERS = {
    "FILE": "configs/smoke.yaml",
    "RUN": "fashion-mnist",
    "NAME": "fashion-mnist",
    "N": "1",
    "IMAGE…": "shirt.png",
    "URI": "photos/",
    "URL": "http://127.0.0.1:8000",
    "FOLDER": "photos/",
    "http://HOST:8000": "http://127.0.0.1:8000",
    "…": "",
}
"""What a reader puts in the place of a word in capitals."""
FOREIGN_FLAGS = {"--again", "--allowed-hosts", "--app-name", "--from-literal", "--target"}
"""Flags of other programs that stand alone in a document."""


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_logging: None) -> None:
    """A reader's folder: the checkout, and nothing written into it."""
    for name in ("configs", "docs", "kuberay", "requirements"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@functools.cache
def flags() -> set[str]:
    parsers = [cli.parser(verb) for verb in cli.VERBS]
    return {flag for parser in parsers for action in parser.actions() for flag in action.option_strings}


@functools.cache
def routes() -> list[str]:
    paths = [*hooks.endpoint()["paths"], "/", "/openapi.json"]
    return [re.sub(r"\{\w+\}", "[^/]+", path) for path in paths]


def save_titled(path: Path) -> None:
    """Save the blocks of a document that have a file name."""
    for block in blocks(path):
        if block.title:
            Path(block.title).write_text(block.text)
    importlib.invalidate_caches()


def test_there_are_documents_with_blocks_of_every_kind() -> None:
    names = {str(path.relative_to(ROOT)) for path in DOCUMENTS}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "kuberay/README.md", "docs/tutorial.md"} <= names
    for language in LANGUAGES - {"json"}:
        assert len(of(language)) >= 4, language


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_names_its_language(block: Block) -> None:
    assert block.language in LANGUAGES


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_a_yaml_block_is_a_configuration(block: Block) -> None:
    save_titled(block.path)
    values = load.parse_yaml(block.text)
    assert validate(Config.resolve(values))["digest"]


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_a_python_block_compiles_and_uses_existing_names(block: Block) -> None:
    for node in ast.walk(compile(block.text, str(block), "exec", ast.PyCF_ONLY_AST)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("distml"):
            module = importlib.import_module(str(node.module))
            assert not [name.name for name in node.names if not named(module, name.name)]
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("api."):
            function = getattr(api, ast.unparse(node.func).removeprefix("api."))
            inspect.signature(function).bind(
                *node.args, **{str(keyword.arg): keyword for keyword in node.keywords}
            )


def named(module: ModuleType, name: str) -> bool:
    """Whether a module has a name, or a module below it."""
    return hasattr(module, name) or find_spec(f"{module.__name__}.{name}") is not None


@pytest.mark.parametrize("block", of("sh"), ids=str)
def test_every_command_of_a_shell_block_is_accepted(
    block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_titled(block.path)
    typed = list(commands(block.text))
    assert typed
    for command in typed:
        check(command, monkeypatch, capsys)
    for text in heredocs(block.text):
        assert {"apiVersion", "kind", "metadata", "spec"} <= set(yaml.safe_load(text))


def check(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Check one command as far as that needs nothing started."""
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    program, *rest = words
    if program.endswith("python") and rest[:1] == ["-m"] and rest[1].startswith("distml"):
        verb = rest[1].removeprefix("distml").removeprefix(".")
        program, rest = "distml", [*([verb] if verb else []), *rest[2:]]
    if program == "distml":
        return accept(rest, monkeypatch, capsys)
    if program == "make":
        return make(rest, monkeypatch, capsys)
    checks: dict[str, Callable[[list[str]], None]] = {
        "curl": curl, "kubectl": kubectl, "docker": docker, "python": script, ".": activate,
        ".venv/bin/pre-commit": lambda rest: None,
    }  # fmt: skip
    if program in checks:
        return checks[program](rest)
    assert program in FOREIGN, f"{program} is not known to this test"
    return None


def accept(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Have the verb read its command line, and stop before it does anything."""
    words = [word for word in words if word != "--help"]
    monkeypatch.setattr(sys, "argv", ["distml", *words, "--print-config"])
    code = cli.entry()
    assert code == 0, f"distml {' '.join(words)}: {capsys.readouterr().err}"
    assert yaml.safe_load(capsys.readouterr().out)["run"]["name"]


def make(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given = dict(word.split("=", 1) for word in words if "=" in word)
    targets = [word for word in words if "=" not in word]
    assert set(targets) <= TARGETS
    assert set(given) <= VARIABLES
    assert Path(given.get("CONFIG", "configs/smoke.yaml")).is_file()
    for target in set(targets) & {"train", "serve"}:
        accept([target, *given.get("ARGS", "").split()], monkeypatch, capsys)


def curl(words: list[str]) -> None:
    url = urlsplit(next(word for word in words if word.startswith("http")))
    assert url.hostname == "127.0.0.1"
    assert any(re.fullmatch(route, url.path) for route in routes()), url.path


def kubectl(words: list[str]) -> None:
    for flag, value in itertools.pairwise(words):
        if flag in ("-k", "-f") and value != "-":
            assert Path(value).exists(), value


def docker(words: list[str]) -> None:
    assert words[words.index("--target") + 1] in STAGES


def script(words: list[str]) -> None:
    if words[0] == "-m":
        assert find_spec(words[1]), words[1]
    else:
        assert Path(words[0]).is_file(), words[0]


def activate(words: list[str]) -> None:
    assert words == [".venv/bin/activate"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_inline_commands_are_accepted(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for span in spans(path):
        if re.match(r"(… )?--[a-z]", span):
            given = {word.split("=")[0] for word in span.split() if word.startswith("--")}
            assert given <= flags() | FOREIGN_FLAGS, span
        elif re.match(r"(distml|python -m distml) [a-z]", span) or re.match(r"python -m distml\.[a-z]", span):
            words = [PLACEHOLDERS.get(word, word) for word in next(commands(span))]
            if words[0] == "distml" and len(words) == 2:
                assert words[1] in cli.VERBS, span
                continue
            check([word for word in words if word], monkeypatch, capsys)
        elif match := re.match(r"make ([a-z-]+)", span):
            assert match[1] in TARGETS, span


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_examples_of_a_verb_are_accepted(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, _ in hooks.examples(hooks.described(verb)):
        check([PLACEHOLDERS.get(word, word) for word in next(commands(command))], monkeypatch, capsys)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_file_names_exist(path: Path) -> None:
    text = path.read_text()
    shown = "\n".join([*spans(path), *(block.text for block in blocks(path))])
    named = re.findall(
        r"\b((?:configs|docs|requirements|benchmarks|tests|distml|kuberay)/[\w./-]+\.\w+)", shown
    )
    links = [link for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) if "://" not in link]
    generated = {"openapi.json"}
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in links if not (path.parent / link).exists() and link not in generated]
    assert not missing


def test_the_readme_shows_the_two_commands_and_the_figures_first() -> None:
    top = (ROOT / "README.md").read_text().splitlines()[:40]
    assert any(line.startswith("make train") for line in top)
    assert any(line.startswith("make test") for line in top)
    assert any(line.startswith("## Measured") for line in top)


def test_every_make_target_with_a_description_is_declared_phony() -> None:
    text = (ROOT / "Makefile").read_text()
    described = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    assert described == set(phony[1].split())


def test_the_workflow_runs_the_landing_check_with_pinned_actions() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"].split()[-1] for step in steps if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").is_file()
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used)


def test_the_architecture_names_every_package_and_only_what_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    packages = {path.parent.name for path in (ROOT / "distml").glob("*/__init__.py")}
    named = set(re.findall(r"^\| `([\w]+)/`", text, re.MULTILINE))
    assert named == packages
    modules = re.findall(r"`([\w/]+\.py)`", text)
    assert modules
    assert not [name for name in modules if not ((ROOT / "distml" / name).exists() or (ROOT / name).exists())]


def said() -> str:
    """Every text constant of the package, parts of f-strings too."""
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "distml").rglob("*.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return "\n".join(node.value for node in nodes if isinstance(node.value, str))


def test_the_messages_of_the_troubleshooting_page_exist() -> None:
    page = ROOT / "docs" / "guides" / "troubleshooting.md"
    cells = re.findall(r"^\| (?:400 with )?`([^|]+)` \|", page.read_text(), re.MULTILINE)
    parts = [part.strip() for cell in cells for part in cell.split("…")]
    messages = [part for part in parts if len(part) > 10 and " " in part]
    assert len(messages) >= 15
    text = said()
    assert not [message for message in messages if message not in text]
