"""What scripts of ten years rely on beside the documented functions, as they were found in them."""

import io as python_io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import python

import transfer_caffe.caffe as caffe
from transfer_caffe.caffe import io
from transfer_caffe.engine import Solver as EngineSolver
from transfer_caffe.formats import hdf5
from transfer_caffe.formats.proto import caffe_pb2
from transfer_caffe.utils.processes import environment

FILL = 'weight_filler { type: "xavier" }'
NET = f"""
layer {{ name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {{
  shape {{ dim: 4 dim: 3 }} shape {{ dim: 4 }}
  data_filler {{ type: "constant" value: 0.5 }} data_filler {{ type: "constant" value: 1 }} }} }}
layer {{ name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param {{ num_output: 2 {FILL} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    return tmp_path


def solver_file(settings: str) -> str:
    Path("solver.prototxt").write_text(f'net: "net.prototxt" random_seed: 3 max_iter: 99 {settings}')
    return "solver.prototxt"


WIDE = """
input: "data" input_shape { dim: 8 dim: 64 dim: 28 dim: 28 }
layer { name: "a" type: "Convolution" bottom: "data" top: "a" convolution_param { num_output: 64 kernel_size: 5
  weight_filler { type: "xavier" } } }
layer { name: "b" type: "Convolution" bottom: "a" top: "b" convolution_param { num_output: 64 kernel_size: 5
  weight_filler { type: "xavier" } } }
"""
FORK = """
import multiprocessing, sys
import transfer_caffe.caffe as caffe

def build():
    caffe.Net("wide.prototxt", caffe.TEST).forward()

multiprocessing.set_start_method("fork")
net = caffe.Net("wide.prototxt", caffe.TEST)
if sys.argv[1] == "after":
    net.forward()
