"""Runs every benchmark and ends with one list of all figures; exit 1 where one does not hold.

python -m benchmarks [NAME...]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import harness

HERE = Path(__file__).parent
NO_BENCHMARK = {"__init__", "__main__", "harness", "load", "ours", "report"}


def names() -> list[str]:
    """Names of all benchmarks."""
    return sorted({path.stem for path in HERE.glob("*.py")} - NO_BENCHMARK)


def measure(name: str) -> list[dict[str, Any]]:
    """Run one benchmark, its table passing through; returns its figures, or one that does not hold."""
    harness.say(f"== {name}")
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    done = subprocess.run(command, cwd=harness.ROOT, stdout=subprocess.PIPE, text=True, check=False)
    try:
        result = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        result = {"name": name, "holds": False, "error": f"exit code {done.returncode}, no result line"}
    return result if isinstance(result, list) else [result]


def main() -> int:
    """Entry point."""
    chosen = sys.argv[1:] or names()
    unknown = set(chosen) - set(names())
    if unknown or not chosen:
        harness.say(
            f"unknown benchmark {', '.join(sorted(unknown))}; there are: {', '.join(names()) or 'none'}"
        )
        return 2
    figures = [figure for name in chosen for figure in measure(name)]
    print(json.dumps(figures), flush=True)
    return 0 if all(figure["holds"] for figure in figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())
