"""The command line: flags for every configuration key, exit codes, the result line, small commands."""

from distml.cli.command import MODULES, VERBS, Result, entry, fail, finish, main, parser, run

__all__ = ["MODULES", "VERBS", "Result", "entry", "fail", "finish", "main", "parser", "run"]
