"""The arrays behind blobs: memory that layers and NumPy share, or, as on a GPU, copies that follow each other."""

import numpy as np
import pytest
import torch

from transfer_caffe.engine.layers import Blob as Learnable
from transfer_caffe.engine.layers.views import Array, Blob, LearnableBlob, Vector


@pytest.mark.parametrize("apart", [False, True], ids=["CPU", "as on a GPU"])
def test_what_one_side_writes_the_other_reads(apart: bool) -> None:
    array = Array(apart=apart)
    assert not array.read((2, 3)).any()
    array.write(torch.ones(2, 3))
    view = array.view((2, 3))
    assert (view == 1).all()
    view[...] = 2
    assert (array.read((2, 3)) == 2).all()
    array.write(torch.full((2, 3), 3.0))
    assert (array.view((2, 3)) == 3).all()
    assert (array.view((6,)) == 3).all()
    assert array.view((2, 3)).ctypes.data == view.ctypes.data
    array.add(torch.ones(2, 3))
    assert (array.view((2, 3)) == 4).all()
    array.clear()
    assert not array.view((2, 3)).any()
    assert not array.read((2, 3)).any()


@pytest.mark.parametrize("apart", [False, True], ids=["CPU", "as on a GPU"])
def test_memory_grows_with_a_layers_result(apart: bool) -> None:
    array = Array(apart=apart)
    array.view((2,))[...] = 5
    array.write(torch.arange(6.0).view(2, 3))
    assert array.view((2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert array.view((2,)).tolist() == [0, 1]


def test_unseen_values_are_the_layers_own_tensor_in_its_memory_format() -> None:
    values = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    blob = Blob()
    blob.write(values)
    assert blob.read() is values
    np.testing.assert_array_equal(blob.data, values.numpy())
    assert blob.data.flags.c_contiguous
    assert blob.read().data_ptr() == blob.data.ctypes.data


def test_borrowed_values_are_not_changed_by_adding() -> None:
    history = torch.ones(3)
    array = Array()
    array.write(history, owned=False)
    array.add(torch.ones(3))
    array.write(history, owned=False)
    array.own((3,)).mul_(5)
    assert (history == 1).all()
    assert (array.view((3,)) == 5).all()


@pytest.mark.parametrize("apart", [False, True], ids=["CPU", "as on a GPU"])
def test_learnable_blobs_keep_their_tensor(apart: bool) -> None:
    weights = torch.arange(6.0).view(2, 3).requires_grad_()
    blob = LearnableBlob(Learnable(weights), apart)
    blob.data[0] = 9
    blob.read()  # as a pass does first
    assert weights[0].tolist() == [9, 9, 9]
    with torch.no_grad():
        weights.mul_(2)
    if apart:
        blob._data._at_host = False  # as after a pass
    assert blob.data[0].tolist() == [18, 18, 18]
    assert (blob.data.ctypes.data == weights.data_ptr()) is not apart


def test_the_first_fill_is_the_loss_weight() -> None:
    array = Array(fill=2.0)
    assert array.read((1,)).tolist() == [2]
    assert array.view((1,)).tolist() == [2]


def test_shapes_compare_and_join_like_pycaffes() -> None:
    shape = Blob((2, 3)).shape
    assert shape == [2, 3]
    assert shape == (2, 3)
    assert tuple(shape) == (2, 3)
    assert (10, *shape) == (10, 2, 3)
    assert (10,) + shape == (10, 2, 3)  # noqa: RUF005 - as scripts write it
    assert isinstance(shape, Vector)
    with pytest.raises(RuntimeError, match="has no num, channels"):
        _ = Blob((1, 2, 3, 4, 5)).num
    with pytest.raises(TypeError, match="whole number"):
        Blob((1,)).reshape(2.5)  # pyright: ignore[reportArgumentType]
