"""FastAPI on uvicorn for photographs: two processes, uploads decoded in threads, no batching."""

# No postponed annotations: FastAPI makes parameters of the ones it finds.
import sys
import threading

import uvicorn
from fastapi import FastAPI, UploadFile

from benchmarks.peers.servers import photo

app = FastAPI()
engine, alone = photo.Engine(), threading.Lock()


@app.post("/predict")
def predict(images: UploadFile) -> dict[str, list[list[float]]]:
    """Answer a request."""
    image = photo.decode(images.file.read())
    with alone:
        return {"predictions": engine(image[None]).tolist()}


if __name__ == "__main__":
    uvicorn.run(
        f"{__spec__.name}:app", host="127.0.0.1", port=int(sys.argv[1]), workers=2, log_level="warning"
    )
