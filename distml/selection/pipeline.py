"""The whole in one process: data, training, promotion, endpoint, smoke test (driver).

Every stage remembers what it was done for, so the same call goes on where the last one ended.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from distml import tracking
from distml.config import Config, binding
from distml.data import shards
from distml.errors import TrainingError
from distml.runtime import cluster
from distml.selection import promote
from distml.selection.stages import Stages
from distml.serving import client, deploy, smoke, waiting
from distml.storage import Storage
from distml.tracking import registry, runs
from distml.tracking.registry import CHAMPION
from distml.training import run as training

logger = logging.getLogger(__name__)

Result = dict[str, Any]


def run(config: Config, stay: bool = False) -> Result:
    """Do every stage that is not done yet.

    Returns:
        `stages` (status and seconds of each), `run_id` and accuracies of the best candidate, `decision`,
        `champion` and `champion_test_accuracy` of the version that is served, which may be an older one,
        `endpoint`, and `serving`, whether that is still up.

    Raises:
        DistmlError: A stage failed; the same command goes on from there.
    """
    began = time.monotonic()
    stages = Stages(config.run.name, Storage(config.storage.root), again=config.run.restart)
    try:
        chosen = _model(config, stages)
        with _ray(config) as ends:
            served, smoked = _endpoint(config, stages, chosen, ends)
            stages.show(_WORDS)
            _next(config, stages, served["url"], stays=stay or not ends)
            if stay and ends:
                with contextlib.suppress(KeyboardInterrupt):
                    threading.Event().wait()
    except BaseException:
        stages.show(_WORDS)
        raise
    known = ("run_id", "model", "candidate", "decision", "why", CHAMPION, "val_accuracy", "test_accuracy")
    return {"stages": stages.summary(), **{key: chosen[key] for key in known}} | {
        "endpoint": served["url"],
        "serving": not ends,
        "champion_test_accuracy": smoked["test_accuracy"],
        "smoke_accuracy": smoked["accuracy"],
        "wall_s": round(time.monotonic() - began, 2),
    }


@contextlib.contextmanager
def _ray(config: Config) -> Iterator[bool]:
    """A Ray for the endpoint, where one is to be started; gives whether the endpoint ends with this command.

    It ends with a Ray that does, whatever happens; that of a cluster, or at `serve.url`, stays.
    """
    if config.serve.url:
        yield False
        return
    with cluster.connect(config, variables=deploy.prepare(config)) as ray:
        try:
            yield ray.local
        finally:
            if ray.local:
                deploy.stop()


def _model(config: Config, stages: Stages) -> Result:
    """Data, training, promotion."""
    storage = Storage(config.storage.root)
    data = stages.do(
        "ingest",
        shards.folder(config),
        lambda: _prepare(config, storage),
        lambda _: shards.find(config, storage) is not None,
    )
    recipe = [data["digest"], binding.of(config), config.sweep.model_dump(mode="json")]
    trained = stages.do("train", recipe, lambda: _train(config, storage), partial(_registered, config))
    rules = [trained["run_id"], trained.get("leaderboard"), config.promote.model_dump(mode="json")]
    return stages.do(
        "promote",
        rules,
        lambda: promote.promote(config),
        lambda before: registry.aliases(config).get(CHAMPION) == before[CHAMPION],
    )


def _prepare(config: Config, storage: Storage) -> Result:
    manifest = shards.prepare(config, storage)
    return {"name": manifest.name, "rows": manifest.rows, "digest": manifest.digest}


def _endpoint(config: Config, stages: Stages, chosen: Result, ends: bool) -> tuple[Result, Result]:
    """An endpoint that answers with the champion, and answers right."""
    served = stages.do(
        "serve",
        [config.serve.model_dump(mode="json"), config.log.model_dump(mode="json"), chosen["model"]],
        lambda: vars((waiting.elsewhere if config.serve.url else deploy.start)(config)),
        lambda before: not ends and client.version(before["url"]) == chosen[CHAMPION],
    )
    won = chosen["decision"] == "promoted" or chosen["champion_val_accuracy"] is None
    reached = chosen["val_accuracy" if won else "champion_val_accuracy"]
    return served, stages.do(
        "smoke", None, lambda: smoke.check(config, served["url"], chosen[CHAMPION], reached)
    )


def _train(config: Config, storage: Storage) -> Result:
    """The one model, or the candidates of a sweep; what was finished before is taken from its record."""
    before = None if config.sweep.wanted else runs.taken(config, storage)
    result = before.result if before else training.train(config)
    if not config.sweep.wanted and (trained := runs.finished(storage, config.run.name)):
        result = tracking.register(config, storage, trained).result
    # The candidates of a sweep that are not registered yet are registered when they are promoted.
    unknown = not config.sweep.wanted or result.get("version")
    if unknown and not _registered(config, result):
        version = f"version {result['version']}" if result.get("version") else f"run {config.run.name}"
        name = config.tracking.registered_model
        logger.warning("%s of %s is not in this registry: training again", version, name)
        result = training.train(
            config.model_copy(update={"run": config.run.model_copy(update={"restart": True})})
        )
    if result.get("status", "finished") != "finished":
        failed = [row for row in result["leaderboard"] if row["status"] == "failed"]
        raise TrainingError(
            f"{len(failed)} of {len(result['leaderboard'])} candidates failed: {failed[0]['error']}",
            "The same command trains those again, and only those.",
        )
    return result


def _registered(config: Config, result: Result) -> bool:
    """Whether the registry has what was trained; the storage may have outlived it, or met another."""
    if result.get("version") is None:  # nothing was registered: the server was away
        return False
    found = registry.by_number(config, int(result["version"]))
    return found is not None and found.run_id == result["run_id"]


_WORDS = {
    "ingest": lambda found: f"{sum(found['rows'].values()):,} rows of {found['name']}",
    "train": lambda found: (
        f"{found.get('best') or 'one model'}: validation accuracy {found['val_accuracy']:.4f}"
    ),
    "promote": lambda found: f"{found['decision']}: {found['why']}",
    "serve": lambda found: f"{found['model']} version {found['version']} at {found['url']}",
    "smoke": lambda found: f"{found['accuracy']:.1%} of {found['rows']} validation pictures right",
}


def _next(config: Config, stages: Stages, url: str, stays: bool) -> None:
    """Say what to type now."""
    again = shlex.join(["--storage.root", config.storage.root])
    facts = {
        "ask": f"python -m distml.predict IMAGE {again}",
        "serve": f"python -m distml.serve --config FILE {again}",
        "undo": f"python -m distml.promote --rollback {again}",
    }
    if stays:
        facts |= {"page": f"{url}/", "ask": f"curl -F files=@PICTURE.png {url}/predict/image"}
        del facts["serve"]
    for name, value in facts.items():
        stages.console.print(f"[bold]{name:<7}[/bold] {value}")
