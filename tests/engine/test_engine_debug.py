"""`debug_info`: the lines that Caffe writes about each layer, in training, in tests, and in pycaffe's interface."""

import re
import subprocess

import numpy as np
import pytest
import torch
from support import python

from transfer_caffe.caffe.solvers import SGDSolver
from transfer_caffe.engine import glog
from transfer_caffe.engine.iteration import direct
from transfer_caffe.engine.solver.solver import Solver
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import SolverParameter
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.utils.processes import environment

FILLER = 'weight_filler { type: "constant" value: 0.1 }'
NET = f"""
name: "traced"
layer {{ name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {{
  shape {{ dim: 4 dim: 2 dim: 8 dim: 8 }} shape {{ dim: 4 }}
  data_filler {{ type: "constant" value: 0.7 }} data_filler {{ type: "constant" value: 1 }} }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv" param {{ lr_mult: 0 }} param {{ lr_mult: 1 }}
  convolution_param {{ num_output: 3 kernel_size: 3 {FILLER} bias_filler {{ type: "constant" value: -1.5 }} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param {{ kernel_size: 2 stride: 2 }} }}
layer {{ name: "middle" type: "DummyData" top: "ones" dummy_data_param {{
  shape {{ dim: 4 dim: 5 }} data_filler {{ type: "constant" value: 1 }} }} }}
layer {{ name: "ip1" type: "InnerProduct" bottom: "pool" top: "ip1" param {{ name: "w" }}
  inner_product_param {{ num_output: 5 {FILLER} }} }}
layer {{ name: "ip2" type: "InnerProduct" bottom: "pool" top: "ip2" param {{ name: "w" }}
  inner_product_param {{ num_output: 5 {FILLER} }} }}
layer {{ name: "sum" type: "Eltwise" bottom: "ip1" bottom: "ip2" bottom: "ones" top: "sum" }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "sum" bottom: "label" top: "loss" }}
layer {{ name: "accuracy" type: "Accuracy" bottom: "sum" bottom: "label" top: "accuracy" include {{ phase: TEST }} }}
layer {{ name: "second" type: "SoftmaxWithLoss" bottom: "ip1" bottom: "label" loss_weight: 0.5 }}
"""
SOLVER = """net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 max_iter: 4 display: 2 test_iter: 1
test_interval: 4 iter_size: 2 snapshot_after_train: false random_seed: 1 solver_mode: CPU
"""
FIRST = """\
[Forward] Layer data, top blob data data: 0.7
[Forward] Layer data, top blob label data: 1
[Forward] Layer label_data_1_split, top blob label_data_1_split_0 data: 1
[Forward] Layer label_data_1_split, top blob label_data_1_split_1 data: 1
[Forward] Layer conv, top blob conv data: 0.24
[Forward] Layer conv, param blob 0 data: 0.1
[Forward] Layer conv, param blob 1 data: 1.5
[Forward] Layer relu, top blob conv data: 0
[Forward] Layer pool, top blob pool data: 0
"""
TINY = 1e-6
"""Gradients below this are rounding errors of zeros."""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "quiet.prototxt").write_text(SOLVER)
    (tmp_path / "solver.prototxt").write_text(SOLVER + "debug_info: true\n")


def lines_of(log):
    """Return the level and text of the lines that debug_info adds."""
    found = [re.match(r"(\w)\d{4} [^\]]*\]     (\[\w+ward\] .*)", line) for line in log.splitlines()]
    return [each.groups() for each in found if each]


def assert_same_lines(mine, theirs):
    number = r"(?<=[ (])[-\d.e+]+(?=[,)]|$)"
    assert [(level, re.sub(number, "N", text)) for level, text in mine] == [
        (level, re.sub(number, "N", text)) for level, text in theirs
    ]
    for (_, text), (_, expected) in zip(mine, theirs, strict=True):
        values = [[float(each) for each in re.findall(number, line)] for line in (text, expected)]
        assert values[0]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-4, atol=TINY, err_msg=f"{text}\n{expected}")


def errors_of(result):
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stderr


