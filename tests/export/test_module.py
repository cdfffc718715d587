"""Nets as PyTorch modules: the engine's outputs and gradients, fine-tuning, tracing, and the way back."""

import copy
import io
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance.graph_cases import GRAPH_CASES
from conformance.layer_cases import LAYER_CASES
from conformance.networks import NETWORKS
from conformance.suite import as_case
from support.exporting import of_case, write_network

import transfer_caffe as tc
from transfer_caffe.engine.net import Net
from transfer_caffe.export.inference import load
from transfer_caffe.export.module import MODULES
from transfer_caffe.formats.proto import parse_text, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.formats.weights import read_weights
from transfer_caffe.utils.errors import UserError

TOLERANCE = 1e-5
"""Accepted differences relative to a blob's largest value: both sides sum the same terms in another order, a few units
in the last place (1.2e-7) for each layer."""


def feeds_of(used, values=()):
    draw = np.random.RandomState(3)
    given = dict(values)
    return {
        name: np.asarray(given.get(f"blob/{name}", draw.standard_normal(shape)), np.float32)
        for name, shape in used.inputs.items()
    }


def require_equal(module, used, feeds):
    """Compare the module's outputs with the engine's."""
    used.compute(feeds)
    with torch.no_grad():
        found = module(*[torch.from_numpy(feeds[name]) for name in used.inputs])
    outputs = used.net.outputs
    found = found if isinstance(found, dict) else {outputs[0]: found}
    assert list(found) == outputs
    for name in outputs:
        wanted = used.net.array(name)
        assert tuple(found[name].shape) == wanted.shape
        np.testing.assert_allclose(
            found[name].detach().numpy(),
            wanted,
            rtol=0,
            atol=TOLERANCE * max(np.nanmax(np.abs(wanted), initial=0), 0.01),
        )


