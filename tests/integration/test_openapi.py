"""The description is true: every route answers as it says, whatever is sent."""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import jsonschema_rs
import schemathesis

from distml.config import ServeConfig
from distml.serving import openapi
from distml.serving.application import application
from tests import malformed, serving

pytest_plugins = ["schemathesis.pytest.plugin"]  # every process would import it first
APP = application(serving.core(), ServeConfig(allowed_hosts=["testserver"]))
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)
DOCUMENT: dict[str, Any] = SCHEMA.raw_schema
_VERSIONS = ("", "/versions/{version}")
_LABELS = (*_VERSIONS, "/labels/{label}")
PATHS = {
    "/explain",
    *("/predict", "/predict/image", "/model", "/healthz", "/readyz", "/metrics"),
    *("/v2", "/v2/health/live", "/v2/health/ready", "/v1/models", "/v2/models", "/v2/models/stats"),
    "/v2/repository/index",
    *(f"/v1/models/{{name}}{part}{end}" for part in _LABELS for end in ("", "/metadata", ":predict")),
    *(
        f"/v2/models/{{name}}{part}{end}"
        for part in _VERSIONS
        for end in ("", "/ready", "/infer", "/config", "/stats")
    ),
}


@SCHEMA.parametrize()
@hypothesis.settings(max_examples=12, deadline=None, derandomize=True, database=None)
def test_every_response_is_described_in_openapi(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(excluded_checks=[schemathesis.checks.positive_data_acceptance])


def test_every_route_is_described() -> None:
    assert set(DOCUMENT["paths"]) == PATHS
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], path
            assert operation["description"], path
            assert operation["tags"], path
            assert ("requestBody" in operation) == (method == "post")


def test_the_examples_of_the_description_are_accepted() -> None:
    shown = 0
    for path, operations in DOCUMENT["paths"].items():
        for kind, content in operations.get("post", {}).get("requestBody", {}).get("content", {}).items():
            for example in content.get("examples", {}).values():
                url = path.format(name=serving.NAME, version=5, label="champion")
                response = (
                    SCHEMA[url if url in DOCUMENT["paths"] else path]["POST"]
                    .Case(
                        path_parameters={"name": serving.NAME, "version": "5", "label": "champion"},
                        body=example["value"],
                        media_type=kind,
                    )
                    .call()
                )
                assert response.status_code == 200, (path, response.text)
                shown += 1
    assert shown >= 8


def test_the_shape_of_an_image_is_exact() -> None:
    image = DOCUMENT["components"]["schemas"]["Image"]
    validator = jsonschema_rs.validator_for(image)
    assert validator.is_valid(malformed.IMAGE)
    assert validator.is_valid(openapi.example(serving.SHAPE))
    for wrong in (malformed.IMAGE[:3], [*malformed.IMAGE[:3], [0] * 6], [[0.5] * 5] * 4, [[256] * 5] * 4):
        assert not validator.is_valid(wrong)
    colour = openapi.image((2, 3, 3))
    assert jsonschema_rs.validator_for(colour).is_valid(openapi.example((2, 3, 3)))


def test_names_and_versions_are_those_of_the_loaded_models() -> None:
    parameters = DOCUMENT["paths"]["/v2/models/{name}/versions/{version}/infer"]["post"]["parameters"]
    assert parameters[0]["schema"] == {"type": "string", "enum": ["pets"]}
    # Not an enumeration: a client generated today has to be able to name tomorrow's champion.
    version = {"type": "string", "pattern": "^[0-9]{1,18}$", "examples": ["7", "5"]}
    assert parameters[1]["schema"] == version


def test_the_description_exists_before_the_first_model() -> None:
    general = openapi.specialise(APP.openapi(), [], {})
    assert json.dumps(general)
    assert set(general["paths"]) == PATHS
