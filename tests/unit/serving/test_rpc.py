"""The gRPC protocols over a real gRPC server, with our own message classes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
import requests
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from PIL import Image
from tritonclient.utils import InferenceServerException

from distml.config import AuthConfig, ServeConfig
from distml.data.schema import Images
from distml.runtime import compat
from distml.serving import haproxy, ingress, rpc
from distml.serving.application import application
from distml.serving.batching import Core, Loaded
from distml.serving.encoded import Decoder
from distml.serving.metrics import Metrics
from distml.serving.rpc import Message, message
from distml.serving.security import KeyCheck
from distml.serving.service import Models
from distml.tasks import Outputs
from tests import serving

Call = Callable[..., tuple[Message, dict[str, str]]]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, *serving.SHAPE), np.uint8)
EXPECTED = serving.function(7)(IMAGES)
KEY = "0123456789abcdef0123456789abcdef"


@rpc.procedures
class Servicer:
    """What Ray Serve calls, called by gRPC itself: both give the request and a context."""

    def __init__(self, config: ServeConfig, models: Models | None = None) -> None:
        metrics = Metrics()
        keys = KeyCheck(config.auth, metrics) if config.auth.keys_file else None
        self.rpc = rpc.Rpc(models or serving.core(), config, metrics, Decoder(config).images, keys)


def _serve(servicer: Servicer, ready: threading.Event, state: dict[str, Any]) -> None:
    async def run() -> None:
        server = grpc.aio.server()
        rpc.add(servicer, server)
        state["port"] = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        state["loop"], state["end"] = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        await state["end"].wait()
        await server.stop(None)

    asyncio.run(run())


@contextlib.contextmanager
def by_server(config: ServeConfig, models: Models | None = None) -> Iterator[int]:
    """The port of a server of gRPC, which Ray Serve's own proxy forwards to."""
    ready, state = threading.Event(), dict[str, Any]()
    thread = threading.Thread(target=_serve, args=(Servicer(config, models), ready, state))
    thread.start()
    assert ready.wait(20)
    try:
        yield state["port"]
    finally:
        state["loop"].call_soon_threadsafe(state["end"].set)
        thread.join(20)


@contextlib.contextmanager
def by_haproxy(config: ServeConfig, models: Models | None = None) -> Iterator[int]:
    """The port of an HAProxy in front of the application of a replica."""
    compat.http_in_one_write()
    models = models or Models.of(serving.core())
    app = application(models, config, calls=dict.fromkeys(rpc.PATHS, Servicer(config, models).rpc))
    port, folder = ingress.free_ports()[0], Path(tempfile.mkdtemp())
    with serving.listening(app) as behind:
        text = haproxy.corrected(PROXY.format(port=port, behind=behind), "127.0.0.1", "10", f"abns@{folder}")
        (folder / "haproxy.cfg").write_text(text.replace("bind 127.0.0.1:8000\n", "\n"))
        words = [haproxy.program() or "", "-db", "-f", str(folder / "haproxy.cfg")]
        with subprocess.Popen(words) as process:
            try:
                with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                    grpc.channel_ready_future(channel).result(20)
                yield port
            finally:
                process.kill()


PROXY = """defaults
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
frontend http_frontend
    bind 127.0.0.1:8000
    default_backend http-distml
backend http-distml
    server one 127.0.0.1:{behind}
frontend grpc_frontend
    bind 127.0.0.1:{port} proto h2
"""
WAYS = {"server": by_server, "haproxy": by_haproxy}


@contextlib.contextmanager
def started(way: str, config: ServeConfig) -> Iterator[Call]:
    with WAYS[way](config) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:

        def call(
            service: str, name: str, request: Message, **metadata: str
        ) -> tuple[Message, dict[str, str]]:
            procedure = channel.unary_unary(
                f"/{service}/{name}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=message(f"{name}Response").FromString,
            )
            timeout, compression = metadata.pop("timeout", "20"), metadata.pop("compression", "")
            sent = [(key.replace("_", "-"), value) for key, value in metadata.items()]
            packed = grpc.Compression.Gzip if compression else None
            response, call = procedure.with_call(request, float(timeout), sent, compression=packed)
            return response, dict(call.trailing_metadata())

        yield call


@pytest.fixture(scope="module", params=WAYS)
def call(request: pytest.FixtureRequest) -> Iterator[Call]:
    with started(request.param, ServeConfig(max_body_bytes=100_000)) as call:
        yield call


