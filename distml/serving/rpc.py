"""gRPC: Open Inference Protocol and TensorFlow Serving's PredictionService (replica).

Stock clients speak it: `tritonclient[grpc]` and the stubs of `tensorflow-serving-api`. Requests go the way of
those over HTTP: the same tensors, limits, keys and sentences. Behind HAProxy, which translates HTTP/2 to
HTTP/1.1, the application hands them to `Rpc` as it hands requests to its routes; behind Ray's own proxy a
gRPC server of Ray Serve calls the methods of the deployment by the names of the procedures.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, TypeVar
from urllib.parse import quote

import grpc
import numpy as np
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
    wrappers_pb2,
)
from google.protobuf.message import DecodeError
from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

import distml
from distml.config import ServeConfig
from distml.data import plausible
from distml.data.schema import Images
from distml.serving import asgi, encoded, exchange, openinference, service, tensors, tfserving
from distml.serving.exchange import Answer, Document, RejectedError
from distml.serving.metrics import Metrics
from distml.serving.security import KeyCheck
from distml.serving.service import Models, Served, Service
from distml.serving.tensors import Given
from distml.tasks import Outputs, Task

Message = Any
"""An instance of a class that `message` returns."""

_INFERENCE = "inference"
_SERVING = "tensorflow.serving"
_TABLE: dict[str, dict[str, str]] = {
    _INFERENCE: {
        "ServerLiveRequest": "",
        "ServerLiveResponse": "1 bool live",
        "ServerReadyRequest": "",
        "ServerReadyResponse": "1 bool ready",
        "ModelReadyRequest": "1 string name, 2 string version",
        "ModelReadyResponse": "1 bool ready",
        "ServerMetadataRequest": "",
        "ServerMetadataResponse": "1 string name, 2 string version, 3 *string extensions",
        "ModelMetadataRequest": "1 string name, 2 string version",
        "TensorMetadata": "1 string name, 2 string datatype, 3 *int64 shape",
        "ModelMetadataResponse": "1 string name, 2 *string versions, 3 string platform, "
        "4 *TensorMetadata inputs, 5 *TensorMetadata outputs",
        "InferParameter": "1 ?bool bool_param, 2 ?int64 int64_param, 3 ?string string_param, "
        "4 ?double double_param, 5 ?uint64 uint64_param",
        "InferTensorContents": "1 *bool bool_contents, 2 *int32 int_contents, 3 *int64 int64_contents, "
        "4 *uint32 uint_contents, 5 *uint64 uint64_contents, 6 *float fp32_contents, "
        "7 *double fp64_contents, 8 *bytes bytes_contents",
        "InferInputTensor": "1 string name, 2 string datatype, 3 *int64 shape, "
        "4 %InferParameter parameters, 5 InferTensorContents contents",
        "InferRequestedOutputTensor": "1 string name, 2 %InferParameter parameters",
        "ModelInferRequest": "1 string model_name, 2 string model_version, 3 string id, "
        "4 %InferParameter parameters, 5 *InferInputTensor inputs, 6 *InferRequestedOutputTensor outputs, "
        "7 *bytes raw_input_contents",
        "InferOutputTensor": "1 string name, 2 string datatype, 3 *int64 shape, "
        "4 %InferParameter parameters, 5 InferTensorContents contents",
        "ModelInferResponse": "1 string model_name, 2 string model_version, 3 string id, "
        "4 %InferParameter parameters, 5 *InferOutputTensor outputs, 6 *bytes raw_output_contents",
        "ModelConfigRequest": "1 string name, 2 string version",
        "ModelInput": "1 string name, 2 DataType data_type, 4 *int64 dims",
        "ModelOutput": "1 string name, 2 DataType data_type, 3 *int64 dims",
        "ModelConfig": "1 string name, 2 string platform, 4 int32 max_batch_size, 5 *ModelInput input, "
        "6 *ModelOutput output",
        "ModelConfigResponse": "1 ModelConfig config",
        "ModelStatisticsRequest": "1 string name, 2 string version",
        "StatisticDuration": "1 uint64 count, 2 uint64 ns",
        "InferStatistics": "1 StatisticDuration success, 2 StatisticDuration fail",
        "ModelStatistics": "1 string name, 2 string version, 3 uint64 last_inference, "
        "4 uint64 inference_count, 5 uint64 execution_count, 6 InferStatistics inference_stats",
        "ModelStatisticsResponse": "1 *ModelStatistics model_stats",
        "RepositoryIndexRequest": "1 string repository_name, 2 bool ready",
        "ModelIndex": "1 string name, 2 string version, 3 string state, 4 string reason",
        "RepositoryIndexResponse": "1 *ModelIndex models",
    },
    _SERVING: {
        "Dim": "1 int64 size, 2 string name",
        "TensorShapeProto": "2 *Dim dim, 3 bool unknown_rank",
        "TensorProto": "1 DataType dtype, 2 TensorShapeProto tensor_shape, 3 int32 version_number, "
        "4 bytes tensor_content, 5 *float float_val, 6 *double double_val, 7 *int32 int_val, "
        "8 *bytes string_val, 10 *int64 int64_val, 11 *bool bool_val",
        "ModelSpec": "1 string name, 2 google.protobuf.Int64Value version, 3 string signature_name, "
        "4 string version_label",
        "PredictRequest": "1 ModelSpec model_spec, 2 %TensorProto inputs, 3 *string output_filter",
        "PredictResponse": "1 %TensorProto outputs, 2 ModelSpec model_spec",
        "GetModelMetadataRequest": "1 ModelSpec model_spec, 2 *string metadata_field",
        "GetModelMetadataResponse": "1 ModelSpec model_spec, 2 %google.protobuf.Any metadata",
        "TensorInfo": "1 string name, 2 DataType dtype, 3 TensorShapeProto tensor_shape",
        "SignatureDef": "1 %TensorInfo inputs, 2 %TensorInfo outputs, 3 string method_name",
        "SignatureDefMap": "1 %SignatureDef signature_def",
        "GetModelStatusRequest": "1 ModelSpec model_spec",
        "StatusProto": "1 int32 error_code, 2 string error_message",
        "ModelVersionStatus": "1 int64 version, 2 State state, 3 StatusProto status",
        "GetModelStatusResponse": "1 *ModelVersionStatus model_version_status",
    },
}
"""By package and message: number, type and name of each field; `*` repeats, `?` has presence, `%` maps."""
_ENUMS: dict[str, dict[str, dict[str, int]]] = {
    _INFERENCE: {
        "DataType": {
            "TYPE_INVALID": 0,
            "TYPE_BOOL": 1,
            "TYPE_UINT8": 2,
            "TYPE_INT32": 8,
            "TYPE_FP32": 11,
            "TYPE_STRING": 13,
        },
    },
    _SERVING: {
        "DataType": {
            "DT_INVALID": 0,
            "DT_FLOAT": 1,
            "DT_DOUBLE": 2,
            "DT_INT32": 3,
            "DT_UINT8": 4,
            "DT_STRING": 7,
            "DT_INT64": 9,
            "DT_BOOL": 10,
        },
        "State": {"UNKNOWN": 0, "START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50},
    },
}
"""By package; of the data types of Triton and of TensorFlow those that images and answers can have."""
_Field = descriptor_pb2.FieldDescriptorProto


def message(name: str) -> type[Message]:
    """Return the class of a message.

    Args:
        name: As in the table, without its package.
    """
    return _classes()[name]


@cache
def _classes() -> dict[str, type[Message]]:
    pool = descriptor_pool.DescriptorPool()
    for file in (any_pb2, wrappers_pb2):
        pool.AddSerializedFile(file.DESCRIPTOR.serialized_pb)
    classes: dict[str, type[Message]] = {}
    for package, messages in _TABLE.items():
        pool.Add(_file(package, messages))
        for name in messages:
            described = pool.FindMessageTypeByName(f"{package}.{name}")
            classes[name] = message_factory.GetMessageClass(described)
    return classes


def _file(package: str, messages: dict[str, str]) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name=f"distml/{package}.proto",
        package=package,
        syntax="proto3",
        dependency=[any_pb2.DESCRIPTOR.name, wrappers_pb2.DESCRIPTOR.name],
    )
    for name, values in _ENUMS[package].items():
        enum = file.enum_type.add(name=name)
        for word, number in values.items():
            enum.value.add(name=word, number=number)
    for name, fields in messages.items():
        described = file.message_type.add(name=name)
        for words in filter(None, fields.split(", ")):
            _add(described, package, *words.split())
    return file


def _add(described: descriptor_pb2.DescriptorProto, package: str, number: str, kind: str, name: str) -> None:
    mark, kind = (kind[0], kind[1:]) if kind[0] in "*?%" else ("", kind)
    field = described.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if mark == "%":
        entry = described.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add(entry, package, "1", "string", "key")
        _add(entry, package, "2", kind, "value")
        mark, kind = "*", f"{package}.{described.name}.{entry.name}"
    if mark == "*":
        field.label = _Field.LABEL_REPEATED
    if mark == "?":  # of a oneof on the wire nothing is seen but the member
        field.proto3_optional = True
        field.oneof_index = len(described.oneof_decl)
        described.oneof_decl.add(name=f"_{name}")
    if plain := getattr(_Field, f"TYPE_{kind.upper()}", None):
        field.type = plain
    elif kind in _ENUMS[package]:
        field.type, field.type_name = _Field.TYPE_ENUM, f".{package}.{kind}"
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{kind}" if "." in kind else f".{package}.{kind}"


_SERVICES = INFERENCE, PREDICTION, MODELS = (
    "inference.GRPCInferenceService",
    "tensorflow.serving.PredictionService",
    "tensorflow.serving.ModelService",
)
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.UNIMPLEMENTED,
    421: grpc.StatusCode.PERMISSION_DENIED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CONTENTS = {
    "UINT8": "uint_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_TENSORFLOW = {
    1: ("FP32", "float_val"),
    2: ("FP64", "double_val"),
    3: ("INT32", "int_val"),
    4: ("UINT8", "int_val"),
    7: ("BYTES", "string_val"),
    9: ("INT64", "int64_val"),
}
"""By the number of TensorFlow's type: ours, and the field of a TensorProto that holds its values."""
_AVAILABLE, _DT_FLOAT = 30, 1

