"""BentoML with its adaptive batches."""

from __future__ import annotations

import bentoml
import numpy as np

from benchmarks.peers.servers import model


@bentoml.service(workers=1, resources={"cpu": "1"}, traffic={"timeout": 30})
class Service:
    """The model behind a batched method."""

    def __init__(self) -> None:
        self.classify = model.load()

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def predict(self, instances: np.ndarray) -> np.ndarray:
        """Answer a batch."""
        return self.classify(np.asarray(instances, np.uint8))
