"""`caffe.Net`: views, passes, names, weights, and what is refused."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import transfer_caffe.caffe as caffe
from transfer_caffe.caffe._caffe import Blob
from transfer_caffe.engine import Net as EngineNet
from transfer_caffe.engine.layers import views

NET = """name: "small" force_backward: true
input: "data" input_shape { dim: 2 dim: 3 dim: 9 dim: 9 } input: "label" input_shape { dim: 2 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3
  weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 5
  weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "accuracy" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" loss_weight: 2 }
"""


@pytest.fixture
def prototxt(tmp_path: Path) -> str:
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    return str(path)


@pytest.fixture
def net(prototxt: str) -> caffe.Net:
    caffe.set_random_seed(1)
    net = caffe.Net(prototxt, caffe.TRAIN)
    random = np.random.default_rng(0)
    net.blobs["data"].data[...] = random.normal(size=(2, 3, 9, 9))
    net.blobs["label"].data[...] = [1, 3]
    return net


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_names_and_order_are_pycaffes_with_the_splits(net: caffe.Net) -> None:
    assert list(net.blobs) == [
        "data", "label", "label_input_1_split_0", "label_input_1_split_1", "conv", "fc", "fc_fc_0_split_0",
        "fc_fc_0_split_1", "accuracy", "loss",
    ]  # fmt: skip
    assert list(net._layer_names) == [
        "input", "label_input_1_split", "conv", "relu", "fc", "fc_fc_0_split", "accuracy", "loss",
    ]  # fmt: skip
    assert net.top_names["fc_fc_0_split"] == ["fc_fc_0_split_0", "fc_fc_0_split_1"]
    assert net.bottom_names["loss"] == ["fc_fc_0_split_1", "label_input_1_split_1"]
    assert isinstance(net.top_names, OrderedDict)
    assert net.inputs == ["data", "label"]
    assert net.outputs == ["accuracy", "loss"]
    assert list(net.params) == ["conv", "fc"]
    assert [layer.type for layer in net.layers][2:4] == ["Convolution", "ReLU"]
    assert net.layer_dict["fc"].blobs[0] is net.params["fc"][0]
    assert net.blob_loss_weights["loss"] == 2
    assert net.blob_loss_weights["fc"] == 0


def test_views_are_the_nets_memory_at_one_address(net: caffe.Net) -> None:
    before = {name: (address(blob.data), address(blob.diff)) for name, blob in net.blobs.items()}
    weights = {name: [address(b.data) for b in blobs] for name, blobs in net.params.items()}
    for _ in range(2):
        net.forward()
        net.backward()
        assert {name: (address(blob.data), address(blob.diff)) for name, blob in net.blobs.items()} == before
        assert {name: [address(b.data) for b in blobs] for name, blobs in net.params.items()} == weights
    # a learnable blob's view is the tensor that layers compute with
    engine = net._engine.layers[2].blobs[0].data
    assert weights["conv"][0] == engine.data_ptr()
    # a Split shares its bottom's values
    assert before["fc"][0] == before["fc_fc_0_split_0"][0] == before["fc_fc_0_split_1"][0]
    assert before["fc"][1] != before["fc_fc_0_split_0"][1]


def test_a_view_taken_early_shows_later_results_and_is_read(net: caffe.Net) -> None:
    fc, diff = net.blobs["fc"].data, net.blobs["data"].diff
    net.forward()
    first = fc.copy()
    net.blobs["data"].data[...] *= 2
    net.forward()
    assert not np.allclose(fc, first)
    net.backward()
    assert diff.any()
    fc[...] = 0
    net.forward(start="fc_fc_0_split")
    assert net.blobs["loss"].data == pytest.approx(np.log(5))


def test_results_do_not_depend_on_who_has_looked_at_blobs(prototxt: str, net: caffe.Net) -> None:
    other = caffe.Net(prototxt, caffe.TRAIN)
    other.share_with(net)
    for name in ("data", "label"):
        other.blobs[name].data[...] = net.blobs[name].data
    for blob in net.blobs.values():
        assert blob.data.shape == blob.diff.shape
    for each in (net, other):
        each.forward()
        each.backward()
    for name in net.blobs:
        np.testing.assert_allclose(other.blobs[name].data, net.blobs[name].data, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(other.blobs[name].diff, net.blobs[name].diff, rtol=1e-5, atol=1e-6, err_msg=name)
    for name, blobs in net.params.items():
        for mine, theirs in zip(blobs, other.params[name], strict=True):
            np.testing.assert_allclose(theirs.diff, mine.diff, rtol=1e-5, atol=1e-6)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the memory that NumPy sees apart from the layers' memory, as on a GPU."""
    for kind in (views.Array, views.LearnableArray):
        before = kind.__init__

        def init(
            self: Any, *args: Any, before: Any = before, count: int = 2 if kind is views.Array else 1, **named: Any
        ):
            before(self, *args[:count], **{**named, "apart": True})  # apart is the last parameter

        monkeypatch.setattr(kind, "__init__", init)
    build = caffe.Net._build

    def _build(self: caffe.Net, *args: Any) -> None:
        build(self, *args)
        self._apart = True

    monkeypatch.setattr(caffe.Net, "_build", _build)


def test_values_follow_each_other_when_the_memories_are_apart(
    prototxt: str, net: caffe.Net, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    net.save(tmp_path / "net.caffemodel")
    data, label = net.blobs["data"].data.copy(), net.blobs["label"].data.copy()
    request.getfixturevalue("as_on_a_gpu")
    other = caffe.Net(prototxt, caffe.TRAIN, weights=tmp_path / "net.caffemodel")
    assert other.blobs["data"].data.ctypes.data != other.blobs["data"].read().data_ptr()
    for turn in range(3):
        for each in (net, other):
            each.forward(data=data + turn, label=label)
            each.blobs["fc"].data[...] *= 0.5
            each.forward(start="fc_fc_0_split")
            each.clear_param_diffs()
            each.backward()
            each.params["fc"][0].data[...] -= 0.1 * each.params["fc"][0].diff
        for name in net.blobs:
            if name != "conv":
                np.testing.assert_allclose(other.blobs[name].data, net.blobs[name].data, rtol=1e-5, err_msg=name)
                np.testing.assert_allclose(other.blobs[name].diff, net.blobs[name].diff, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(other.params["fc"][0].data, net.params["fc"][0].data, rtol=1e-5)
    other.save(tmp_path / "other.caffemodel")
    again = caffe.Net(prototxt, caffe.TEST, weights=tmp_path / "other.caffemodel")
    np.testing.assert_allclose(again.params["fc"][0].data, net.params["fc"][0].data, rtol=1e-5)


def test_gradients_are_those_of_the_engine(prototxt: str, net: caffe.Net, tmp_path: Path) -> None:
    net.save(tmp_path / "net.caffemodel")
    engine = EngineNet.load(prototxt, tmp_path / "net.caffemodel", "TRAIN")
    engine.feed({name: net.blobs[name].data for name in net.inputs})
    loss, _ = engine.forward(keep=True)
    engine.backward()
    assert net._forward(0, len(net.layers) - 1) == pytest.approx(float(loss.detach()), rel=1e-6)
    net.backward()
    for name in ("data", "fc"):
        expected = engine.gradient(name)
        assert expected is not None
        np.testing.assert_allclose(net.blobs[name].diff, expected, rtol=1e-5, atol=1e-7)
    for layer in engine.layers:
        for blob, mine in zip(layer.blobs, net.params.get(layer.name, ()), strict=False):
            assert blob.data.grad is not None
            np.testing.assert_allclose(mine.diff, blob.data.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_gradients_of_weights_add_up_until_they_are_cleared(net: caffe.Net) -> None:
    net.forward()
    net.backward()
    once = net.params["fc"][0].diff.copy()
    net.backward()
    np.testing.assert_allclose(net.params["fc"][0].diff, 2 * once, rtol=1e-5)
    net.clear_param_diffs()
    assert not net.params["fc"][0].diff.any()


def test_blobs_outlive_the_net(net: caffe.Net) -> None:
    net.forward()
    array, blob, weights = net.blobs["fc"].data, net.blobs["fc"], net.params["fc"][0].data
    values = array.copy()
    del net
    assert (array == values).all()
    assert (blob.data == values).all()
    assert np.isfinite(weights).all()


def test_reshape_keeps_weights_and_reaches_the_outputs(net: caffe.Net) -> None:
    weights = net.params["conv"][0].data.copy()
    net.blobs["data"].reshape(1, 3, 9, 9)
    net.blobs["label"].reshape(1)
    net.reshape()
    assert list(net.blobs["fc_fc_0_split_1"].shape) == [1, 5]
    net.forward()
    assert net.blobs["conv"].data.shape == (1, 4, 7, 7)
    assert (net.params["conv"][0].data == weights).all()
    assert net.blobs["conv"].num == 1
    assert net.blobs["conv"].count == 4 * 7 * 7
    assert net.blobs["label"].width == 1


def test_a_shape_that_the_weights_do_not_fit_is_refused_and_undone(net: caffe.Net) -> None:
    net.blobs["data"].reshape(2, 3, 12, 12)
    with pytest.raises(RuntimeError, match=r"layer 'fc' .*needs blob 0 of \[5, 400\], but the blob is \[5, 196\]"):
        net.forward()
    net.blobs["data"].reshape(2, 3, 9, 9)
    net.forward()


def test_growing_blobs_get_new_memory_and_shrinking_ones_keep_theirs() -> None:
    blob = Blob((2, 3))
    blob.data[...] = [[1, 2, 3], [4, 5, 6]]
    place = address(blob.data)
    blob.reshape(3)
    assert list(blob.data) == [1, 2, 3]
    assert address(blob.data) == place
    blob.reshape(2, 3)
    assert blob.data[1, 2] == 6
    blob.reshape(4, 3)
    assert not blob.data.any()
    with pytest.raises(RuntimeError, match="takes no kwargs"):
        blob.reshape(shape=3)


def test_both_constructors_and_files(prototxt: str, net: caffe.Net, tmp_path: Path) -> None:
    path = tmp_path / "with a space.caffemodel"
    net.save(path)
    net.save_hdf5(tmp_path / "weights")
    for other in (
        caffe.Net(prototxt, str(path), caffe.TEST),
        caffe.Net(prototxt, caffe.TEST, weights=str(path)),
        caffe.Net(prototxt, phase=caffe.TEST, weights=path),
        caffe.Net(prototxt, caffe.TEST, 0, None, str(path)),
    ):
        assert (other.params["fc"][0].data == net.params["fc"][0].data).all()
    other = caffe.Net(prototxt, caffe.TEST)
    other.load_hdf5(tmp_path / "weights")
    assert (other.params["conv"][1].data == net.params["conv"][1].data).all()
    other.copy_from(str(path))


def test_shared_weights_are_the_same_memory(prototxt: str, net: caffe.Net) -> None:
    other = caffe.Net(prototxt, caffe.TEST)
    kept = other.params["fc"][0]
    other.share_with(net)
    assert other.params["fc"][0] is kept
    net.params["fc"][0].data[...] = 0.5
    assert (other.params["fc"][0].data == 0.5).all()
    assert address(kept.data) == address(net.params["fc"][0].data)
    assert address(kept.diff) != address(net.params["fc"][0].diff)
    net.forward()
    other.blobs["data"].data[...] = net.blobs["data"].data
    other.forward()
    np.testing.assert_allclose(other.blobs["fc"].data, net.blobs["fc"].data, rtol=1e-6)


def test_callbacks_come_around_each_layer(net: caffe.Net) -> None:
    calls: list[tuple[str, int]] = []
    for when in ("before_forward", "after_forward", "before_backward", "after_backward"):
        getattr(net, when)(lambda layer, when=when: calls.append((when, layer)))
    net.forward(start="fc", end="fc")
    net.backward(start="fc", end="relu")
    assert calls == [
        ("before_forward", 4), ("after_forward", 4), ("before_backward", 4), ("after_backward", 4),
        ("before_backward", 3), ("after_backward", 3),
    ]  # fmt: skip


def test_all_items_go_through_in_batches(net: caffe.Net) -> None:
    random = np.random.default_rng(1)
    data, label = random.normal(size=(5, 3, 9, 9)), np.array([0, 1, 2, 3, 4])
    rows = net.forward_all(blobs=["fc"], data=data, label=label)["fc"]
    assert rows.shape == (5, 5)
    net.forward(data=data[:2], label=label[:2])
    np.testing.assert_allclose(rows[:2], net.blobs["fc"].data, rtol=1e-5)


def test_dropout_draws_a_new_mask_in_each_pass(tmp_path: Path) -> None:
    path = tmp_path / "drop.prototxt"
    path.write_text(
        'input: "data" input_shape { dim: 50 }\nlayer { name: "drop" type: "Dropout" bottom: "data" top: "drop" }'
    )
    net = caffe.Net(str(path), caffe.TRAIN)
    net.blobs["data"].data[...] = 1
    first, second = (net.forward()["drop"].copy() for _ in range(2))
    assert (first != second).any()
    assert set(first) == {0, 2}


def test_the_same_seed_gives_the_same_weights(prototxt: str) -> None:
    def weights() -> np.ndarray:
        return caffe.Net(prototxt, caffe.TRAIN).params["fc"][0].data.copy()

    caffe.set_random_seed(7)
    first, second = weights(), weights()
    caffe.set_random_seed(7)
    assert (weights() == first).all()
    assert (weights() == second).all()
    assert (first != second).any()


REFUSED = {
    "no file": (lambda net, path: caffe.Net("none.prototxt", caffe.TEST), RuntimeError, "Could not open file none"),
    "no weights": (lambda net, path: caffe.Net(path, caffe.TEST, weights="no"), RuntimeError, "Could not open file no"),
    "no phase": (lambda net, path: caffe.Net(path), TypeError, "phase must be caffe.TRAIN or caffe.TEST, not None"),
    "phase": (lambda net, path: caffe.Net(path, 2), TypeError, "not 2"),
    "phase name": (lambda net, path: caffe.Net(path, phase=cast(Any, "TEST")), TypeError, "not 'TEST'"),
    "stages": (lambda net, path: caffe.Net(path, 1, stages="deploy"), TypeError, "stages must be a list"),
    "layer": (lambda net, path: net.forward(start="fc9"), ValueError, "'fc9' is no layer of net 'small': input, "),
    "end": (lambda net, path: net.backward(end="fc9"), ValueError, "'fc9' is no layer"),
    "blob": (lambda net, path: net.forward(blobs=["fc9"]), KeyError, "'fc9' is no blob of net 'small'"),
    "diff": (lambda net, path: net.backward(diffs=["fc9"]), KeyError, "'fc9' is no blob"),
    "inputs": (lambda net, path: net.forward(data=np.zeros((2, 3, 9, 9))), ValueError, "do not match net inputs"),
    "batch": (
        lambda net, path: net.forward(data=np.zeros((3, 3, 9, 9)), label=np.zeros(2)), ValueError,
        r"Input is not batch sized: 'data' is \[2, 3, 9, 9\], the array \[3, 3, 9, 9\]",
    ),
    "shape": (lambda net, path: net.forward(data=np.zeros((2, 4, 9, 9)), label=np.zeros(2)), ValueError, "broadcast"),
    "outputs": (lambda net, path: net.backward(loss=np.zeros(1)), ValueError, "do not match net outputs"),
    "range": (lambda net, path: net._forward(0, 99), RuntimeError, "has layers 0 to 7"),
    "memory": (lambda net, path: net.set_input_arrays(np.zeros(2), np.zeros(2)), RuntimeError, "MemoryDataLayer"),
    "label": (lambda net, path: net.forward(data=np.zeros((2, 3, 9, 9)), label=[9, 0]), RuntimeError, "label 9 is out"),
    "weights of others": (lambda net, path: net.copy_from(path), RuntimeError, "does not parse"),
    "folder": (lambda net, path: net.save(os.path.dirname(path)), IsADirectoryError, "directory"),
    "no folder": (lambda net, path: net.save_hdf5(path + "/net.h5"), OSError, "irectory|exists"),
    "size": (lambda net, path: net.blobs["data"].reshape(2, -3), RuntimeError, "sizes must be 0 or more"),
    "params": (lambda net, path: net.params["fc"][0].reshape(7), RuntimeError, "the counts differ"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_calls_raise_exceptions_that_say_what_is_wrong(case: str, net: caffe.Net, prototxt: str) -> None:
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call(net, prototxt)
    net.forward(data=np.zeros((2, 3, 9, 9)), label=np.zeros(2))  # it still works


def test_a_read_only_file_raises(net: caffe.Net, tmp_path: Path) -> None:
    folder = tmp_path / "read only"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(PermissionError):
        net.save(folder / "net.caffemodel")


def test_a_prototxt_that_is_no_net_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.prototxt"
    for text, message in (
        ('layer { nme: "x" }', "not a valid NetParameter prototxt"),
        ('layer { name: "x" type: "Nope" }', "unknown layer type 'Nope'"),
        ('layer { name: "x" type: "ReLU" bottom: "a" top: "b" }', "bottom blob 'a' is not a top of any earlier"),
        ("", "has no layers"),
    ):
        path.write_text(text)
        with pytest.raises(RuntimeError, match=message):
            caffe.Net(str(path), caffe.TEST)


def test_memory_data_reads_the_arrays_themselves(tmp_path: Path) -> None:
    path = tmp_path / "memory.prototxt"
    path.write_text(
        'layer { name: "data" type: "MemoryData" top: "data" top: "label"'
        " memory_data_param { batch_size: 2 channels: 1 height: 1 width: 3 } }"
    )
    net = caffe.Net(str(path), caffe.TEST)
    with pytest.raises(RuntimeError, match="has no data"):
        net.forward()
    data, labels = np.arange(12, dtype=np.float32).reshape(4, 1, 1, 3), np.arange(4, dtype=np.float32)
    net.set_input_arrays(data, labels)
    first = net.forward()
    assert list(first["label"].ravel()) == [0, 1]
    data[2:] = -1
    assert (net.forward()["data"] == -1).all()
    assert list(net.forward()["label"].ravel()) == [0, 1]
    for wrong, message in (
        (data[:3], "same first dimension"), (data.astype(float), "must be float32"), (data[:, 0], "must be 4-d"),
        (data[:, :, :, ::-1], "C contiguous"), (np.zeros((4, 1, 1, 2), np.float32), "wrong width"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            net.set_input_arrays(wrong, labels)


def test_stages_and_levels(tmp_path: Path) -> None:
    path = tmp_path / "stages.prototxt"
    path.write_text(
        'layer { name: "a" type: "Input" top: "a" input_param { shape { dim: 1 } } }\n'
        'layer { name: "b" type: "ReLU" bottom: "a" top: "b" include { stage: "deploy" } }\n'
        'layer { name: "c" type: "ReLU" bottom: "a" top: "c" include { min_level: 1 } }'
    )
    assert caffe.Net(str(path), caffe.TEST).outputs == ["a"]
    assert caffe.Net(str(path), caffe.TEST, stages=["deploy"]).outputs == ["b"]
    assert caffe.Net(str(path), caffe.TEST, level=1, stages=["deploy"]).outputs == ["b", "c"]
