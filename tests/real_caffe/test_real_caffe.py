"""Which program is used as real Caffe, and the errors if there is none."""

from pathlib import Path

import pytest

from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.run.engines import Engine
from transfer_caffe.utils.errors import UserError


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _nowhere(tmp_path, monkeypatch):
    """Simulate a machine without Caffe."""
    monkeypatch.delenv("CAFFE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(real_caffe, "INSTALLED", tmp_path / "project" / ".caffe" / "bin")


def test_the_variable_comes_before_the_path_and_that_before_what_make_caffe_made(tmp_path, monkeypatch):
    assert real_caffe.program() is None
    installed = make(tmp_path / "project/.caffe/bin/caffe")
    assert real_caffe.program() == installed
    on_path = make(tmp_path / "path/caffe")
    assert real_caffe.program() == on_path
    named = make(tmp_path / "a folder/caffe")
    monkeypatch.setenv("CAFFE", str(named))
    assert real_caffe.program() == named


def test_a_variable_that_names_no_program_is_an_error_and_no_other_caffe_is_taken(tmp_path, monkeypatch):
    make(tmp_path / "path/caffe")
    monkeypatch.setenv("CAFFE", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"CAFFE=.*nothing: no such program"):
        real_caffe.program()


def test_tools_are_those_beside_caffe_with_or_without_the_bin_of_caffes_build_folder(tmp_path, monkeypatch):
    make(tmp_path / "build/tools/caffe.bin")
    tool = make(tmp_path / "build/tools/convert_imageset.bin")
    make(tmp_path / "path/convert_imageset")
    monkeypatch.setenv("CAFFE", str(tmp_path / "build/tools/caffe.bin"))
    assert real_caffe.program("convert_imageset") == tool
    assert real_caffe.program("compute_image_mean") is None
    plain = make(tmp_path / "build/tools/compute_image_mean")
    assert real_caffe.program("compute_image_mean") == plain


def test_the_engine_caffe_is_real_caffe_under_that_name_wherever_it_is(tmp_path):
    installed = make(tmp_path / "project/.caffe/bin/caffe")
    assert Engine.find("caffe") == Engine("caffe", (str(installed),))
    on_path = make(tmp_path / "path/caffe")
    assert Engine.find("caffe") == Engine("caffe", (str(on_path),))


def test_an_engine_given_as_a_path_is_taken_as_it_is(tmp_path, monkeypatch):
    other, named = make(tmp_path / "other caffe/caffe"), make(tmp_path / "named/caffe")
    monkeypatch.setenv("CAFFE", str(named))
    assert Engine.find(str(other)).argv == (str(other),)


def test_where_there_is_none_the_message_says_how_to_get_one():
    with pytest.raises(UserError, match="run `make caffe`, or set CAFFE="):
        Engine.find("caffe")