Kind = TypeVar("Kind", bound=type)


def add(servicer: Any, server: Any) -> None:
    """Add all procedures to a server, as Ray Serve calls it: `grpc_servicer_functions`."""
    for service_name in _SERVICES:
        handlers = {
            procedure: grpc.unary_unary_rpc_method_handler(
                getattr(servicer, procedure),
                request_deserializer=message(f"{procedure}Request").FromString,
                response_serializer=message(f"{procedure}Response").SerializeToString,
            )
            for procedure, row in _PROCEDURES.items()
            if row.service == service_name
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service_name, handlers),))


def procedures(kind: Kind) -> Kind:
    """Give a deployment, whose attribute `rpc` is an `Rpc`, a method for each procedure."""
    for name in _PROCEDURES:
        setattr(kind, name, _method(name))
    return kind


def _method(name: str) -> Callable[..., Awaitable[Message]]:
    async def call(self: Any, request: Message, grpc_context: Any) -> Message:
        rpc: Rpc = self.rpc
        return await rpc.call(name, request, grpc_context)

    call.__name__ = name
    return call


@dataclass(slots=True)
class _Call:
    """A call under way: its context, the metadata its client sent, and what came of it."""

    context: Any
    headers: Sequence[exchange.Header]
    metrics: Metrics
    version: int | None = None
    images: int = 0


