"""Ray Serve as its documentation shows it: a FastAPI ingress and `serve.batch`."""

# No postponed annotations: Ray Serve pickles the app, and FastAPI then no longer finds what `Request` means.

import sys
import time
from typing import Any

import numpy as np
import ray
from fastapi import FastAPI, Request
from ray import serve

app = FastAPI()


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
@serve.ingress(app)
class Classifier:
    """The model behind a batched method."""

    def __init__(self) -> None:
        from benchmarks.peers.servers import model

        self.classify = model.load()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.002)
    async def infer(self, images: list[Any]) -> list[Any]:
        """Answer a batch."""
        return list(self.classify(np.stack(images)))

    @app.post("/predict")
    async def predict(self, request: Request) -> dict[str, Any]:
        """Answer a request."""
        body = await request.json()
        answers = [
            await self.infer(np.asarray(image, np.uint8).reshape(28, 28, 1)) for image in body["instances"]
        ]
        return {"predictions": [answer.tolist() for answer in answers]}


if __name__ == "__main__":
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Classifier.bind())  # type: ignore[attr-defined] # the decorator makes it a deployment
    time.sleep(600)
