"""The command `distml predict`: image files in this process or a data set on Ray, by `batch` (driver).

python -m distml.predict shoe.png photos/ 'new/*.jpg'     files, folders and patterns; by the champion
python -m distml.predict shoe.png --run NAME --top 5      what a run exported; --version 3 a certain version
python -m distml.predict shoe.png --url http://...:8000   what a running endpoint answers
python -m distml.predict --data FOLDER --output FOLDER    data of any format in, Parquet out; --embeddings
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from distml import cli
from distml.cli import flags
from distml.config import Config


def run(config: Config, own: Namespace) -> dict[str, Any]:
    """Classify files, or a data set."""
    from distml.batch import files
    from distml.serving import client

    flags.require_images_or_data(own)
    model = {"run": own.run, "version": own.version}
    if own.data:
        return files.predict_data(config, own.data, own.output, embeddings=own.embeddings, **model)
    if own.url:
        return files.classify(own.images, own.top, *client.asking(own.url))
    return files.predict_files(config, own.images, top=own.top, **model)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("predict", run, argv)


if __name__ == "__main__":
    cli.exit_with(main)
