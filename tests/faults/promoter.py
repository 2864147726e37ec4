"""One of several concurrent promoters: promotes once for every line on standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from distml.config import Config
from distml.data import ingestion
from distml.selection import promotion, score
from distml.selection.promotion import Candidate
from distml.storage import Storage
from distml.tracking.registry import by_number


@contextmanager
def _no_lock(_self: Storage, *_parts: str, **_options: object) -> Iterator[bool]:
    """As on a mount without locks."""
    yield False


def _remembering(config: Config) -> score.Evaluator:
    """Scores are facts about files that do not change, so each is measured once for all rounds."""
    storage = Storage(config.storage.root)
    return score.Evaluator(config, storage, ingestion.prepare(config, storage))


def main() -> None:
    """Answer `ready`, then every round, a list of versions, with the decision."""
    config = Config.resolve(json.loads(sys.argv[1]))
    if sys.argv[2] == "unlocked":
        Storage.lock = _no_lock  # type: ignore[method-assign, assignment]
    evaluator = _remembering(config)
    vars(promotion)["Evaluator"] = lambda *_: evaluator
    print("ready", flush=True)
    for line in sys.stdin:
        candidates = []
        for number in json.loads(line):
            version = by_number(config, number)
            assert version is not None
            candidates.append(Candidate(str(number), version))
        try:
            print(promotion.challenge(config, candidates).decision.why, flush=True)
        except Exception as error:
            print(f"failed: {error!r}", flush=True)


if __name__ == "__main__":
    main()
