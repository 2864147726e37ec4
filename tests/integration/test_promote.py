"""Promotion against a real registry: models measured, not believed; files verified; aliases moved or left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distml import cli, promote
from distml.artifacts import layout
from distml.artifacts.layout import EXAMPLE, MODEL, write_digests
from distml.artifacts.predictor import Predictor
from distml.config import Config, load
from distml.data import ingestion
from distml.selection import alias
from distml.selection.record import Sweep
from distml.storage import Storage
from distml.tracking import locate
from distml.tracking import registry as aliases
from tests import registered
from tests.mlflow_server import new_database
from tests.registered import Registry

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.timeout(240),
    pytest.mark.usefixtures("plain_logging"),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
WEAK, GOOD, BETTER, CRAMMED = 1, 2, 3, 4
"""Versions by how good they are on validation rows; the last is always right on test rows."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    result = registered.make(tmp_path_factory.mktemp("promote") / "storage")
    for number, threshold in enumerate((100, 150, 160), 1):
        assert result.add(threshold, run=f"pets-{number}") == number
    assert result.add(120, crammed=True, run="pets-4") == CRAMMED
    Sweep("pets", 1, "0", runs={f"c{number}": f"pets-{number}" for number in (1, 2, 4)}).save(result.storage)
    return result


@pytest.fixture
def registry(made: Registry) -> Iterator[Registry]:
    yield made
    made.clear()
    for version in [number for number in made.folders if number > CRAMMED]:
        made.client.delete_model_version(registered.NAME, str(version))
        del made.folders[version]


Promote = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def command(made: Registry, capsys: pytest.CaptureFixture[str]) -> Promote:
    def run(*words: str) -> tuple[int, dict[str, Any], str]:
        code = promote.main([*made.flags(), *words])
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]), err

    return run


def said(registry: Registry, version: int) -> list[alias.Record]:
    return [aliase for aliase in alias.read(aliases.versions(registry.config)) if aliase.version == version]


def test_the_best_of_a_sweep_on_validation_rows_wins(registry: Registry, command: Promote) -> None:
    code, result, err = command("--run.name=pets")
    assert (code, result["decision"], result["champion"], result["candidate"]) == (0, "promoted", GOOD, "c2")
    assert result["val_accuracy"] == pytest.approx(registry.accuracy(150))
    assert result["test_accuracy"] == pytest.approx(registry.accuracy(150, "test"))
    assert result["test_accuracy"] < 1  # the crammed one is perfect there and not chosen
    assert set(result["candidates"]) == {"c1", "c2", "c4"}
    assert registry.aliases() == {"champion": GOOD}
    assert "the best candidate" in err
    assert "version 2 is the champion" in err


def test_only_a_better_candidate_replaces_the_champion(registry: Registry, command: Promote) -> None:
    assert command("--version", str(GOOD))[1]["decision"] == "promoted"
    code, result, _ = command("--version", str(WEAK))
    assert (code, result["status"], result["decision"], result["champion"]) == (0, "finished", "kept", GOOD)
    assert "worse than champion version 2" in result["why"]
    assert registry.aliases() == {"champion": GOOD}
    assert command("--version", str(BETTER))[1]["previous"] == GOOD
    assert registry.aliases() == {"champion": BETTER, "previous": GOOD}
    again = command("--version", str(BETTER))[1]
    assert (again["decision"], again["champion"]) == ("kept", BETTER)
    assert [item.decision for item in said(registry, BETTER)] == ["promoted"]
    (kept,) = said(registry, WEAK)
    assert (kept.decision, kept.champion, kept.metric) == ("kept", GOOD, "val_accuracy")
    assert kept.why == result["why"]
    assert kept.value == pytest.approx(registry.accuracy(100))


def test_too_small_a_gain_is_rejected_with_the_numbers(registry: Registry, command: Promote) -> None:
    command("--version", str(GOOD))
    code, result, err = command("--version", str(BETTER), "--promote.min_gain=0.5")
    gain = registry.accuracy(160) - registry.accuracy(150)
    assert code == 0
    assert result["decision"] == "kept"
    assert f"{gain:.4f} better than champion version 2" in result["why"]
    assert result["why"].endswith("promote.min_gain asks for 0.5.")
    assert result["why"] in err
    assert registry.aliases() == {"champion": GOOD}


def test_scores_are_measured_and_not_read_from_the_run(registry: Registry, command: Promote) -> None:
    run = registry.client.get_model_version("pets", str(WEAK)).run_id
    registry.client.log_metric(run, "val_accuracy", 1.0)
    assert command("--run", "*")[1]["champion"] == BETTER


