"""The table of private names of Ray, Keras and others, and all their uses; a unit test checks it.

Private names, class swaps and hidden imports stand here, each with the version in which it was read and what
it gains. `tests/unit/runtime/test_compat.py` fails when a name moves, when another version is installed
(read it again, then change the entry) and when a module elsewhere reaches for a private name.
This module imports nothing heavy, for it is loaded before TensorFlow.
"""

from __future__ import annotations

import contextlib
import gc
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPTIONAL = ("sklearn", "matplotlib", "scipy")
"""Packages that Keras imports where they are installed, for wrappers and plots. MLflow requires them all."""
MONITORS = (
    "/dashboard/dashboard.py",
    "/log_monitor.py",
    "/_private/monitor.py",
    "ray-dashboard-",
    "ray::DashboardAgent",
)
"""What the command lines of Ray's processes hold that only show or collect; see `runtime.processes`."""
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""The same for the agents of a raylet, which ends when one of them does."""
CONTROLLERS = ("ray::TrainController", "ray::Synchronization")
"""The same for Ray Train's own actors, for which a run waits now and then."""


@dataclass(frozen=True)
class Private:
    """Something that is not another package's public interface.

    Attributes:
        package: The distribution.
        version: The version in which it was read.
        names: `module:name.name`, or `path: text` where a file of the package holds a text.
        use: What distml does with it.
        gain: What it gains, measured, or what does not work without it.
    """

    package: str
    version: str
    names: tuple[str, ...]
    use: str
    gain: str


