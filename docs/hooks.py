"""Fills the reference pages from the source when MkDocs builds the site; nothing generated is committed.

A page holds `<!-- generate: NAME -->` where the text of `GENERATORS[NAME]` goes. Documents of the repository
that are not in this folder (`PAGES`) become pages of the site, and links between documents are written for
the repository, so that they work on a code host, too: they are translated here.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from distml import cli
from distml.config import Config, ServeConfig

ROOT = Path(__file__).parents[1]
PAGES = {
    "project/benchmarks.md": "benchmarks/README.md",
    "project/changelog.md": "CHANGELOG.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/kuberay.md": "kuberay/README.md",
}
"""Pages of the site that are documents elsewhere in the repository."""
MARK = re.compile(r"^<!-- generate: ([a-z-]+) -->$", re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s#:]+\.md)((?:#[^)\s]*)?\))")
Schema = Mapping[str, Any]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents of other folders and the endpoint's description."""
    for uri, path in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "reference/openapi.json", content=json.dumps(endpoint(), indent=1)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Translate the links of a page and fill in what is generated."""
    uri = page.file.src_uri
    return MARK.sub(lambda mark: GENERATORS[mark[1]](), translated(markdown, uri))


def translated(markdown: str, uri: str) -> str:
    """Turn links between documents of the repository into links between pages of the site."""
    source = PAGES.get(uri, f"docs/{uri}")
    sites = {path: page for page, path in PAGES.items()}

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        target = sites.get(path, path.removeprefix("docs/"))
        return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(uri) or '.')}{match[3]}"

    return LINK.sub(link, markdown)


# Tables.


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table; cells lose their line breaks."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(' '.join(cell.split()) for cell in line)} |" for line in lines) + "\n"


def code(text: str) -> str:
    """Format words as code, with an alternative's bar escaped for a table."""
    return f"`{text}`".replace("|", "\\|") if text else ""


# Configuration.


def configuration() -> str:
    """Describe every key of the configuration, section by section."""
    schema = Config.model_json_schema()
    return "\n".join(_section(schema, schema["$defs"], Config().model_dump(mode="json"), "", 2))


def _section(schema: Schema, sections: Schema, defaults: Any, path: str, level: int) -> Iterator[str]:
    """Title, table and the sections below; `path` is empty for the configuration itself.

    `defaults` has the section's values of an empty configuration; None where it is absent from one.
    """
    defaults = defaults or {}
    if path:
        yield f"{'#' * level} {path} {{ #{path.lower()} }}\n\n{schema['description']}\n"
    required = schema.get("required", ())
    below: list[tuple[str, str, Schema]] = []
    rows = []
    for key, field in schema["properties"].items():
        inner, suffix = _inner(field)
        if inner:
            below.append((key, f"{path}.{key}{suffix}".lstrip("."), sections[inner]))
        if not inner or suffix or "anyOf" in field:
            default = code(json.dumps(defaults.get(key, field.get("default"))))
            default = "required" if key in required else default
            rows.append([code(f"{path}.{key}"), _kind(field), default, field.get("description", "")])
    if path and rows:
        yield table(["key", "value", "default", "meaning"], rows)
    for key, name, section in below:
        yield from _section(section, sections, defaults.get(key), name, level + bool(path))


def _inner(field: Schema) -> tuple[str | None, str]:
    """Name of the section that a field holds, and what follows the field's path there."""
    for option in (field, *field.get("anyOf", ())):
        if "$ref" in option:
            return option["$ref"].rpartition("/")[2], ""
    values = field.get("additionalProperties")
    if isinstance(values, Mapping) and "$ref" in values:
        return values["$ref"].rpartition("/")[2], ".PATH"
    return None, ""


_WORDS = {"boolean": "`true` or `false`", "integer": "whole number", "null": "`null`", "string": "text"}
_BOUNDS = {  # JSON schema's names, and those that pydantic leaves where a validator stands before
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "ge": "≥",
    "gt": ">",
    "le": "≤",
    "lt": "<",
}


def _kind(field: Schema) -> str:
    """Say which values a field takes."""
    if "anyOf" in field:
        return " or ".join(_kind(option) for option in field["anyOf"])
    if "$ref" in field:
        return "a section"
    if "const" in field or "enum" in field:
        return ", ".join(code(str(value)) for value in field.get("enum", [field.get("const")]))
    kind = field.get("type", "any value")
    if kind == "array":
        several = field.get("prefixItems", ())
        return f"[{', '.join(map(_kind, several)) if several else _kind(field.get('items', {})) + ', …'}]"
    if kind == "object":
        return "mapping"
    bounds = [f"{sign} {field[name]:,}" for name, sign in _BOUNDS.items() if name in field]
    return f"{_WORDS.get(kind, kind)} {' and '.join(bounds)}".strip()