def inference(images: Any = IMAGES, **members: Any) -> Message:
    request = message("ModelInferRequest")(model_name=serving.NAME, **members)
    request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    request.raw_input_contents.append(images.tobytes())
    return request


def prediction(images: Any = IMAGES, signature: str = "") -> Message:
    request = message("PredictRequest")()
    request.model_spec.name, request.model_spec.signature_name = serving.NAME, signature
    tensor = request.inputs["image"]
    tensor.dtype, tensor.tensor_content = 4, images.tobytes()
    for size in images.shape:
        tensor.tensor_shape.dim.add(size=size)
    return request


def infer(call: Call, request: Message, **metadata: str) -> tuple[Message, dict[str, str]]:
    return call(rpc.INFERENCE, "ModelInfer", request, **metadata)


def predict(call: Call, request: Message) -> Message:
    return call(rpc.PREDICTION, "Predict", request)[0]


def outputs(response: Message) -> dict[str, bytes]:
    return {
        output.name: raw for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGES[0, ..., 0]).save(file, "png")
    return file.getvalue()


def test_a_tensor_is_answered_as_over_http(call: Call) -> None:
    response, trailing = infer(call, inference(id="42"))
    assert (response.model_name, response.model_version, response.id) == ("pets", "7", "42")
    assert trailing["x-model-version"] == "7"
    probabilities = np.frombuffer(outputs(response)["probabilities"], "<f4").reshape(3, 3)
    np.testing.assert_allclose(probabilities, EXPECTED, atol=1e-6)
    labels = np.frombuffer(outputs(response)["label"], "<i4")
    assert labels.tolist() == EXPECTED.argmax(1).tolist()
    words = [serving.CLASSES[label].encode() for label in labels]
    assert outputs(response)["class"] == b"".join(len(word).to_bytes(4, "little") + word for word in words)


@pytest.mark.parametrize(
    ("datatype", "field"),
    [
        ("UINT8", "uint_contents"),
        ("INT32", "int_contents"),
        ("INT64", "int64_contents"),
        ("FP32", "fp32_contents"),
        ("FP64", "fp64_contents"),
    ],
)
def test_values_may_stand_in_the_tensor_itself(call: Call, datatype: str, field: str) -> None:
    request = message("ModelInferRequest")(model_name=serving.NAME)
    tensor = request.inputs.add(name="image", datatype=datatype, shape=IMAGES.shape)
    getattr(tensor.contents, field).extend(IMAGES.ravel().tolist())
    request.outputs.add(name="probabilities")
    (raw,) = infer(call, request)[0].raw_output_contents
    np.testing.assert_allclose(np.frombuffer(raw, "<f4").reshape(3, 3), EXPECTED, atol=1e-6)


@pytest.mark.parametrize("raw", [False, True], ids=["bytes_contents", "raw_input_contents"])
def test_pictures_are_decoded(call: Call, raw: bool) -> None:
    request = message("ModelInferRequest")(model_name=serving.NAME)
    tensor = request.inputs.add(name="image_bytes", datatype="BYTES", shape=[1])
    data = picture()
    if raw:
        request.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
    else:
        tensor.contents.bytes_contents.append(data)
    actual = np.frombuffer(outputs(infer(call, request)[0])["probabilities"], "<f4")
    np.testing.assert_allclose(actual, EXPECTED[0], atol=1e-6)


def test_a_version_answers_by_number_and_label(call: Call) -> None:
    assert infer(call, inference(model_version="5"))[0].model_version == "5"
    request = prediction()
    request.model_spec.version_label = "previous"
    assert predict(call, request).model_spec.version.value == 5


def test_classes_by_rank(call: Call) -> None:
    request = inference(IMAGES[:1])
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = 2
    words = outputs(infer(call, request)[0])["probabilities"]
    best = int(EXPECTED[0].argmax())
    assert f":{best}:{serving.CLASSES[best]}".encode() in words


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32, np.float64])
def test_tensorflow_serving_predicts(call: Call, dtype: Any) -> None:
    request = prediction(IMAGES.astype(dtype))
    number = {np.uint8: 4, np.int32: 3, np.int64: 9, np.float32: 1, np.float64: 2}[dtype]
    request.inputs["image"].dtype = number
    response = predict(call, request)
    assert response.model_spec.name == "pets"
    output = response.outputs["probabilities"]
    assert [size.size for size in output.tensor_shape.dim] == [3, 3]
    np.testing.assert_allclose(np.reshape(output.float_val, (3, 3)), EXPECTED, atol=1e-6)