PRIVATE = (
    Private(
        "keras",
        "3.15.1",
        (
            "keras/src/wrappers/sklearn_wrapper.py: import sklearn",
            "keras/src/visualization/plot_image_gallery.py: import matplotlib",
            "keras/src/backend/numpy/linalg.py: import scipy",
        ),
        "`imports`: packages that Keras imports where they are installed are hidden meanwhile",
        "`import keras, tensorflow`, compiled: 2.5 to 2.8 CPU-seconds for 3.5 to 4.0 and 561 MiB for 650 "
        "(four pairs, interleaved); 2 to 5 of 50 in a short run (2026-11-29, benchmarks/README.md)",
    ),
    Private(
        "keras",
        "3.15.1",
        ("keras:Layer._flatten_layers",),
        "`layers`: the layers of a model at any depth",
        "no time; Keras has no public function for nested layers (`Model.layers` is one level)",
    ),
    Private(
        "keras",
        "3.15.1",
        (
            "keras/src/layers/layer.py: self._trainable_variables",
            "keras/src/layers/layer.py: self._non_trainable_variables",
        ),
        "`own_variables`: a layer's weights in the order in which Keras saves them",
        "no time; `Layer.weights` holds those of nested layers, too",
    ),
    Private(
        "keras",
        "3.15.1",
        (
            "keras/src/ops/operation.py: self._inbound_nodes = []",
            "keras/src/ops/node.py: def input_tensors(self)",
            "keras/src/ops/node.py: def output_tensors(self)",
        ),
        "`call`: what a model that is a layer of another one is given there; `Model.input` is its own",
        "epochs that train the last blocks of a frozen backbone compute its first ones once "
        "(benchmarks/README.md)",
    ),
    Private(
        "keras",
        "3.15.1",
        (
            "keras/src/layers/normalization/batch_normalization.py: self.renorm",
            "keras/src/layers/normalization/batch_normalization.py: self.synchronized",
        ),
        "`swap_class`: stock batch normalisation layers compute by TensorFlow's fused operation",
        "4,351 to 6,118 samples/s of a residual network in float32, 4,798 to 7,534 in bfloat16 (2026-11-29, "
        "benchmarks/README.md)",
    ),
    Private(
        "keras",
        "3.15.1",
        ("keras/src/layers/convolutional/base_depthwise_conv.py: outputs = ops.depthwise_conv(",),
        "`swap_class`: strided depthwise convolutions in bfloat16 have a gradient of images in float32",
        "178 to 18 ms of the 470 of a step of MobileNetV2, 16 images at 160 on a core (benchmarks/README.md)",
    ),
    Private(
        "keras",
        "3.15.1",
        (
            "keras/src/layers/preprocessing/image_preprocessing/random_flip.py: class RandomFlip(",
            "keras/src/layers/preprocessing/image_preprocessing/rand_augment.py: class RandAugment(",
        ),
        "`augmentation_layers`: names and options of layers are read from their source files",
        "no Keras in the driver: 2.5 CPU-seconds and 560 MiB (see `config.functions`)",
    ),
    Private(
        "ray",
        "2.60.0",
        (
            "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer._create_default_callbacks",
            "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer._initialize_and_run_controller",
            "ray.train.v2._internal.callbacks.datasets:DatasetsCallback",
            "ray.train.v2._internal.callbacks.placement_group_callback:PlacementGroupCleanerCallback",
            "ray.train.v2._internal.execution.scaling_policy.fixed:FixedScalingPolicy._send_resource_request",
            "ray.train.v2._internal.execution.scaling_policy.fixed:FixedScalingPolicy._maybe_send_resource_request",
            "ray.train.v2._internal.execution.scaling_policy.fixed:FixedScalingPolicy._cancel_resource_request",
        ),
        "`trainer`, on one machine: three actors that have nothing to do there are not started",
        "3 to 5 of 50 CPU-seconds of a short run (2026-11-29, benchmarks/README.md)",
    ),
    Private(
        "ray",
        "2.60.0",
        (
            "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer._register_sigint_handler",
            "ray/train/v2/api/data_parallel_trainer.py: self._register_sigint_handler(controller)",
        ),
        "`trainer`: Ctrl-C raises `KeyboardInterrupt`",
        "no time; Ray Train's handler ends the process, and the run would be recorded as failed",
    ),
    Private(
        "ray",
        "2.60.0",
        (
            "ray/_private/services.py: --raylet_socket_name=",
            "ray/_private/services.py: --raylet-name=",
            "ray/_private/ray_constants.py: ray::DashboardAgent",
            "ray/_private/ray_constants.py: ray::RuntimeEnvAgent",
            "ray/dashboard/subprocesses/module.py: ray-dashboard-",
            "ray/dashboard/dashboard.py: ",
            "ray/_private/log_monitor.py: ",
            "ray/autoscaler/_private/monitor.py: ",
            "ray.train.v2._internal.execution.controller.controller:TrainController",
            "ray.train.v2._internal.execution.checkpoint.sync_actor:SynchronizationActor",
        ),
        "`MONITORS`, `CONTROLLERS`: the priority of Ray's own processes is lowered by their command lines; "
        "`AGENTS` are not killed with the workers, and workers that start while a raylet ends are",
        "s to the first step: 14.6 with it, 16.4 without it (13.9 before); steady epochs: nothing beyond the "
        "noise (2026-11-29, benchmarks/README.md)",
    ),
    Private(
        "ray",
        "2.60.0",
        ("ray/serve/deployment.py: if not _internal and version is not DEFAULT.VALUE",),
        "`serve_version`: the version of a deployment",
        "no time; Ray would draw a random version and replace every replica at each deployment",
    ),
    Private(
        "ray",
        "2.60.0",
        (
            "ray.serve._private.default_impl:add_grpc_address",
            "ray/serve/_private/grpc_util.py: from ray.serve._private.default_impl import add_grpc_address",
            "ray.serve._private.replica:add_port_to_grpc_server",
            "ray._common.tls_utils:add_port_to_grpc_server",
            "ray/_private/services.py: if not ray_constants.ENABLE_RAY_CLUSTER:",
        ),
        "`grpc_on_loopback`; with RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER, all of a local Ray listens on loopback",
        "no time; about 15 ports were open on every interface of the machine",
    ),
    Private(
        "ray",
        "2.60.0",
        (
            "ray/_private/worker.py: global _global_node",
            "ray._private.node:Node.kill_all_processes",
            "ray/_private/node.py: wait_timeout_seconds = 1",
        ),
        "`killed_at_once`: an interrupt ends a local Ray without a second for each of its processes",
        "not measured alone; Ray waits up to a second for each of three processes, one after the other",
    ),
    Private(
        "ray",
        "2.60.0",
        (
            "ray._private.node:Node.start_log_monitor",
            "ray._private.node:Node.start_api_server",
            "ray._private.node:Node.start_monitor",
            "ray/_private/node.py: self._webui_url = None",
        ),
        "`few_processes`: a local Ray has no log monitor; without a dashboard no API server and no monitor",
        "start of a Ray without a dashboard: 3.0, 4.2, 3.0 s for 4.8, 5.8, 5.0 (in turn), 3 CPU-s less; "
        "log monitor alone: 0.8, and 13 ms in each second afterwards (2026-11-30, slow cores)",
    ),
    Private(
        "ray",
        "2.60.0",
        ("ray._private.worker:print_to_stdstream",),
        "`no_messages`: scripts and notebooks that end an endpoint are not told of its killed controller",
        "no time; two lines (raylet) about failed tasks stood in the output of each",
    ),
    Private(
        "uvicorn",
        "0.54.0",
        (
            "uvicorn.protocols.http.httptools_impl:RequestResponseCycle.send",
            "uvicorn/protocols/http/httptools_impl.py: self.cycle = RequestResponseCycle(",
            "uvicorn/protocols/http/httptools_impl.py: self.transport.write(",
            "uvicorn/protocols/http/httptools_impl.py: self.chunked_encoding",
            "uvicorn/protocols/http/httptools_impl.py: self.expected_content_length",
        ),
        "`http_in_one_write`: a response may end with trailers, and leaves in one write",
        "calls of gRPC: 985 to 1,916 a second, against a gRPC server in each replica (benchmarks/README.md)",
    ),
    Private(
        "ray",
        "2.60.0",
        (
            "ray/serve/_private/haproxy_templates.py: frontend http_frontend",
            "ray/serve/_private/haproxy_templates.py: frontend grpc_frontend",
            "ray/serve/_private/haproxy_templates.py: backend default_grpc_backend",
            "ray/serve/_private/haproxy_templates.py: option httplog",
            "ray/serve/_private/haproxy_templates.py: option abortonclose",
            "ray/serve/_private/haproxy_templates.py: errorfile 502",
            "ray/serve/_private/haproxy_templates.py: nbsrv({{ backend.name or 'unknown' }}) ge 1",
            "ray/serve/_private/haproxy_templates.py: content-type text/plain lf-string",
            "ray/serve/_private/haproxy.py: default-server",
        ),
        "`serving/haproxy.py`: corrects the configuration that Ray writes, then becomes HAProxy",
        "HAProxy serves 4 to 5 times the requests of Ray's proxy; what the corrections prevent stands there",
    ),
)
"""Everything that is used, and what it gains."""


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Hide `OPTIONAL` while the body imports; afterwards they can be imported as usual.

    Garbage is not collected meanwhile: a module's objects stay, and scanning all of them many times
    took 30 % of the CPU time of `import keras, tensorflow` (6.2 to 4.3 CPU-seconds on slow cores).
    """
    hidden = [name for name in OPTIONAL if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type] # None means "cannot be imported"
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        for name in hidden:
            sys.modules.pop(name, None)


def layers(network: Any, include_self: bool = True) -> list[Any]:
    """Return the layers of a Keras model at any depth, parents before their children."""
    return list(network._flatten_layers(include_self=include_self))


def own_variables(layer: Any) -> list[Any]:
    """Return the weights of a Keras layer itself, in the order in which Keras saves them."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def call(layer: Any) -> tuple[Any, Any]:
    """Return the tensor that a layer is called on in the graph of its model, and the tensor it returns."""
    return calls(layer)[0]


