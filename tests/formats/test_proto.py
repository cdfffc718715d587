"""Tests of Caffe's messages: the generated classes match caffe.proto, and files are read back as they were written."""

import re
from pathlib import Path

import numpy as np
import pytest

import transfer_caffe.formats.proto as proto
from transfer_caffe.formats.proto import caffe_pb2
from transfer_caffe.utils.errors import UserError

PROTO = Path(proto.__file__).with_name("caffe.proto").read_text()


def fields_of(text):
    """Return (message, label, type, field, number) of every field in a .proto."""
    message = ""
    for line in text.splitlines():
        if start := re.fullmatch(r"message (\w+) \{", line):
            message = start[1]
        elif field := re.match(r"  (optional|required|repeated) (\w[\w.]*) (\w+) = (\d+)", line):
            yield message, *field.groups()


def test_the_generated_classes_are_those_of_the_proto_file():
    found = list(fields_of(PROTO))
    assert len(found) > 400
    for message, label, kind, name, number in found:
        field = getattr(caffe_pb2, message).DESCRIPTOR.fields_by_name[name]
        assert field.number == int(number)
        assert field.is_repeated == (label == "repeated") and field.is_required == (label == "required")
        if named := field.message_type or field.enum_type:
            assert named.full_name.removeprefix("transfer_caffe.").endswith(kind)
        else:
            assert getattr(field, f"TYPE_{kind.upper()}") == field.type
    total = sum(len(message.fields) for message in caffe_pb2.DESCRIPTOR.message_types_by_name.values())
    assert total == len(found)


def test_the_package_name_is_our_own_so_that_pycaffe_can_be_loaded_beside_it():
    assert caffe_pb2.DESCRIPTOR.package == "transfer_caffe"


@pytest.mark.parametrize("count", [0, 1, 31, 32, 4095, 4096, 600_000])
def test_blobs_come_back_as_they_were(count):
    values = np.random.RandomState(0).randn(count).astype(np.float32)
    blob = caffe_pb2.BlobProto.FromString(proto.array_to_blob(values).SerializeToString())
    assert np.array_equal(proto.blob_to_array(blob, "here"), values)


def test_a_blob_whose_shape_contradicts_its_values_is_an_error_that_names_the_place():
    blob = proto.array_to_blob(np.zeros(6), (2, 3))
    blob.shape.dim[0] = 4
    with pytest.raises(UserError, match="layer x: the blob has 6 values"):
        proto.blob_to_array(blob, "layer x")


def test_old_blobs_have_num_channels_height_and_width_for_a_shape():
    blob = caffe_pb2.BlobProto(num=1, channels=2, height=1, width=3, data=range(6))
    assert proto.blob_to_array(blob, "").shape == (1, 2, 1, 3)


def test_a_blob_without_axes_is_read_with_or_without_an_empty_shape():
    # real Caffe writes a scalar without a shape, this package with an empty one
    for blob in (caffe_pb2.BlobProto(data=[0.25]), proto.array_to_blob(np.array(0.25))):
        assert proto.blob_to_array(blob, "").shape == () and proto.blob_to_array(blob, "") == 0.25


def test_text_that_does_not_parse_is_an_error_with_file_and_line(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text('name: "x"\nlayer { nme: "y" }\n')
    with pytest.raises(UserError, match=r"net\.prototxt: not a valid NetParameter prototxt: line 2:9 : .*nme"):
        proto.read_text(path, caffe_pb2.NetParameter())


def test_text_that_is_not_utf8_is_an_error(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(UserError, match="not a UTF-8 text file"):
        proto.read_text(path, caffe_pb2.NetParameter())


def test_comments_may_be_in_any_encoding_as_in_old_files(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_bytes(b'# caf\xe9\r\nname: "x" # \xff\n')
    assert proto.read_text(path, caffe_pb2.NetParameter()).name == "x"
