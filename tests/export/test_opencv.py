"""OpenCV's dnn module loads the ONNX files and computes the engine's outputs."""

import cv2
import numpy as np
import pytest
from conformance.layer_cases import LAYER_CASES
from conformance.networks import NETWORKS
from conformance.random_layers import random_cases
from conformance.suite import as_case
from support.exporting import of_case, write_network

from transfer_caffe.export.inference import load
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.utils.errors import UserError

pytest.importorskip("onnx", reason="needs transfer_caffe[export]")

from transfer_caffe.export.onnx_file import build
from transfer_caffe.export.operators import OPERATORS

pytestmark = pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="needs OpenCV 5's importer of ONNX")

TOLERANCE = 1e-5
"""Relative to a blob's largest value: sums in another order, a few units in the last place (1.2e-7) a layer."""


def require_outputs(used, values=(), batch=None):
    model = build(used)
    at_size = used if batch is None else used.with_batch(batch)
    assert at_size is not None
    draw, given = np.random.RandomState(2), dict(values)
    feeds = {
        name: np.asarray(given.get(f"blob/{name}", draw.standard_normal(shape)), np.float32)
        for name, shape in at_size.inputs.items()
    }
    at_size.compute(feeds)
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model.proto.SerializeToString(), np.uint8))
    for name, array in feeds.items():
        net.setInput(array, name)
    outputs = at_size.net.outputs
    for name, found in zip(outputs, net.forward([model.blobs[name] for name in outputs]), strict=True):
        wanted = at_size.net.array(name)
        # OpenCV gives a blob without axes one
        assert found.shape == (wanted.shape or (1,)), name
        largest = np.nanmax(np.abs(wanted), initial=0.01)
        np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=0, atol=TOLERANCE * largest, err_msg=name)


@pytest.mark.parametrize("kind", [kind for kind in LAYER_CASES if kind in OPERATORS and kind != "Parameter"])
def test_all_settings_of_a_layer_type(kind):
    for seed, case in enumerate(LAYER_CASES[kind]):
        if "nan" in case.kinds.values() or (kind.endswith(("onvolution", "Im2col")) and len(case.shapes[0]) > 5):
            continue
        given = as_case(case, seed)
        require_outputs(of_case(given), given.values)


@pytest.mark.parametrize("more", ["", "stride: 2", "group: 2", "axis: 2"])
def test_padding_around_a_kernel_of_one(more):
    """The last convolution of a SqueezeNet 1.0; OpenCV reads outside of the image if it has to pad here."""
    settings = f"num_output: 4 kernel_size: 1 pad: 1 weight_filler {{ type: 'xavier' }} {more}"
    param = parse_text(
        'input: "x" input_shape { dim: 2 dim: 6 dim: 4 dim: 5 }'
        f'layer {{ name: "l" type: "Convolution" bottom: "x" top: "y" convolution_param {{ {settings} }} }}',
        NetParameter(), "net",
    )  # fmt: skip
    require_outputs(load(param, None))


@pytest.mark.parametrize("seed", range(10, 12))
def test_random_settings(seed):
    done = 0
    for case in random_cases(seed, 100):
        given = as_case(case, seed)
        try:
            used = of_case(given)
        except UserError:
            continue
        require_outputs(used, given.values)
        done += 1
    assert done > 50


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, batch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_outputs(load(*write_network(name, tmp_path)), batch=batch)
