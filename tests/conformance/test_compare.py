"""The command `python -m transfer_caffe.compare`: its output and exit codes, with real Caffe."""

from dataclasses import replace

import numpy as np
import pytest
from conformance.suite import needs_real_caffe

from transfer_caffe import compare
from transfer_caffe.compare import main
from transfer_caffe.real_caffe.differences import MOST_UNITS, Row, nudged, units_of, with_spread

pytestmark = needs_real_caffe

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }'
FC = """layer { name: "f" type: "InnerProduct" bottom: "x" top: "f"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }"""
POWER_IN_PLACE = 'layer { name: "p" type: "Power" bottom: "x" top: "x" power_param { scale: -2 shift: 1 } }'
DROPOUT = 'layer { name: "d" type: "Dropout" bottom: "x" top: "d" }'


@pytest.fixture
def run(tmp_path, capsys):
    """A function that runs the command on a net with the given layers and returns the exit code and the output."""

    def run(*layers, more=()):
        path = tmp_path / "net.prototxt"
        path.write_text("\n".join(layers))
        capsys.readouterr()
        code = main([str(path), *more])
        return code, "".join(capsys.readouterr())

    return run


def test_a_net_without_a_loss_has_no_gradients_to_compare_and_ends_with_0(run):
    code, text = run(INPUT, FC)
    assert code == 0 and "data   f" in text and "diff " not in text and "grad " not in text


def test_a_net_without_a_loss_that_is_forced_backward_is_compared_with_its_gradients(run):
    code, text = run("force_backward: true", INPUT, FC)
    assert code == 0 and "grad   f/0" in text and "diff   x" in text


def test_a_net_that_differs_ends_with_1_and_its_rows_are_marked(run):
    code, text = run("force_backward: true", INPUT, POWER_IN_PLACE)
    assert code == 1 and "<-- differs" in text and "beyond 0.0001" in text


LABEL = 'layer { name: "y" type: "Input" top: "y" input_param { shape { dim: 2 } } }'
LOSS = """layer { name: "g" type: "InnerProduct" bottom: "v" top: "g"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "l" type: "SoftmaxWithLoss" bottom: "g" bottom: "y" top: "l" }"""


@pytest.mark.parametrize("kind", ["Flatten", "Reshape"])
@pytest.mark.parametrize("between", ["", 'layer { name: "r" type: "TanH" bottom: "f" top: "f" }'])
@pytest.mark.parametrize("after", ["", 'layer { name: "q" type: "Sigmoid" bottom: "v" top: "v" }'])
@pytest.mark.parametrize("more", ["", 'layer { name: "s" type: "Reduction" bottom: "f" top: "s" loss_weight: 0.1 }'])
def test_a_blob_in_another_shape_shares_its_buffer_as_in_real_caffe(kind, between, after, more, run):
    param = "reshape_param { shape { dim: -1 dim: 2 } }" if kind == "Reshape" else ""
    view = f'layer {{ name: "v" type: "{kind}" bottom: "f" top: "v" {param} }}'
    if after and (more or between):
        pytest.skip("here the other branch or layer sees the change in real Caffe: an intentional difference")
    code, text = run(INPUT, LABEL, FC, between, view, after, LOSS, more)
    assert code == 0 and "diff   v" in text


def test_dropout_of_nothing_is_compared(run):
    code, text = run(INPUT, FC, DROPOUT.replace('top: "d"', 'top: "d" dropout_param { dropout_ratio: 0 }'), more=TRAIN)
    assert code == 0 and "data   d" in text


TRAIN = ["--phase", "TRAIN"]
CANCELS = """layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" }
  inner_product_param { num_output: 2 bias_term: false weight_filler { type: "gaussian" std: 1 } } }
layer { name: "big" type: "Bias" bottom: "a" top: "big" bias_param { filler { value: 4e5 } } }
layer { name: "small" type: "Power" bottom: "big" top: "small" power_param { shift: -4e5 } }"""


def test_differences_that_rounding_explains_are_accepted_and_others_are_not(run, monkeypatch):
    from transfer_caffe import compare

    run_ours = compare.run_ours

    def rounded(*arguments):
        """Our results as if another order of sums had moved them by one unit before the cancellation."""
        found = run_ours(*arguments)
        found["data/small"] = found["data/small"] + np.float32(0.03125)
        return found

    monkeypatch.setattr(compare, "run_ours", rounded)
    code, text = run(INPUT, CANCELS)
    assert code == 0 and "real Caffe's own: " in text and "times what real Caffe's own results change" in text
    monkeypatch.setattr(compare, "run_ours", lambda *rest: {**run_ours(*rest), "data/a": np.ones((2, 2), np.float32)})
    code, text = run(INPUT, CANCELS)
    assert code == 1 and "not explained by rounding" in text


def test_weights_are_moved_further_where_one_unit_explains_nothing(run, monkeypatch):
    used = []

    def recorded(values, draw, units=1):
        used.append((draw, units))
        return nudged(values, draw, units)

    monkeypatch.setattr(compare, "nudged", recorded)
    monkeypatch.setattr(compare, "units_of", lambda rows: 5)
    code, _ = run("force_backward: true", INPUT, POWER_IN_PLACE)
    assert code == 1
    assert used == [(draw, units) for units in (1, 5) for draw in range(compare.DRAWS)]


def test_units_follow_from_the_blobs_and_a_larger_spread_is_kept():
    row = Row("data", "x", 1.0, 6e-7, spread=1e-7)
    # a gradient that differs, and a blob that differs too much, say nothing about rounding
    rows = [row, replace(row, what="diff", difference=0.1), replace(row, name="y", difference=0.1)]
    assert units_of(rows) == 4 * 6
    assert units_of([replace(row, difference=0.0)]) == 1
    assert units_of([replace(row, difference=9e-5)]) == MOST_UNITS
    reference = {"data/x": np.array([1, 1], np.float32)}
    for moved, spread in ((3, 2.0), (1, 0.5)):
        [found] = with_spread([replace(row, spread=0.5)], reference, [{"data/x": np.array([1, moved], np.float32)}])
        assert found.spread == pytest.approx(spread)


def test_arrays_that_one_engine_lacks_are_named(run, monkeypatch):
    from transfer_caffe import compare

    run_ours = compare.run_ours

    def lacking(*arguments):
        found = run_ours(*arguments)
        del found["diff/f"]
        return {**found, "grad/nowhere/0": np.ones(1, np.float32)}

    monkeypatch.setattr(compare, "run_ours", lacking)
    code, text = run("force_backward: true", INPUT, FC)
    assert code == 1 and "<-- only real Caffe has it" in text and "<-- only the embedded engine has it" in text


def test_a_net_that_is_random_or_wrong_ends_with_2_and_one_line(run):
    for arguments, part in (
        (([INPUT, DROPOUT], ["--phase", "TRAIN"]), "d (dropout in TRAIN)"),
        (([FC], []), "bottom blob 'x'"),
        ((["layer {"], []), "prototxt"),
    ):
        code, text = run(*arguments[0], more=arguments[1])
        assert code == 2 and part in text and text.count("\n") == 1
