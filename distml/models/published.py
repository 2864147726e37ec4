"""Fetches the weights that Keras publishes for a network, with Keras's own downloader (its own process).

python -m distml.models.published FUNCTION

Keras knows the address and the digest of each file and puts it below `KERAS_HOME`. It runs in a process of
its own, so that no driver imports TensorFlow for a download.
"""

from __future__ import annotations

import sys


def main(function: str) -> None:
    """Download the weights of one function of `keras.applications`, without the classifier."""
    import keras

    getattr(keras.applications, function)(include_top=False, weights="imagenet")


if __name__ == "__main__":
    main(sys.argv[1])
