"""Peer: PyTorch in one process on all cores, channels last, with a `DataLoader`; torchvision's MobileNetV2.

Runs in an environment of its own with torch, torchvision and numpy, which `$TORCH` names.

python -m benchmarks.peers.torch_fit --size 160 --rows 640 --batch 32 --epochs 3 --precisions float32
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np


def main() -> dict[str, Any]:
    """Train the whole network in each precision; images a second of the fastest epoch after the first."""
    import torch

    parser = argparse.ArgumentParser()
    for name in ("size", "rows", "batch", "epochs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--precisions", required=True, help="comma-separated: float32, bfloat16")
    given = parser.parse_args()
    dtypes = {"float32": None, "bfloat16": torch.bfloat16}
    speeds = {f"{name}_images_per_s": _speed(given, dtypes[name]) for name in given.precisions.split(",")}
    return {"peer": "torch_fit", "torch": torch.__version__, "threads": torch.get_num_threads()} | speeds


def _speed(given: argparse.Namespace, dtype: Any) -> float:
    """Images a second, in float32 or with autocast."""
    import torch
    import torchvision

    numbers = np.random.default_rng(0)
    images = torch.from_numpy(numbers.integers(0, 256, (given.rows, 3, given.size, given.size), np.uint8))
    rows = torch.utils.data.TensorDataset(images, torch.arange(given.rows) % 10)
    loader = torch.utils.data.DataLoader(rows, given.batch, shuffle=True, drop_last=True)
    network = torchvision.models.mobilenet_v2(num_classes=10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    loss_of = torch.nn.CrossEntropyLoss()
    seconds = []
    for _ in range(given.epochs):
        began = time.perf_counter()
        for batch, labels in loader:
            pixels = batch.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = loss_of(network(pixels), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - began)
    return float(len(loader) * given.batch / min(seconds[1:]))


if __name__ == "__main__":
    print(json.dumps(main()))