for work in (net.forward, build):
    process = multiprocessing.Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == 0, process.exitcode
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not fork")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_forked_process_can_compute(when: str) -> None:
    """The net is large enough for two of PyTorch's threads, which a forked process does not have."""
    Path("wide.prototxt").write_text(WIDE)
    Path("script.py").write_text(FORK)
    kept = {name: value for name, value in environment().items() if not name.startswith("OMP_")}
    done = subprocess.run([sys.executable, "script.py", when], env=kept, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_loop_of_ones_own_counts_iterations(kind: str) -> None:
    settings = f'base_lr: 0.1 lr_policy: "step" gamma: 0.5 stepsize: 2 momentum: 0.9 type: "{kind}"'
    solver, other = caffe.get_solver(solver_file(settings)), EngineSolver.load("solver.prototxt")
    for number in range(6):
        assert solver.iter == number
        assert solver.lr == pytest.approx(0.1 * 0.5 ** (number // 2))
        solver.net.clear_param_diffs()
        solver.net.forward()
        solver.net.backward()
        solver.apply_update()
    other.step(6)
    np.testing.assert_allclose(solver.net.params["fc"][0].data, other.net.weights["fc"][0], rtol=1e-5)


def test_training_continues_with_a_rate_of_almost_nothing() -> None:
    solver = caffe.get_solver(solver_file('base_lr: 1e-39 lr_policy: "fixed" momentum: 0.9'))
    before = solver.net.params["fc"][0].data.copy()
    solver.step(3)
    np.testing.assert_array_equal(solver.net.params["fc"][0].data, before)


def test_shared_weights_are_in_the_hdf5_file_of_each_net() -> None:
    one, two = (caffe.Net("net.prototxt", caffe.TEST) for _ in range(2))
    two.params["fc"][0].data[...] = 7
    one.share_with(two)
    one.save_hdf5("one.h5")
    solver = caffe.get_solver(solver_file('base_lr: 0.1 lr_policy: "fixed" test_iter: 1 test_interval: 9'))
    solver.test_nets[0].save_hdf5("test.h5")
    again = caffe.Net("net.prototxt", caffe.TEST)
    again.load_hdf5("one.h5")
    assert (again.params["fc"][0].data == 7).all()
    again.load_hdf5("test.h5")
    np.testing.assert_array_equal(again.params["fc"][0].data, solver.net.params["fc"][0].data)


def test_weights_that_one_layer_shares_with_itself_are_stored_once() -> None:
    Path("one.prototxt").write_text(
        'input: "data" input_shape { dim: 2 dim: 1 } layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" '
        'param { name: "w" } param { name: "w" share_mode: PERMISSIVE } inner_product_param { num_output: 3 } }'
    )
    net = caffe.Net("one.prototxt", caffe.TEST)
    net.params["fc"][0].data[...] = 5
    net.save_hdf5("one.h5")
    assert list(hdf5.read_weights("one.h5")["fc"]) == [0]
    again = caffe.Net("one.prototxt", caffe.TEST)
    again.load_hdf5("one.h5")
    assert (again.params["fc"][1].data == 5).all()


def test_images_are_read_from_open_files_and_errors_are_those_of_files() -> None:
    image = np.random.RandomState(0).randint(0, 256, (4, 5, 3)).astype(np.uint8)
    cv2.imwrite("a.png", image)
    np.testing.assert_array_equal(io.load_image(python_io.BytesIO(Path("a.png").read_bytes())), io.load_image("a.png"))
    Path("b.png").write_text("text")
    with pytest.raises(OSError, match=r"b\.png: cannot be read as an image"):
        io.load_image("b.png")
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        io.load_image("none.png")
    with pytest.raises(OSError, match=r"this file: cannot be read"):
        io.load_image(python_io.BytesIO(b""))


def test_sizes_may_have_channels() -> None:
    image = np.random.RandomState(0).rand(4, 5, 3)
    np.testing.assert_array_equal(io.resize_image(image, (8, 8, 3)), io.resize_image(image, (8, 8)))
    with pytest.raises(ValueError, match="cannot get the shape"):
        io.resize_image(image, (8, 8, 1))


def test_names_that_pycaffes_module_imports() -> None:
    from scipy.ndimage import zoom

    assert io.zoom is zoom
    skimage = pytest.importorskip("skimage")
    from skimage.transform import resize

    assert io.skimage is skimage and io.resize is resize and io.skimage.io.imread
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = io.nothing


def test_arrays_of_messages_are_float64() -> None:
    blob = caffe_pb2.BlobProto(num=1, channels=1, height=1, width=2, data=[1.5, 2], diff=[1, 2])
    assert io.blobproto_to_array(blob).dtype == io.blobproto_to_array(blob, return_diff=True).dtype == np.float64


def test_a_blob_that_a_netspec_lacks_is_a_keyerror_and_an_attributeerror() -> None:
    spec = caffe.NetSpec()
    for error in (KeyError, AttributeError):
        with pytest.raises(error, match="this NetSpec has no blob 'x'"):
            _ = spec.x
    assert not hasattr(spec, "x")


def test_arrays_that_cannot_be_written_and_paths_as_bytes(recwarn: pytest.WarningsRecorder) -> None:
    Path("memory.prototxt").write_text(
        'layer { name: "m" type: "MemoryData" top: "data" top: "label" memory_data_param { batch_size: 2 channels: 1 '
        "height: 1 width: 3 } }"
    )
    net = caffe.Net(b"memory.prototxt", caffe.TEST)  # pyright: ignore[reportArgumentType]
    data = np.arange(6, dtype=np.float32).reshape(2, 1, 1, 3)
    data.flags.writeable = False
    net.set_input_arrays(data, np.zeros((2, 1, 1, 1), np.float32))
    net.forward()
    np.testing.assert_array_equal(net.blobs["data"].data, data)
    assert not [each for each in recwarn if "writable" in str(each.message)]


LAYERS = """
import caffe

class Custom(Exception):
    def __init__(self, a, b):
        self.a, self.b = a, b

class Layer(caffe.Layer):
    def reshape(self, bottom, top):
        top[0].reshape(1)

    def forward(self, bottom, top):
        if self.param_str == "next":
            next(iter([]))
        if self.param_str == "open":
            open("/nonexistent/file")
        raise Custom(1, [2])
"""


def test_exceptions_of_layers_keep_their_contents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, "caffe", caffe)
    Path("old_layers.py").write_text(LAYERS)

    def failure(what: str) -> BaseException:
        Path("py.prototxt").write_text(
            'layer { name: "p" type: "Python" top: "p" python_param { module: "old_layers" layer: "Layer" '
            f'param_str: "{what}" }} }}'
        )
        net = caffe.Net("py.prototxt", caffe.TEST)
        try:
            net.forward()
        except Exception as error:
            assert f"in forward of old_layers.Layer, {folder / 'old_layers.py'}, line" in str(error)
            return error
        raise AssertionError("nothing was raised")

    assert isinstance(failure("next"), StopIteration)
    missing = failure("open")
    assert isinstance(missing, FileNotFoundError) and (missing.errno, missing.filename) == (2, "/nonexistent/file")
    custom = failure("own")
    assert type(custom).__name__ == "Custom" and (vars(custom)["a"], vars(custom)["b"]) == (1, [2])


NAMES = """
import collections
import numpy as np
import yaml
assert np.asscalar(np.float32(2)) == 2 and np.asscalar(np.ones(1)) == 1
assert np.fromstring(b"ab", dtype=np.uint8).tolist() == [97, 98]
assert np.fromstring("1 2", sep=" ").tolist() == [1, 2]
assert yaml.load("{a: 1}") == {"a": 1} and yaml.load("[1]", Loader=yaml.SafeLoader) == [1]
assert isinstance([], collections.Iterable) and isinstance({}, collections.Mapping)
assert np.infty == np.inf and np.PINF == np.inf and np.NINF == -np.inf and np.bool8 is np.bool_
assert np.in1d([1, 2], [2]).tolist() == [False, True] and np.trapz([1, 1]) == 1 and np.msort([2, 1]).tolist() == [1, 2]
assert np.cumproduct([2, 3]).tolist() == [2, 6] and np.mat([[1]]).shape == (1, 1) and np.asfarray([1]).dtype == float
"""


def test_names_that_are_gone_from_python_numpy_and_yaml() -> None:
    Path("script.py").write_text(NAMES)
    done = python.run("-m", "transfer_caffe.caffe", "script.py", env=environment())
    assert done.returncode == 0, done.stderr
