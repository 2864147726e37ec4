"""LitServe with its dynamic batches."""

# No postponed annotations: LitServe makes FastAPI parameters of what it finds in the signatures.
import sys
from typing import Any

import litserve
import numpy as np

from benchmarks.peers.servers import model


class Api(litserve.LitAPI):
    """The model behind LitServe's hooks."""

    def setup(self, device: str) -> None:
        """Load the model in the worker process."""
        self.classify = model.load()

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Take the one image of a request."""
        return np.asarray(request["instances"], np.uint8).reshape(28, 28, 1)

    def predict(self, images: Any) -> Any:
        """Answer a batch."""
        return self.classify(np.asarray(images, np.uint8))

    def unbatch(self, answers: Any) -> list[Any]:
        """Part the answers."""
        return list(answers)

    def encode_response(self, answer: Any) -> dict[str, Any]:
        """Render one answer."""
        return {"predictions": [answer.tolist()]}


def serve(api: Api, workers: int) -> None:
    """Serve it on the port that the command names."""
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    serve(Api(max_batch_size=64, batch_timeout=0.002), workers=1)
