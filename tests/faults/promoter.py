"""One of several promoters at once: takes part in every round it is told of on standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from distml.config import Config
from distml.data import shards
from distml.selection import contest, score
from distml.selection.field import Entrant
from distml.storage import Storage
from distml.tracking.registry import by_number


@contextmanager
def _no_lock(_self: Storage, *_parts: str, **_options: object) -> Iterator[bool]:
    """As in an object store."""
    yield False


def _remembering(config: Config) -> score.Judge:
    """Scores are facts about files that do not change, so each is measured once for all rounds."""
    storage = Storage(config.storage.root)
    return score.Judge(config, storage, shards.prepare(config, storage))


def main() -> None:
    """Answer `ready`, then every round, a list of versions, with the decision."""
    config = Config.resolve(json.loads(sys.argv[1]))
    if sys.argv[2] == "unlocked":
        Storage.lock = _no_lock  # type: ignore[method-assign, assignment]
    judge = _remembering(config)
    vars(contest)["Judge"] = lambda *_: judge
    print("ready", flush=True)
    for line in sys.stdin:
        entrants = []
        for number in json.loads(line):
            version = by_number(config, number)
            assert version is not None
            entrants.append(Entrant(str(number), version))
        try:
            print(contest.hold(config, entrants).decision.why, flush=True)
        except Exception as error:
            print(f"failed: {error!r}", flush=True)


if __name__ == "__main__":
    main()