def test_a_dry_run_changes_nothing(registry: Registry, command: Promote) -> None:
    code, result, err = command("--version", str(GOOD), "--dry-run")
    assert (code, result["decision"], result["dry_run"], result["champion"]) == (0, "promoted", True, None)
    assert "would be: version 2 is the champion" in err
    assert registry.aliases() == {}
    assert not alias.read(aliases.versions(registry.config))


def test_a_rollback_restores_the_previous_and_bars_the_withdrawn_version(
    registry: Registry, command: Promote
) -> None:
    assert command("--rollback")[0] == 1  # there is nothing to return to
    command("--version", str(GOOD))
    command("--version", str(BETTER))
    code, result, _ = command("--rollback")
    assert (code, result["decision"], result["champion"]) == (0, "rolled back", GOOD)
    assert registry.aliases() == {"champion": GOOD, "previous": BETTER}
    assert said(registry, GOOD)[-1].decision == "rolled back"
    _, result, err = command("--run", "*")
    assert (result["decision"], result["champion"]) == ("kept", GOOD)
    assert "was rolled back to version 2" in err
    assert command("--version", str(BETTER))[1]["champion"] == BETTER  # named, it may


def hand(registry: Registry, version: int, served: bool = False) -> None:
    """Move the alias as MLflow's page does; an endpoint that runs meanwhile notices."""
    registry.client.set_registered_model_alias(registered.NAME, "champion", str(version))
    if served:
        champion = aliases.by_alias(registry.config)
        assert champion
        locate.note_champion(registry.config, champion)


def rolled(command: Promote) -> int:
    """Where a rollback would lead."""
    return int(command("--rollback", "--dry-run")[1]["version"])


def test_rolling_back_knows_what_was_champion_in_fact(registry: Registry, command: Promote) -> None:
    shutil.rmtree(Path(registry.config.storage.root, "champions"), ignore_errors=True)
    command("--version", str(WEAK))
    hand(registry, GOOD)
    assert rolled(command) == WEAK  # by the record of its promotion
    hand(registry, GOOD, served=True)
    hand(registry, BETTER, served=True)
    registry.client.set_registered_model_alias(registered.NAME, "previous", str(CRAMMED))
    assert rolled(command) == GOOD  # the alias says what never was champion
    assert command("--rollback")[1]["champion"] == GOOD
    assert rolled(command) == WEAK  # not to where it came from
    hand(registry, CRAMMED, served=True)
    assert rolled(command) == GOOD


def test_rolling_back_passes_over_a_champion_that_was_deleted(registry: Registry, command: Promote) -> None:
    shutil.rmtree(Path(registry.config.storage.root, "champions"), ignore_errors=True)
    extra = registry.register(registry.folders[WEAK], None)
    command("--version", str(WEAK))
    hand(registry, extra, served=True)
    hand(registry, BETTER, served=True)
    registry.client.delete_model_version(registered.NAME, str(extra))
    del registry.folders[extra]
    assert rolled(command) == WEAK
    registry.client.delete_registered_model_alias(registered.NAME, "champion")  # nobody is, BETTER was last
    assert rolled(command) == BETTER


def test_rolling_back_to_a_version_of_choice(registry: Registry, command: Promote) -> None:
    command("--version", str(BETTER))
    assert command("--rollback", "--version", str(WEAK), "--dry-run")[1]["champion"] == BETTER
    assert command("--rollback", "--version", str(WEAK))[1]["champion"] == WEAK
    assert registry.aliases() == {"champion": WEAK, "previous": BETTER}


def test_a_missing_candidate_is_an_error_message(registry: Registry, command: Promote) -> None:
    assert command("--run", "nothing")[0] == 2
    assert command("--run", "pets", "--version", "1")[0] == 2
    assert command("--rollback", "--run", "pets")[0] == 2
    code, result, _ = command("--version", "99")
    assert (code, result["error"][:23]) == (1, "pets has no version 99.")
    assert registry.aliases() == {}


def refused(registry: Registry, command: Promote, version: int) -> str:
    """Promotion of a version that must not be promoted: exit code 1, and no alias has moved."""
    before = registry.aliases()
    code, result, err = command("--version", str(version))
    assert (code, result["status"]) == (1, "failed")
    assert registry.aliases() == before == {"champion": GOOD}
    assert "Traceback" not in err
    return str(result["error"])


@pytest.fixture
def champion(registry: Registry, command: Promote) -> Registry:
    command("--version", str(GOOD))
    return registry


def test_a_missing_artifact_is_rejected(champion: Registry, command: Promote) -> None:
    folder, sha256 = champion.export(200)
    version = champion.register(folder, sha256)
    shutil.rmtree(folder)
    assert f"pets version {version}" in refused(champion, command, version)
    (folder / "data").mkdir(parents=True)
    assert "digests.json" in refused(champion, command, version)


