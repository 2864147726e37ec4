"""A watcher that starts anew on a real registry forgets no champion."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from distml.config import CanaryConfig, Config, ServeConfig
from distml.data.image import Policy
from distml.errors import ModelError, ServingError, TrackingError
from distml.serving import deploy
from distml.serving.models import ModelSet
from distml.serving.watch import Lost, Watch, condemned
from distml.tracking import locate
from distml.tracking import registry as champions
from tests import registered
from tests.registered import Registry

pytestmark = [
    pytest.mark.tensorflow,
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Versions 1 and 2, and version 3, whose files are not what its tag says."""
    registry = registered.make(tmp_path_factory.mktemp("watch") / "storage")
    registry.add(100)
    registry.add(120)
    registry.register(registry.folders[2], "0" * 64)
    return registry


@pytest.fixture
def registry(made: Registry) -> Registry:
    """Version 1 is champion, and was served."""
    made.clear()
    shutil.rmtree(Path(made.config.storage.root, "serving"), ignore_errors=True)
    crown(made, 1)
    watch = Watch(made.config)
    assert watch.look()
    watch.keep()
    return made


def crown(registry: Registry, version: int) -> None:
    registry.alias("champion", version)


def away(*_: Any) -> None:
    raise TrackingError("the registry does not respond.")


def test_without_the_registry_the_last_champion_is_served_but_not_confirmed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(champions, "by_alias", away)
        watch = Watch(registry.config)
        assert watch.look()
        assert (watch.models.aliases, watch.models.confirmed) == ({"champion": 1}, False)
        assert watch.files(1)
        assert watch.registry.answered_at == watch.models.asked_at > 0
        assert not watch.look()
    crown(registry, 2)
    assert watch.look()
    assert (watch.models.aliases, watch.models.confirmed) == ({"champion": 2}, True)
    assert watch.registry.answered_at >= watch.models.asked_at


def test_an_alias_in_other_letters_is_named_where_there_is_no_champion(registry: Registry) -> None:
    registry.client.delete_registered_model_alias(registered.NAME, "champion")
    registry.client.set_registered_model_alias(registered.NAME, "Champion", "2")
    try:
        with pytest.raises(ServingError, match="is champion; Champion is version 2"):
            deploy.require_champion(registry.config)
    finally:
        registry.client.delete_registered_model_alias(registered.NAME, "Champion")


def test_a_registry_without_champion_withdraws_none(registry: Registry) -> None:
    registry.client.delete_registered_model_alias(registered.NAME, "champion")
    watch = Watch(registry.config)
    assert watch.look()
    assert watch.models.aliases == {"champion": 1}
    assert watch.registry.missing == ("champion",)


def test_a_rejected_champion_leaves_the_previous_version_serving(registry: Registry) -> None:
    crown(registry, 3)
    watch = Watch(registry.config)
    assert watch.look()
    assert watch.models.aliases == {"champion": 1}
    assert [(model.version, model.alias) for model in watch.models.refused] == [(3, "champion")]


def test_a_champion_whose_files_vanish_is_reported_and_still_served(
    registry: Registry, tmp_path: Path
) -> None:
    watch = Watch(registry.config)
    assert watch.look()
    folder = registry.folders[1]
    shutil.move(folder, tmp_path / "gone")
    try:
        assert watch.look()
        assert watch.models.aliases == {"champion": 1}
        (refusal,) = watch.models.refused
        assert (refusal.version, refusal.alias) == (1, "champion")
        assert "is gone, so that no other replica can load it" in refusal.reason
    finally:
        shutil.move(tmp_path / "gone", folder)
    assert watch.look()
    assert watch.models.refused == ()


def test_a_recorded_champion_without_files_is_not_served(registry: Registry, tmp_path: Path) -> None:
    registry.client.delete_registered_model_alias(registered.NAME, "champion")
    folder = registry.folders[1]
    shutil.move(folder, tmp_path / "gone")
    try:
        watch = Watch(registry.config)
        watch.look()
        assert watch.models.digest == ""
        with pytest.raises(ModelError, match="not to be loaded"):
            watch.files(1)
    finally:
        shutil.move(tmp_path / "gone", folder)