# Command line.


def described(verb: str) -> str:
    """Return the docstring that shows examples of a verb: that of its function or of its module."""
    module = importlib.import_module(f"distml.{cli.MODULES.get(verb, verb)}")
    shown = getattr(module, verb.replace("-", "_")) if verb in cli.MODULES else module
    return inspect.getdoc(shown) or ""


def commands() -> str:
    """Describe every verb: what it does, its own arguments, examples."""
    return "\n".join(_command(verb) for verb in cli.VERBS)


_COMMON = ("help", "config", "print_config")
_EVERYWHERE = re.compile(r"\[(?:-h|--config FILE|--print-config|--version)\]")
_EXAMPLE = re.compile(r"(?:[A-Z_]+=\S* )?(?:python -m )?distml[. ]")


def _command(verb: str) -> str:
    made = cli.parser(verb)
    own = [
        action
        for action in made.actions()
        if action.dest not in _COMMON and "." not in action.dest and not _prints_version(action)
    ]
    usage = " ".join(_EVERYWHERE.sub("", made.format_usage().removeprefix("usage: ")).split())
    does = cli.VERBS[verb]
    text = f"## {verb}\n\n{does[0].upper()}{does[1:]}.\n\n```text\n{usage}\n```\n"
    if own:
        text += "\n" + table(["argument", "meaning"], [_argument(action) for action in own])
    if shown := examples(described(verb)):
        text += "\n" + table(["example", ""], [[code(command), does] for command, does in shown])
    return text


def examples(doc: str) -> list[tuple[str, str]]:
    """Commands that the docstring of a verb's module shows, and what each does."""
    lines = [line for line in doc.splitlines() if _EXAMPLE.match(line) and "[" not in line]
    parts = [[*re.split(r" {2,}", line, maxsplit=1), ""] for line in lines]
    return [(part[0], part[1]) for part in parts]


def _prints_version(action: argparse.Action) -> bool:
    return action.dest == "version" and action.nargs == 0


def _argument(action: argparse.Action) -> list[str]:
    words = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    value = "" if action.nargs == 0 or not action.option_strings else f" {action.metavar or 'VALUE'}"
    help_ = str(action.help or "")
    if action.choices:
        help_ = f"{', '.join(map(str, action.choices))}; {help_}"
    if action.default not in (None, False, [], argparse.SUPPRESS) and "default" not in help_:
        help_ += f" (default: {action.default})"
    return [code(words + value), help_]


# HTTP.


def endpoint() -> dict[str, Any]:
    """Return the OpenAPI description of an endpoint that has not loaded a model."""
    from distml.serving import openapi
    from distml.serving.application import application
    from distml.serving.batching import Core

    config = ServeConfig()
    return openapi.specialise(application(Core(config), config).openapi(), [], {})


def http() -> str:
    """Describe every route of the endpoint, protocol by protocol."""
    document = endpoint()
    tags: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tags.setdefault(operation["tags"][0], []).append(_operation(path, method, operation))
    text = "\n".join(f"## {tag}\n\n" + "\n".join(parts) for tag, parts in tags.items())
    schemas = document["components"]["schemas"]
    bodies = [
        _body(name, schema) for name, schema in sorted(schemas.items(), key=lambda pair: _title(pair[0]))
    ]
    errors = f"The body of an error is [Failure](#{_anchor('Failure')}).\n\n{_errors(document)}"
    return f"{text}\n## Errors\n\n{errors}\n## Bodies\n\n" + "\n".join(bodies)


def _title(name: str) -> str:
    """Name of a schema; pydantic puts the module before names that two modules use."""
    parts = name.split("__")
    return name if len(parts) == 1 else f"{parts[-1]} ({parts[-2]})"


def _anchor(name: str) -> str:
    return "body-" + name.lower().replace("_", "-")


def _operation(path: str, method: str, operation: Schema) -> str:
    text = f"### `{method.upper()} {path}`\n\n{operation['description']}\n\n"
    if body := operation.get("requestBody"):
        kinds = [f"- {code(kind)}: {_shape(media['schema'])}" for kind, media in body["content"].items()]
        text += "Body:\n\n" + "\n".join(kinds) + "\n\n"
    for status, response in operation["responses"].items():
        if status < "400":
            shapes = [_content(kind, media) for kind, media in response.get("content", {}).items()]
            text += f"Response {status}: {' or '.join(shapes) or response['description']}\n\n"
    errors = [f"[{status}](#error-{status})" for status in operation["responses"] if status >= "400"]
    return text + (f"Errors: {', '.join(errors)}\n" if errors else "")


def _content(kind: str, content: Schema) -> str:
    return f"{code(kind)} {_shape(content.get('schema', {}))}"


