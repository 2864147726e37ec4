"""Runs the command line as `python -m distml VERB ...`, the same as `distml VERB ...` (driver)."""

from distml.cli import entry

if __name__ == "__main__":
    raise SystemExit(entry())
