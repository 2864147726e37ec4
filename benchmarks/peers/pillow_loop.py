"""Peer: a loop over files with Pillow's `open`, `convert` and `ImageOps.fit`; nothing is written.

python -m benchmarks.peers.pillow_loop FOLDER SIDE
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def main(folder: str, side: int) -> None:
    """Read every picture and print how long it took."""
    files = sorted(Path(folder).rglob("*.jpg"))
    began, cpu = time.perf_counter(), time.process_time()
    for file in files:
        with Image.open(file) as picture:
            fitted = ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
        np.asarray(fitted)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps({"rows": len(files), "seconds": seconds, "cpu_s": cpu}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