@dataclass(slots=True)
class _Context:
    """What a call over HTTP has of `grpc.ServicerContext`: its status and its trailing metadata."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    trailing: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def trailing_metadata(self) -> list[tuple[str, str]]:
        return self.trailing

    def set_trailing_metadata(self, trailing: list[tuple[str, str]]) -> None:
        self.trailing = trailing

    def trailers(self) -> list[exchange.Header]:
        """What follows the message; the sentence is escaped as gRPC's protocol over HTTP/2 says."""
        number: int = self.code.value[0]
        trailers = [(b"grpc-status", b"%d" % number)]
        if self.details:
            trailers.append((b"grpc-message", quote(self.details, safe=_PLAIN).encode()))
        return trailers + [(name.encode(), value.encode()) for name, value in self.trailing]


class Rpc:
    """Answers procedures. Final.

    Args:
        models: A model, or several by their names.
        config: Limits.
        metrics: Where procedures are counted, as routes are.
        decode: Turns pictures into images.
        keys: Decides by the key, None where none is needed.
    """

    def __init__(
        self,
        models: Service | Models,
        config: ServeConfig,
        metrics: Metrics,
        decode: encoded.Decode,
        keys: KeyCheck | None = None,
    ) -> None:
        self._models, self._metrics = Models.of(models), metrics
        self._limits = exchange.Limits(config.max_body_bytes, config.read_timeout_s)
        self._decode, self._keys = decode, keys

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, refused: RejectedError | None = None
    ) -> None:
        """Answer a call that came over HTTP, as an ASGI application does.

        Args:
            scope: Its path is one of `PATHS`; of any other the client is told which there are.
            receive: Gives the body, which is one message behind its length.
            send: Takes the message, then the status as trailers.
            refused: Why the call is not taken by its headers.
        """
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if said := _not_grpc(scope, headers):
            await exchange.reject(said)(scope, receive, send)
            return
        context, name = _Context(), PATHS.get(scope["path"], "")
        if not name:
            refused = refused or RejectedError(501, _unknown(scope["path"]))
            context.set_code(_CODES[refused.status])
            context.set_details(refused.sentence)
            self._metrics.answered("unknown procedure", "POST", Answer(b"", refused.status), 0.0)
            await _send(send, b"", context)
            return

        async def read() -> Message:
            if refused:
                raise refused
            body = await exchange.body(Request(scope, receive), self._limits)
            return _unframed(name, body, headers.get(b"grpc-encoding", b""), self._limits)

        answered = self._answered(name, read, _Call(context, scope["headers"], self._metrics))
        seconds = _deadline_s(headers.get(b"grpc-timeout", b""))
        try:
            response = await (answered if seconds is None else asyncio.wait_for(answered, seconds))
        except ClientDisconnect:
            return
        except TimeoutError:
            context.set_code(grpc.StatusCode.DEADLINE_EXCEEDED)
            self._metrics.answered(scope["path"], "POST", Answer(b"", 504), seconds or 0.0)
        await _send(send, _framed(response) if context.code is grpc.StatusCode.OK else b"", context)

    async def call(self, name: str, request: Message, context: Any) -> Message:
        """Answer a procedure; what is rejected has its status and sentence in the context.

        Args:
            name: Of the procedure.
            request: Its message.
            context: Ray Serve's, of this call.
        """

        async def read() -> Message:
            size = request.ByteSize()
            if size > self._limits.body_bytes:
                sentence = f"the message has {size:,} bytes, and serve.max_body_bytes is"
                raise RejectedError(413, f"{sentence} {self._limits.body_bytes:,}")
            return request

        return await self._answered(name, read, _Call(context, _headers(context), self._metrics))

    async def _answered(self, name: str, read: Callable[[], Awaitable[Message]], call: _Call) -> Message:
        procedure, started = _PROCEDURES[name], time.perf_counter()
        path = f"/{procedure.service}/{name}"
        self._metrics.running.inc()
        try:
            self._require_key(procedure, path, call.headers)
            response = await procedure.answer(self, await read(), call)
            said = Answer(b"", version=call.version, images=call.images)
        except ClientDisconnect:
            raise
        except Exception as error:
            rejected = asgi.rejection(error, path)
            call.context.set_code(_CODES.get(rejected.status, grpc.StatusCode.INTERNAL))
            call.context.set_details(rejected.sentence)
            response, said = message(f"{name}Response")(), Answer(b"", rejected.status)
        finally:
            self._metrics.running.dec()
        call.metrics.answered(path, "POST", said, time.perf_counter() - started)
        return response

    def _require_key(self, procedure: _Procedure, path: str, headers: Sequence[exchange.Header]) -> None:
        if self._keys and procedure.needs_key:
            scope = {"path": path, "method": "POST", "headers": headers}
            if rejected := self._keys.reject(scope):
                raise rejected

    async def _classify(
        self, asked: Service, images: Images, version: int | None, call: _Call
    ) -> tuple[Outputs, Served]:
        """Classify images; version and doubts go into the trailing metadata, as into HTTP's headers."""
        identity = dict(call.headers).get(b"x-request-id", b"").decode("latin-1") or None
        outputs, served = await asked.classify(images, version, identity)
        call.version, call.images = served.version, len(images)
        trailing = [("x-model-version", str(served.version))]
        if doubts := plausible.doubts(images, served.usual):
            trailing.append((service.WARNINGS.decode(), ", ".join(doubt.code for doubt in doubts)))
            for doubt in doubts:
                call.metrics.doubted.labels(doubt.code).inc(doubt.images)
        call.context.set_trailing_metadata([*call.context.trailing_metadata(), *trailing])
        return outputs, served

    def _asked(self, name: str, call: _Call) -> Service:
        """Return the model of a name; the call is counted with it."""
        asked = self._models.named(name)
        call.metrics = self._models.metrics.get(name, self._metrics)
        return asked

    def _chosen(self, name: str, word: str, call: _Call) -> tuple[Service, int | None, Served]:
        version = service.version_number(word) if word else None
        asked = self._asked(name, call)
        return asked, version, service.named(asked, name, version)

    async def _live(self, request: Message, call: _Call) -> Message:
        return message("ServerLiveResponse")(live=True)

    async def _ready(self, request: Message, call: _Call) -> Message:
        return message("ServerReadyResponse")(ready=self._models.ready())

    async def _model_ready(self, request: Message, call: _Call) -> Message:
        try:
            self._chosen(request.name, request.version, call)
        except RejectedError:  # clients ask so for what may not be there
            return message("ModelReadyResponse")(ready=False)
        return message("ModelReadyResponse")(ready=True)

    async def _server(self, request: Message, call: _Call) -> Message:
        return message("ServerMetadataResponse")(
            name="distml", version=distml.__version__, extensions=openinference.EXTENSIONS
        )

    async def _model(self, request: Message, call: _Call) -> Message:
        asked, _, served = self._chosen(request.name, request.version, call)
        described = openinference.described(asked, served)
        return json_format.ParseDict(described, message("ModelMetadataResponse")())

    async def _configured(self, request: Message, call: _Call) -> Message:
        asked, _, served = self._chosen(request.name, request.version, call)
        config = {"config": openinference.configured(asked, served)}
        return json_format.ParseDict(config, message("ModelConfigResponse")())

    async def _statistics(self, request: Message, call: _Call) -> Message:
        if request.name:
            asked, version, _ = self._chosen(request.name, request.version, call)
            statistics = openinference.statistics_of(asked, version)
        elif request.version:
            raise RejectedError(400, f"version {request.version[:80]!r} is asked for, and of no model")
        else:
            statistics = openinference.every_statistics(self._models)
        return json_format.ParseDict({"model_stats": statistics}, message("ModelStatisticsResponse")())

    async def _index(self, request: Message, call: _Call) -> Message:
        if named := request.repository_name:
            sentence = f"there is no repository {named[:80]!r}: models are listed without a repository_name"
            raise RejectedError(404, sentence)
        rows = openinference.index(self._models, request.ready)
        return json_format.ParseDict({"models": rows}, message("RepositoryIndexResponse")())

    async def _infer(self, request: Message, call: _Call) -> Message:
        asked, version, served = self._chosen(request.model_name, request.model_version, call)
        wanted = _wanted(request, served.task)
        images = await self._images(_given(request), served)
        outputs, served = await self._classify(asked, images, version, call)
        response = message("ModelInferResponse")(
            model_name=served.name, model_version=str(served.version), id=request.id
        )
        for output in wanted:
            datatype, values = tensors.values(output, outputs, served.task)
            response.outputs.add(name=output.name, datatype=datatype, shape=tensors.sizes(values))
            response.raw_output_contents.append(tensors.to_bytes(values))
        return response

    async def _images(self, given: Given, served: Served) -> Images:
        if given.name == tensors.ENCODED:
            return await tensors.pictures(given, served.pictures, self._decode)
        return tensors.pixel_values(given, served.shape, booleans=False)

    def _specified(self, spec: Message, call: _Call) -> tuple[Service, int | None, Served]:
        version = spec.version.value if spec.HasField("version") else None
        asked = self._asked(spec.name, call)
        if spec.version_label:
            version = service.labelled(asked, spec.version_label)
        return asked, version, service.named(asked, spec.name, version)

    async def _predict(self, request: Message, call: _Call) -> Message:
        asked, version, served = self._specified(request.model_spec, call)
        if other := set(request.output_filter) - {served.task.output}:
            sentence = f"there is no output {min(other)[:80]!r}; the output is {served.task.output!r}"
            raise RejectedError(400, sentence)
        images = await self._images(_of_tensorflow(request.inputs), served)
        outputs, served = await self._classify(asked, images, version, call)
        response = message("PredictResponse")()
        _specify(response.model_spec, served, request.model_spec.signature_name or "serving_default")
        output = response.outputs[served.task.output]
        output.dtype = _DT_FLOAT
        for size in outputs.shape:
            output.tensor_shape.dim.add(size=size)
        output.float_val.extend(outputs.ravel().tolist())
        return response

    async def _signatures(self, request: Message, call: _Call) -> Message:
        _, _, served = self._specified(request.model_spec, call)
        if set(request.metadata_field) - {"signature_def"}:
            raise RejectedError(400, "the only metadata_field is 'signature_def'")
        response = message("GetModelMetadataResponse")()
        _specify(response.model_spec, served, "")
        signatures = {"signature_def": tfserving.definition(served)}
        response.metadata["signature_def"].Pack(
            json_format.ParseDict(signatures, message("SignatureDefMap")())
        )
        return response

    async def _status(self, request: Message, call: _Call) -> Message:
        asked, wanted, _ = self._specified(request.model_spec, call)
        response = message("GetModelStatusResponse")()
        for version in sorted((model.version for model in asked.served()), reverse=True):
            if wanted in (None, version):
                response.model_version_status.add(version=version, state=_AVAILABLE)
        return response


