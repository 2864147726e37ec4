"""The command `distml submit`: the pipeline as a Ray job on Kubernetes, by `kube.submit` (driver).

What the step of kuberay/base/workflow.yaml runs; kuberay/README.md has the manual way.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from distml import cli
from distml.cli import flags
from distml.config import Config
from distml.kube import submit


def run(config: Config, own: Namespace) -> dict[str, Any]:
    """Follow a Ray job, or stop what a workflow left running."""
    submission = submit.Submission(**flags.submission(own))
    return submit.stop_running(submission) if own.only_stop == "true" else submit.run(submission)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    words = flags.expanded(sys.argv[1:] if argv is None else argv)
    return cli.main("submit", run, words)


if __name__ == "__main__":
    cli.exit_with(main)
