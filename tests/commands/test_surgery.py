"""Weight surgery: the layers are copied exactly, and invalid input is rejected."""

from pathlib import Path

import numpy as np
import pytest

from transfer_caffe import surgery
from transfer_caffe.experiment.architecture import weight_shapes
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.formats.proto import array_to_blob, read_binary, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, PoolingParameter
from transfer_caffe.generate import compose
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.real_caffe.surgery import blobs_by_pycaffe
from transfer_caffe.surgery import Row, take_over
from transfer_caffe.utils.errors import UserError

LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> Path:
    for half in ("A", "B"):
        where = tmp_path / "data" / "photos" / "random0" / half
        where.mkdir(parents=True)
        (where / "train.txt").write_text("a 0\nb 3\n")
        (where / "val.txt").write_text("a 0\n")
    return tmp_path / "data"


def net_of(data: Path, treatment: str) -> NetParameter:
    return compose(load_recipe("demo").network("random0", treatment), data, data.parent / "run").net


@pytest.fixture(name="base")
def _base(data: Path) -> Path:
    """Write the weights of a trained baseA, with values that a conversion to another type would not preserve."""
    random = np.random.default_rng(0)
    base = NetParameter(name="random0-baseA-s0")
    base.layer.add(name="data", type="Data")
    for name, shapes in weight_shapes(net_of(data, "baseA")).items():
        layer = base.layer.add(name=name, type="Convolution" if "conv" in name else "InnerProduct")
        for shape in shapes:
            values = random.standard_normal(shape, dtype=np.float32)
            values.flat[:3] = (1e-42, -0.0, 0.1)[: values.size]
            layer.blobs.append(array_to_blob(values))
        base.layer.add(name=f"relu of {name}", type="ReLU")
    path = data.parent / "base.caffemodel"
    write_binary(path, base)
    return path


def change(path: Path, edit: str, layer: str = "conv2", blob: int = 1) -> None:
    """Damage one blob of a .caffemodel."""
    net = read_binary(path, NetParameter())
    target = next(each for each in net.layer if each.name == layer)
    if edit == "drop layer":
        net.layer.remove(target)
    elif edit == "drop blob":
        del target.blobs[blob]
    elif edit == "reshape":
        target.blobs[blob].shape.dim[0] += 1
    elif edit == "drop value":
        del target.blobs[blob].data[-1]
    elif edit == "nan":
        target.blobs[blob].data[0] = float("nan")
    write_binary(path, net)


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("plus", ["", "+"])
def test_the_file_holds_exactly_the_first_n_layers_with_the_bases_bytes(
    data: Path, base: Path, n: int, plus: str
) -> None:
    out = data.parent / "init.caffemodel"
    take_over(base, net_of(data, f"A{n}B{plus}"), Treatment.parse(f"A{n}B{plus}"), out)
    taken = read_binary(out, NetParameter()).layer
    there = {layer.name: layer for layer in read_binary(base, NetParameter()).layer}
    assert [layer.name for layer in taken] == LAYERS[:n]
    for layer in taken:
        assert [blob.SerializeToString() for blob in layer.blobs] == [
            blob.SerializeToString() for blob in there[layer.name].blobs
        ]
        assert len(layer.blobs) == 2


def test_the_table_says_of_each_layer_whether_it_is_copied_and_learns_and_its_shapes(data: Path, base: Path) -> None:
    shapes = weight_shapes(net_of(data, "A3B"))
    out = data.parent / "init.caffemodel"
    rows = take_over(base, net_of(data, "A3B"), Treatment.parse("A3B"), out)
    assert rows[2] == Row("conv3", "copied", False, shapes["conv3"])
    assert rows[3] == Row("conv4", "fresh", True, shapes["conv4"])
    assert [row.layer for row in rows] == LAYERS
    rows = take_over(base, net_of(data, "A3B+"), Treatment.parse("A3B+"), out)
    assert [(row.start, row.learns) for row in rows] == [("copied", True)] * 3 + [("fresh", True)] * 5


def test_the_shapes_of_caffenets_weights_are_those_of_real_caffe() -> None:
    net = compose(load_recipe("paper").network("random0", "A3B"), "data", "run").net
    assert weight_shapes(net) == {
        "conv1": ((96, 3, 11, 11), (96,)),
        "conv2": ((256, 48, 5, 5), (256,)),
        "conv3": ((384, 256, 3, 3), (384,)),
        "conv4": ((384, 192, 3, 3), (384,)),
        "conv5": ((256, 192, 3, 3), (256,)),
        "fc6": ((4096, 9216), (4096,)),
        "fc7": ((4096, 4096), (4096,)),
        "fc8": ((1000, 4096), (1000,)),
    }


