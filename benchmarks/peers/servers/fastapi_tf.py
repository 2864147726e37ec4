"""FastAPI on uvicorn in front of TensorFlow: one process, no batching."""

from __future__ import annotations

import sys

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.peers.servers import model

app = FastAPI()
classify = model.load()


class Body(BaseModel):
    """A request."""

    instances: list[list[list[int]]]


@app.post("/predict")
def predict(body: Body) -> dict[str, list[list[float]]]:
    """Answer a request."""
    return {"predictions": classify(np.asarray(body.instances, np.uint8)).tolist()}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