def calls(operation: Any) -> list[tuple[Any, Any]]:
    """Return the first tensor that a layer or operation is called on and the first it returns, by call."""
    nodes = (node for node in operation._inbound_nodes if node.input_tensors)
    return [(node.input_tensors[0], node.output_tensors[0]) for node in nodes]


def swap_class(layer: Any, kind: type[Any]) -> None:
    """Make a layer one of a subclass, in place.

    A clone would draw other initial weights and part layers that share theirs. Keras tracks what is assigned
    to a layer; this assignment is Python's own.
    """
    object.__setattr__(layer, "__class__", kind)


def augmentation_layers(keras: Path) -> dict[str, Path]:
    """Return the source files of Keras's layers that change images and keep their size, by the layers' names.

    Args:
        keras: Folder of the package.
    """
    others = {"BaseImagePreprocessingLayer", "CenterCrop", "Resizing", "RandomCrop", "MixUp", "CutMix"}
    others.add("MaxNumBoundingBoxes")
    files = {
        name: path
        for path in sorted((keras / "src/layers/preprocessing/image_preprocessing").glob("*.py"))
        if not path.name.endswith("_test.py")
        for name in re.findall(
            r"^class (\w+)\((?:Base\w+Layer|Random\w+|RandAugment)\)", path.read_text("utf-8"), re.M
        )
    }
    return {name: path for name, path in files.items() if name not in others}