def test_tensorflow_serving_takes_pictures_and_tensors_of_one_value(call: Call) -> None:
    request = message("PredictRequest")()
    request.model_spec.name, request.model_spec.signature_name = serving.NAME, "image_bytes"
    tensor = request.inputs["image_bytes"]
    tensor.dtype = 7
    tensor.tensor_shape.dim.add(size=1)
    tensor.string_val.append(picture())
    np.testing.assert_allclose(
        predict(call, request).outputs["probabilities"].float_val, EXPECTED[0], atol=1e-6
    )
    request = prediction()
    request.inputs["image"].ClearField("tensor_content")
    request.inputs["image"].int_val.append(9)
    assert predict(call, request).outputs["probabilities"].float_val[:3] == pytest.approx(
        serving.function(7)(np.full_like(IMAGES[:1], 9))[0].tolist(), rel=1e-6
    )


def test_models_are_described(call: Call) -> None:
    request = message("ModelMetadataRequest")(name=serving.NAME)
    described, _ = call(rpc.INFERENCE, "ModelMetadata", request)
    assert list(described.versions) == ["7", "5"]
    assert [(tensor.name, list(tensor.shape)) for tensor in described.inputs] == [("image", [-1, 4, 5, 1])]
    assert call(rpc.INFERENCE, "ServerLive", message("ServerLiveRequest")())[0].live
    assert call(rpc.INFERENCE, "ServerReady", message("ServerReadyRequest")())[0].ready
    for name, ready in ((serving.NAME, True), ("other", False)):
        assert call(rpc.INFERENCE, "ModelReady", message("ModelReadyRequest")(name=name))[0].ready is ready
    assert call(rpc.INFERENCE, "ServerMetadata", message("ServerMetadataRequest")())[0].name == "distml"
    asked = message("GetModelMetadataRequest")(metadata_field=["signature_def"])
    asked.model_spec.name = serving.NAME
    signatures = message("SignatureDefMap")()
    assert call(rpc.PREDICTION, "GetModelMetadata", asked)[0].metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].inputs["image"].dtype == 4
    asked = message("GetModelStatusRequest")()
    asked.model_spec.name = serving.NAME
    states = call(rpc.MODELS, "GetModelStatus", asked)[0].model_version_status
    assert [(state.version, state.state) for state in states] == [(7, 30), (5, 30)]


def _two_inputs() -> Message:
    request = inference()
    request.inputs.add(name="image", datatype="UINT8", shape=IMAGES.shape)
    return request


def _both() -> Message:
    request = inference()
    request.inputs[0].contents.uint_contents.append(1)
    return request


def _named(name: str) -> Message:
    request = inference()
    request.model_name = name
    return request


def _output(name: str) -> Message:
    request = inference()
    request.outputs.add(name=name)
    return request


