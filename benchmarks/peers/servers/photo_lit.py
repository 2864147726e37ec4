"""LitServe for photographs: two workers with dynamic batches, a multipart upload a request."""

# No postponed annotations: LitServe makes FastAPI parameters of what it finds in the signatures.
import sys
from typing import Any

import litserve
import numpy as np
from fastapi import Request

from benchmarks.peers.servers import photo


class Api(litserve.LitAPI):
    """The model behind LitServe's hooks."""

    def setup(self, device: str) -> None:
        """Load the model in the worker process."""
        self.engine = photo.Engine()

    def decode_request(self, request: Request) -> Any:
        """Decode the one picture of a request."""
        return photo.decode(request["images"].file.read())

    def predict(self, images: Any) -> Any:
        """Answer a batch."""
        return self.engine(np.stack(images))

    def unbatch(self, answers: Any) -> list[Any]:
        """Part the answers."""
        return list(answers)

    def encode_response(self, answer: Any) -> dict[str, Any]:
        """Render one answer."""
        return {"predictions": [answer.tolist()]}


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(max_batch_size=16, batch_timeout=0.002), accelerator="cpu", workers_per_device=2
    )
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="warning")
