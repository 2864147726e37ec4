"""`python -m distml VERB ...`: calls the console script of `cli.command`, which runs the verb (driver)."""

from distml.cli import console

if __name__ == "__main__":
    console()
