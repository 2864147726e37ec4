"""The gRPC servers: Open Inference Protocol and TensorFlow Serving's PredictionService (replica).

Stock clients speak it: `tritonclient[grpc]` and the stubs of `tensorflow-serving-api`. Requests go the way of
those over HTTP: the same tensors, limits, keys and sentences. Ray Serve calls the methods of the deployment
by the names of the procedures.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, TypeVar

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

import distml
from distml.config import ServeConfig
from distml.data import plausible
from distml.data.schema import Images
from distml.serving import encoded, exchange, openinference, service, tensors, tfserving
from distml.serving.asgi import rejection
from distml.serving.exchange import Answer, Document, RejectedError
from distml.serving.metrics import Metrics
from distml.serving.security import KeyCheck
from distml.serving.service import Models, Served, Service
from distml.serving.tensors import Given
from distml.tasks import Outputs

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
_ENUMS = {
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
}
"""Of TensorFlow's data types those that images and answers can have."""
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
    if package == _SERVING:
        for name, values in _ENUMS.items():
            enum = file.enum_type.add(name=name)
            for word, number in values.items():
                enum.value.add(name=word, number=number)
    for name, fields in messages.items():
        described = file.message_type.add(name=name)
        for field in filter(None, fields.split(", ")):
            _add(described, package, *field.split())
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
    elif kind in _ENUMS:
        field.type, field.type_name = _Field.TYPE_ENUM, f".{package}.{kind}"
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{kind}" if "." in kind else f".{package}.{kind}"


INFERENCE, PREDICTION, MODELS = (
    "inference.GRPCInferenceService",
    "tensorflow.serving.PredictionService",
    "tensorflow.serving.ModelService",
)
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
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
    for service_name in (INFERENCE, PREDICTION, MODELS):
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
    headers: list[exchange.Header]
    metrics: Metrics
    version: int | None = None
    images: int = 0


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
        self._models, self._limit, self._metrics = Models.of(models), config.max_body_bytes, metrics
        self._decode, self._keys = decode, keys

    async def call(self, name: str, request: Message, context: Any) -> Message:
        """Answer a procedure; what is rejected has its status and sentence in the context.

        Args:
            name: Of the procedure.
            request: Its message.
            context: Ray Serve's, of this call.
        """
        procedure, started = _PROCEDURES[name], time.perf_counter()
        path = f"/{procedure.service}/{name}"
        call = _Call(context, _headers(context), self._metrics)
        self._metrics.running.inc()
        try:
            self._require(procedure, path, request, call.headers)
            response = await procedure.answer(self, request, call)
            said = Answer(b"", version=call.version, images=call.images)
        except Exception as error:
            rejected = rejection(error, path)
            context.set_code(_CODES.get(rejected.status, grpc.StatusCode.INTERNAL))
            context.set_details(rejected.sentence)
            response, said = message(f"{name}Response")(), Answer(b"", rejected.status)
        finally:
            self._metrics.running.dec()
        call.metrics.answered(path, "POST", said, time.perf_counter() - started)
        return response

    def _require(
        self, procedure: _Procedure, path: str, request: Message, headers: list[exchange.Header]
    ) -> None:
        if self._keys and procedure.needs_key:
            scope = {"path": path, "method": "POST", "headers": headers}
            if rejected := self._keys.reject(scope):
                raise rejected
        size = request.ByteSize()
        if size > self._limit:
            sentence = f"the message has {size:,} bytes, and serve.max_body_bytes is {self._limit:,}"
            raise RejectedError(413, sentence)

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
        extensions = ["classification"]
        return message("ServerMetadataResponse")(
            name="distml", version=distml.__version__, extensions=extensions
        )

    async def _model(self, request: Message, call: _Call) -> Message:
        asked, _, served = self._chosen(request.name, request.version, call)
        described = openinference.described(asked, served)
        return json_format.ParseDict(described, message("ModelMetadataResponse")())

    async def _infer(self, request: Message, call: _Call) -> Message:
        asked, version, served = self._chosen(request.model_name, request.model_version, call)
        listed = [
            {"name": output.name, "parameters": _parameters(output.parameters)} for output in request.outputs
        ]
        wanted = tensors.wanted(Document({"outputs": listed}, booleans=False), served.task)
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
    "Predict": _Procedure(PREDICTION, Rpc._predict),
    "GetModelMetadata": _Procedure(PREDICTION, Rpc._signatures),
    "GetModelStatus": _Procedure(MODELS, Rpc._status),
}


def _headers(context: Any) -> list[exchange.Header]:
    """The metadata that a client sent, in the form of HTTP's headers."""
    return [
        (name.encode(), value if isinstance(value, bytes) else value.encode("latin-1", "replace"))
        for name, value in context.invocation_metadata()
    ]


def _parameters(given: Mapping[str, Message]) -> dict[str, Any]:
    """Parameters as their JSON form has them."""
    return {name: getattr(value, value.ListFields()[0][0].name) for name, value in given.items() if value}


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
