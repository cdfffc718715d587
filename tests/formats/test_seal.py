"""Tests of seals: the damage that they detect."""

import numpy as np
import pytest

from transfer_caffe.formats import seal
from transfer_caffe.formats.proto import array_to_blob, caffe_pb2, read_binary, write_binary
from transfer_caffe.utils.errors import UserError

NET = caffe_pb2.NetParameter(name="tiny")
NET.layer.add(name="conv1", type="Convolution", blobs=[array_to_blob(np.arange(24).reshape(2, 3, 2, 2))])
MESSAGE = NET.SerializeToString()


@pytest.fixture
def sealed(tmp_path):
    write_binary(tmp_path / "w.caffemodel", NET)
    return tmp_path / "w.caffemodel"


def test_a_sealed_message_comes_back(sealed):
    assert seal.verify(sealed) and seal.read(sealed) == MESSAGE
    assert read_binary(sealed, caffe_pb2.NetParameter()) == NET


def test_every_flipped_bit_is_seen(sealed):
    whole = sealed.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        sealed.write_bytes(damaged)
        with pytest.raises(UserError, match=r"w\.caffemodel: damaged"):
            read_binary(sealed, caffe_pb2.NetParameter())


def test_every_truncation_is_seen(sealed):
    whole = sealed.read_bytes()
    for size in range(len(whole)):
        sealed.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"w\.caffemodel: .*(damaged|is empty)"):
            read_binary(sealed, caffe_pb2.NetParameter())


def test_a_file_without_a_seal_is_read_as_it_is(tmp_path):
    (tmp_path / "w.caffemodel").write_bytes(MESSAGE)
    assert not seal.verify(tmp_path / "w.caffemodel")
    assert read_binary(tmp_path / "w.caffemodel", caffe_pb2.NetParameter()) == NET


def test_a_file_that_another_program_has_written_anew_has_no_seal(sealed):
    # protobuf keeps unknown fields and writes them after all others
    net = caffe_pb2.NetParameter.FromString(sealed.read_bytes())
    net.name = "another"
    sealed.write_bytes(net.SerializeToString())
    assert sealed.read_bytes().startswith(b"\x0a\x07another") and not seal.verify(sealed)
    assert read_binary(sealed, caffe_pb2.NetParameter()).name == "another"


def test_a_header_that_moved_is_damage(sealed):
    whole = sealed.read_bytes()
    sealed.write_bytes(whole[20:60] + whole[:20] + whole[60:-40])
    with pytest.raises(UserError, match="damaged"):
        seal.read(sealed)


def test_means_have_no_seal(tmp_path):
    mean = array_to_blob(np.ones((1, 3, 2, 2)))
    write_binary(tmp_path / "mean", mean)
    assert (tmp_path / "mean").read_bytes() == mean.SerializeToString()


def test_an_hdf5_file_is_read_with_a_trailer_behind_it(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "w.caffemodel.h5"
    with h5py.File(path, "w") as file:
        file["data/conv1/0"] = np.arange(6, dtype=np.float32)
        file.attrs["sealed"] = 1
    assert not seal.verify(path)
    seal.append(path)
    assert seal.verify(path)
    with h5py.File(path, "r") as file:
        assert file["data/conv1/0"][:].tolist() == list(range(6))
    whole = path.read_bytes()
    for at in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(UserError, match="damaged"):
            seal.verify(path)
    path.write_bytes(whole[: -seal.TRAILER_BYTES])
    assert not seal.verify(path)  # but its attribute says that it was sealed
