"""What the person who started an endpoint hears of it."""

from __future__ import annotations

import io
import threading
from typing import Any

from rich.console import Console

from distml.serving import run


def described(
    version: int = 3, answers: bool = True, missing: tuple[str, ...] = (), **more: Any
) -> dict[str, Any]:
    registry = {"answers": answers, "age_s": 1.0 if answers else 42.0, "missing": list(missing)}
    return {"name": "pets", "version": version, "refused": [], "registry": registry, **more}


def test_nothing_is_said_of_what_does_not_change() -> None:
    assert run.changes(described(), described()) == []
    assert run.changes(None, None) == []


def test_a_take_over_a_refusal_an_outage_and_a_missing_alias_are_said_once() -> None:
    assert run.changes(described(3), described(4)) == ["version 4 of pets answers now, before it 3"]
    bad = {"version": 5, "alias": "champion", "reason": "its files are gone."}
    refused = described(refused=[bad])
    assert run.changes(described(), refused) == [
        "version 5 (champion) is refused: its files are gone. version 3 goes on answering"
    ]
    assert run.changes(refused, described(refused=[bad])) == []
    away = described(answers=False)
    said = "the registry has not answered for 42 s; version 3 goes on answering"
    assert run.changes(described(), away) == [said]
    assert run.changes(away, described(answers=False)) == []
    assert run.changes(away, described()) == ["the registry answers again"]
    assert run.changes(described(), described(missing=("champion",))) == [
        "the registry has no champion any more; version 3 goes on answering"
    ]


def test_what_is_amiss_at_the_start_is_said() -> None:
    start = described(answers=False, missing=("challenger",))
    assert len(run.changes(start, start)) == 2


def test_an_endpoint_that_goes_and_comes_back_is_said() -> None:
    assert run.changes(described(), None) == ["the endpoint does not answer"]
    assert run.changes(None, described()) == ["the endpoint answers again"]


def test_following_ends_at_once_with_its_event() -> None:
    ended = threading.Event()
    ended.set()
    stream = io.StringIO()
    run.follow(Console(file=stream), "http://127.0.0.1:9", ended)
    assert stream.getvalue() == ""
