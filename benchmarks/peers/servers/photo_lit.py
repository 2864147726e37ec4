"""LitServe for photographs: two workers with dynamic batches, a multipart upload a request."""

# No postponed annotations: LitServe makes FastAPI parameters of what it finds in the signatures.
from typing import Any

import numpy as np
from fastapi import Request

from benchmarks.peers.servers import lit, photo


class Api(lit.Api):
    """The model behind LitServe's hooks."""

    def setup(self, device: str) -> None:
        """Load the model in the worker process."""
        self.engine = photo.Engine()

    # LitServe reads from the annotation that bodies are forms here.
    def decode_request(self, request: Request) -> Any:  # type: ignore[override]
        """Decode the one picture of a request."""
        return photo.decode(request["images"].file.read())

    def predict(self, images: Any) -> Any:
        """Answer a batch."""
        return self.engine(np.stack(images))


if __name__ == "__main__":
    lit.serve(Api(max_batch_size=16, batch_timeout=0.002), workers=2)
