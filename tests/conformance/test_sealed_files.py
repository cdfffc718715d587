"""Real Caffe's tools can read sealed files, and the files that they write from them can be read."""

import subprocess

import numpy as np
import pytest

from transfer_caffe.formats.proto import array_to_blob, caffe_pb2, read_binary, write_binary
from transfer_caffe.real_caffe import programs as real_caffe

UPGRADE = real_caffe.program("upgrade_net_proto_binary")
NET = caffe_pb2.NetParameter(name="tiny")
NET.layer.add(name="conv1", type="Convolution", blobs=[array_to_blob(np.arange(24).reshape(2, 3, 2, 2))])


@pytest.mark.skipif(UPGRADE is None, reason="there is no real Caffe")
def test_real_caffe_reads_a_sealed_file_and_what_it_writes_is_read(tmp_path):
    sealed, out = tmp_path / "w.caffemodel", tmp_path / "upgraded.caffemodel"
    write_binary(sealed, NET)
    subprocess.run([str(UPGRADE), sealed, out], check=True, capture_output=True)
    assert read_binary(out, caffe_pb2.NetParameter()).layer[0].blobs == NET.layer[0].blobs