def test_pooling_rounds_up_as_in_caffe() -> None:
    net = compose(load_recipe("paper").network("random0", "A3B"), "data", "run").net
    net.layer[0].transform_param.crop_size = 224  # conv1 54, pool1 27 (26.5), pool2 13, pool5 6; rounded down: 5
    assert weight_shapes(net)["fc6"] == ((4096, 9216), (4096,))
    for layer in net.layer:
        if layer.type == "Pooling":
            layer.pooling_param.round_mode = PoolingParameter.FLOOR
    assert weight_shapes(net)["fc6"] == ((4096, 6400), (4096,))


def test_a_last_layer_with_other_outputs_does_not_matter(data: Path, base: Path) -> None:
    change(base, "reshape", "fc8", 0)
    take_over(base, net_of(data, "A7B"), Treatment.parse("A7B"), data.parent / "init.caffemodel")


def test_blobs_with_four_dimensions_as_before_2015_fit_and_are_written_in_todays_form(data: Path, base: Path) -> None:
    out = data.parent / "init.caffemodel"
    take_over(base, net_of(data, "A6B"), Treatment.parse("A6B"), out)
    today = out.read_bytes()
    net = read_binary(base, NetParameter())
    for layer in net.layer:
        for blob in layer.blobs:
            dims = [1] * (4 - len(blob.shape.dim)) + list(blob.shape.dim)
            blob.num, blob.channels, blob.height, blob.width = dims
            blob.ClearField("shape")
    write_binary(base, net)
    take_over(base, net_of(data, "A6B"), Treatment.parse("A6B"), out)
    assert out.read_bytes() == today
    net.layer[1].blobs[0].width += 1
    write_binary(base, net)
    with pytest.raises(UserError, match="layer conv1, blob 0: shape mismatch: its shape is"):
        take_over(base, net_of(data, "A6B"), Treatment.parse("A6B"), out)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("drop layer", "layer conv2 is missing: .* it has weights for conv1, conv3, conv4"),
        ("drop blob", "layer conv2: it has 1 blobs, 2 are needed"),
        ("reshape", "layer conv2, blob 1: shape mismatch: its shape is [0-9]+, the network needs [0-9]+$"),
        ("drop value", "layer conv2, blob 1: it has [0-9]+ values, which does not match shape [0-9]+"),
        ("nan", "layer conv2, blob 1: not all of its values are finite"),
    ],
)
def test_what_does_not_fit_is_refused_by_file_network_layer_and_blob(
    data: Path, base: Path, edit: str, message: str
) -> None:
    change(base, edit)
    out = data.parent / "init.caffemodel"
    with pytest.raises(UserError, match=message) as caught:
        take_over(base, net_of(data, "A3B"), Treatment.parse("A3B"), out)
    assert str(caught.value).startswith(f"{base} (the base of random0-A3B-s0)")
    assert not out.exists()


def test_a_layer_missing_above_n_is_refused_as_well_for_the_file_was_cut_off(data: Path, base: Path) -> None:
    change(base, "drop layer", "fc8")
    with pytest.raises(UserError, match="layer fc8 is missing: the file is truncated"):
        take_over(base, net_of(data, "A3B"), Treatment.parse("A3B"), data.parent / "init.caffemodel")


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.5, 0.999])
def test_an_empty_or_truncated_base_is_refused_by_name(data: Path, base: Path, keep: float) -> None:
    whole = base.read_bytes()
    base.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UserError, match=r"base\.caffemodel.*(empty|truncated|missing)"):
        take_over(base, net_of(data, "A3B"), Treatment.parse("A3B"), data.parent / "init.caffemodel")


def test_a_base_of_caffe_before_2015_gives_the_same_weights(data: Path, base: Path) -> None:
    net, treatment, out = net_of(data, "A3B"), Treatment.parse("A3B"), data.parent / "init.caffemodel"
    rows = take_over(base, net, treatment, out)
    today = out.read_bytes()
    old = NetParameter()
    for layer in read_binary(base, NetParameter()).layer:
        kind = {"Data": "DATA", "Convolution": "CONVOLUTION", "InnerProduct": "INNER_PRODUCT", "ReLU": "RELU"}[
            layer.type
        ]
        old.layers.add(name=layer.name, type=kind, blobs=layer.blobs)
    write_binary(base, old)
    assert take_over(base, net, treatment, out) == rows
    assert out.read_bytes() == today


def test_a_net_that_was_made_for_another_treatment_is_refused(data: Path, base: Path) -> None:
    out = data.parent / "init.caffemodel"
    with pytest.raises(UserError, match="layer conv4: the net freezes it, but A3B freezes 3 layers"):
        take_over(base, net_of(data, "A5B"), Treatment.parse("A3B"), out)
    with pytest.raises(UserError, match="layer conv1: the net lets it learn, but A3B freezes 3"):
        take_over(base, net_of(data, "A3B+"), Treatment.parse("A3B"), out)


@pytest.mark.parametrize("name", ["baseA", "R3"])
def test_a_treatment_that_copies_no_layers_is_an_error(data: Path, base: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"treatment {name} copies no layers, so it needs no initial weights"):
        take_over(base, net_of(data, "baseA"), Treatment.parse(name), data.parent / "init.caffemodel")