@dataclass(frozen=True, slots=True)
class _Procedure:
    """A procedure: its gRPC service and the method that answers it; probes need no key."""

    service: str
    answer: Callable[[Rpc, Message, _Call], Awaitable[Message]]
    needs_key: bool = True


_PROCEDURES = {
    "ServerLive": _Procedure(INFERENCE, Rpc._live, needs_key=False),
    "ServerReady": _Procedure(INFERENCE, Rpc._ready, needs_key=False),
    "ModelReady": _Procedure(INFERENCE, Rpc._model_ready),
    "ServerMetadata": _Procedure(INFERENCE, Rpc._server),
    "ModelMetadata": _Procedure(INFERENCE, Rpc._model),
    "ModelInfer": _Procedure(INFERENCE, Rpc._infer),
    "ModelConfig": _Procedure(INFERENCE, Rpc._configured),
    "ModelStatistics": _Procedure(INFERENCE, Rpc._statistics),
    "RepositoryIndex": _Procedure(INFERENCE, Rpc._index),
    "Predict": _Procedure(PREDICTION, Rpc._predict),
    "GetModelMetadata": _Procedure(PREDICTION, Rpc._signatures),
    "GetModelStatus": _Procedure(MODELS, Rpc._status),
}

PATHS = {f"/{procedure.service}/{name}": name for name, procedure in _PROCEDURES.items()}
"""Procedures by the path of a request."""
_KIND = [(b"content-type", asgi.CALL)]
_PLAIN = " !\"#$&'()*+,-./:;<=>?@[]^_`{|}~\\"
"""What gRPC leaves as it is in a status message, besides letters and digits."""
_FRAME_BYTES = 5
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class CallsRoute(BaseRoute):
    """Names the calls of gRPC where Ray Serve asks the routes what to count a request with. Final."""

    path = "grpc"

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether a request is such a call; `Application` answers it before any route is asked."""
        return (Match.FULL if scope["path"] in PATHS else Match.NONE), {}


async def _send(send: Send, data: bytes, context: _Context) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _KIND, "trailers": True})
    await send({"type": "http.response.body", "body": data})
    await send({"type": "http.response.trailers", "headers": context.trailers()})


def _unknown(path: str) -> str:
    """Say which procedures there are instead of one that there is not."""
    wanted = path[1:].rpartition("/")[0]
    names = [name for name, row in _PROCEDURES.items() if row.service == wanted]
    there = f"{wanted} has {', '.join(names)}" if names else f"the services are {', '.join(_SERVICES)}"
    return f"there is no procedure {path[:200]}; {there}"


def _not_grpc(scope: Scope, headers: Mapping[bytes, bytes]) -> RejectedError | None:
    """Why a request is no call of gRPC, None where it is one."""
    path = scope["path"]
    if scope["method"] != "POST":
        return RejectedError(405, f"{path} takes POST, not {scope['method'][:20]}", (b"allow", b"POST"))
    kind = headers.get(b"content-type", b"")
    if not kind.startswith(asgi.CALL):
        said = repr(kind[:80].decode("latin-1"))
        return RejectedError(415, f"{path} takes application/grpc, not {said}; use a client of gRPC")
    return None


def _deadline_s(timeout: bytes) -> float | None:
    """The time that the client gives the call, None where it gives any."""
    match = _TIMEOUT.fullmatch(timeout)
    return int(match[1]) * _UNITS[match[2]] if match else None


def _framed(response: Message) -> bytes:
    data: bytes = response.SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


def _unframed(name: str, body: bytes, encoding: bytes, limits: exchange.Limits) -> Message:
    """Read the only message of a body: a byte that says whether it is compressed, its length, itself."""
    if len(body) < _FRAME_BYTES or int.from_bytes(body[1:_FRAME_BYTES], "big") != len(body) - _FRAME_BYTES:
        raise RejectedError(400, f"the body has {len(body):,} bytes and is not one message of gRPC")
    data = body[_FRAME_BYTES:]
    if body[0]:
        data = exchange.decompress(data, encoding, limits)
    try:
        return message(f"{name}Request").FromString(data)
    except DecodeError:
        raise RejectedError(400, f"the message is not a {name}Request") from None


def _headers(context: Any) -> list[exchange.Header]:
    """The metadata that a client sent, in the form of HTTP's headers."""
    return [
        (name.encode(), value if isinstance(value, bytes) else value.encode("latin-1", "replace"))
        for name, value in context.invocation_metadata()
    ]


