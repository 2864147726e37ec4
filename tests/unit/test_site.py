"""The documentation site: what is generated is complete, and the site builds strictly and loads nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from distml import cli
from distml.config import Config
from distml.runtime import environment
from docs import hooks

PAGES = sorted((hooks.ROOT / "docs").rglob("*.md"))
LOADING = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}
"""Elements that make a browser load something, and the attribute that says what."""


def test_every_marker_has_a_generator_and_every_generator_a_marker() -> None:
    marks = [name for page in PAGES for name in hooks.MARK.findall(page.read_text())]
    assert sorted(marks) == sorted(hooks.GENERATORS)


def leaves(values: dict[str, object], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_key_of_the_configuration_is_described_with_its_default() -> None:
    text = hooks.configuration()
    rows = dict(re.findall(r"^\| `([\w.]+)` \|(.*)\|$", text, re.MULTILINE))
    assert set(leaves(Config().model_dump(mode="json"))) <= set(rows)
    assert "sweep.search.space.PATH.log_uniform" in rows
    assert "number > 0 | `0.001` | Peak learning rate." in rows["train.learning_rate"]
    assert "`[1.0, 0.1, 0.01]`" in rows["train.schedule_options.factors"]
    assert '`auto`, `cpu`, `gpu` | `"auto"`' in rows["train.device"]
    assert "required" in rows["sweep.search.space"]
    assert all(row.strip().rpartition("|")[2].strip() for row in rows.values()), "a key without a meaning"


def test_every_variable_that_is_set_is_described() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+) \| (.+) \|$",
        hooks.environment_variables().partition("**Read besides**")[0],
        re.MULTILINE,
    )
    assert {name for name, _, _ in rows} == environment.NAMES
    assert ("RAY_USAGE_STATS_ENABLED", "`0`, unless it is set") in {row[:2] for row in rows}


def test_every_verb_is_described_with_its_own_arguments() -> None:
    text = hooks.commands()
    assert re.findall(r"^## ([\w-]+)$", text, re.MULTILINE) == list(cli.VERBS)
    for argument in ("`--rollback`", "`--url URL`", "`IMAGE`", "`RUN`", "`--version N`", "`--job FILE`"):
        assert argument in text
    assert "| `--train.epochs" not in text


def test_every_route_and_body_is_described() -> None:
    text = hooks.http()
    document = hooks.endpoint()
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"### `{method.upper()} {path}`" in text
    linked = set(re.findall(r"\]\(#([\w-]+)\)", text))
    assert linked
    assert {"error-429", "body-failure"} <= linked
    assert linked <= set(re.findall(r'(?:\{ #|id=")([\w-]+)', text))


def test_every_metric_is_listed() -> None:
    for name in ("distml_requests_total", "distml_request_seconds", "distml_images_waiting"):
        assert f"`{name}`" in hooks.endpoint_metrics()
    for name in ("loss", "val_loss", "test_accuracy", "samples_per_s", "time/data_wait_s"):
        assert f"`{name}`" in hooks.run_metrics()
    assert "`ray_distml_train_samples_per_s`" in hooks.training_metrics()


@pytest.mark.parametrize(
    ("uri", "link", "target"),
    [
        ("guides/data.md", "model.md", "model.md"),
        ("index.md", "../CONTRIBUTING.md", "project/contributing.md"),
        ("guides/kubernetes.md", "../../kuberay/README.md", "../project/kuberay.md"),
        ("project/contributing.md", "docs/architecture.md", "../architecture.md"),
        ("guides/model.md", "../reference/configuration.md#train", "../reference/configuration.md#train"),
    ],
)
def test_links_between_documents_become_links_between_pages(uri: str, link: str, target: str) -> None:
    assert hooks.translated(f"see [it]({link}), and [that](https://example.org/a.md)", uri) == (
        f"see [it]({target}), and [that](https://example.org/a.md)"
    )


class Loads(HTMLParser):
    """Collects what a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in LOADING and given.get(LOADING[tag]) and given.get("rel") != "canonical":
            self.urls.append(str(given[LOADING[tag]]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet: it hides warnings from the count by which --strict fails.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(hooks.ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=hooks.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def pages(nav: object) -> Iterator[str]:
    """Every page of a navigation."""
    if isinstance(nav, str):
        yield nav
    for below in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else ():
        yield from pages(below)


def test_every_page_is_built_and_filled(site: Path) -> None:
    listed = list(pages(yaml.safe_load((hooks.ROOT / "mkdocs.yml").read_text())["nav"]))
    assert {str(page.relative_to(hooks.ROOT / "docs")) for page in PAGES} <= set(listed)
    for page in listed:
        text = (site / page).with_suffix(".html").read_text()
        assert "<h1" in text, page
        assert "generate:" not in text, page
    assert 'id="train.augment"' in (site / "reference" / "configuration.html").read_text()
    assert (site / "reference" / "openapi.json").read_text().startswith("{")


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    actual = 0
    for page in site.rglob("*.html"):
        parser = Loads()
        parser.feed(page.read_text())
        actual += len(parser.urls)
        assert not [url for url in parser.urls if re.match(r"(https?:)?//", url)], page
    assert actual
    styles = [sheet.read_text() for sheet in site.rglob("*.css")]
    assert styles
    assert not [url for sheet in styles for url in re.findall(r"url\([\"']?((?:https?:)?//[^)]*)", sheet)]
