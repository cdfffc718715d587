"""Layers written in Python, in nets run by pycaffe's interface, by the engine's API, solver and command line."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import python

import transfer_caffe.caffe as caffe
from transfer_caffe.engine import Net as EngineNet
from transfer_caffe.engine import Solver as EngineSolver
from transfer_caffe.formats import nets
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.processes import environment

LAYERS = '''
import caffe
import numpy as np


class Numbers(caffe.Layer):
    def setup(self, bottom, top):
        self.count = 0

    def reshape(self, bottom, top):
        top[0].reshape(4, 3)
        top[1].reshape(4)

    def forward(self, bottom, top):
        random = np.random.RandomState(self.count)
        self.count += 1
        top[0].data[...] = random.rand(4, 3)
        top[1].data[...] = random.randint(0, 2, 4)


class Times(caffe.Layer):
    """Multiply by param_str and by a learned number."""

    def setup(self, bottom, top):
        self.factor = float(self.param_str or 1)
        self.blobs.add_blob(1)
        self.blobs[0].data[...] = 2

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.factor * self.blobs[0].data[0] * bottom[0].data

    def backward(self, top, propagate_down, bottom):
        self.blobs[0].diff[...] += self.factor * (top[0].diff * bottom[0].data).sum()
        if propagate_down[0]:
            bottom[0].diff[...] = self.factor * self.blobs[0].data[0] * top[0].diff


class Phase(caffe.Layer):
    def reshape(self, bottom, top):
        top[0].reshape(1)

    def forward(self, bottom, top):
        top[0].data[...] = self.phase


class Broken(caffe.Layer):
    def setup(self, bottom, top):
        if "setup" in self.param_str:
            raise KeyError("no such key")

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)
        if "reshape" in self.param_str:
            assert False, "never"

    def forward(self, bottom, top):
        if "forward" in self.param_str:
            top[0].data[...] = np.zeros(7)


class NoLayer:
    pass
'''

NET = """
layer {{ name: "numbers" type: "Python" top: "data" top: "label"
  python_param {{ module: "{module}" layer: "Numbers" }} }}
layer {{ name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param {{ num_output: 2
  weight_filler {{ type: "constant" value: 0.1 }} }} }}
