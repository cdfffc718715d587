"""The command `python -m transfer_caffe.compare`: its output and exit codes, with real Caffe."""

import pytest
from conformance.suite import needs_real_caffe

from transfer_caffe.compare import main

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


def test_a_net_that_is_random_or_wrong_ends_with_2_and_one_line(run):
    for arguments, part in (
        (([INPUT, DROPOUT], ["--phase", "TRAIN"]), "d (dropout in TRAIN)"),
        (([FC], []), "bottom blob 'x'"),
        ((["layer {"], []), "prototxt"),
    ):
        code, text = run(*arguments[0], more=arguments[1])
        assert code == 2 and part in text and text.count("\n") == 1
