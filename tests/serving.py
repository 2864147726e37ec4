"""A served model for tests of the protocols: real routes, real batching, arithmetic instead of a network."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn

from distml.config import ServeConfig
from distml.data.schema import Images
from distml.serving.application import application
from distml.serving.batching import Core, Function, Loaded
from distml.serving.metrics import Metrics
from distml.serving.service import Models, Served, Service
from distml.tasks import Outputs

NAME, CLASSES, SHAPE = "pets", ("cat", "dog", "bird"), (4, 5, 1)


def served(
    version: int, classes: tuple[str, ...] = CLASSES, shape: tuple[int, int, int] = SHAPE, name: str = NAME
) -> Served:
    """A version's description."""
    return Served(
        name, version, f"{version:032x}", f"{version:064x}", classes, shape, {"acc": 0.5}, None, 1.0
    )


def function(seed: int, classes: int = len(CLASSES), shape: tuple[int, int, int] = SHAPE) -> Function:
    """Softmax of a fixed projection of the pixels."""
    weights = np.random.default_rng(seed).normal(0, 0.02, (int(np.prod(shape)), classes)).astype(np.float32)

    def classify(images: Images) -> Outputs:
        assert images.dtype == np.uint8
        logits = images.reshape(len(images), -1) @ weights
        raised: Outputs = np.exp(logits - logits.max(1, keepdims=True)).astype(np.float32)
        summed: Outputs = raised / raised.sum(1, keepdims=True)
        return summed

    return classify


def core(shape: tuple[int, int, int] = SHAPE, config: ServeConfig | None = None) -> Core:
    """Version 7 is the champion, version 5 is loaded beside it."""
    made = Core(config or ServeConfig())
    loaded = {
        version: Loaded(served(version, shape=shape), function(version, shape=shape)) for version in (5, 7)
    }
    made.swap(loaded, {"champion": 7, "previous": 5})
    return made


@contextmanager
def running(
    service: Service | Models, config: ServeConfig | None = None, metrics: Metrics | None = None
) -> Iterator[str]:
    """Serve over real HTTP in a thread of this process; gives the URL."""
    app = application(service, config or ServeConfig(), metrics or getattr(service, "metrics", None))
    with listening(app) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def listening(app: Any) -> Iterator[int]:
    """Run an ASGI application in a thread of this process; gives its port."""
    server = uvicorn.Server(
        # Its configuration of logging would close the handlers of others: that of absl, which TensorFlow
        # brings, takes the stream that pytest captures with it.
        uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, log_level="error", access_log=False)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
