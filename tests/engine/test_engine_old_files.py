"""The embedded engine and weight surgery on files of Caffe before 2015: the same results as with current files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from support.tiny import SOLVER, net_text

from transfer_caffe.engine.__main__ import main
from transfer_caffe.formats.nets import read_net
from transfer_caffe.formats.proto import blob_shape, read_binary, to_text, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import BlobProto, NetParameter, SolverState
from transfer_caffe.formats.weights import read_weights

V1 = """
name: "tiny"
layers { name: "data" type: DATA top: "data" top: "label" include { phase: TRAIN }
  data_param { source: "train_lmdb" batch_size: 8 backend: LMDB
    mirror: true crop_size: 10 mean_file: "mean.binaryproto" } }
layers { name: "data" type: DATA top: "data" top: "label" include { phase: TEST }
  transform_param { crop_size: 10 mean_file: "mean.binaryproto" }
  data_param { source: "test_lmdb" batch_size: 5 backend: LMDB } }
layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1"
  blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0
  convolution_param { num_output: 6 kernel_size: 3 stride: 2 pad: 1
    weight_filler { type: "gaussian" std: 0.1 } bias_filler { type: "constant" value: 0.1 } } }
layers { name: "relu1" type: RELU bottom: "conv1" top: "conv1" }
layers { name: "pool1" type: POOLING bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layers { name: "norm1" type: LRN bottom: "pool1" top: "norm1" lrn_param { local_size: 5 alpha: 0.01 beta: 0.75 } }
layers { name: "conv2" type: CONVOLUTION bottom: "norm1" top: "conv2"
  blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0
  convolution_param { num_output: 8 kernel_size: 3 pad: 1 group: 2
    weight_filler { type: "gaussian" std: 0.1 } bias_filler { type: "constant" value: 0.1 } } }
layers { name: "relu2" type: RELU bottom: "conv2" top: "conv2" }
layers { name: "pool2" type: POOLING bottom: "conv2" top: "pool2"
  pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layers { name: "fc3" type: INNER_PRODUCT bottom: "pool2" top: "fc3"
  blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layers { name: "drop3" type: DROPOUT bottom: "fc3" top: "fc3" dropout_param { dropout_ratio: 0.2 } }
layers { name: "accuracy" type: ACCURACY bottom: "fc3" bottom: "label" top: "accuracy" include { phase: TEST } }
layers { name: "loss" type: SOFTMAX_LOSS bottom: "fc3" bottom: "label" top: "loss" }
"""

# the two nets in the format of 2013: without phases, the loss without a top, padding in separate layers
V0 = """
name: "tiny"
layers { layer { name: "data" type: "data" DATA cropsize: 10 meanfile: "mean.binaryproto" }
  top: "data" top: "label" }
layers { layer { name: "pad1" type: "padding" pad: 1 } bottom: "data" top: "pad1" }
layers { layer { name: "conv1" type: "conv" num_output: 6 kernelsize: 3 stride: 2
  weight_filler { type: "gaussian" std: 0.1 } bias_filler { type: "constant" value: 0.1 }
  blobs_lr: 1. blobs_lr: 2. weight_decay: 1. weight_decay: 0. } bottom: "pad1" top: "conv1" }
layers { layer { name: "relu1" type: "relu" } bottom: "conv1" top: "conv1" }
layers { layer { name: "pool1" type: "pool" pool: MAX kernelsize: 3 stride: 2 } bottom: "conv1" top: "pool1" }
layers { layer { name: "norm1" type: "lrn" local_size: 5 alpha: 0.01 beta: 0.75 } bottom: "pool1" top: "norm1" }
layers { layer { name: "pad2" type: "padding" pad: 1 } bottom: "norm1" top: "pad2" }
layers { layer { name: "conv2" type: "conv" num_output: 8 group: 2 kernelsize: 3
  weight_filler { type: "gaussian" std: 0.1 } bias_filler { type: "constant" value: 0.1 }
  blobs_lr: 1. blobs_lr: 2. weight_decay: 1. weight_decay: 0. } bottom: "pad2" top: "conv2" }
layers { layer { name: "relu2" type: "relu" } bottom: "conv2" top: "conv2" }
layers { layer { name: "pool2" type: "pool" pool: AVE kernelsize: 3 stride: 2 } bottom: "conv2" top: "pool2" }
layers { layer { name: "fc3" type: "innerproduct" num_output: 4 weight_filler { type: "xavier" }
  blobs_lr: 1. blobs_lr: 2. weight_decay: 1. weight_decay: 0. } bottom: "pool2" top: "fc3" }
layers { layer { name: "drop3" type: "dropout" dropout_ratio: 0.2 } bottom: "fc3" top: "fc3" }
END
"""
V0_TRAIN = V0.replace("DATA", 'source: "train_lmdb" batchsize: 8 mirror: true').replace(
    "END", 'layers { layer { name: "loss" type: "softmax_loss" } bottom: "fc3" bottom: "label" }'
)
V0_TEST = V0.replace("DATA", 'source: "test_lmdb" batchsize: 5').replace(
    "END", 'layers { layer { name: "accuracy" type: "accuracy" } bottom: "fc3" bottom: "label" top: "accuracy" }'
)
V0_SOLVER = SOLVER.replace('net: "net.prototxt"', 'train_net: "train.prototxt" test_net: "test.prototxt"')


def train(solver: str = "solver.prototxt", *argv: str) -> dict[str, list[bytes]]:
    """Train in the current folder and return the bytes of the final weights."""
    assert main(["train", "--solver", solver, *argv]) == 0
    return weights("snap/tiny_iter_20.caffemodel")


def weights(path: str) -> dict[str, list[bytes]]:
    return {name: [array.tobytes() for array in arrays] for name, arrays in read_weights(Path(path)).items()}


def four_axes(blob: BlobProto) -> BlobProto:
    """Return a blob as Caffe before 2015 wrote it."""
    shape = blob_shape(blob)
    axes = dict(zip(("num", "channels", "height", "width"), (1,) * (4 - len(shape)) + shape, strict=True))
    return BlobProto(**axes, data=blob.data)


def downgrade(path: str, form: str) -> None:
    """Rewrite a .caffemodel in the format of 2013 (V0) or 2014 (V1)."""
    today, old = read_binary(path, NetParameter()), NetParameter(name="tiny")
    kinds = {"Convolution": ("conv", "CONVOLUTION"), "InnerProduct": ("innerproduct", "INNER_PRODUCT")}
    for layer in today.layer:
        if layer.type in kinds:
            connection, blobs = old.layers.add(), [four_axes(blob) for blob in layer.blobs]
            v0, v1 = kinds[layer.type]
            if form == "V0":
                connection.layer.MergeFrom(type(connection.layer)(name=layer.name, type=v0, blobs=blobs))
            else:
                connection.MergeFrom(type(connection)(name=layer.name, type=v1, blobs=blobs))
    write_binary(path, old)


def outputs(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return re.findall(r"(?:Test|Train) net output.*|Batch.*|Iteration \d+.*loss = .*|lr = .*", capsys.readouterr().err)


def test_a_net_of_2014_trains_to_the_bytes_of_the_same_net_of_today(tiny: Path) -> None:
    today = train()
    (tiny / "net.prototxt").write_text(V1)
    assert train() == today


def test_an_old_net_inside_the_solver_trains_as_one_in_a_file(tiny: Path) -> None:
    today = train()
    (tiny / "solver.prototxt").write_text(SOLVER.replace('net: "net.prototxt"', f"net_param {{ {V1} }}"))
    assert train() == today


def test_nets_of_2013_have_no_backend_so_that_it_is_set_after_upgrading_them(tiny: Path, capsys) -> None:
    today = train()
    (tiny / "solver.prototxt").write_text(V0_SOLVER + "solver_type: SGD\n")
    (tiny / "train.prototxt").write_text(V0_TRAIN)
    (tiny / "test.prototxt").write_text(V0_TEST)
    capsys.readouterr()
    assert main(["train", "--solver", "solver.prototxt"]) == 2
    assert "train_lmdb: this is an LMDB: set backend: LMDB in data_param" in capsys.readouterr().err
    for name in ("train", "test"):
        text = to_text(read_net(f"{name}.prototxt"))
        (tiny / f"{name}.prototxt").write_text(text.replace("data_param {", "data_param { backend: LMDB"))
    assert train() == today


def test_a_loss_without_a_top_counts_and_is_no_output(tiny: Path, capsys) -> None:
    today = train()
    capsys.readouterr()
    (tiny / "net.prototxt").write_text(net_text().replace('bottom: "label" top: "loss"', 'bottom: "label"'))
    assert train() == today
    log = capsys.readouterr().err
    assert "Test net output #0: accuracy" in log
    assert "net output #1" not in log and "Train net output" not in log
    assert not read_binary("snap/tiny_iter_20.caffemodel", NetParameter()).layer[-1].top
    score = ["--iterations", "4", "--weights", "snap/tiny_iter_20.caffemodel"]
    assert main(["test", "--model", "net.prototxt", *score]) == 0
    (tiny / "net.prototxt").write_text(net_text())
    assert main(["test", "--model", "net.prototxt", *score]) == 0
    without, with_top = re.findall(r"Loss: (\S+)", capsys.readouterr().err)
    assert without == with_top != "0"


@pytest.mark.parametrize("form", ["V0", "V1"])
def test_old_weights_score_and_resume_as_todays_do(tiny: Path, capsys, form: str) -> None:
    final = train()
    score = ["test", "--model", "net.prototxt", "--iterations", "4", "--weights", "snap/tiny_iter_10.caffemodel"]
    capsys.readouterr()
    assert main(score) == 0
    scored = outputs(capsys)
    before = weights("snap/tiny_iter_10.caffemodel")
    downgrade("snap/tiny_iter_10.caffemodel", form)
    assert read_binary("snap/tiny_iter_10.caffemodel", NetParameter()).layers
    assert weights("snap/tiny_iter_10.caffemodel") == before
    assert main(score) == 0
    assert outputs(capsys) == scored and len(scored) == 8
    # a state of real Caffe has no checksum of its weights file; ours has one and would reject the file
    state = read_binary("snap/tiny_iter_10.solverstate", SolverState())
    state.ClearField("learned_net_sha256")
    write_binary("snap/tiny_iter_10.solverstate", state)
    assert train("solver.prototxt", "--snapshot", "snap/tiny_iter_10.solverstate") == final


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('layers { layer { name: "a" type: "cnov" } }', "net.prototxt: layer 'a': unknown layer type 'cnov'; known: "),
        ('layers { name: "a" type: COVN }', "net.prototxt: not a valid NetParameter prototxt"),
        (V1 + 'layer { name: "a" type: "ReLU" }', "net.prototxt: has both `layer` and `layers`"),
        ('layers { name: "a" }', "layer 'a': unknown layer type ''"),
        ('layers { name: "ip" type: INNER_PRODUCT }', "layer 'ip' (InnerProduct): takes 1 bottom blobs, not 0"),
    ],
)
def test_what_is_wrong_in_an_old_net_gives_one_line(tiny: Path, capsys, text: str, message: str) -> None:
    (tiny / "net.prototxt").write_text(text)
    assert main(["train", "--solver", "solver.prototxt"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert message in line


def test_the_old_solver_type_is_read_and_beside_the_new_one_refused(tiny: Path, capsys) -> None:
    today = train()
    (tiny / "solver.prototxt").write_text(SOLVER + "solver_type: SGD\n")
    assert train() == today
    (tiny / "solver.prototxt").write_text(SOLVER + 'solver_type: SGD type: "SGD"\n')
    capsys.readouterr()
    assert main(["train", "--solver", "solver.prototxt"]) == 2
    assert "solver.prototxt: has both type and its old form solver_type" in capsys.readouterr().err


def test_a_four_axes_blob_has_the_values_of_the_flat_one() -> None:
    blob = four_axes(BlobProto(shape={"dim": [2, 3]}, data=np.arange(6)))
    assert blob_shape(blob) == (1, 1, 2, 3) and list(blob.data) == list(range(6))
