"""The complete embedded engine: training, testing, snapshots, resuming, signals, and invalid input."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import torch
from support import python
from support.tiny import net_text, tiny_images, write_lmdb
from support.waiting import wait_for

from transfer_caffe.engine.__main__ import main
from transfer_caffe.engine.net import Net
from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.formats.datum import encoded_datum
from transfer_caffe.formats.proto import array_to_blob, blob_to_array, parse_text, read_binary, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import TEST, TRAIN, NetParameter, NetState, SolverState
from transfer_caffe.utils.processes import environment


def edit(path, *changes):
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def write_weights(path):
    draw = np.random.RandomState(3)
    param = NetParameter()
    for name, shape in (("conv1", (6, 3, 3, 3)), ("conv2", (8, 3, 3, 3)), ("fc3", (4, 8))):
        layer = param.layer.add(name=name)
        layer.blobs.append(array_to_blob(draw.randn(*shape) * 0.1))
        layer.blobs.append(array_to_blob(draw.randn(shape[0]) * 0.1))
    write_binary(path, param)


def blobs(path):
    param = read_binary(path, NetParameter())
    return {layer.name: [blob_to_array(blob, "") for blob in layer.blobs] for layer in param.layer if layer.blobs}


def refused(capsys, *argv):
    """Run the engine, expect exit code 2 and one error line, and return that line."""
    assert main(list(argv)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    return errors[0]


def test_losses_of_twenty_iterations_and_three_test_passes_are_those_of_real_caffe(tiny, capsys):
    # printed by Caffe 1.0 for the same files: depends on momentum, decay, lr steps, data order and test passes
    losses = """1.43028 1.4287 1.40835 1.41033 1.42289 1.42149 1.35561 1.39305 1.36776 1.37262 1.32617 1.38073 1.36876
    1.32487 1.34036 1.3242 1.33923 1.31903 1.33895 1.3298 1.33909"""
    (tiny / "net.prototxt").write_text(net_text(random=False))
    edit(tiny / "solver.prototxt", ("base_lr: 0.05", "base_lr: 0.002"))
    # a weight decay large enough to matter; and test passes over 15 of the 20 images, so that they start at
    # different images
    edit(tiny / "solver.prototxt", ("weight_decay: 0.0005", "weight_decay: 0.5"), ("test_iter: 4", "test_iter: 3"))
    write_weights("w.caffemodel")
    assert main(["train", "--solver", "solver.prototxt", "--weights", "w.caffemodel"]) == 0
    log = capsys.readouterr().err
    found = [float(value) for value in re.findall(r"Iteration \d+.*, loss = (\S+)", log)]
    np.testing.assert_allclose(found, [float(value) for value in losses.split()], rtol=2e-5)
    assert re.findall(r"#0: accuracy = (\S+)", log) == ["0.2", "0.466667", "0.333333"]
    tests = [float(value) for value in re.findall(r"Test net output #1: loss = (\S+)", log)]
    np.testing.assert_allclose(tests, [1.50688, 1.35981, 1.34244], rtol=2e-5)
    assert re.findall(r"lr = (\S+)", log)[14:16] == ["0.002", "0.0002"]


def test_resuming_at_any_snapshot_gives_the_same_bytes_as_an_undisturbed_run(tiny, capsys):
    edit(tiny / "solver.prototxt", ("snapshot: 5", "snapshot: 3"))
    assert main(["train", "--solver", "solver.prototxt"]) == 0
    names = ("snap/tiny_iter_20.caffemodel", "snap/tiny_iter_20.solverstate")
    whole = [(tiny / name).read_bytes() for name in names]
    for iteration in (3, 9, 18):
        for name in names:
            (tiny / name).unlink()
        assert (
            main(["train", "--solver", "solver.prototxt", "--snapshot", f"snap/tiny_iter_{iteration}.solverstate"]) == 0
        )
        assert [(tiny / name).read_bytes() for name in names] == whole


def test_a_start_loads_no_compiler_of_pytorchs_which_would_take_a_second(tiny):
    edit(tiny / "net.prototxt", ("pooling_param { pool: AVE", "pooling_param { pool: MAX"))
    script = (
        "import sys, torch; before = set(sys.modules); from transfer_caffe.engine.__main__ import main; "
        "code = main(['train', '--solver', 'solver.prototxt']); loaded = set(sys.modules) - before; "
        "print(*sorted(name for name in loaded if name.startswith(('torch._dynamo', 'torch._inductor', 'sympy')))); "
        "sys.exit(code)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True
    )
    assert not ended.stdout.split()


USUAL = """input: "x" input_shape { dim: 2 dim: 3 dim: 6 dim: 6 }
layer { name: "bn" type: "BatchNorm" bottom: "x" top: "bn" }
layer { name: "scale" type: "Scale" bottom: "bn" top: "scale" scale_param { bias_term: true } }
layer { name: "bias" type: "Bias" bottom: "scale" top: "bias" }
layer { name: "prelu" type: "PReLU" bottom: "bias" top: "prelu" }
layer { name: "power" type: "Power" bottom: "x" top: "power" power_param { power: 2 } }
layer { name: "sum" type: "Eltwise" bottom: "prelu" bottom: "power" top: "sum" }
layer { name: "concat" type: "Concat" bottom: "sum" bottom: "power" bottom: "x" top: "concat" }
layer { name: "split" type: "Slice" bottom: "concat" top: "a" top: "b" slice_param { slice_point: 3 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "a" bottom: "x" top: "loss" }
"""


def test_the_usual_layers_of_other_nets_load_none_either_and_their_shapes_are_right(tmp_path):
    (tmp_path / "net.prototxt").write_text(USUAL)
    script = (
        "import sys; from transfer_caffe.engine import Net; net = Net.load('net.prototxt', phase='TRAIN'); "
        "assert 'torch._dynamo' not in sys.modules and 'sympy' not in sys.modules; net.forward(0, keep=True); "
        "assert {name: tuple(blob.shape) for name, blob in net.blobs.items()} == net.shapes; "
        "print(net.shapes['concat'], net.shapes['loss'])"
    )
    ended = python.run("-c", script, cwd=tmp_path, env=environment())
    assert ended.stdout == "(2, 9, 6, 6) ()\n", ended.stderr


def test_another_seed_gives_other_weights(tiny):
    assert main(["train", "--solver", "solver.prototxt"]) == 0
    first = (tiny / "snap/tiny_iter_20.caffemodel").read_bytes()
    edit(tiny / "solver.prototxt", ("random_seed: 7", "random_seed: 8"))
    assert main(["train", "--solver", "solver.prototxt"]) == 0
    assert (tiny / "snap/tiny_iter_20.caffemodel").read_bytes() != first


def test_layers_with_lr_mult_0_keep_their_bytes_and_the_others_learn(tiny):
    text = net_text()
    head, tail = text.split('layer { name: "relu1"')
    head = head.replace("lr_mult: 1 decay_mult: 1", "lr_mult: 0 decay_mult: 0").replace("lr_mult: 2", "lr_mult: 0")
    (tiny / "net.prototxt").write_text(head + 'layer { name: "relu1"' + tail)
    write_weights("w.caffemodel")
    assert main(["train", "--solver", "solver.prototxt", "--weights", "w.caffemodel"]) == 0
    before, after = blobs("w.caffemodel"), blobs("snap/tiny_iter_20.caffemodel")
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before["conv1"], after["conv1"], strict=True))
    assert all(a.tobytes() != b.tobytes() for a, b in zip(before["conv2"], after["conv2"], strict=True))
    state = read_binary("snap/tiny_iter_20.solverstate", SolverState())
    assert len(state.history) == 6 and not any(state.history[0].data)


def test_there_is_no_backward_below_the_lowest_layer_that_learns(tiny):
    head, tail = net_text().split('layer { name: "relu1"')
    head = head.replace("lr_mult: 1 decay_mult: 1", "lr_mult: 0 decay_mult: 0").replace("lr_mult: 2", "lr_mult: 0")
    net = Net(parse_text(head + 'layer { name: "relu1"' + tail, NetParameter(), ""), NetState(phase=TRAIN), 1,
              torch.device("cpu"))  # fmt: skip
    net.forward(0)[0].backward()
    gradients = [blob.data.grad is not None for blob in net.learnable]
    assert gradients == [False, False, True, True, True, True]


def test_a_killed_run_leaves_whole_snapshots_and_resumes_to_the_same_bytes(tiny, capsys):
    # the run that is killed is endless, so that it is still training however late the kill comes
    edit(tiny / "solver.prototxt", ("max_iter: 20", "max_iter: 1000000"), ("snapshot: 5", "snapshot: 7"))
    child = subprocess.Popen([sys.executable, "-m", "transfer_caffe.engine", "train", "--solver", "solver.prototxt"],
                             stderr=subprocess.DEVNULL, env=with_project())  # fmt: skip
    wait_for(lambda: list((tiny / "snap").glob("*.solverstate")), "a snapshot", child)
    child.kill()
    child.wait()
    iterations = sorted(int(path.stem.split("_")[-1]) for path in (tiny / "snap").glob("*.solverstate"))
    assert iterations == list(range(7, iterations[-1] + 1, 7))
    edit(tiny / "solver.prototxt", ("max_iter: 1000000", f"max_iter: {iterations[-1] + 20}"))
    final = tiny / f"snap/tiny_iter_{iterations[-1] + 20}.caffemodel"
    snapshot = f"snap/tiny_iter_{iterations[-1]}.solverstate"
    assert main(["train", "--solver", "solver.prototxt", "--snapshot", snapshot]) == 0
    resumed = final.read_bytes()
    for path in (tiny / "snap").iterdir():
        path.unlink()
    assert main(["train", "--solver", "solver.prototxt"]) == 0
    assert final.read_bytes() == resumed


def with_project():
    root = Path(__file__).resolve().parent.parent.parent
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def test_sigint_stops_with_a_snapshot_and_exit_code_0(tiny):
    edit(tiny / "solver.prototxt", ("max_iter: 20", "max_iter: 1000000"), ("display: 1", "display: 1000"))
    edit(tiny / "solver.prototxt", ("snapshot: 5", "snapshot: 0"), ("test_interval: 10", "test_interval: 1000"))
    child = subprocess.Popen([sys.executable, "-m", "transfer_caffe.engine", "train", "--solver", "solver.prototxt"],
                             stderr=subprocess.PIPE, text=True, env=with_project())  # fmt: skip
    assert child.stderr
    for line in child.stderr:
        if "Iteration 0 (" in line:
            break
    child.send_signal(signal.SIGINT)
    rest = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 0
    assert "Optimization stopped early." in rest and "Optimization Done." not in rest
    assert len(list((tiny / "snap").glob("*.solverstate"))) == 1


def test_sigint_in_the_middle_of_a_test_stops_with_a_snapshot_and_without_a_result(tiny, capsys, monkeypatch):
    write_weights("w.caffemodel")
    calls = []
    forward = Net.forward

    def interrupted(net, batch):
        if net.state.phase == TEST:
            calls.append(batch)
            if len(calls) == 6:  # the second batch of the second test
                signal.raise_signal(signal.SIGINT)
        return forward(net, batch)

    monkeypatch.setattr(Net, "forward", interrupted)
    assert main(["train", "--solver", "solver.prototxt", "--weights", "w.caffemodel"]) == 0
    log = capsys.readouterr().err
    assert len(calls) == 6
    assert "Optimization stopped early." in log and log.count("#0: accuracy") == 1
    assert (tiny / "snap/tiny_iter_10.solverstate").exists()


def test_test_prints_the_mean_of_the_batches(tiny, capsys):
    write_weights("w.caffemodel")
    assert main(["test", "--model", "net.prototxt", "--weights", "w.caffemodel", "--iterations", "4"]) == 0
    log = capsys.readouterr().err
    each = [float(value) for value in re.findall(r"Batch \d, accuracy = (\S+)", log)]
    assert len(each) == 4
    assert float(re.findall(r"\] accuracy = (\S+)", log)[-1]) == pytest.approx(np.mean(each))


def test_time_gives_forward_and_backward_of_each_layer(tiny, capsys):
    assert main(["time", "-model", "net.prototxt", "-iterations", "2"]) == 0
    log = capsys.readouterr().err
    assert len(re.findall("forward: ", log)) == len(re.findall("backward: ", log)) == 11
    assert "Average Forward-Backward" in log


@pytest.mark.parametrize("command", ["test", "time"])
def test_less_than_one_iteration_is_refused(tiny, capsys, command):
    write_weights("w.caffemodel")
    weights = ["--weights", "w.caffemodel"] if command == "test" else []
    line = refused(capsys, command, "--model", "net.prototxt", "--iterations", "0", *weights)
    assert "--iterations must be at least 1, not 0" in line


def test_device_query_says_so_where_there_is_no_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["device_query"]) == 0
    assert "No GPU can be used" in capsys.readouterr().err
    assert "this machine has 0 usable GPUs" in refused(capsys, "device_query", "--gpu", "0")


def test_a_diverging_run_ends_with_an_error_and_leaves_no_snapshot_that_is_not_finite(tiny, capsys):
    edit(tiny / "solver.prototxt", ("base_lr: 0.05", "base_lr: 1e30"))
    assert "training diverged; lower base_lr" in refused(capsys, "train", "--solver", "solver.prototxt")
    assert not list((tiny / "snap").glob("*.caffemodel"))


def test_a_label_outside_the_outputs_is_an_error_that_names_record_and_layer(tiny, capsys):
    images, labels = tiny_images(60, 1)
    labels[33] = 4
    for path in (tiny / "train_lmdb").iterdir():
        path.unlink()
    write_lmdb("train_lmdb", images, labels)
    line = refused(capsys, "train", "--solver", "solver.prototxt")
    assert "record 33" in line and "label 4" in line and "'loss'" in line


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: data[: len(data) // 2], "damaged or truncated"),
        (lambda data: bytes(range(256)) * 4, "damaged or truncated"),
    ],
    ids=["empty", "truncated", "random bytes"],
)
def test_a_damaged_weights_file_is_refused(tiny, capsys, damage, message):
    write_weights("w.caffemodel")
    (tiny / "w.caffemodel").write_bytes(damage((tiny / "w.caffemodel").read_bytes()))
    line = refused(capsys, "train", "--solver", "solver.prototxt", "--weights", "w.caffemodel")
    assert "w.caffemodel" in line and message in line


def test_weights_of_which_no_layer_fits_are_refused(tiny, capsys):
    param = NetParameter()
    param.layer.add(name="elsewhere").blobs.append(array_to_blob(np.zeros((2, 2))))
    write_binary("w.caffemodel", param)
    line = refused(capsys, "train", "--solver", "solver.prototxt", "--weights", "w.caffemodel")
    assert "none of its layers has the name" in line and "elsewhere" in line


def test_weights_of_another_shape_are_refused_naming_layer_and_blob(tiny, capsys):
    param = NetParameter()
    layer = param.layer.add(name="conv2")
    layer.blobs.extend([array_to_blob(np.zeros((8, 6, 3, 3))), array_to_blob(np.zeros(8))])
    write_binary("w.caffemodel", param)
    line = refused(capsys, "train", "--solver", "solver.prototxt", "--weights", "w.caffemodel")
    assert "'conv2', blob 0" in line and "[8, 6, 3, 3]" in line and "[8, 3, 3, 3]" in line


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('lr_policy: "step"', 'lr_policy: "steps"', "unknown lr_policy 'steps'; known: fixed, step"),
        ('net: "net.prototxt"', 'net: "gone.prototxt"', "gone.prototxt: no such file"),
        ("base_lr: 0.05", "base_lr: 0.05 nonsense: 1", "solver.prototxt: not a valid SolverParameter prototxt"),
        ("base_lr: 0.05", 'base_lr: 0.05 type: "Best"', "unknown solver type 'Best'; known: SGD, Nesterov"),
        ("max_iter: 20", "", "max_iter"),
    ],
)
def test_a_wrong_solver_is_refused_in_one_line(tiny, capsys, old, new, message):
    edit(tiny / "solver.prototxt", (old, new))
    assert message in refused(capsys, "train", "--solver", "solver.prototxt")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('type: "ReLU"', 'type: "Relu"', "unknown layer type 'Relu'"),
        ('bottom: "pool2"', 'bottom: "pool9"', "'fc3' (InnerProduct): bottom blob 'pool9' is not a top"),
        ("group: 2", "group: 4", "group 4 must divide"),
        ('source: "train_lmdb"', 'source: "gone_lmdb"', "gone_lmdb"),
        ("crop_size: 10", "crop_size: 20", "crop_size 20 is larger than the records (12x12)"),
        (
            "kernel_size: 3 stride: 2 pad: 1",
            "stride: 2",
            "'conv1' (Convolution): convolution_param has no kernel_size",
        ),
        ('type: "gaussian"', 'type: "gauss"', "unknown filler type 'gauss'"),
        ("local_size: 5", "local_size: 4", "local_size must be odd"),
        ('bottom: "fc3" bottom: "label"', 'bottom: "fc3"', "takes 2 bottom blobs, not 1"),
        ('bottom: "pool2"', 'bottom: "pool2" propagate_down: [true, false]', "2 propagate_down for 1 bottoms"),
        ("crop_size: 10", "crop_size: 10 force_color: true force_gray: true", "cannot both be set"),
        ("mean.binaryproto", "net.prototxt", "net.prototxt: damaged or truncated"),
    ],
)
def test_a_wrong_net_is_refused_in_one_line_that_names_the_place(tiny, capsys, old, new, message):
    edit(tiny / "net.prototxt", (old, new))
    assert message in refused(capsys, "train", "--solver", "solver.prototxt")


@pytest.mark.parametrize(("setting", "channels"), [("", 1), ("force_color: true", 3), ("force_gray: true", 1)])
def test_encoded_records_are_decoded_in_the_colours_asked_for(tmp_path, setting, channels):
    with DatabaseWriter(tmp_path / "gray_lmdb") as writer:
        image = np.arange(64, dtype=np.uint8).reshape(8, 8)
        writer.put(b"00000000", encoded_datum(cv2.imencode(".png", image)[1].tobytes(), 0))
    text = f"""layer {{ name: "data" type: "Data" top: "data" top: "label" transform_param {{ {setting} }}
               data_param {{ source: "{tmp_path}/gray_lmdb" batch_size: 1 backend: LMDB }} }}"""
    net = Net(parse_text(text, NetParameter(), "test"), NetState(), 0, torch.device("cpu"))
    assert net.forward(0)[1]["data"].shape == (1, channels, 8, 8)


def test_an_empty_or_missing_database_is_refused(tiny, capsys):
    for path in (tiny / "train_lmdb").iterdir():
        path.unlink()
    lmdb.open("train_lmdb").close()
    assert "train_lmdb" in refused(capsys, "train", "--solver", "solver.prototxt")


def test_a_state_of_another_net_is_refused(tiny, capsys):
    assert main(["train", "--solver", "solver.prototxt"]) == 0
    state = read_binary("snap/tiny_iter_5.solverstate", SolverState())
    del state.history[-1]
    write_binary("snap/tiny_iter_5.solverstate", state)
    line = refused(capsys, "train", "--solver", "solver.prototxt", "--snapshot", "snap/tiny_iter_5.solverstate")
    assert "a history of 5 blobs, the net and solver need 6" in line


def test_the_level_of_the_command_line_takes_the_place_of_the_solvers(tiny, capsys):
    edit(tiny / "net.prototxt", ('name: "relu2" type: "ReLU"', 'name: "relu2" type: "ReLU" exclude { min_level: 1 }'))
    (tiny / "solver.prototxt").write_text((tiny / "solver.prototxt").read_text() + "train_state { level: 2 }")
    assert main(["train", "--solver", "solver.prototxt"]) == 0
    assert "relu2 -> conv2" in capsys.readouterr().err.split("Creating test net")[0]
    assert main(["train", "--solver", "solver.prototxt", "--level", "1"]) == 0
    assert "relu2 -> conv2" not in capsys.readouterr().err.split("Creating test net")[0]


def test_two_layers_of_one_name_are_trained_saved_and_resumed(tiny, capsys):
    edit(tiny / "net.prototxt", ('name: "conv2"', 'name: "conv1"'))
    argv = ["train", "--solver", "solver.prototxt"]
    assert main(argv) == 0
    path = tiny / "snap/tiny_iter_20.caffemodel"
    whole = path.read_bytes()
    layers = [layer for layer in read_binary(path, NetParameter()).layer if layer.name == "conv1"]
    shapes = [tuple(layer.blobs[0].shape.dim) for layer in layers]
    assert shapes == [(6, 3, 3, 3), (8, 3, 3, 3)]
    for file in tiny.glob("snap/tiny_iter_20.*"):
        file.unlink()
    assert main([*argv, "--snapshot", "snap/tiny_iter_10.solverstate"]) == 0
    assert path.read_bytes() == whole
    edit(tiny / "solver.prototxt", ("snapshot_prefix", "snapshot_format: HDF5 snapshot_prefix"))
    assert "'conv1' (Convolution): another layer has this name: HDF5" in refused(capsys, *argv)
