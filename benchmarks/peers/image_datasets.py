"""Peer: Hugging Face `datasets`, imagefolder → map(resize) → Parquet, as its documentation shows it.

python -m benchmarks.peers.image_datasets FOLDER SIDE PROCESSES OUTPUT
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

SIDE = int(sys.argv[2]) if len(sys.argv) > 2 else 224


def fitted(batch: dict[str, Any]) -> dict[str, Any]:
    """Crop the middle of each picture to a square and scale it."""
    from PIL import Image, ImageOps

    size = (SIDE, SIDE)
    pictures = [
        ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.BICUBIC) for picture in batch["image"]
    ]
    return {"image": pictures}


def main(folder: str, processes: int, output: str) -> None:
    """Prepare the training pictures and print how long it took, without the imports."""
    import datasets

    began = time.perf_counter()
    rows = datasets.load_dataset("imagefolder", data_dir=folder, split="train", cache_dir=f"{output}/cache")
    rows = rows.map(fitted, batched=True, batch_size=64, num_proc=processes)
    rows.to_parquet(f"{output}/train.parquet")
    seconds = time.perf_counter() - began
    size = Path(f"{output}/train.parquet").stat().st_size
    print(json.dumps({"rows": len(rows), "seconds": seconds, "bytes": size}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[3]), sys.argv[4])
