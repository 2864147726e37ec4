"""`python -m distml VERB ...` is `distml VERB ...` (driver)."""

from distml.cli import entry

if __name__ == "__main__":
    raise SystemExit(entry())
