"""Messages of the Open Inference Protocol over gRPC, built from the table below.

They are in a descriptor pool of their own, because a client library in the same process registers the same
names in protobuf's default one.
Source: https://github.com/kserve/open-inference-protocol, open_inference_grpc.proto.
"""

from typing import Any

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

# Message: its fields as `[repeated|map] TYPE NAME NUMBER`. The values of a map have the type; its keys are
# text. Types in capitals are messages of this table.
_TABLE = {
    "ServerLiveRequest": [],
    "ServerLiveResponse": ["bool live 1"],
    "ServerReadyRequest": [],
    "ServerReadyResponse": ["bool ready 1"],
    "ModelReadyRequest": ["string name 1", "string version 2"],
    "ModelReadyResponse": ["bool ready 1"],
    "ServerMetadataRequest": [],
    "ServerMetadataResponse": ["string name 1", "string version 2", "repeated string extensions 3"],
    "ModelMetadataRequest": ["string name 1", "string version 2"],
    "ModelMetadataResponse": [
        "string name 1",
        "repeated string versions 2",
        "string platform 3",
        "repeated ModelMetadataResponse.TensorMetadata inputs 4",
        "repeated ModelMetadataResponse.TensorMetadata outputs 5",
    ],
    "ModelMetadataResponse.TensorMetadata": ["string name 1", "string datatype 2", "repeated int64 shape 3"],
    "InferParameter": [
        "oneof bool bool_param 1",
        "oneof int64 int64_param 2",
        "oneof string string_param 3",
        "oneof double double_param 4",
        "oneof uint64 uint64_param 5",
    ],
    "InferTensorContents": [
        "repeated bool bool_contents 1",
        "repeated int32 int_contents 2",
        "repeated int64 int64_contents 3",
        "repeated uint32 uint_contents 4",
        "repeated uint64 uint64_contents 5",
        "repeated float fp32_contents 6",
        "repeated double fp64_contents 7",
        "repeated bytes bytes_contents 8",
    ],
    "ModelInferRequest": [
        "string model_name 1",
        "string model_version 2",
        "string id 3",
        "map InferParameter parameters 4",
        "repeated ModelInferRequest.InferInputTensor inputs 5",
        "repeated ModelInferRequest.InferRequestedOutputTensor outputs 6",
        "repeated bytes raw_input_contents 7",
    ],
    "ModelInferRequest.InferInputTensor": [
        "string name 1",
        "string datatype 2",
        "repeated int64 shape 3",
        "map InferParameter parameters 4",
        "InferTensorContents contents 5",
    ],
    "ModelInferRequest.InferRequestedOutputTensor": ["string name 1", "map InferParameter parameters 2"],
    "ModelInferResponse": [
        "string model_name 1",
        "string model_version 2",
        "string id 3",
        "map InferParameter parameters 4",
        "repeated ModelInferResponse.InferOutputTensor outputs 5",
        "repeated bytes raw_output_contents 6",
    ],
    "ModelInferResponse.InferOutputTensor": [
        "string name 1",
        "string datatype 2",
        "repeated int64 shape 3",
        "map InferParameter parameters 4",
        "InferTensorContents contents 5",
    ],
}

_Field = descriptor_pb2.FieldDescriptorProto


def _file() -> descriptor_pb2.FileDescriptorProto:
    """The table as the content of a .proto file."""
    file = descriptor_pb2.FileDescriptorProto(
        name="ham_dist/inference.proto", package=PACKAGE, syntax="proto3"
    )
    found: dict[str, descriptor_pb2.DescriptorProto] = {}
    for name, fields in _TABLE.items():
        outer, _, inner = name.rpartition(".")
        found[name] = (found[outer].nested_type if outer else file.message_type).add(name=inner)
        for field in fields:
            _add_field(name, found[name], field.split(" "))
    return file


def _add_field(path: str, message: descriptor_pb2.DescriptorProto, words: list[str]) -> None:
    *label, kind, name, number = words
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if label == ["map"]:
        # protobuf's own form of a map: repeated entries of a nested message with key and value.
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add_field("", entry, ["string", "key", "1"])
        _add_field("", entry, [kind, "value", "2"])
        kind, label = f"{path}.{entry.name}", ["repeated"]
    if label == ["repeated"]:
        field.label = _Field.LABEL_REPEATED
    if label == ["oneof"]:
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if kind[0].isupper():
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")


_POOL = DescriptorPool()
_POOL.AddSerializedFile(_file().SerializeToString())


def message(name: str) -> Any:
    """Returns the class of a message of the table."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