def test_a_restarted_watcher_recovers_the_model_set_from_replicas(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    crown(registry, 2)
    before = Watch(registry.config)
    assert before.look()
    held = before.models  # never kept: the storage was away
    with monkeypatch.context() as patched:
        patched.setattr(champions, "by_alias", away)
        watch = Watch(registry.config)
        assert watch.look()
        assert watch.models.aliases == {"champion": 1}
        assert not watch.learn(ModelSet())
        assert watch.learn(held)
        assert not watch.learn(held)
        assert (watch.models.aliases, watch.models.confirmed) == ({"champion": 2}, False)
        assert watch.files(2)
    assert watch.look()
    assert not watch.learn(held)


def test_a_failed_write_of_the_record_is_retried(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    crown(registry, 2)
    watch = Watch(registry.config)
    watch.look()
    folder = Path(registry.config.storage.root, "serving")
    shutil.rmtree(folder)
    folder.write_text("in the way")
    watch.keep()
    folder.unlink()
    watch.keep()
    with monkeypatch.context() as patched:
        patched.setattr(champions, "by_alias", away)
        again = Watch(registry.config)
        again.look()
        assert again.models.aliases == {"champion": 2}


def test_a_model_never_served_gives_the_registrys_error(
    made: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.clear()
    shutil.rmtree(Path(made.config.storage.root, "serving"), ignore_errors=True)
    watch = Watch(made.config)
    assert not watch.vacant(), "the registry has not been asked"
    with monkeypatch.context() as patched:
        patched.setattr(champions, "by_alias", away)
        watch.look()
        assert not watch.vacant(), "it has not responded"
    watch.look()
    assert watch.vacant()
    crown(made, 3)
    watch.look()
    assert not watch.vacant(), "there is a champion, though its files are not to be trusted"
    crown(made, 1)
    watch.look()
    watch.keep()
    assert not watch.vacant()
    made.clear()
    again = Watch(made.config)
    again.look()
    assert not again.vacant(), "one was served before, and its replicas may hold it"


def test_a_version_without_digest_is_rejected_with_the_message_of_promote(registry: Registry) -> None:
    unsigned = registry.register(registry.folders[2], None)
    crown(registry, unsigned)
    watch = Watch(registry.config)
    watch.look()
    assert watch.models.aliases == {"champion": 1}
    (refusal,) = watch.models.refused
    assert "was registered without a SHA-256" in refusal.reason


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["dog", "cat", "bird"], "in another order"),
        (["cat", "dog", "fish"], "new: fish; gone: bird"),
    ],
)
def test_a_champion_with_other_classes_is_rejected(registry: Registry, classes: list[str], said: str) -> None:
    watch = Watch(registry.config)
    watch.look()
    version = registry.add(100, classes=classes)
    crown(registry, version)
    assert watch.look()
    assert watch.models.aliases == {"champion": 1}
    assert said in watch.models.refused[0].reason


def test_a_canary_that_takes_pictures_in_another_way_is_rejected(registry: Registry) -> None:
    canary = CanaryConfig(alias="next", percent=50)
    serve = registry.config.serve.model_copy(update={"canary": canary})
    watch = Watch(registry.config.model_copy(update={"serve": serve}))
    height, width, depth = registered.SHAPE
    policy = asdict(Policy((height, width, depth), "letterbox"))
    other = registry.add(100, policy=policy)
    registry.alias("next", other)
    assert watch.look()
    assert watch.models.aliases == {"champion": 1}
    (refusal,) = watch.models.refused
    assert (refusal.version, refusal.alias) == (other, "next")
    assert "it takes pictures by letterbox over [255, 255, 255]" in refusal.reason
    digest = watch.models.digest
    watch.look()
    assert watch.models.digest == digest
    crown(registry, other)  # as champion it has pictures fitted in its own way
    assert watch.look()
    assert watch.models.aliases == {"champion": other, "next": other}
    crown(registry, 1)
    assert watch.look()
    assert watch.models.aliases == {"champion": 1}