def require_way_back(module, used, path):
    wanted = used.net.weights
    tc.write_caffemodel(module, path)
    found = read_weights(path) if wanted else {}
    assert found.keys() == wanted.keys()
    for name, arrays in wanted.items():
        for one, two in zip(arrays, found[name], strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("kind", [kind for kind in LAYER_CASES if kind in MODULES])
def test_all_settings_of_a_layer_type(kind, tmp_path):
    for seed, case in enumerate(LAYER_CASES[kind]):
        if "nan" in case.kinds.values():  # PyTorch's pooling passes NaN on
            continue
        given = as_case(case, seed)
        used = of_case(given)
        write_binary(tmp_path / "given.caffemodel", used.net.to_proto())
        try:
            module = tc.as_module(used.param, tmp_path / "given.caffemodel")
        except UserError as error:
            # PyTorch has convolutions over 1 to 3 axes
            assert re.search("it has [04-9] spatial axes|one axis of channels", str(error)), error
            continue
        require_equal(module, used, feeds_of(used, given.values))
        require_equal(torch.fx.symbolic_trace(module), used, feeds_of(used, given.values))
        module.load_state_dict(module.state_dict(), strict=True)
        if case.phase == "TEST" or kind != "BatchNorm":
            require_way_back(module, used, tmp_path / "back.caffemodel")


def test_every_exported_layer_type_has_a_module():
    pytest.importorskip("onnx", reason="needs transfer_caffe[export]")
    from transfer_caffe.export.operators import OPERATORS

    assert set(MODULES) == set(OPERATORS)


@pytest.mark.parametrize("name", [name for name in GRAPH_CASES if name != "in place: AbsVal"])
def test_small_graphs(name, tmp_path):
    used = of_case(GRAPH_CASES[name])
    before = used.net.weights
    write_binary(tmp_path / "given.caffemodel", used.net.to_proto())
    module = tc.as_module(used.param, tmp_path / "given.caffemodel")
    require_equal(module, used, feeds_of(used, GRAPH_CASES[name].values))
    used.net.set_weights(before)  # a BatchNorm with phase TRAIN has changed its sums
    require_way_back(module, used, tmp_path / "back.caffemodel")


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network(name, tmp_path)
    used = load(net, weights)
    module = tc.as_module(net, weights)
    require_equal(module, used, feeds_of(used))
    require_way_back(module, used, tmp_path / "back.caffemodel")
    copied = copy.deepcopy(module)
    file = io.BytesIO()
    torch.save(copied, file)
    file.seek(0)
    require_way_back(torch.load(file, weights_only=False), used, tmp_path / "pickled.caffemodel")


@pytest.mark.parametrize("name", ["caffenet", "googlenet", "lenet"])
def test_gradients_are_the_engines(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network(name, tmp_path)
    engine = Net.load(net, weights)
    engine.forward(0, keep=True)
    engine.backward()
    module = tc.as_module(net, weights)
    [data] = module.graph.find_nodes(op="placeholder")
    found = module(torch.from_numpy(engine.array(str(data))))
    losses = {layer.name: layer for layer in engine.layers if layer.is_loss}
    total = torch.zeros(())
    values = found if isinstance(found, dict) else {"prob": found}
    for (_, layer), rates in zip(losses.items(), [w for w in engine.loss_weights if w], strict=True):
        scores, labels = layer.param.bottom
        target = torch.from_numpy(engine.array(labels)).long()
        # the scores of the last loss enter the Softmax
        logits = values[scores] if scores in values else values["prob"].clamp(min=1e-30).log()
        total = total + rates[0][1] * F.cross_entropy(logits, target.reshape(-1))
    total.backward()
    checked = 0
    for layer in engine.layers:
        for what, blob in zip(("weight", "bias"), layer.blobs, strict=False):
            mine = module.get_submodule(layer.name).get_parameter(what).grad
            if blob.data.grad is None:
                assert mine is None
                continue
            assert mine is not None
            # log(softmax) in float32 loses digits of small probabilities: 1e-4 of the largest gradient
            bound = 1e-4 * float(blob.data.grad.abs().max()) + 1e-7
            torch.testing.assert_close(mine, blob.data.grad, rtol=0, atol=bound)
            checked += 1
    assert checked > 4


def test_modules_are_pytorchs_own_under_the_layers_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network("caffenet", tmp_path)
    module = tc.as_module(net, weights)
    kinds = {name: type(each) for name, each in module.named_children()}
    assert kinds["conv1"] is torch.nn.Conv2d and kinds["pool1"] is torch.nn.MaxPool2d
    assert kinds["norm1"] is torch.nn.LocalResponseNorm and kinds["fc6"] is torch.nn.Linear
    assert kinds["relu6"] is torch.nn.ReLU and kinds["prob"] is torch.nn.Softmax
    assert not any(getattr(each, "ceil_mode", False) for each in module.modules())
    assert not module.training


def test_pooling_windows_outside_of_the_image():
    text = """
    layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 5 } } }
    layer { name: "p" type: "Pooling" bottom: "x" top: "y" top: "places"
      pooling_param { pool: MAX kernel_size: 1 stride: 3 } }
    """
    param = parse_text(text, NetParameter(), "net")
    used = load(param, None)
    require_equal(tc.as_module(param), used, feeds_of(used))
    assert (used.net.array("places") == -1).any() and used.net.array("y").min() < -1e38


def test_training_uses_dropout_and_batch_statistics():
    text = """
    layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 8 dim: 3 dim: 4 dim: 4 } } }
    layer { name: "norm" type: "BatchNorm" bottom: "x" top: "n" batch_norm_param { moving_average_fraction: 0.9 } }
    layer { name: "drop.1" type: "Dropout" bottom: "n" top: "d" }
    layer { name: "fixed" type: "BatchNorm" bottom: "d" top: "f" batch_norm_param { use_global_stats: true } }
    """
    module = tc.as_module(parse_text(text, NetParameter(), "net"))
    assert module.get_submodule("norm").momentum == pytest.approx(0.1)
    x = torch.randn(8, 3, 4, 4)
    module.train()
    module(x)
    assert module.get_submodule("norm").get_buffer("running_mean").all()
    assert not module.get_submodule("fixed").get_buffer("running_mean").any()
    assert (module.get_submodule("drop_1")(x) == 0).any()
    module.eval()
    assert torch.equal(module.get_submodule("drop_1")(x), x)


def test_frozen_layers_do_not_learn_and_a_new_classifier_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network("lenet", tmp_path)
    param = load(net, weights).param
    for layer in param.layer:
        if layer.name == "conv1":
            for spec in layer.param:
                spec.lr_mult = 0
    module = tc.as_module(param, weights)
    module.ip2 = torch.nn.Linear(module.get_parameter("ip2.weight").shape[1], 3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    update = torch.optim.SGD(learned, lr=0.1)
    module(torch.randn(4, 1, 28, 28))[:, 0].sum().backward()
    update.step()
    after = module.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert {"conv2.weight", "ip1.weight", "ip2.weight"} <= changed and "conv1.weight" not in changed
    tc.write_caffemodel(module, "tuned.caffemodel")
    tuned = read_weights(tmp_path / "tuned.caffemodel")
    assert tuned["ip2"][0].shape == tuple(module.get_parameter("ip2.weight").shape)
    np.testing.assert_array_equal(tuned["conv2"][1], after["conv2.bias"].numpy())


def test_another_module_is_refused():
    with pytest.raises(UserError, match="was not made by as_module"):
        tc.write_caffemodel(torch.nn.Linear(2, 2), "net.caffemodel")


@pytest.mark.parametrize("name", ["caffenet", "googlenet", "resnet"])
def test_torch_export_with_any_batch_size(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network(name, tmp_path)
    module = tc.as_module(net, weights)
    [shape] = load(net, weights).inputs.values()
    program = torch.export.export(
        module, (torch.randn(2, *shape[1:]),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    x = torch.randn(5, *shape[1:])
    with torch.no_grad():
        one, two = module(x), program.module()(x)
    pairs = [(one, two)] if isinstance(one, torch.Tensor) else [(one[key], two[key]) for key in one]
    for first, second in pairs:
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def test_features_by_torchvision(tmp_path, monkeypatch):
    try:
        from torchvision.models.feature_extraction import (  # pyright: ignore[reportMissingImports]
            create_feature_extractor,
        )
    except (ImportError, RuntimeError):
        pytest.skip("needs torchvision for the installed PyTorch")
    monkeypatch.chdir(tmp_path)
    net, weights = write_network("caffenet", tmp_path)
    used = load(net, weights)
    features = create_feature_extractor(tc.as_module(net, weights), {"relu7": "fc7", "pool5": "pool5"})
    feeds = feeds_of(used)
    used.compute(feeds)
    with torch.no_grad():
        found = features(torch.from_numpy(feeds["data"]))
    for name in ("fc7", "pool5"):
        np.testing.assert_allclose(
            found[name].numpy(), used.net.array(name), rtol=0, atol=TOLERANCE * np.abs(used.net.array(name)).max()
        )
