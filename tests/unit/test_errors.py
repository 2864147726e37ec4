"""Errors cross Ray's process boundaries: every one of them keeps its class, sentence and remedy."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil

import pytest

import distml
from distml.errors import ConfigError, DistmlError


def family(base: type[DistmlError]) -> list[type[DistmlError]]:
    return [base, *(below for child in base.__subclasses__() for below in family(child))]


for package in pkgutil.walk_packages(distml.__path__, "distml."):
    if package.name.startswith(("distml.data.", "distml.errors")) and not package.name.endswith(".feed"):
        importlib.import_module(package.name)
FAMILY = family(DistmlError)


def test_every_error_class_is_tested() -> None:
    names = {error.__name__ for error in FAMILY}
    assert names >= {
        *("ConfigError", "DataError", "StorageError", "ResourceError", "TrainingError", "TrackingError"),
        *("CheckpointError", "ModelError", "UnavailableError"),
    }


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("given", [("it broke.", "Mend it."), ("it broke.",)])
def test_an_error_survives_pickling_with_its_fields(kind: type[DistmlError], given: tuple[str, ...]) -> None:
    error = kind(*given)
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(again) is kind
        assert (again.message, again.remedy) == (error.message, error.remedy)
        assert str(again) == str(error) == " ".join(given)


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_only_configuration_errors_exit_2(kind: type[DistmlError]) -> None:
    assert kind.exit_code == (2 if issubclass(kind, ConfigError) else 1)
