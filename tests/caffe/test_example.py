"""The example in docs/ runs, with the command that its first lines name."""

from pathlib import Path

import cv2
from support import python

from transfer_caffe.utils.processes import environment

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "pycaffe_example.py"


def test_the_example_learns_and_writes_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "some folder"
    env = {**environment(), "PYTHONDONTWRITEBYTECODE": "1", "GLOG_minloglevel": "0"}
    result = python.run("-m", "transfer_caffe.caffe", str(EXAMPLE), str(folder), env=env, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    smooth, squares = (float(word) for word in lines[0].rsplit(" ", 2)[1:])
    assert squares > 3 * smooth
    assert float(lines[1].removeprefix("accuracy: ")) >= 0.9
    assert lines[2] == "map of scores: (1, 2, 13, 13)"
    picture = cv2.imread(str(folder / "edges.png"))
    assert picture is not None
    assert picture.shape[0] == 64
    assert (folder / "edges.caffemodel").exists()
    assert "Layer energy runs Python code: pycaffe_example.Energy" in result.stderr
