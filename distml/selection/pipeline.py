"""The pipeline: data, training, promotion, endpoint and smoke test in one process (driver).

`pipelines/<run.name>.json` holds, for every stage, the digest of its inputs and its result. A stage whose
inputs are those of the last time, and whose result still holds, is skipped; so a pipeline that was
interrupted, or repeated, runs the remaining stages.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distml import tracking
from distml.config import Config
from distml.data import ingestion
from distml.errors import TrainingError
from distml.runtime import cluster, processes
from distml.selection import promotion
from distml.serving import client, deploy
from distml.serving.models import base, require_own
from distml.storage import Storage
from distml.tasks import quality
from distml.tracking import registry, runs
from distml.tracking.registry import CHAMPION
from distml.training import run as training

logger = logging.getLogger(__name__)

FOLDER = "pipelines"

Result = dict[str, Any]


def run(config: Config, stay: bool = False) -> Result:
    """Do every stage that is not done yet.

    Args:
        config: Of the whole.
        stay: Answer until Ctrl-C on a Ray of this command's own.

    Returns:
        `stages` (status and seconds of each), `run_id` and accuracies of the best candidate, `decision`,
        `champion` and `champion_test_accuracy` of the version that is served, which may be an older one,
        `endpoint`, and `serving`, whether that is still up.

    Raises:
        DistmlError: A stage failed; repeating the command resumes there.
    """
    require_own(config)
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
    known = ["run_id", "model", "candidate", "decision", "why", "metric", CHAMPION]
    known += [f"{split}_{name}" for split in ("val", "test") for name in _named(chosen)]
    return {"stages": stages.summary(), **{key: chosen[key] for key in known}} | {
        "endpoint": served["url"],
        "serving": not ends,
        "champion_test_accuracy": smoked["test_accuracy"],
        "smoke_accuracy": smoked["accuracy"],
        "wall_s": round(time.monotonic() - began, 2),
    }


def _named(chosen: Result) -> list[str]:
    """The accuracy, and the metric that candidates were compared by."""
    return list(dict.fromkeys(("accuracy", quality.plain(chosen["metric"]))))


@contextlib.contextmanager
def _ray(config: Config) -> Iterator[bool]:
    """A Ray for the endpoint, where one is to be started; gives whether the endpoint ends with this command.

    It ends with a Ray that does, whatever happens; that of a cluster, or at `serve.url`, stays.
    """
    if config.serve.url:
        yield False
        return
    with cluster.connect(config, variables=deploy.prepare(config), dashboard=False) as ray:
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
        ingestion.folder(config),
        lambda: ingestion.prepare(config, storage).summary(),
        lambda _: ingestion.find(config, storage) is not None,
    )
    recipe = [data["digest"], runs.binding(config), config.sweep.model_dump(mode="json")]
    trained = stages.do("train", recipe, lambda: _train(config, storage), partial(_registered, config))
    rules = [trained["run_id"], trained.get("leaderboard"), config.promote.model_dump(mode="json")]
    return stages.do(
        "promote",
        rules,
        lambda: promotion.promote(config),
        lambda before: registry.aliases(config).get(CHAMPION) == before[CHAMPION],
    )


def _endpoint(config: Config, stages: Stages, chosen: Result, ends: bool) -> tuple[Result, Result]:
    """An endpoint that answers with the champion, and answers right."""
    served = stages.do(
        "serve",
        [config.serve.model_dump(mode="json"), config.log.model_dump(mode="json"), chosen["model"]],
        lambda: vars((deploy.elsewhere if config.serve.url else deploy.start)(config)),
        lambda before: not ends and client.version(base(config, before["url"])) == chosen[CHAMPION],
    )
    won = chosen["decision"] == "promoted" or chosen["champion_val_correct"] is None
    reached = chosen["val_correct" if won else "champion_val_correct"]
    return served, stages.do(
        "smoke",
        None,
        lambda: client.check_answers(config, base(config, served["url"]), chosen[CHAMPION], reached),
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
    if result.get("version") is None:  # nothing was registered: the server was unreachable
        return False
    version = registry.by_number(config, int(result["version"]))
    return version is not None and version.run_id == result["run_id"]


_WORDS = {
    "ingest": lambda result: f"{sum(result['rows'].values()):,} rows of {result['name']}",
    "train": lambda result: (
        f"{result.get('best') or 'one model'}: validation {result['metric']} "
        f"{quality.digits(result['val_' + result['metric']])}"
    ),
    "promote": lambda result: f"{result['decision']}: {result['why']}",
    "serve": lambda result: f"{result['model']} version {result['version']} at {result['url']}",
    "smoke": lambda result: (
        f"{result.get('metric', 'accuracy')} {quality.digits(result.get('value', result['accuracy']))} "
        f"on {result['rows']} validation pictures"
    ),
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
        stages.console.print(f"[bold]{name:<7}[/bold] {escape(value)}")


class Stages:
    """The stages of one pipeline. Final.

    Args:
        name: Of the pipeline.
        storage: Where it is remembered.
        again: Do everything again.
    """

    def __init__(self, name: str, storage: Storage, again: bool = False) -> None:
        self._storage, self._parts = storage, (FOLDER, f"{name}.json")
        self._known: dict[str, Any] = {}
        if not again and storage.exists(*self._parts):
            try:
                self._known = dict(json.loads(storage.read_text(*self._parts)))
            except ValueError:
                self._known = {}  # a lost memory costs time and nothing else
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.done: dict[str, Result] = {}

    def do(
        self,
        name: str,
        inputs: Any,
        work: Callable[[], Result],
        holds: Callable[[Result], bool] | None = None,
    ) -> Result:
        """Do a stage, or take its result from the last time.

        Args:
            name: Of the stage.
            inputs: What its result depends on, as JSON.
            work: Does it.
            holds: Whether an earlier result is still true; without it the stage is done every time.

        Returns:
            Its result.
        """
        began = time.monotonic()
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
        known = self._known.get(name, {})
        if holds is not None and known.get("key") == key and holds(known["result"]):
            self._end(name, "skipped", began, known["result"])
            return dict(known["result"])
        self.console.print(f"\n[bold]{name}[/bold]")
        try:
            with processes.interruptible():
                result = work()
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            self._end(name, "interrupted" if stopped else "failed", began, {})
            raise
        self._known[name] = {"key": key, "result": result}
        self._storage.write_bytes(json.dumps(self._known, indent=1, default=str).encode(), *self._parts)
        self._end(name, "finished", began, result)
        return result

    def _end(self, name: str, status: str, began: float, result: Result) -> None:
        seconds = round(time.monotonic() - began, 2)
        self.done[name] = {"status": status, "seconds": seconds, "result": result}

    def summary(self) -> dict[str, Any]:
        """Status and seconds of every stage that was reached."""
        return {
            name: {"status": stage["status"], "seconds": stage["seconds"]}
            for name, stage in self.done.items()
        }

    def show(self, words: dict[str, Callable[[Result], str]]) -> None:
        """Print a table of the stages that were reached.

        Args:
            words: What to say about the result of a stage.
        """
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("stage")
        table.add_column("status")
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("", overflow="fold")
        for name, stage in self.done.items():
            colour = {"finished": "green", "skipped": "cyan"}.get(stage["status"], "red")
            said = words[name](stage["result"]) if stage["result"] and name in words else ""
            status = f"[{colour}]{stage['status']}[/{colour}]"
            table.add_row(name, status, f"{stage['seconds']:.1f} s", escape(said))
        self.console.print()
        self.console.print(table)
        self.console.print()