layer {{ name: "times" type: "Python" bottom: "fc" top: "times" param {{ lr_mult: 3 }}
  python_param {{ module: "{module}" layer: "Times" param_str: "1.5" share_in_parallel: true }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "times" bottom: "label" top: "loss" }}
"""
SOLVER = 'net: "{}" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 max_iter: 6 display: 2 random_seed: 1 {}'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of layers, whose name no other test uses, and a net; it is not the current folder."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(nets, "python_folders", {})
    monkeypatch.setattr("transfer_caffe.engine.layers.python_layer.python_folders", nets.python_folders)
    for name in [name for name in sys.modules if name.split(".")[0] == "caffe"]:
        monkeypatch.delitem(sys.modules, name)
    module = f"layers_{abs(hash(str(tmp_path)))}"
    (folder / f"{module}.py").write_text(LAYERS)
    (folder / "net.prototxt").write_text(NET.format(module=module))
    prefix = f'snapshot_prefix: "{folder}/snap"'
    (folder / "solver.prototxt").write_text(SOLVER.format(folder / "net.prototxt", prefix))
    (folder / "module").write_text(module)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] in ("caffe", module)]:
        del sys.modules[name]


def one_layer(folder: Path, layer: str, param_str: str = "", more: str = "") -> str:
    module = (folder / "module").read_text()
    path = folder / f"{layer}.prototxt"
    path.write_text(
        'input: "data" input_shape { dim: 2 dim: 2 } layer { name: "mine" type: "Python" bottom: "data" top: "top"'
        f' python_param {{ module: "{module}" layer: "{layer}" param_str: "{param_str}" }} {more} }}'
    )
    return str(path)


def test_the_module_is_found_beside_the_prototxt_and_blobs_are_the_nets(folder: Path) -> None:
    net = caffe.Net(str(folder / "net.prototxt"), caffe.TRAIN)
    layer: Any = net.layers[0]
    assert issubclass(type(layer), caffe.Layer)
    assert type(layer).__name__ == "Numbers"
    net.forward()
    assert layer.count == 1
    assert net.params["times"][0] is net.layer_dict["times"].blobs[0]
    assert net.params["times"][0].data[0] == 2
    np.testing.assert_allclose(net.blobs["times"].data, 3 * net.blobs["fc"].data, rtol=1e-6)
    net.backward()
    np.testing.assert_allclose(net.blobs["fc"].diff, 3 * net.blobs["times"].diff, rtol=1e-6)
    expected = 1.5 * (net.blobs["times"].diff * net.blobs["fc"].data).sum()
    np.testing.assert_allclose(net.params["times"][0].diff, [expected], rtol=1e-5)


def test_all_ways_of_training_give_the_same_weights(folder: Path) -> None:
    engine = EngineSolver.load(folder / "solver.prototxt")
    for _ in range(6):
        engine.step(1)
    solver = caffe.SGDSolver(str(folder / "solver.prototxt"))
    solver.step(6)
    command = ("-m", "transfer_caffe.engine", "train", "--solver", str(folder / "solver.prototxt"))
    result = python.run(*command, env=environment(), cwd=folder.parent)
    assert result.returncode == 0, result.stderr
    trained = caffe.Net(str(folder / "net.prototxt"), str(folder / "snap_iter_6.caffemodel"), caffe.TRAIN)
    weights = engine.net.weights
    assert abs(weights["times"][0][0] - 2) > 1e-3
    for name, blobs in weights.items():
        for index, array in enumerate(blobs):
            np.testing.assert_allclose(solver.net.params[name][index].data, array, rtol=1e-5)
            np.testing.assert_allclose(trained.params[name][index].data, array, rtol=1e-5)
    module = (folder / "module").read_text()
    assert f"Layer times runs Python code: {module}.Times" in result.stderr
    assert "Layer times: share_in_parallel is ignored" in result.stderr


def test_the_engines_net_runs_them_forward_and_backward(folder: Path) -> None:
    net = EngineNet.load(folder / "net.prototxt", phase="TRAIN")
    loss, _ = net.forward(keep=True)
    net.backward()
    mine = caffe.Net(str(folder / "net.prototxt"), caffe.TRAIN)
    mine.forward()
    mine.backward()
    assert float(loss.detach()) == pytest.approx(float(mine.blobs["loss"].data), rel=1e-6)
    grads = {layer.name: [blob.data.grad for blob in layer.blobs] for layer in net.layers}
    for name in ("fc", "times"):
        for mine_blob, grad in zip(mine.params[name], grads[name], strict=True):
            assert grad is not None
            np.testing.assert_allclose(mine_blob.diff, grad.numpy(), rtol=1e-5, atol=1e-7)


def test_phase_of_the_net_and_of_the_layer(folder: Path) -> None:
    path = one_layer(folder, "Phase")
    for phase in (caffe.TRAIN, caffe.TEST):
        assert caffe.Net(path, phase).forward()["top"] == phase
    assert caffe.Net(one_layer(folder, "Phase", more="phase: TEST"), caffe.TRAIN).forward()["top"] == caffe.TEST


@pytest.mark.parametrize(
    ("when", "kind", "message"),
    [
        ("setup", KeyError, "KeyError in setup of layers_.*Broken.*: 'no such key'"),
        ("reshape", AssertionError, "AssertionError in reshape of .*: never"),
        ("forward", ValueError, "ValueError in forward of .*could not broadcast"),
    ],
)
def test_an_exception_names_layer_file_and_line_and_keeps_its_class(
    folder: Path, when: str, kind: type[Exception], message: str
) -> None:
    path = one_layer(folder, "Broken", when)
    line = next(n for n, text in enumerate(LAYERS.splitlines(), 1) if f'"{when}" in self' in text) + 1
    with pytest.raises(kind) as caught:
        caffe.Net(path, caffe.TEST).forward()
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value.__cause__, kind)
    assert caught.match(rf"^layer 'mine' \(Python\): {message}")
    assert f".py, line {line}: " in str(caught.value)
    with pytest.raises(UserError, match="layer 'mine'"):
        EngineNet.load(path).forward()


def test_the_command_says_it_in_one_line(folder: Path) -> None:
    path = one_layer(folder, "Broken", "forward")
    command = ("-m", "transfer_caffe.engine", "time", "--model", path, "--iterations", "1")
    result = python.run(*command, env=environment())
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "layer 'mine' (Python): ValueError in forward of" in errors[0]
    assert "Traceback" not in result.stderr


def test_without_backward_a_layer_that_needs_it_is_named(folder: Path) -> None:
    path = one_layer(folder, "Phase")
    Path(path).write_text("force_backward: true " + Path(path).read_text())
    net = caffe.Net(path, caffe.TRAIN)
    net.forward()
    with pytest.raises(NotImplementedError, match=r"layer 'mine' .*this layer has no backward"):
        net.backward()


@pytest.mark.parametrize(
    ("module", "layer", "message"),
    [
        ("no_such_module", "X", "layer 'mine' .*: no module 'no_such_module' on Python's path or in .*a folder"),
        ("MODULE", "X", "module 'layers_.*' .* has no class 'X'"),
        ("MODULE", "NoLayer", "layers_.*.NoLayer is no subclass of this caffe.Layer"),
        ("broken_module", "X", "SyntaxError in import of module broken_module.*broken_module.py, line 1"),
        ("needs_more", "X", "ModuleNotFoundError in import of module needs_more.*needs_more.py, line 1: .*'not_there'"),
    ],
)
def test_a_layer_that_cannot_be_made_is_named(folder: Path, module: str, layer: str, message: str) -> None:
    (folder / "broken_module.py").write_text("def f(:\n")
    (folder / "needs_more.py").write_text("import not_there\n")
    path = Path(one_layer(folder, "Phase"))
    own = (folder / "module").read_text()
    text = path.read_text().replace('layer: "Phase"', f'layer: "{layer}"')
    path.write_text(text.replace(own, own if module == "MODULE" else module))
    with pytest.raises(Exception, match=message):
        caffe.Net(str(path), caffe.TEST)


def test_python_path_comes_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = (folder / "module").read_text()
    first = tmp_path / "first"
    first.mkdir()
    (first / f"{module}.py").write_text(LAYERS.replace("self.phase", "41"))
    monkeypatch.syspath_prepend(first)
    assert caffe.Net(one_layer(folder, "Phase"), caffe.TEST).forward()["top"] == 41


def test_blobs_are_saved_loaded_and_shared(folder: Path) -> None:
    path = str(folder / "net.prototxt")
    net, other = caffe.Net(path, caffe.TRAIN), caffe.Net(path, caffe.TEST)
    net.params["times"][0].data[0] = 7
    net.save(folder / "net.caffemodel")
    other.copy_from(folder / "net.caffemodel")
    assert other.layer_dict["times"].blobs[0].data[0] == 7
    other.share_with(net)
    net.params["times"][0].data[0] = 8
    assert other.layer_dict["times"].blobs[0].data[0] == 8
    other.forward()
    np.testing.assert_allclose(other.blobs["times"].data, 12 * other.blobs["fc"].data, rtol=1e-6)


def test_the_log_is_silent_for_programs(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    caffe.Net(str(folder / "net.prototxt"), caffe.TRAIN)
    assert capfd.readouterr().err == ""
    assert "caffe" in sys.modules  # for modules of layers
    assert os.path.dirname(caffe.__file__).endswith("caffe")
