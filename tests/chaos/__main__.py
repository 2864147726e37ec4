"""The command: `python -m tests.chaos --context NAME`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from distml.errors import ClusterError
from tests.chaos import plan, record
from tests.chaos.cluster import Cluster
from tests.chaos.run import Settings, perform


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Kill pods of a cluster one after another and record what comes of it.",
        epilog="It deletes pods, drains nodes and starts workflows. Cells already in --records are left out.",
    )
    defaults = Settings()
    parser.add_argument("--context", help="of kubectl; needed unless --dry-run or --table")
    parser.add_argument("--overlay", choices=sorted(plan.SELECTORS), default="k3d")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="of pods; all by default")
    parser.add_argument("--faults", nargs="+", choices=list(plan.FAULTS))
    parser.add_argument("--moments", nargs="+", choices=list(plan.MOMENTS))
    parser.add_argument(
        "--records", type=Path, default=Path("chaos.jsonl"), help="file that gets the results"
    )
    parser.add_argument("--again", action="store_true", help="run cells that are in --records already")
    parser.add_argument("--limit-s", type=float, default=defaults.limit_s, help="for each wait")
    parser.add_argument("--epochs", type=int, default=defaults.epochs)
    parser.add_argument("--requests", type=int, default=defaults.requests, help="at least, under load")
    parser.add_argument("--overrides", default=defaults.overrides, help="further flags of the pipeline")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and change nothing")
    parser.add_argument(
        "--table",
        action="store_true",
        help="print what is in --records, a column for each moment, and run nothing",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cells that were asked for; 1 where one did not heal."""
    parser = _parser()
    given = parser.parse_args(argv)
    for kind in given.kinds or ():
        if kind not in plan.SELECTORS[given.overlay]:
            parser.error(f"{kind!r} is no kind of pod; there are {', '.join(plan.SELECTORS[given.overlay])}")
    chosen = list(plan.cells(given.overlay, kinds=given.kinds, faults=given.faults, moments=given.moments))
    if given.dry_run:
        return _show(chosen)
    if given.table:
        print(record.matrix(chosen, record.load(given.records)))
        return 0
    if not given.context:
        parser.error("--context is missing: the name of the cluster that may lose pods")
    settings = Settings(given.limit_s, given.epochs, given.overrides, given.requests)
    return _perform(Cluster(given.context), chosen, settings, given.records, given.again)


def _show(chosen: list[plan.Cell]) -> int:
    for cell in chosen:
        how = cell.missing or plan.FAULTS[cell.fault]
        print(f"{cell.kind:<16} {cell.fault:<8} {cell.moment:<10} {how}  ({cell.selector})")
    print(f"{sum(not cell.missing for cell in chosen)} cells to run, {len(chosen)} in all")
    return 0


def _perform(cluster: Cluster, chosen: list[plan.Cell], settings: Settings, path: Path, again: bool) -> int:
    cluster.kubectl("get", "namespace", "distml")
    before = record.load(path)
    todo = [cell for cell in chosen if not cell.missing and (again or cell not in before)]
    number = len(path.read_text().splitlines()) if path.exists() else 0
    for at, cell in enumerate(todo, 1):
        print(f"[{at}/{len(todo)}] {cell.kind}, {cell.fault}, {cell.moment}", file=sys.stderr, flush=True)
        made = perform(cluster, cell, settings, number + at, _say)
        record.save(path, made)
        print(f"    {made.verdict} ({made.seconds:.0f} s)", file=sys.stderr, flush=True)
    records = record.load(path)
    print(record.table(chosen, records))
    return int(any(records[cell].verdict != "healed" for cell in chosen if cell in records))


def _say(line: str) -> None:
    print(f"    {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        code = main()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    raise SystemExit(code)