INVALID, UNKNOWN = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("request_", "code", "sentence"),
    [
        (inference(IMAGES[:, :2]), INVALID, "the shape of 'image' is [3, 2, 5, 1]"),
        (_two_inputs(), INVALID, "inputs holds 2 tensors"),
        (_both(), INVALID, "must be either in raw_input_contents or in uint_contents"),
        (_named("other"), UNKNOWN, "there is no model 'other'"),
        (inference(model_version="9"), UNKNOWN, "version 9 of 'pets' is not loaded"),
        (inference(model_version="x"), UNKNOWN, "'x' is not a number"),
        (_output("logits"), INVALID, "names 'logits'"),
        (
            inference(np.zeros((6000, *serving.SHAPE), np.uint8)),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "serve.max_body_bytes",
        ),
    ],
)
def test_rejected_procedures_have_a_status_and_a_message(
    call: Call, request_: Message, code: grpc.StatusCode, sentence: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(call, request_)
    assert caught.value.code() is code
    assert sentence in caught.value.details()


def test_a_tensor_of_tensorflow_that_cannot_be_read_is_rejected(call: Call) -> None:
    request = prediction()
    request.inputs["image"].dtype = 10
    with pytest.raises(grpc.RpcError, match="number 10"):
        predict(call, request)
    request = prediction()
    request.inputs["image"].ClearField("tensor_content")
    request.inputs["image"].int_val.append(1)
    request.inputs["image"].tensor_shape.dim[0].size = 1 << 30
    with pytest.raises(grpc.RpcError) as caught:
        predict(call, request)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_input_warnings_are_in_the_trailing_metadata(call: Call) -> None:
    assert infer(call, inference(np.zeros_like(IMAGES)))[1]["x-input-warnings"] == "constant"


def test_a_compressed_message_is_unpacked(call: Call) -> None:
    assert infer(call, inference(), compression="gzip")[0].model_version == "7"
    with pytest.raises(grpc.RpcError) as caught:  # 48 kB as sent, more than is taken unpacked
        infer(call, inference(np.zeros((6000, *serving.SHAPE), np.uint8)), compression="gzip")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_unknown_procedure_is_unimplemented(call: Call) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call("inference.Nothing", "ServerLive", message("ServerLiveRequest")())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (f"/{rpc.PREDICTION}/Classify", f"{rpc.PREDICTION} has Predict, GetModelMetadata"),
        ("/inference.Nothing/Do", f"the services are {rpc.INFERENCE}, "),
    ],
)
def test_behind_haproxy_an_unknown_procedure_gets_the_known_names(path: str, sentence: str) -> None:
    with (
        by_haproxy(ServeConfig()) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary(path)(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details().startswith(f"there is no procedure {path}; {sentence}")


def test_a_stream_is_unimplemented_at_once() -> None:
    def requests_() -> Iterator[bytes]:
        yield b""
        time.sleep(3)

    with by_haproxy(ServeConfig()) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        started = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            next(channel.stream_stream(f"/{rpc.INFERENCE}/ModelStreamInfer")(requests_(), timeout=20))
        assert time.monotonic() - started < 2
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "streams are not supported; call ModelInfer"


def two() -> Models:
    """`pets` and `shoes` answer, with limits of their own; of `torn` no version is loaded."""
    shoes = Core(ServeConfig(max_queued_images=9))
    described = Loaded(serving.served(3, name="shoes"), serving.function(3))
    shoes.swap({3: described}, {"champion": 3})
    return Models({"pets": serving.core(), "shoes": shoes, "torn": Core(ServeConfig())})


def _plain(value: Any) -> Any:
    """JSON as protobuf writes it: without what is zero or empty, numbers as texts."""
    if isinstance(value, dict):
        parts = {key: _plain(part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part not in ("", "0", [], {})}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return str(value)


@pytest.mark.parametrize("way", WAYS)
def test_a_stock_client_gets_over_grpc_what_it_gets_over_http(way: str) -> None:
    models, config = two(), ServeConfig()
    with (
        serving.running(models, config, Metrics()) as url,
        WAYS[way](config, models) as port,
        triton.InferenceServerClient(f"127.0.0.1:{port}") as client,
        triton_http.InferenceServerClient(url.removeprefix("http://")) as other,
    ):
        given = triton.InferInput("image", IMAGES.shape, "UINT8").set_data_from_numpy(IMAGES)
        client.infer("shoes", [given])
        asked: list[tuple[str, tuple[str, ...], str]] = [
            ("get_model_repository_index", (), "models"),
            ("get_inference_statistics", (), ""),
            ("get_inference_statistics", ("shoes",), ""),
            ("get_inference_statistics", ("pets", "5"), ""),
            ("get_model_config", ("shoes",), "config"),
            ("get_model_config", ("pets", "5"), "config"),
            ("get_model_metadata", ("pets",), ""),
        ]
        for name, words, under in asked:
            said = getattr(client, name)(*words, as_json=True)
            assert _plain(said[under] if under else said) == _plain(getattr(other, name)(*words)), name
        assert client.get_model_config("shoes").config.max_batch_size == 9
        assert client.get_inference_statistics("shoes").model_stats[0].inference_count == 3
        extensions = client.get_server_metadata(as_json=True)["extensions"]
        assert set(other.get_server_metadata()["extensions"]) - {*extensions} == {"binary_tensor_data"}
        with pytest.raises(InferenceServerException, match="no model 'cars'"):
            client.get_model_config("cars")
        with pytest.raises(InferenceServerException, match="of no model"):
            client.get_inference_statistics(model_version="5")


def test_an_index_holds_ready_versions_alone_where_it_is_asked_so(call: Call) -> None:
    with serving.running(two(), metrics=Metrics()) as url:
        for body, names in (
            ({}, ["pets", "pets", "shoes", "torn"]),
            ({"ready": True}, ["pets", "pets", "shoes"]),
        ):
            listed = requests.post(f"{url}/v2/repository/index", json=body, timeout=10).json()
            assert [row["name"] for row in listed] == names
        rejected = requests.post(f"{url}/v2/repository/index", json={"ready": "yes"}, timeout=10)
        assert (rejected.status_code, rejected.json()["error"]) == (
            400,
            "ready is a string, not true or false",
        )
    request = message("RepositoryIndexRequest")(ready=True)
    rows = call(rpc.INFERENCE, "RepositoryIndex", request)[0].models
    assert [(row.name, row.version, row.state) for row in rows] == [
        ("pets", "7", "READY"),
        ("pets", "5", "READY"),
    ]
    request = message("RepositoryIndexRequest")(repository_name="other")
    with pytest.raises(grpc.RpcError, match="no repository 'other'"):
        call(rpc.INFERENCE, "RepositoryIndex", request)


def test_what_is_no_call_is_rejected_over_http() -> None:
    compat.http_in_one_write()
    config = ServeConfig()
    app = application(serving.core(), config, calls=dict.fromkeys(rpc.PATHS, Servicer(config).rpc))
    framed = {"content-type": "application/grpc"}
    with serving.listening(app) as port, requests.Session() as session:
        url = f"http://127.0.0.1:{port}/{rpc.INFERENCE}/ModelInfer"
        assert session.get(url).status_code == 405
        assert session.post(url, json={}).status_code == 415
        for body in (b"", b"\0\0\0\0\5abc", b"\0\0\0\0\3\xff\xff\xff", b"\1\0\0\0\3abc"):
            answered = session.post(url, body, headers=framed)
            assert (answered.status_code, answered.content) == (200, b"")
        # whatever follows over the same connection is answered as ever
        assert session.get(f"http://127.0.0.1:{port}/healthz").status_code == 200


def test_a_client_that_leaves_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    compat.http_in_one_write()
    config, core, done = ServeConfig(), Core(ServeConfig()), threading.Event()

    def slowly(images: Images) -> Outputs:
        time.sleep(0.3)
        done.set()
        return np.resize(EXPECTED, (len(images), 3))

    core.swap({7: Loaded(serving.served(7), slowly)}, {"champion": 7})
    calls = dict.fromkeys(rpc.PATHS, Servicer(config, Models.of(core)).rpc)
    data = inference().SerializeToString()
    body = b"\0" + len(data).to_bytes(4, "big") + data
    head = (
        f"POST /{rpc.INFERENCE}/ModelInfer HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/grpc\r\n"
    )
    with serving.listening(application(core, config, calls=calls)) as port:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        assert done.wait(10)
        time.sleep(0.1)
        assert requests.get(f"http://127.0.0.1:{port}/healthz", timeout=10).status_code == 200
    assert "Exception" not in capfd.readouterr().err


def test_a_call_ends_with_the_time_its_client_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServeConfig()
    servicer = Servicer(config)

    async def slowly(*_: Any) -> Message:
        await asyncio.sleep(30)

    monkeypatch.setattr(servicer.rpc, "_answered", slowly)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/grpc"), (b"grpc-timeout", b"20m")]
    scope = {"path": f"/{rpc.INFERENCE}/ServerLive", "method": "POST", "headers": headers}
    asyncio.run(servicer.rpc(scope, cast(Any, None), send))
    assert dict(sent[-1]["headers"])[b"grpc-status"] == b"4"


@pytest.mark.parametrize("way", WAYS)
def test_procedures_need_a_key(tmp_path: Path, way: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"shop sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    file.chmod(0o600)
    with started(way, ServeConfig(auth=AuthConfig(keys_file=str(file)))) as call:
        assert call(rpc.INFERENCE, "ServerReady", message("ServerReadyRequest")())[0].ready
        with pytest.raises(grpc.RpcError) as caught:
            infer(call, inference())
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "this endpoint needs a key" in caught.value.details()
        assert infer(call, inference(), authorization=f"Bearer {KEY}")[0].model_version == "7"
        assert infer(call, inference(), x_api_key=KEY)[0].model_version == "7"