def test_the_lines_of_training_and_tests(capfd):
    with glog.logging():
        Solver.load("solver.prototxt").solve()
    lines = lines_of(capfd.readouterr().err)
    forward = [index for index, (_, text) in enumerate(lines) if "Layer data, top blob data" in text]
    assert len(forward) == 6  # tests at 0 and 4, and two batches each at iterations 0 and 2, which are displayed
    assert "".join(text + "\n" for _, text in lines[forward[1] :])[: len(FIRST)] == FIRST
    ends = [(level, text) for level, text in lines if "All net params" in text]
    assert len(ends) == 4 and {level for level, _ in ends} == {"E"}
    assert all(level == "I" for level, text in lines if "All net params" not in text)


def test_nothing_is_logged_or_built_differently_without_it(capfd):
    with glog.logging():
        solver = Solver.load("quiet.prototxt")
        solver.solve()
    assert not lines_of(capfd.readouterr().err)
    assert not solver.net.traced and solver.net.relu_after


def test_it_does_not_change_training():
    solvers = [Solver.load(name) for name in ("quiet.prototxt", "solver.prototxt")]
    for solver in solvers:
        solver.solve()
    for quiet, traced in zip(solvers[0].net.learnable, solvers[1].net.learnable, strict=True):
        torch.testing.assert_close(quiet.data, traced.data, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_and_forced_gradients_are_logged_as_well(dtype, capfd):
    with open("net.prototxt", "a") as file:
        file.write("force_backward: true\n")
    param = SolverParameter()
    parse_text(SOLVER + "debug_info: true", param, "solver.prototxt")
    param.type = "SGD"
    with glog.logging():
        Solver(param, torch.device("cpu"), dtype=dtype).solve()
    lines = [text for _, text in lines_of(capfd.readouterr().err)]
    assert any(text.startswith("[Backward] Layer conv, bottom blob data diff") for text in lines)
    assert any(text.startswith("[Backward] Layer conv, param blob 0 diff") for text in lines)


def test_a_frozen_weight_has_no_gradient():
    solver = Solver.load("quiet.prototxt")
    solver.net.learnable[1].data.data.fill_(-1)
    direct.Direct(solver.net)(0)
    weight, bias = solver.net.learnable[:2]
    assert weight.data.grad is None
    assert bias.data.grad is not None and bias.data.grad.abs().sum() > 0


def test_pycaffes_interface_logs_the_same(capfd):
    with glog.logging():
        Solver.load("solver.prototxt").solve()
        command = lines_of(capfd.readouterr().err)
        SGDSolver("solver.prototxt").solve()
    assert_same_lines(lines_of(capfd.readouterr().err), command)


@pytest.mark.parametrize("command", ["train", "test", "pycaffe"])
def test_real_caffe_writes_the_same_lines(command):
    program, pycaffe = real_caffe.program(), real_caffe.pycaffe()
    if program is None or pycaffe is None:
        pytest.skip("there is no real Caffe (`make caffe`)")
    with open("net.prototxt") as file:
        text = file.read().replace("value: -1.5", "value: -1")
    with open("net.prototxt", "w") as file:
        file.write(text)
    with open("traced.prototxt", "w") as file:
        file.write(text + "debug_info: true\n")
    engine = ["-m", "transfer_caffe.engine"]
    if command == "train":
        flags = ["train", "--solver", "solver.prototxt"]
        both = [[program, *flags], [*engine, *flags]]
    elif command == "test":
        Solver.load("quiet.prototxt").save()
        flags = ["test", "--model", "traced.prototxt", "--weights", "quiet_iter_0.caffemodel", "--iterations", "1"]
        both = [[program, *flags], [*engine, *flags]]
    else:
        with open("script.py", "w") as file:
            file.write("import caffe\nnet = caffe.Net('traced.prototxt', caffe.TRAIN)\nnet.forward()\nnet.backward()\n")
        both = [[*pycaffe, "script.py"], ["-m", "transfer_caffe.caffe", "script.py"]]
    theirs = lines_of(errors_of(subprocess.run([str(part) for part in both[0]], capture_output=True, text=True)))
    mine = lines_of(errors_of(python.run(*both[1], env=environment())))
    assert theirs
    assert_same_lines(mine, theirs)
