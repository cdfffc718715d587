"""Atomic file writes, checksums, and one-line errors of commands."""

import errno
import subprocess

import pytest

from transfer_caffe.utils.errors import ArgumentParser, UserError, command
from transfer_caffe.utils.files import (
    refuse_existing,
    require_checksum,
    whole_file,
    whole_folder,
    write_checksum,
    write_text,
)


def test_a_file_that_could_not_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_could_not_be_finished_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "db") as temporary:
        (temporary / "data").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_errors_name_the_file_that_was_wanted_not_the_temporary_one(tmp_path):
    with pytest.raises(OSError) as caught, whole_file(tmp_path / "wanted.bin") as temporary:
        raise OSError(errno.ENOSPC, "full", str(temporary))
    assert caught.value.filename == str(tmp_path / "wanted.bin")


def test_what_exists_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match="exists already; choose another name"):
        refuse_existing(tmp_path, "choose another name")


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        (UserError("two\nlines"), 2, "error: two lines"),
        (OSError(errno.ENOSPC, "x", "/full/file"), 2, "error: /full/file: no space left on the device"),
        (FileNotFoundError(errno.ENOENT, "x", "gone"), 2, "error: gone: no such file or directory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_commands_fail_in_one_line(capsys, failure, code, line):
    @command
    def main(argv=None):
        raise failure

    assert main([]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and line in error


def test_an_error_of_the_program_itself_keeps_its_traceback():
    @command
    def main(argv=None):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main([])


def test_wrong_arguments_are_one_line_too():
    parser = ArgumentParser(prog="x")
    parser.add_argument("--number", type=int)
    with pytest.raises(UserError, match="--number: invalid int value: 'a'; --help shows"):
        parser.parse_args(["--number", "a"])


def test_a_checksum_is_what_sha256sum_checks(tmp_path):
    (tmp_path / "a b.bin").write_bytes(b"content")
    require_checksum(tmp_path / "a b.bin")  # none is there
    write_checksum(tmp_path / "a b.bin")
    subprocess.run(["sha256sum", "-c", "a b.bin.sha256"], cwd=tmp_path, check=True, capture_output=True)
    require_checksum(tmp_path / "a b.bin")


@pytest.mark.parametrize("damaged", ["mean.bin", "mean.bin.sha256"])
@pytest.mark.parametrize("content", [b"", b"other", b"0" * 64 + b"  mean.bin\n", b"\xff\xfe"])
def test_a_file_or_checksum_that_changed_is_an_error_with_the_remedy(tmp_path, damaged, content):
    (tmp_path / "mean.bin").write_bytes(b"content")
    write_checksum(tmp_path / "mean.bin")
    (tmp_path / damaged).write_bytes(content)
    with pytest.raises(UserError, match=r"mean\.bin.*: damaged.*; make it again"):
        require_checksum(tmp_path / "mean.bin", "make it again")
