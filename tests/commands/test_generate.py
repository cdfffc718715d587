"""The generated networks and solvers, compared as parsed messages."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from transfer_caffe import generate
from transfer_caffe.experiment.read import RECIPES, load_recipe
from transfer_caffe.experiment.recipe import Recipe
from transfer_caffe.formats.proto import caffe_pb2, read_text, to_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, SolverParameter
from transfer_caffe.generate import compose, quoted, render
from transfer_caffe.utils.errors import UserError

WITH_WEIGHTS = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
LEARNED, FROZEN = [(1.0, 1.0), (2.0, 0.0)], [(0.0, 0.0), (0.0, 0.0)]

# name, bottom, outputs, kernel, stride, pad, group, std, bias
CONVOLUTIONS = [
    ("conv1", "data", 96, 11, 4, 0, 1, 0.01, 0),
    ("conv2", "norm1", 256, 5, 1, 2, 2, 0.01, 1),
    ("conv3", "norm2", 384, 3, 1, 1, 1, 0.01, 0),
    ("conv4", "conv3", 384, 3, 1, 1, 2, 0.01, 1),
    ("conv5", "conv4", 256, 3, 1, 1, 2, 0.01, 1),
]
# name, bottom, outputs, std, bias
FULLY_CONNECTED = [
    ("fc6", "pool5", 4096, 0.005, 1),
    ("fc7", "fc6", 4096, 0.005, 1),
    ("fc8", "fc7", 1000, 0.01, 0),
]
ORDER = """
    data data conv1 relu1 pool1 norm1 conv2 relu2 pool2 norm2 conv3 relu3 conv4 relu4 conv5 relu5 pool5
    fc6 relu6 drop6 fc7 relu7 drop7 fc8 accuracy loss
