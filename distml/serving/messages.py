"""Messages of the gRPC protocols, built from a table of their fields (replica).

What matters on the wire are numbers and types, here as in kserve/open-inference-protocol's
open_inference_grpc.proto and in tensorflow/serving's apis. The classes live in a pool of their own: a process
that imports the protocols' published stubs, too, has no two definitions of one name.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

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
