"""The package as a library: the README's example, and that the public names exist."""

import re
from pathlib import Path

import pytest
from support.small_world import EXPERIMENT, draw_shapes

import transfer_caffe
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import write_text

README = Path(__file__).resolve().parent.parent.parent / "README.md"


def example() -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    return code


def test_the_readmes_example_runs(tmp_path, monkeypatch, capsys):
    """By the recipe of an experiment in miniature, so that it takes seconds."""
    monkeypatch.chdir(tmp_path)
    draw_shapes()
    write_text("tiny.yaml", EXPERIMENT.replace("[baseA, baseB, A3B, A3B+]", "[baseA, A3A]"))
    code = example().replace('"demo"', '"tiny.yaml"').replace("runs/demo/", "runs/tiny/")
    assert code != example()
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "figures" / "figure2_top.png").exists()
    said = capsys.readouterr().out
    assert "(4, 64)" in said and "(12, 3, 5, 5)" in said and "BnB - base 3" in said


def test_every_public_name_is_there_and_is_documented():
    for name in transfer_caffe.__all__:
        assert getattr(transfer_caffe, name).__doc__, name
    assert set(transfer_caffe.__all__) <= set(dir(transfer_caffe))
    assert not hasattr(transfer_caffe, "no_such_name")


def test_bad_input_and_wrong_calls_are_different_exceptions(tmp_path):
    with pytest.raises(transfer_caffe.UserError, match="recipe nothing: no such file"):
        transfer_caffe.load_recipe("nothing")
    with pytest.raises(UserError, match="there is no split"):
        transfer_caffe.load_recipe("demo").network("thirds", "baseA")
    with pytest.raises(TypeError):
        transfer_caffe.load_recipe()  # pyright: ignore[reportCallIssue]
    assert transfer_caffe.UserError is UserError and not issubclass(UserError, ValueError)