def _parameters(given: Mapping[str, Message]) -> dict[str, Any]:
    """Parameters as their JSON form has them."""
    return {name: getattr(value, value.ListFields()[0][0].name) for name, value in given.items() if value}


def _wanted(request: Message, task: Task) -> Sequence[tensors.Wanted]:
    if not request.outputs:
        return tensors.every(tuple(task.tensors))
    listed = [
        {"name": output.name, "parameters": _parameters(output.parameters)} for output in request.outputs
    ]
    return tensors.wanted(Document({"outputs": listed}, booleans=False), task)


def _given(request: Message) -> Given:
    """Read the only input tensor, whose values stand in it or in `raw_input_contents`."""
    if len(request.inputs) != 1:
        raise RejectedError(400, f"inputs holds {len(request.inputs)} tensors; the model takes one")
    tensor, raw = request.inputs[0], request.raw_input_contents
    member = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    parameters = _parameters(tensor.parameters)
    parameters.pop("binary_data_size", None)
    field = _CONTENTS.get(tensor.datatype, "bytes_contents")
    values: Any = getattr(tensor.contents, field)
    if len(raw) > 1 or (len(raw) == 1) == bool(len(values)):
        raise RejectedError(
            400, f"the values of {tensor.name[:80]!r} must be either in raw_input_contents or in {field}"
        )
    data = raw[0] if raw else tensors.joined(list(values)) if tensor.datatype == "BYTES" else None
    if data is None:
        return tensors.given(member | {"parameters": parameters, "data": list(values)}, memoryview(b""))
    size = {"binary_data_size": len(data)}
    return tensors.given(member | {"parameters": parameters | size}, memoryview(data))


