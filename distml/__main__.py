"""`python -m distml VERB ...`: calls the console script of `cli.command`, which runs the verb (driver)."""

from distml.cli import entry

if __name__ == "__main__":
    raise SystemExit(entry())