def test_a_layer_type_whose_shape_is_not_known_is_refused(data: Path, base: Path) -> None:
    net = net_of(data, "A3B")
    next(layer for layer in net.layer if layer.name == "pool1").type = "Crop"
    with pytest.raises(UserError, match=r"layer 'pool1' \(Crop\): takes 2 bottom blobs, not 1"):
        take_over(base, net, Treatment.parse("A3B"), data.parent / "init.caffemodel")


def test_the_command_prints_the_table_and_overwrites_only_when_forced(
    data: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, out = data.parent / "train_val.prototxt", data.parent / "init.caffemodel"
    net.write_text(str(net_of(data, "A3B")))
    arguments = ["--treatment", "A3B", "--base", str(base), "--net", str(net), "--out", str(out)]
    assert surgery.main(arguments) == 0
    lines = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert lines[1:9] == [[name, "copied", "frozen"] for name in LAYERS[:3]] + [
        [name, "fresh", "learns"] for name in LAYERS[3:]
    ]
    first = out.read_bytes()
    out.write_bytes(b"mine")
    assert surgery.main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert surgery.main([*arguments, "--force"]) == 0
    assert out.read_bytes() == first


def test_a_missing_base_gives_one_line_that_names_it_and_exit_code_2(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = data.parent / "train_val.prototxt"
    net.write_text(str(net_of(data, "A3B")))
    arguments = ["--treatment", "A3B", "--base", "no.caffemodel", "--net", str(net), "--out", "x"]
    assert surgery.main(arguments) == 2
    error = capsys.readouterr().err
    assert "no.caffemodel: no such file" in error
    assert error.count("\n") == 1


needs_pycaffe = pytest.mark.skipif(
    real_caffe.program() is None or real_caffe.pycaffe() is None,
    reason="there is no real Caffe with pycaffe (environment variable CAFFE, PATH, or `make caffe`)",
)


@pytest.fixture(params=[pytest.param("real Caffe's", marks=needs_pycaffe), "the engine's"])
def pycaffe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which pycaffe copies the weights."""
    if request.param == "the engine's":
        monkeypatch.setattr(real_caffe, "pycaffe", lambda: None)
    return request.param


@pytest.mark.parametrize("form", ["today's", "four dimensions", "layers of 2014", "double_data"])
def test_with_pycaffe_the_file_is_the_same_to_the_byte(
    data: Path, base: Path, form: str, pycaffe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    net = read_binary(base, NetParameter())
    for layer in net.layer:
        for blob in layer.blobs:
            if form in ("four dimensions", "layers of 2014"):
                dims = [1] * (4 - len(blob.shape.dim)) + list(blob.shape.dim)
                blob.num, blob.channels, blob.height, blob.width = dims
                blob.ClearField("shape")
            if form == "double_data":
                blob.double_data.extend(np.asarray(blob.data, np.float64) * (1 + 2**-40))
                blob.ClearField("data")
    if form == "layers of 2014":
        for layer in net.layer:
            kind = {"Convolution": "CONVOLUTION", "InnerProduct": "INNER_PRODUCT"}.get(layer.type)
            if kind:
                net.layers.add(name=layer.name, type=kind, blobs=layer.blobs)
        del net.layer[:]
    write_binary(base, net)
    prototxt = data.parent / "train_val.prototxt"
    prototxt.write_text(str(net_of(data, "A5B+")))
    arguments = ["--treatment", "A5B+", "--base", str(base), "--net", str(prototxt)]
    assert surgery.main([*arguments, "--out", str(data.parent / "ours")]) == 0
    assert surgery.main([*arguments, "--out", str(data.parent / "theirs"), "--with", "pycaffe"]) == 0
    assert (data.parent / "ours").read_bytes() == (data.parent / "theirs").read_bytes()
    taken = read_binary(data.parent / "theirs", NetParameter()).layer
    assert [layer.name for layer in taken] == LAYERS[:5]


def test_what_pycaffe_refuses_or_passes_over_is_said_in_a_line(data: Path, base: Path, pycaffe: str) -> None:
    net = net_of(data, "A3B")
    ours = ".*base.caffemodel: layer 'fc6', blob 0: cannot copy: "
    start = ours if pycaffe == "the engine's" else "Cannot copy param 0 "
    with pytest.raises(UserError, match=rf"pycaffe cannot load it: {start}.*shape mismatch") as caught:
        blobs_by_pycaffe(base, net, (3, 64, 64), ["conv1", "fc6"])
    assert "\n" not in str(caught.value)
    change(base, "drop layer")
    with pytest.raises(UserError, match="pycaffe cannot load it: layer conv2 was not copied"):
        blobs_by_pycaffe(base, net, (3, 28, 28), ["conv1", "conv2"])