def _of_tensorflow(inputs: Mapping[str, Message]) -> Given:
    """Read the only input tensor of a PredictRequest."""
    if len(inputs) != 1:
        raise RejectedError(400, f"inputs holds {len(inputs)} tensors; the model takes one")
    ((name, tensor),) = inputs.items()
    datatype, field = _TENSORFLOW.get(tensor.dtype, (f"number {tensor.dtype}", ""))
    shape = [dimension.size for dimension in tensor.tensor_shape.dim]
    member = {"name": name, "datatype": datatype, "shape": shape}
    if not field:
        return tensors.given(member | {"data": []}, memoryview(b""))  # says which types are taken
    if tensor.tensor_content:
        size = {"binary_data_size": len(tensor.tensor_content)}
        return tensors.given(member | {"parameters": size}, memoryview(tensor.tensor_content))
    values: Any = getattr(tensor, field)
    if len(values) == 1 and min(shape, default=0) > 0:  # as TensorFlow writes a tensor of one value
        _require_few(prod(shape), name)
        values = list(values) * prod(shape)
    if datatype == "BYTES":
        data = tensors.joined(list(values))
        size = {"binary_data_size": len(data)}
        return tensors.given(member | {"parameters": size}, memoryview(data))
    return tensors.given(member | {"data": np.asarray(values).tolist()}, memoryview(b""))


def _require_few(count: int, name: str) -> None:
    if count > exchange.MAX_VALUES:
        raise RejectedError(
            413, f"the shape of {name[:80]!r} asks for {count:,} values; {exchange.MAX_VALUES:,} are taken"
        )


def _specify(spec: Message, served: Served, signature: str) -> None:
    spec.name, spec.signature_name = served.name, signature
    spec.version.value = served.version
