"""Tests of the upgrade of old nets and solvers, against recorded output of real Caffe, and against it if installed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.old_nets import KINDS, kind_of, upgraded_by_real_caffe, v0_net, v1_net

from transfer_caffe.formats.proto import parse_text, read_binary, read_text, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, SolverParameter, V0LayerParameter, V1LayerParameter
from transfer_caffe.formats.upgrade import V0_FIELDS, V0_SAME, V0_TYPES, V1_TYPES, upgrade_net, upgrade_solver
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.tools import upgrade_proto
from transfer_caffe.utils.errors import UserError

GOLDEN = Path(__file__).parent.parent / "golden" / "upgrade"
OLD = sorted(path for path in GOLDEN.glob("*.prototxt") if not path.name.endswith(".upgraded.prototxt"))

needs_caffe = pytest.mark.skipif(
    real_caffe.program("upgrade_net_proto_text") is None,
    reason="no real Caffe here (environment variable CAFFE, the PATH, or `make caffe`)",
)


def net(text: str) -> NetParameter:
    return parse_text(text, NetParameter(), "test")


def upgrade(text: str, said: list[str] | None = None) -> NetParameter:
    return upgrade_net(net(text), "old.prototxt", [].append if said is None else said.append)


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_an_old_file_becomes_what_real_caffe_made_of_it(path: Path) -> None:
    upgraded = path.with_suffix(".upgraded.prototxt")
    if kind_of(path) == "solver_text":
        solver = upgrade_solver(read_text(path, SolverParameter()), str(path))
        assert solver == read_text(upgraded, SolverParameter())
    else:
        said: list[str] = []
        assert upgrade_net(read_text(path, NetParameter()), str(path), said.append) == read_text(
            upgraded, NetParameter()
        )
        assert bool(said) == (path.stem == "v0_left_out")


@needs_caffe
@pytest.mark.parametrize("kind", ["net_text", "net_binary"])
@pytest.mark.parametrize("form", [v0_net, v1_net], ids=["v0", "v1"])
def test_random_old_nets_become_what_real_caffe_makes_of_them(form, kind: str, tmp_path: Path) -> None:
    for seed in range(10):
        old, said = form(random.Random(seed)), []
        assert (seed, upgrade_net(old, "old", said.append)) == (seed, upgraded_by_real_caffe(old, kind, tmp_path)[1])
    assert upgraded_by_real_caffe(form(random.Random(0)), kind, tmp_path)[0] in (0, 1)


@needs_caffe
@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_real_caffe_still_makes_the_stored_files(path: Path, tmp_path: Path) -> None:
    kind = kind_of(path)
    message = KINDS[kind][1]
    _, made = upgraded_by_real_caffe(read_text(path, message()), kind, tmp_path)
    assert made == read_text(path.with_suffix(".upgraded.prototxt"), message())


@given(st.integers(0, 1 << 32), st.sampled_from([v0_net, v1_net]))
def test_upgrading_twice_changes_nothing_more_and_the_old_net_stays_as_it_is(seed: int, form) -> None:
    old = form(random.Random(seed))
    before = old.SerializeToString(deterministic=True)
    new = upgrade_net(old, "old", [].append)
    assert not new.layers and not new.input
    assert upgrade_net(new, "new") is new
    assert old.SerializeToString(deterministic=True) == before


def test_every_type_and_every_field_of_the_old_forms_is_known() -> None:
    assert {value.name for value in V1LayerParameter.LayerType.DESCRIPTOR.values} == set(V1_TYPES)
    assert set(V0_TYPES.values()) <= set(V1_TYPES)
    fields = {field.name for field in V0LayerParameter.DESCRIPTOR.fields}
    assert fields == {*V0_FIELDS, *V0_SAME, "type"}


@given(st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=9))
def test_an_unknown_type_of_2013_is_named_with_those_that_are_known(kind: str) -> None:
    old = NetParameter()
    old.layers.add().layer.type = kind
    if kind in (*V0_TYPES, "padding"):
        upgrade_net(old, "old")
        return
    with pytest.raises(UserError) as caught:
        upgrade_net(old, "old.prototxt")
    assert str(caught.value).startswith("old.prototxt: layer '': unknown layer type ") and repr(kind) in str(
        caught.value
    )
    assert "known: accuracy, bnll, concat, conv" in str(caught.value)


PAD = 'input: "d" layers { layer { name: "p" type: "padding" pad: 2 } bottom: "d" top: "e" }'
V0_RELU = 'layers { layer { name: "r" type: "relu" } bottom: "d" top: "d" }'

REFUSED = {
    # real Caffe refuses these too, with a stack trace
    "layers { name: 'a' type: RELU } layer { name: 'b' type: 'ReLU' }": "has both `layer` and `layers`",
    "layers { layer { name: 'c' type: 'conv' } bottom: 'f' }": "layer 'c': bottom blob 'f' is not the top of any layer",
    PAD + "layers { layer { name: 'r' type: 'relu' } bottom: 'e' }": "layer 'r': has type 'relu', above padding",
    PAD + "layers { layer { name: 'q' type: 'padding' } bottom: 'e' }": "layer 'q': has type 'padding', above",
    PAD + "layers { layer { name: 'c' type: 'conv' } bottom: 'e' bottom: 'd' }": "layer 'c': has 2 bottoms",
    PAD.replace('top: "e"', 'top: "e" top: "g"') + "layers { layer { name: 'c' type: 'conv' } bottom: 'e' }": (
        "padding layer 'p': it must have one bottom and one top"
    ),
    PAD.replace('bottom: "d"', "") + "layers { layer { name: 'c' type: 'conv' } bottom: 'e' }": (
        "padding layer 'p': it must have one bottom and one top"
    ),
}
WRONG_IN_CAFFE = {
    # real Caffe reads from beyond the end of the list
    'input: "a" input: "b" input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 4': "2 input fields need 8 input_dim, ",
    'input: "a" input: "b" input_shape { dim: 1 }': "2 input fields need 2 input_shape; there are 1",
    # real Caffe loses the layer in the current format
    'input: "d" layer { name: "new" type: "ReLU" bottom: "d" top: "d" }' + V0_RELU: "has both `layer` and `layers`",
}


@pytest.mark.parametrize(("text", "message"), [*REFUSED.items(), *WRONG_IN_CAFFE.items()])
def test_what_cannot_be_upgraded_is_refused_and_the_place_named(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        upgrade(text)
    assert str(caught.value).startswith("old.prototxt: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_caffe
@pytest.mark.parametrize("text", REFUSED)
def test_real_caffe_refuses_it_too(text: str, tmp_path: Path) -> None:
    code, made = upgraded_by_real_caffe(net(text), "net_text", tmp_path)
    assert code not in (0, 1) and made is None


def test_what_caffe_leaves_out_of_a_net_of_2013_is_said_once_a_layer_and_setting() -> None:
    said: list[str] = []
    upgrade_net(read_text(GOLDEN / "v0_left_out.prototxt", NetParameter()), "old.prototxt", said.append)
    assert said == [
        "old.prototxt: left out, as Caffe does with a net of 2013: state, debug_info, input_shape",
        "old.prototxt: layer 'relu': left out, as Caffe does: num_output, which layers of type 'relu' do not have",
        "old.prototxt: layer 'relu': left out, as Caffe does: kernelsize, which layers of type 'relu' do not have",
        "old.prototxt: layer 'relu': left out, as Caffe does: new_num, which layers of type 'relu' do not have",
        "old.prototxt: layer 'ip': left out, as Caffe does beside the `layer {}` of 2013: include, loss_weight",
        "old.prototxt: layer 'ip': left out, as Caffe does: pad, which layers of type 'innerproduct' do not have",
        "old.prototxt: layer 'of 2014': left out, as Caffe does beside the `layer {}` of 2013: name, type, blobs_lr",
    ]


def test_todays_form_is_returned_itself() -> None:
    today = read_text(GOLDEN / "today.prototxt", NetParameter())
    assert upgrade_net(today, "today") is today
    solver = SolverParameter(type="Adam")
    assert upgrade_solver(solver, "solver") is solver


def test_a_solver_with_both_type_and_solver_type_is_refused() -> None:
    solver = parse_text('type: "SGD" solver_type: SGD', SolverParameter(), "test")
    with pytest.raises(UserError, match=r"^s\.prototxt: has both type and its old form solver_type"):
        upgrade_solver(solver, "s.prototxt")


@pytest.mark.parametrize("path", [path for path in OLD if path.stem != "v0_left_out"], ids=lambda path: path.stem)
def test_the_command_writes_what_real_caffes_tools_write(path: Path, tmp_path: Path) -> None:
    kind, old, new = kind_of(path), path, tmp_path / "new"
    message = KINDS[kind][1]
    if kind == "net_binary":
        old = tmp_path / "old"
        write_binary(old, read_text(path, message()))
    assert upgrade_proto.main([kind, str(old), str(new)]) == 0
    made = read_binary(new, message()) if kind == "net_binary" else read_text(new, message())
    assert made == read_text(path.with_suffix(".upgraded.prototxt"), message())


def test_where_something_was_left_out_the_command_writes_the_file_says_so_and_exits_with_1(tmp_path, capsys) -> None:
    assert upgrade_proto.main(["net_text", str(GOLDEN / "v0_left_out.prototxt"), str(tmp_path / "new")]) == 1
    assert (tmp_path / "new").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7 and all(line.startswith("warning: ") for line in lines)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("net_text", "layers { layer { name: 'a' type: 'cnov' } }", "old: layer 'a': unknown layer type 'cnov'"),
        ("net_text", "layers { name: 'a' type: RELUX }", "old: not a valid NetParameter prototxt: line 1:"),
        ("net_text", "layers { type: RELU } layer { type: 'ReLU' }", "old: has both `layer` and `layers`"),
        ("net_binary", "", "old: the file is empty"),
        ("net_binary", "text", "old: damaged or truncated"),
        ("solver_text", "solver_type: ADAMS", "old: not a valid SolverParameter prototxt"),
        ("solver_text", "solver_type: ADAM type: 'Adam'", "old: has both type and its old form solver_type"),
    ],
)
def test_a_file_that_cannot_be_upgraded_gives_one_line_and_exit_code_2(tmp_path, capsys, kind, text, message) -> None:
    (tmp_path / "old").write_text(text)
    assert upgrade_proto.main([kind, str(tmp_path / "old"), str(tmp_path / "new")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "new").exists()


def test_an_existing_file_is_written_over_with_force_only(tmp_path, capsys) -> None:
    (tmp_path / "new").write_text("mine")
    argv = ["solver_text", str(GOLDEN / "solver_nesterov.prototxt"), str(tmp_path / "new")]
    assert upgrade_proto.main(argv) == 2
    assert "new exists already; " in capsys.readouterr().err
    assert (tmp_path / "new").read_text() == "mine"
    assert upgrade_proto.main([*argv, "--force"]) == 0


@needs_caffe
def test_real_caffe_reads_what_the_command_writes(tmp_path) -> None:
    for path in OLD:
        if kind_of(path) == "net_text":
            upgrade_proto.main(["net_text", str(path), str(tmp_path / path.name)])
            written = read_text(tmp_path / path.name, NetParameter())
            assert upgraded_by_real_caffe(written, "net_text", tmp_path) == (0, written)
