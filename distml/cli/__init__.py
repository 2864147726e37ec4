"""The command line: flags for every configuration key, exit codes, printing the result line, small commands.

A verb imports what does its work when it runs: --help and a wrong flag wait for none of it.
"""

from distml.cli.command import (
    MODULES,
    VERBS,
    Result,
    console,
    entry,
    exit_with,
    fail,
    finish,
    main,
    parser,
    run,
)

__all__ = [
    "MODULES",
    "VERBS",
    "Result",
    "console",
    "entry",
    "exit_with",
    "fail",
    "finish",
    "main",
    "parser",
    "run",
]
