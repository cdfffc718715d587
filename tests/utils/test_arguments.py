"""The arguments of commands."""

from pathlib import Path

import pytest

from transfer_caffe.utils.errors import ArgumentParser, UserError


@pytest.mark.parametrize("given", [["--runs", "", "net"], ["--runs=", "net"], [""], ["net", "--out", ""]])
def test_an_empty_name_of_a_file_or_folder_is_refused(given):
    parser = ArgumentParser(prog="command")
    parser.add_argument("net", metavar="FILE")
    parser.add_argument("--runs", metavar="DIR", default="runs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--name", default="")
    with pytest.raises(
        UserError, match=r"argument (--runs|--out|FILE): is empty; is a shell variable unset\?; --help shows"
    ):
        parser.parse_args(given)
    assert parser.parse_args(["net", "--name", ""]).runs == "runs"