def test_a_flipped_byte_is_rejected_before_it_is_loaded(champion: Registry, command: Promote) -> None:
    folder, sha256 = champion.export(200)
    content = bytearray((folder / MODEL).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / MODEL).write_bytes(content)
    version = champion.register(folder, sha256)
    assert "has the SHA-256" in refused(champion, command, version)
    write_digests(folder)
    assert "digests.json has the SHA-256" in refused(champion, command, version)
    unsigned = champion.register(folder, None)
    assert "registered without a SHA-256" in refused(champion, command, unsigned)


@pytest.mark.parametrize("source", ["/etc/passwd", "{root}/../outside", "http://127.0.0.1:9/canary"])
def test_a_source_outside_the_storage_is_never_read(
    champion: Registry, command: Promote, source: str
) -> None:
    folder, sha256 = champion.export(200)
    outside = Path(champion.config.storage.root).parent / "outside"
    shutil.copytree(folder, outside, dirs_exist_ok=True)
    source = source.format(root=champion.config.storage.root)
    version = champion.register(folder, sha256, source)
    assert "has its files at" in refused(champion, command, version)


def test_a_model_with_unusable_outputs_is_rejected(champion: Registry, command: Promote) -> None:
    folder, _ = champion.export(200)
    example = json.loads((folder / EXAMPLE).read_text())
    (folder / EXAMPLE).write_text(json.dumps({"inputs": [[[["x"]]]]}))
    version = champion.register(folder, write_digests(folder))
    assert f"the example of pets version {version} cannot be read" in refused(champion, command, version)
    import keras

    model = keras.saving.load_model(folder / MODEL)
    model.set_weights([weight * np.nan for weight in model.get_weights()])
    model.save(folder / MODEL)
    (folder / EXAMPLE).write_text(json.dumps(example))
    version = champion.register(folder, write_digests(folder))
    assert "no probabilities" in refused(champion, command, version)


def test_a_model_of_other_data_is_rejected(champion: Registry, command: Promote) -> None:
    other = champion.register(*champion.export(200, classes=["a", "b", "c"]))
    said = refused(champion, command, other)
    assert "has 3 classes (a, b, c) of 4x4x1 pictures, but pets has 3 classes (cat, dog, bird)" in said
    assert command("--run", "*", "--dry-run")[1]["version"] == BETTER  # the others compete all the same
    leaked = champion.register(*champion.export(250, data_digest="0" * 64))  # may have seen these rows
    assert "was trained on other data (000000000000" in refused(champion, command, leaked)
    config = champion.config
    cut = config.model_copy(update={"data": config.data.model_copy(update={"val_fraction": 0.25})})
    before = ingestion.prepare(cut, Storage(config.storage.root))
    leaked = champion.register(*champion.export(250, data_digest=before.digest))
    assert ": data.val_fraction 0.25, not " in refused(champion, command, leaked)


def test_a_broken_champion_is_replaced_only_when_asked(registry: Registry, command: Promote) -> None:
    folder, sha256 = registry.export(250)
    broken = registry.register(folder, sha256)
    command("--version", str(broken))
    shutil.rmtree(folder)
    code, result, _ = command("--version", str(GOOD))
    assert (code, registry.aliases()["champion"]) == (1, broken)
    assert f"champion version {broken} cannot be compared with" in result["error"]
    code, result, _ = command("--version", str(GOOD), "--replace")
    assert (code, result["champion"], result["previous"]) == (0, GOOD, broken)
    code, result, _ = command("--rollback")  # to the broken one
    assert (code, registry.aliases()["champion"]) == (1, GOOD)


def test_a_restored_champion_is_the_same_and_predicts_the_same(
    champion: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, root = Path(champion.config.storage.root), tmp_path / "restored"
    new_database(root)
    assert cli.run("backup", [str(tmp_path / "backups"), *champion.flags()]) == 0
    old.rename(old.with_name("gone"))
    try:
        assert cli.run("restore", [str(tmp_path / "backups"), "--storage.root", str(root)]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["champions"] == {"pets": GOOD}
    finally:
        old.with_name("gone").rename(old)
    images = np.random.default_rng(0).integers(0, 256, (16, *registered.SHAPE), np.uint8)
    predicted = []
    moved = Config.resolve(load.merge(champion.config.model_dump(), {"storage": {"root": str(root)}}))
    for config in (champion.config, moved):
        chosen = locate.choose(config, None, None, tmp_path)
        export = layout.verify(chosen.folder, chosen.sha256)
        predicted.append((chosen.version, export.sha256, Predictor.of(export).predict(images).tolist()))
    assert predicted[0] == predicted[1]
    assert chosen.folder.is_relative_to(root)
