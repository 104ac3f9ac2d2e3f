# SPDX-License-Identifier: Apache-2.0
"""The compiled CRI descriptors against cri-v1.tsv, the contract as a table, in both directions."""

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from pycri.cri.api import runtime_v1_pb2

TABLE = Path(__file__).with_name("cri-v1.tsv")
PREFIX = "runtime.v1."
SCALARS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_DOUBLE: "double",
}

Row = tuple[str, ...]


def table_rows(kind: str) -> list[Row]:
    """Rows of one kind, padded to the seven columns of a message row."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    cells = (line.split("\t") for line in lines if not line.startswith("#"))
    return sorted(tuple(row + [""] * (7 - len(row))) for row in cells if row[0] == kind)


def type_name(field: FieldDescriptor) -> str:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            parts = field.message_type.fields_by_name
            return f"map<{type_name(parts['key'])}, {type_name(parts['value'])}>"
        return field.message_type.full_name.removeprefix(PREFIX)
    if field.enum_type is not None:
        return field.enum_type.full_name.removeprefix(PREFIX)
    return SCALARS[field.type]


def label(field: FieldDescriptor) -> str:
    if not field.is_repeated:
        return ""
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    return "map" if is_map else "repeated"


def message_rows(message: Descriptor) -> Iterator[Row]:
    name = message.full_name.removeprefix(PREFIX)
    if not message.fields:
        yield ("message", name, "", "", "", "", "")
    for field in message.fields:
        assert field.containing_oneof is None, f"{name}.{field.name} has explicit presence"
        note = "deprecated" if field.GetOptions().deprecated else ""
        yield ("message", name, str(field.number), field.name, type_name(field), label(field), note)


def enum_rows(enum: EnumDescriptor) -> Iterator[Row]:
    name = enum.full_name.removeprefix(PREFIX)
    for value in enum.values:
        yield ("enum", name, str(value.number), value.name, "", "", "")


def test_every_message_field_is_as_the_table_says() -> None:
    messages = runtime_v1_pb2.DESCRIPTOR.message_types_by_name.values()
    compiled = sorted(row for message in messages for row in message_rows(message))
    assert compiled == table_rows("message")
    assert len(messages) == 175


def test_every_enum_value_is_as_the_table_says() -> None:
    file = runtime_v1_pb2.DESCRIPTOR
    nested = [enum for m in file.message_types_by_name.values() for enum in m.enum_types]
    enums = [*file.enum_types_by_name.values(), *nested]
    assert sorted(row for enum in enums for row in enum_rows(enum)) == table_rows("enum")


def test_every_rpc_and_its_streaming_is_as_the_table_says() -> None:
    compiled = []
    for service in runtime_v1_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            assert not method.client_streaming
            answer = method.output_type.full_name.removeprefix(PREFIX)
            stream = "stream " if method.server_streaming else ""
            request = method.input_type.full_name.removeprefix(PREFIX)
            compiled.append(("rpc", service.name, method.name, request, stream + answer, "", ""))
    assert sorted(compiled) == table_rows("rpc")
    assert len(compiled) == 43


def test_the_file_is_proto3_of_package_runtime_v1() -> None:
    assert runtime_v1_pb2.DESCRIPTOR.package == "runtime.v1"
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    proto = FileDescriptorProto()
    runtime_v1_pb2.DESCRIPTOR.CopyToProto(proto)
    assert proto.syntax == "proto3"
