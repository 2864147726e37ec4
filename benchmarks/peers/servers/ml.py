"""MLServer with its adaptive batches, by the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import socket
import sys

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers.servers import model


class Runtime(MLModel):
    """The model behind MLServer's hooks."""

    async def load(self) -> bool:
        """Load the model."""
        self.classify = model.load()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a batch."""
        answers = self.classify(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", answers)]
        )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def serve(port: int) -> None:
    """Serve it in one process; its gRPC and its metrics need ports, too."""
    others = {"grpc_port": _free_port(), "metrics_port": _free_port()}
    server = MLServer(Settings(host="127.0.0.1", http_port=port, parallel_workers=0, debug=False, **others))
    batches = {"max_batch_size": 64, "max_batch_time": 0.002}
    await server.start([ModelSettings(name="model", implementation=Runtime, **batches)])


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