@pytest.mark.parametrize("role", ["canary", "shadow"])
def test_a_version_beside_a_champion_with_other_classes_is_rejected_from_the_start(
    made: Registry, role: str
) -> None:
    made.clear()
    shutil.rmtree(Path(made.config.storage.root, "serving"), ignore_errors=True)
    crown(made, 1)
    other = made.add(100, classes=["cat", "dog", "fish"])
    made.alias("next", other)
    serve: dict[str, Any] = {"canary": {"alias": "next", "percent": 5.0}, "shadow": "next"}
    watch = Watch(following(made, **{role: serve[role]}))
    watch.look()
    assert watch.models.aliases == {"champion": 1}
    (refusal,) = watch.models.refused
    assert (refusal.version, refusal.alias) == (other, "next")
    assert "new: fish; gone: bird" in refusal.reason


def test_changed_classes_are_accepted_where_configured(registry: Registry) -> None:
    serve = registry.config.serve.model_copy(update={"accept_changed_classes": True})
    watch = Watch(registry.config.model_copy(update={"serve": serve}))
    watch.look()
    crown(registry, registry.add(100, classes=["cat", "dog", "fish"]))
    assert watch.look()
    assert not watch.models.refused
    reordered = registry.add(100, classes=["fish", "dog", "cat"])
    crown(registry, reordered)
    assert watch.look()
    assert [model.version for model in watch.models.refused] == [reordered]


def test_a_watcher_that_restarts_holds_versions_against_the_champion_it_did_not_see(
    registry: Registry,
) -> None:
    """What a running watcher rejects must not be taken over because it was killed."""
    other = registry.add(100, classes=["cat", "dog", "fish"])
    crown(registry, other)
    watch = Watch(registry.config)
    assert watch.look()
    assert watch.models.aliases == {"champion": 1}
    assert [model.version for model in watch.models.refused] == [other]
    deliberate = Watch(registry.config, began=time.time() + 1)  # `distml serve` on what was served before
    assert deliberate.look()
    assert deliberate.models.aliases == {"champion": other}