""".split()  # noqa: SIM905


def net_of(treatment: str, split: str = "random0", recipe: str = "paper") -> NetParameter:
    return compose(load_recipe(recipe).network(split, treatment), "data", "runs/paper/some network").net


def by_name(net: NetParameter) -> dict[str, caffe_pb2.LayerParameter]:
    return {layer.name: layer for layer in net.layer if layer.name != "data"}


def rates(net: NetParameter) -> list[list[tuple[float, float]]]:
    layers = by_name(net)
    return [[(param.lr_mult, param.decay_mult) for param in layers[name].param] for name in WITH_WEIGHTS]


def demo_data(folder: Path, halves: dict[str, tuple[int, int]]) -> Path:
    """Write image lists with the given numbers of classes and test images."""
    for half, (classes, images) in halves.items():
        where = folder / "data" / "photos" / half
        where.mkdir(parents=True)
        (where / "train.txt").write_text("".join(f"a picture/{i}.png {i}\n" for i in range(classes)))
        (where / "val.txt").write_text("".join(f"{i}.png {i % classes}\n" for i in range(images)))
    return folder / "data"


def test_caffenet_has_the_papers_layers_in_the_papers_order() -> None:
    assert [layer.name for layer in net_of("A3B").layer] == ORDER


@pytest.mark.parametrize("fact", CONVOLUTIONS, ids=[fact[0] for fact in CONVOLUTIONS])
def test_a_convolution_of_caffenet_is_the_papers(fact: tuple[Any, ...]) -> None:
    name, bottom, outputs, kernel, stride, pad, group, std, bias = fact
    layer = by_name(net_of("A3B"))[name]
    wanted = text_format.Parse(
        f"""name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}"
        convolution_param {{ num_output: {outputs} kernel_size: {kernel} group: {group}
          {f"stride: {stride}" if stride > 1 else ""} {f"pad: {pad}" if pad else ""}
          weight_filler {{ type: "gaussian" std: {std} }} bias_filler {{ type: "constant" value: {bias} }} }}""",
        caffe_pb2.LayerParameter(),
    )
    del layer.param[:]
    layer.convolution_param.group = layer.convolution_param.group  # the default, 1, may be omitted
    assert layer == wanted


@pytest.mark.parametrize("fact", FULLY_CONNECTED, ids=[fact[0] for fact in FULLY_CONNECTED])
def test_a_fully_connected_layer_of_caffenet_is_the_papers(fact: tuple[Any, ...]) -> None:
    name, bottom, outputs, std, bias = fact
    layer = by_name(net_of("A3B"))[name]
    wanted = text_format.Parse(
        f"""name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}"
        inner_product_param {{ num_output: {outputs}
          weight_filler {{ type: "gaussian" std: {std} }} bias_filler {{ type: "constant" value: {bias} }} }}""",
        caffe_pb2.LayerParameter(),
    )
    del layer.param[:]
    assert layer == wanted


def test_the_layers_of_caffenet_without_weights_are_the_papers() -> None:
    layers = by_name(net_of("A3B"))
    wanted = NetParameter()
    for i, blob in enumerate(WITH_WEIGHTS[:7], start=1):
        wanted.layer.add(name=f"relu{i}", type="ReLU", bottom=[blob], top=[blob])
    for i in (1, 2, 5):
        pool = wanted.layer.add(name=f"pool{i}", type="Pooling", bottom=[f"conv{i}"], top=[f"pool{i}"])
        text_format.Parse("pool: MAX kernel_size: 3 stride: 2", pool.pooling_param)
    for i in (1, 2):
        norm = wanted.layer.add(name=f"norm{i}", type="LRN", bottom=[f"pool{i}"], top=[f"norm{i}"])
        text_format.Parse("local_size: 5 alpha: 1e-4 beta: 0.75", norm.lrn_param)
    for i in (6, 7):
        drop = wanted.layer.add(name=f"drop{i}", type="Dropout", bottom=[f"fc{i}"], top=[f"fc{i}"])
        drop.dropout_param.dropout_ratio = 0.5
    wanted.layer.add(name="loss", type="SoftmaxWithLoss", bottom=["fc8", "label"], top=["loss"])
    accuracy = wanted.layer.add(name="accuracy", type="Accuracy", bottom=["fc8", "label"], top=["accuracy"])
    accuracy.include.add(phase=caffe_pb2.TEST)
    for layer in wanted.layer:
        assert layers.pop(layer.name) == layer
    assert sorted(layers) == sorted(WITH_WEIGHTS)


def test_training_data_are_random_crops_and_flips_and_test_data_centre_crops_of_the_target_half() -> None:
    train, test = (layer for layer in net_of("A3B").layer if layer.name == "data")
    common = 'name: "data" type: "Data" top: "data" top: "label" '
    root = "../../../data/ilsvrc2012/random0"
    assert train == text_format.Parse(
        common
        + f"""include {{ phase: TRAIN }}
        transform_param {{ mirror: true crop_size: 227 mean_file: "{root}/A/mean.binaryproto" }}
        data_param {{ source: "{root}/B/train_lmdb" batch_size: 256 backend: LMDB }}""",
        caffe_pb2.LayerParameter(),
    )
    assert test == text_format.Parse(
        common
        + f"""include {{ phase: TEST }}
        transform_param {{ mirror: false crop_size: 227 mean_file: "{root}/A/mean.binaryproto" }}
        data_param {{ source: "{root}/B/val_lmdb" batch_size: 50 backend: LMDB }}""",
        caffe_pb2.LayerParameter(),
    )


@pytest.mark.parametrize("recipe", ["paper", "demo"])
@pytest.mark.parametrize("n", range(1, 8))
def test_exactly_the_first_n_layers_are_frozen_and_none_if_fine_tuned(tmp_path: Path, recipe: str, n: int) -> None:
    data = demo_data(tmp_path, {"random0/B": (3, 7), "whole": (6, 9)})

    def rates_of(treatment: str, split: str) -> list[list[tuple[float, float]]]:
        return rates(compose(load_recipe(recipe).network(split, treatment), data, "run").net)

    frozen = [FROZEN] * n + [LEARNED] * (8 - n)
    assert rates_of(f"A{n}B", "random0") == frozen
    assert rates_of(f"B{n}B", "random0") == frozen
    assert rates_of(f"R{n}", "whole") == frozen
    assert rates_of(f"A{n}B+", "random0") == [LEARNED] * 8


def test_a_base_learns_everywhere() -> None:
    assert rates(net_of("baseA")) == [LEARNED] * 8


def test_the_same_half_has_the_same_net_whatever_its_treatment_but_for_rates_and_mean() -> None:
    nets = [net_of("baseB"), net_of("A5B"), net_of("B2B+")]
    for net in nets:
        net.name = ""
        for layer in net.layer:
            del layer.param[:]
            layer.transform_param.ClearField("mean_file")
    assert nets[0] == nets[1] == nets[2]


def test_the_small_network_has_caffenets_layers_and_wiring(tmp_path: Path) -> None:
    data = demo_data(tmp_path, {"random0/A": (3, 7)})
    small, large = compose(load_recipe("demo").network("random0", "baseA"), data, "run").net, net_of("baseA")

    def wiring(net: NetParameter) -> list[tuple[Any, ...]]:
        return [(layer.name, layer.type, list(layer.bottom), list(layer.top)) for layer in net.layer]

    assert wiring(small) == wiring(large)


def test_the_papers_solver_has_the_released_settings() -> None:
    network = load_recipe("paper").network("random0", "A3B")
    solver = compose(network, "data", "run").solver
    assert solver == text_format.Parse(
        f"""net: "train_val.prototxt" test_iter: 1000 test_interval: 1000 base_lr: 0.01 lr_policy: "step" gamma: 0.1
        stepsize: 100000 max_iter: 450000 momentum: 0.9 weight_decay: 0.0005 display: 20 snapshot: 10000
        snapshot_prefix: "snapshots/net" solver_mode: GPU random_seed: {network.random_seed}""",
        SolverParameter(),
    )


def test_outputs_and_test_batches_follow_from_the_image_lists_where_the_recipe_says_so(tmp_path: Path) -> None:
    data = demo_data(tmp_path, {"random0/B": (3, 510), "natman/A": (5, 500)})
    recipe = load_recipe("demo")
    prototxts = compose(recipe.network("random0", "A3B"), data, "run")
    assert by_name(prototxts.net)["fc8"].inner_product_param.num_output == 3
    assert prototxts.solver.test_iter == [3]  # of 170: batches of 250 would test 240 images twice
    assert prototxts.solver.solver_mode == SolverParameter.CPU
    other = compose(recipe.network("natman", "baseA"), data, "run")
    assert by_name(other.net)["fc8"].inner_product_param.num_output == 5
    assert other.solver.test_iter == [2]


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no such image list"), ("a.png\n", "line 1: .* is not `relative/path label`"), ("", "is empty")],
)
def test_an_image_list_that_cannot_be_counted_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    data = demo_data(tmp_path, {"random0/A": (3, 7)})
    path = data / "photos" / "random0" / "A" / "val.txt"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        compose(load_recipe("demo").network("random0", "baseA"), data, "run")
    assert str(path) in str(caught.value)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_string_survives_quoting(text: str) -> None:
    assert text_format.Parse(f"name: {quoted(text)}", NetParameter()).name == text
    assert "\n" not in quoted(text)


def test_a_data_folder_with_an_awkward_name_is_found_from_the_networks_folder(tmp_path: Path) -> None:
    data = tmp_path / 'my "data" \\ über' / "x"
    folder = tmp_path / "runs" / "net"
    render(load_recipe("paper").network("random1", "baseA"), data, folder)
    net = read_text(folder / "train_val.prototxt", NetParameter())
    source = net.layer[0].data_param.source
    assert (folder / source).resolve() == (data / "ilsvrc2012" / "random1" / "A" / "train_lmdb").resolve()
    assert not Path(source).is_absolute()


def test_paths_are_right_from_inside_a_folder_that_lies_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep" / "runs").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "runs").symlink_to(tmp_path / "disk" / "deep" / "runs")
    folder, data = tmp_path / "here" / "runs" / "net", tmp_path / "here" / "data"
    data.mkdir()
    source = render(load_recipe("paper").network("random1", "baseA"), data, folder).net.layer[0].data_param.source
    assert (folder.resolve() / source).resolve() == (data / "ilsvrc2012" / "random1" / "A" / "train_lmdb").resolve()


def test_what_is_written_is_what_is_returned_and_caffe_finds_its_snapshot_folder(tmp_path: Path) -> None:
    prototxts = render(load_recipe("paper").network("random0", "A3B+"), tmp_path / "data", tmp_path / "net")
    assert read_text(tmp_path / "net" / "train_val.prototxt", NetParameter()) == prototxts.net
    assert read_text(tmp_path / "net" / "solver.prototxt", SolverParameter()) == prototxts.solver
    assert (tmp_path / "net" / "snapshots").is_dir()


def test_files_that_mean_the_same_stay_and_others_are_refused_with_the_difference(tmp_path: Path) -> None:
    network, folder = load_recipe("paper").network("random0", "A3B"), tmp_path / "net"
    path = folder / "solver.prototxt"
    render(network, tmp_path, folder)
    original = path.read_text()
    path.write_text("# my comment\n" + original)
    render(network, tmp_path, folder)
    assert path.read_text().startswith("# my comment")
    path.write_text(original.replace("gamma: 0.1", "gamma: 0.5"))
    with pytest.raises(
        UserError, match=r"solver\.prototxt exists and differs .*gamma is 0.5 in the folder and 0.1 in the recipe"
    ):
        render(network, tmp_path, folder)
    assert "gamma: 0.5" in path.read_text()
    render(network, tmp_path, folder, force=True)
    assert path.read_text() == original


def architecture_of(monkeypatch: pytest.MonkeyPatch, folder: Path, net: str) -> Recipe:
    monkeypatch.setattr("transfer_caffe.experiment.read.TEMPLATES", folder)
    monkeypatch.setattr(generate, "TEMPLATES", folder)
    (folder / "mine").mkdir()
    (folder / "mine" / "train_val.prototxt.j2").write_text(net)
    (folder / "mine" / "solver.prototxt.j2").write_text("max_iter: 1\n")
    settings = yaml.safe_load((RECIPES / "paper.yaml").read_text(encoding="utf-8")) | {
        "architecture": "mine",
        "name": "mine",
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(settings))
    return load_recipe(path)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ('name: "{{ no_such_variable }}"', r"template mine/train_val.prototxt.j2: 'no_such_variable' is undef"),
        ("name: {% if %}", "template mine/train_val.prototxt.j2"),
        ("nmae: 'x'", "train_val.prototxt of mine for random0-A3B-s0: not a valid NetParameter prototxt: line 1"),
        ('layer { name: "c" type: "Convolution" }', "layer c: the net lets it learn, but A3B freezes 3 layers"),
    ],
)
def test_a_template_that_does_not_give_the_network_is_an_error_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, net: str, message: str
) -> None:
    recipe = architecture_of(monkeypatch, tmp_path, net)
    with pytest.raises(UserError, match=message):
        render(recipe.network("random0", "A3B"), "data", tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_the_command_writes_the_papers_network_and_says_what_comes_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert generate.main(["--treatment", "A3B+"]) == 0
    folder = "runs/paper/random0-A3B+-s0"
    assert to_text(read_text(f"{folder}/train_val.prototxt", NetParameter())) == to_text(net_of("A3B+"))
    out = capsys.readouterr().out
    assert "layers 1-3 copied from baseA, the others re-initialised; all layers trained on half B" in out
    assert "--base runs/paper/random0-baseA-s0/snapshots/net_iter_450000.caffemodel" in out
    assert f"cd {folder} && caffe train --solver solver.prototxt --weights init.caffemodel" in out
    assert generate.main(["--treatment", "R2"]) == 0
    assert "runs/paper/whole-R2-s0 && caffe train --solver solver.prototxt\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--treatment", "A9B"], "n is 1 to 7"),
        (["--treatment", "R3+"], "no `+`"),
        (["--treatment", "C3B"], "no source C"),
        (["--treatment", "A3B", "--split", "whole"], "the split whole only supports base and R1 to R7"),
        (["--treatment", "A3B", "--split", "halves"], "there is no split 'halves'"),
        (["--treatment", "A3B", "--seed", "-1"], "the seed must be 0 or more"),
        (["--treatment", "A3B", "--recipe", "no.yaml"], "recipe no.yaml: no such file, and not one of the built-in"),
        (["--treatment", "A3B", "--recipe", "demo"], "val.txt: no such image list"),
    ],
)
def test_bad_arguments_give_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert generate.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_test_of_all_images_takes_batches_that_count_each_image_once(tmp_path: Path) -> None:
    here = tmp_path / "data/photos/whole"
    here.mkdir(parents=True)
    for part in ("train", "val"):
        (here / f"{part}.txt").write_text("".join(f"{i}.png {i % 3}\n" for i in range(42)))
    prototxts = compose(load_recipe("demo").network("whole", "base"), tmp_path / "data", tmp_path / "net")
    data = next(
        layer for layer in prototxts.net.layer if layer.type == "Data" and layer.include[0].phase == caffe_pb2.TEST
    )
    assert (data.data_param.batch_size, list(prototxts.solver.test_iter)) == (42, [1])  # the recipe says 250
    (here / "val.txt").write_text("".join(f"{i}.png {i % 3}\n" for i in range(510)))
    prototxts = compose(load_recipe("demo").network("whole", "base"), tmp_path / "data", tmp_path / "net")
    assert list(prototxts.solver.test_iter) == [3]  # of 170


def test_data_behind_a_link_keeps_the_paths_it_had(tmp_path: Path) -> None:
    network = load_recipe("paper").network("random0", "A3B")
    before = compose(network, tmp_path / "data", tmp_path / "runs/net").net_text
    (tmp_path / "disk/data").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "disk/data")
    assert compose(network, tmp_path / "data", tmp_path / "runs/net").net_text == before


def test_a_network_behind_a_link_finds_its_data_from_where_it_really_is(tmp_path: Path) -> None:
    (tmp_path / "far/away/runs").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "far/away/runs")
    network = load_recipe("paper").network("random0", "A3B")
    net = compose(network, tmp_path / "data", tmp_path / "runs/net").net
    assert net.layer[0].data_param.source == "../../../../data/ilsvrc2012/random0/B/train_lmdb"