def serve_version(version: str) -> dict[str, Any]:
    """Return the options of a Ray Serve deployment that give it a version."""
    return {"version": version, "_internal": True}


def grpc_on_loopback() -> list[Any]:
    """Let Ray Serve's gRPC servers in this process listen where Ray does, if that is loopback.

    Replicas call it, and Ray does before its proxies start a server.

    Returns:
        No middlewares, which is what Ray asks its callback for.
    """
    import ray

    if ray.util.get_node_ip_address() != "127.0.0.1":
        return []
    from ray._common import tls_utils
    from ray.serve._private import default_impl, replica

    def add(server: Any, address: str) -> Any:
        return tls_utils.add_port_to_grpc_server(server, f"127.0.0.1:{address.rpartition(':')[2]}")

    def add_plain(server: Any, address: str) -> None:
        server.add_insecure_port(f"127.0.0.1:{address.rpartition(':')[2]}")

    vars(replica)["add_port_to_grpc_server"] = add
    vars(default_impl)["add_grpc_address"] = add_plain
    return []


@contextlib.contextmanager
def _replaced(owner: Any, values: dict[str, Any]) -> Iterator[None]:
    """Let attributes of a class or module have other values within the body."""
    own = {name: vars(owner)[name] for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(owner, name, value)


@contextlib.contextmanager
def few_processes(dashboard: bool) -> Iterator[None]:
    """Let a local Ray that starts within the body leave out processes that have nothing to do here.

    The log monitor sends the workers' lines to a driver, which shows none of them (`log_to_driver`). Where
    there is no dashboard, Ray starts the server of its API all the same, and always the autoscaler's
    monitor, which has no nodes to add on one machine; the dashboard shows the monitor's summary.

    Args:
        dashboard: Whether there is one.
    """
    from ray._private.node import Node

    without = ["start_log_monitor", *(() if dashboard else ("start_api_server", "start_monitor"))]
    with _replaced(Node, dict.fromkeys(without, lambda *_, **__: None)):
        yield


@contextlib.contextmanager
def no_messages() -> Iterator[None]:
    """Let Ray write no errors of its cluster to this process's standard output within the body.

    It writes them from a thread of its own, into the output of a notebook's cell as well. At the end they
    are about what was ended on purpose.
    """
    from ray._private import worker

    with _replaced(worker, {"print_to_stdstream": lambda *_, **__: None}):
        yield


def killed_at_once() -> None:
    """Let `ray.shutdown` kill the processes of this process's local Ray and not ask them to end first.

    It asks one after the other and gives each a second; nothing of theirs outlives the session.
    """
    from ray._private import worker

    if (node := worker._global_node) is not None:
        kill = node.kill_all_processes
        node.kill_all_processes = lambda **options: kill(**options | {"allow_graceful": False})


def http_in_one_write() -> None:
    """Let uvicorn's servers in this process send trailers, and a whole response in one write.

    Uvicorn knows the trailers of ASGI for HTTP/2 alone, and writes the head of a response by itself.
    """
    from uvicorn.protocols.http import httptools_impl

    if httptools_impl.RequestResponseCycle.__module__ == __name__:
        return  # it does already

    class Cycle(httptools_impl.RequestResponseCycle):
        """A request and its response. Final."""

        waiting: tuple[Any, ...] = ()

        async def send(self, message: Any) -> None:
            await _send_at_once(self, super().send, message)

    vars(httptools_impl)["RequestResponseCycle"] = Cycle


class _Held:
    """Takes what is written to a transport until it is released. Final."""

    def __init__(self, transport: Any) -> None:
        self._transport, self._parts, self._closed = transport, list[bytes](), False

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def close(self) -> None:
        self._closed = True

    def is_closing(self) -> bool:
        return self._closed or bool(self._transport.is_closing())

    def release(self) -> Any:
        """Write it, unless the client has left; returns the transport."""
        if (data := b"".join(self._parts)) and not self._transport.is_closing():
            self._transport.write(data)
        if self._closed:
            self._transport.close()
        return self._transport


async def _send_at_once(cycle: Any, send: Callable[[Any], Awaitable[None]], message: Any) -> None:
    """Hold back the head of a response until its body, or its trailers, are there."""
    waiting = cycle.waiting
    if message["type"] == "http.response.start":
        cycle.waiting = (message,)
        return
    last = message["type"] == "http.response.body" and not message.get("more_body", False)
    if last and waiting and waiting[0].get("trailers", False):
        cycle.waiting = (*waiting, message | {"more_body": True})
        return
    cycle.waiting, cycle.transport = (), _Held(cycle.transport)
    try:
        for earlier in waiting:
            await send(earlier)
        if message["type"] == "http.response.trailers":
            # The last chunk, which trailers follow; then what uvicorn does after the last part of a body.
            lines = b"".join(b"%s: %s\r\n" % pair for pair in message["headers"])
            cycle.transport.write(b"0\r\n" + lines + b"\r\n")
            cycle.chunked_encoding, cycle.expected_content_length = False, 0
            message = {"type": "http.response.body", "body": b""}
        await send(message)
    finally:
        cycle.transport = cycle.transport.release()


def trainer(local: bool) -> Any:
    """Return a `DataParallelTrainer` that Ctrl-C interrupts like any other program.

    Ray Train's own handler of SIGINT ends the process with `SystemExit` or an error of the actor that it
    aborted, which nobody can tell from a failure: the run would be recorded as failed.

    Args:
        local: For a fixed number of workers on a Ray that this process started. Every actor of Ray Train and
            Ray Data imports both (3 to 7 CPU-seconds each, 2.60, 2 cores). Three of them have nothing to do
            there and are left out: the one that asks an autoscaler for nodes, the one that frees placement
            groups when the driver's node is lost, and the one that splits data sets where there is none to
            split.
    """
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class Trainer(DataParallelTrainer):
        """A trainer without a handler of signals."""

        def _register_sigint_handler(self, controller: Any) -> None: ...

    return _local(Trainer) if local else Trainer


def _local(trainer: Any) -> Any:
    """Return the trainer for a local Ray; see `trainer`."""
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy

    class NoAutoscaler(FixedScalingPolicy):
        """Scaling to a fixed number of workers without requests to an autoscaler. Final."""

        def _maybe_send_resource_request(self) -> None: ...

        def _send_resource_request(self) -> None: ...

        def _cancel_resource_request(self) -> None: ...

    class LocalTrainer(trainer):
        """The trainer. Final."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()
            unused = (PlacementGroupCleanerCallback, *(() if self.datasets else (DatasetsCallback,)))
            return [callback for callback in callbacks if not isinstance(callback, unused)]

        def _initialize_and_run_controller(self, **settings: Any) -> Any:
            settings["scaling_policy"] = NoAutoscaler(self.scaling_config)
            return super()._initialize_and_run_controller(**settings)

    return LocalTrainer