def test_a_watcher_holds_versions_against_the_champion_that_replicas_serve(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    crown(registry, 2)
    before = Watch(registry.config)
    assert before.look()  # never kept
    shutil.rmtree(Path(registry.config.storage.root, "serving"))
    with monkeypatch.context() as patched:
        patched.setattr(champions, "by_alias", away)
        watch = Watch(registry.config)
        assert not watch.look()
        assert watch.learn(before.models)
    other = registry.add(100, classes=["cat", "dog", "fish"])
    crown(registry, other)
    assert watch.look()
    assert watch.models.aliases == {"champion": 2}
    assert [model.version for model in watch.models.refused] == [other]


def test_what_was_served_as_champion_is_remembered_in_order(registry: Registry) -> None:
    for version in (2, 1, 1):
        crown(registry, version)
        watch = Watch(registry.config)
        watch.look()
        watch.keep()
    served = locate.served_champions(registry.config)
    assert [champion.version for champion in served[-3:]] == [1, 2, 1]
    Path(registry.config.storage.root, "champions", registered.NAME).rename(
        Path(registry.config.storage.root, "gone")
    )
    assert locate.served_champions(registry.config) == []


def following(registry: Registry, **serve: Any) -> Config:
    section = ServeConfig.model_validate(registry.config.serve.model_dump() | serve)
    return registry.config.model_copy(update={"serve": section})


def test_a_missing_alias_fails_the_start_and_a_removed_alias_is_reported(registry: Registry) -> None:
    canary = {"alias": "challenger", "percent": 5.0}
    for serve, said in (
        ({"canary": canary}, "the alias 'challenger', which serve.canary.alias names"),
        ({"shadow": "next"}, "the alias 'next', which serve.shadow names"),
        ({"versions": [77]}, "no version 77 of pets, which serve.versions names"),
    ):
        with pytest.raises(ServingError, match=said):
            deploy.require_followed(following(registry, **serve))
    registry.alias("challenger", 2)
    config = following(registry, canary=canary)
    deploy.require_followed(config)
    watch = Watch(config)
    watch.look()
    watch.keep()
    registry.client.delete_registered_model_alias(registered.NAME, "challenger")
    watch.look()
    assert watch.registry.missing == ("challenger",)
    deploy.require_followed(config)  # it was there


def test_a_deleted_pinned_version_is_reported_and_still_served(registry: Registry) -> None:
    pinned = registry.add(110)
    watch = Watch(following(registry, versions=[pinned]))
    watch.look()
    registry.client.delete_model_version(registered.NAME, str(pinned))
    watch.look()
    assert pinned in watch.models.versions
    assert watch.registry.missing == (f"version {pinned}",)


def test_a_version_that_replicas_die_of_gives_way_to_the_one_before(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(registry.config)
    assert watch.look()
    crown(registry, 2)
    assert watch.look()
    assert not watch.lose(Lost(2, "loading", 100.0), several=False)
    assert watch.models.aliases == {"champion": 2}
    assert watch.lose(Lost(2, "loading", 110.0), several=False)
    assert watch.models.aliases == {"champion": 1}
    (refusal,) = watch.models.refused
    assert refusal.reason == (
        "2 replicas in a row died while loading it: its engine crashed, or memory ran out."
    )
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 1e6)
    assert not watch.look()
    assert watch.models.aliases == {"champion": 1}  # a load that kills is not tried again
    assert [(loss.version, loss.doing, loss.replicas) for loss in watch.losses()] == [(2, "loading", 2)]


def test_the_only_version_that_replicas_die_of_is_tried_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(registry.config)
    assert watch.look()
    held = watch.models
    assert not watch.lose(Lost(1, "loading", 100.0), several=False)
    assert watch.lose(Lost(1, "loading", 110.0), several=False)
    assert watch.models.champion is None
    assert not watch.models.withdraws(held)  # a replica that has loaded it answers on
    assert "It is tried again after 30 s." in watch.models.refused[0].reason
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 31)
    assert watch.look()
    assert watch.models.aliases == {"champion": 1}


def test_a_version_of_several_that_replicas_die_of_is_dropped_and_tried_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(registry.config)
    assert watch.look()
    held = watch.models
    for at in (100.0, 110.0):
        assert not watch.lose(Lost(1, "predicting", at), several=True)
    assert watch.lose(Lost(1, "predicting", 120.0), several=True)
    assert watch.models.champion is None
    assert watch.models.withdraws(held)
    assert "It is tried again after 30 s." in watch.models.refused[0].reason
    watch.look()
    assert watch.models.champion is None
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 31)
    assert watch.look()
    assert watch.models.aliases == {"champion": 1}
    assert not watch.models.withdrawn
    assert watch.lose(Lost(1, "predicting", 300.0), several=True)
    assert "another replica died while computing its predictions" in watch.models.refused[0].reason
    assert "It is tried again after 60 s." in watch.models.refused[0].reason


@pytest.mark.parametrize(
    ("deaths", "several", "withdrawn"),
    [
        ([Lost(1, "predicting", at) for at in (0.0, 40.0, 80.0)], True, 3),
        ([Lost(1, "predicting", at) for at in (0.0, 40.0, 80.0)], False, 0),  # the endpoint's only model
        ([Lost(1, "predicting", at) for at in (0.0, 60.0, 120.0)], True, 0),  # too far apart
        ([Lost(1, "predicting", at, alone=at > 0) for at in (0.0, 10.0, 20.0)], True, 0),
        ([Lost(1, "loading", 0.0), Lost(1, "predicting", 1.0), Lost(1, "predicting", 2.0)], True, 0),
        ([Lost(1, "loading", 0.0), Lost(2, "loading", 1.0)], True, 0),
        ([Lost(1, "loading", 0.0), Lost(1, "loading", 9.0)], False, 2),
    ],
)
def test_who_kills_busy_replicas_takes_no_version_away(
    deaths: list[Lost], several: bool, withdrawn: int
) -> None:
    assert condemned(deaths, deaths[-1], several, before=False) == withdrawn