def _errors(document: Schema) -> str:
    """List what the statuses of errors mean; the route that comes first describes one."""
    meanings: dict[str, str] = {}
    for operations in document["paths"].values():
        for operation in operations.values():
            errors = {
                status: response for status, response in operation["responses"].items() if status >= "400"
            }
            meanings = {status: response["description"] for status, response in errors.items()} | meanings
    rows = [[f'<span id="error-{status}">{status}</span>', meanings[status]] for status in sorted(meanings)]
    return table(["status", "when"], rows)


def _body(name: str, schema: Schema) -> str:
    text = f"### {_title(name)} {{ #{_anchor(name)} }}\n\n{schema.get('description', '')}\n\n"
    required = schema.get("required", ())
    rows = [
        [code(key), _shape(field), "yes" if key in required else "", field.get("description", "")]
        for key, field in schema.get("properties", {}).items()
    ]
    return text + (table(["member", "value", "required", "meaning"], rows) if rows else "")


def _shape(schema: Schema) -> str:
    """Say what a JSON value is, with links to the bodies it refers to."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{_title(name)}](#{_anchor(name)})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_shape(option) for option in schema[several]))
    if "const" in schema or "enum" in schema:
        return ", ".join(code(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_shape(schema.get('items', {}))}"
    if kind == "object" and schema.get("properties"):
        members = [f"{code(key)}: {_shape(field)}" for key, field in schema["properties"].items()]
        return "object with " + ", ".join(members)
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_shape(schema['additionalProperties'])}"
    return "a file" if schema.get("format") == "binary" else str(kind or "any value")


# Metrics.


def endpoint_metrics() -> str:
    """List what the endpoint's `/metrics` counts."""
    from distml.serving.metrics import Metrics

    rows = []
    for family in Metrics().families():
        name = family.name + "_total" * (family.type == "counter")
        rows.append([code(name), family.type, family.documentation])
    return table(["metric", "kind", "meaning"], rows)


def run_metrics() -> str:
    """List the metrics of a run in MLflow and TensorBoard."""
    from distml.training import metrics

    rows = []
    for metric in metrics.CATALOGUE:
        prefixes = ["", *(f"{prefix}_" for prefix in metrics.HELD_OUT.values() if metric.held_out)]
        name = metrics.record_name(metric.name)
        unit = f"{metric.unit} {f'({metric.better} is better)' if metric.better else ''}"
        named = ", ".join(code(f"{prefix}{name}") for prefix in prefixes)
        rows.append([named, unit, _WHEN[metric.when], metric.help])
    return table(["metric", "unit", "measured", "meaning"], rows)


_WHEN = {"steps": "log step, epoch", "epoch": "epoch", "result": "end of the run"}


def training_metrics() -> str:
    """List what training writes to Ray's metrics."""
    from distml.training.observers import exporters

    rows = [[code(f"ray_distml_train_{name}"), meaning] for name, meaning in exporters.GAUGES.items()]
    return table(["metric", "meaning"], rows)


# Models and environment.


def models() -> str:
    """List the backbones with what they cost."""
    from distml.models.backbones import BACKBONES

    rows = [
        [
            code(name),
            f"{backbone.parameters / 1e6:.1f}",
            f"{backbone.gflops:g}",
            str(backbone.image_size),
            str(backbone.min_size),
        ]
        for name, backbone in sorted(BACKBONES.items(), key=lambda pair: pair[1].gflops)
    ]
    return table(["`model.name`", "million parameters", "GFLOPs an image", "image size", "least size"], rows)


def environment_variables() -> str:
    """List the environment variables that distml sets, group by group."""
    from distml.runtime import environment

    text = ""
    for group in environment.GROUPS.values():
        rows = [[code(variable.name), _value(variable), variable.why] for variable in group.variables]
        text += f"**Process:** {group.process}. **Put back:** {group.put_back}.\n\n"
        text += table(["variable", "value", "why"], rows) + "\n"
    text += "**Read besides**, where you set it; `distml doctor` prints what is set.\n\n"
    settings = [
        [", ".join(map(code, setting.names)), setting.reader, setting.effect, setting.why]
        for setting in environment.USER_SETTINGS
    ]
    return text + table(["variables and files", "read by", "what you set is", "which means"], settings) + "\n"


def _value(variable: Any) -> str:
    value = variable.value.strip("<>") if variable.computed else code(variable.value)
    return f"{value}, unless it is set" if variable.default else value


GENERATORS: Mapping[str, Callable[[], str]] = {
    "configuration": configuration,
    "commands": commands,
    "http": http,
    "endpoint-metrics": endpoint_metrics,
    "environment": environment_variables,
    "models": models,
    "run-metrics": run_metrics,
    "training-metrics": training_metrics,
}
"""What fills the marks of the pages, by the name in the mark."""
