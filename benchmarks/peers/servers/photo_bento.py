"""BentoML for photographs: two workers with adaptive batches, a multipart upload a request."""

from __future__ import annotations

from pathlib import Path

import bentoml
import numpy as np

from benchmarks.peers.servers import photo


@bentoml.service(workers=2, resources={"cpu": "2"}, traffic={"timeout": 30})
class Service:
    """The model behind a batched method."""

    def __init__(self) -> None:
        self.engine = photo.Engine()

    @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=1000)
    def predict(self, images: list[Path]) -> list[list[float]]:
        """Answer a batch."""
        answers: list[list[float]] = self.engine(
            np.stack([photo.decode(path.read_bytes()) for path in images])
        ).tolist()
        return answers
