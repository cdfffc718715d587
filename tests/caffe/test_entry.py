"""The three ways in: an import under another name, the command, and `install`; and the module's own functions."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import python

import transfer_caffe.caffe as caffe
from transfer_caffe.caffe import __main__ as command
from transfer_caffe.utils.processes import environment

SCRIPT = """
import sys
import caffe
import caffe.io
import caffe.draw
from caffe import layers as L, params as P
from caffe.io import caffe_pb2
from caffe.proto import caffe_pb2 as other
import caffe.proto.caffe_pb2
from caffe._caffe import Net
from caffe.net_spec import NetSpec
from caffe.pycaffe import SGDSolver
import transfer_caffe.caffe

assert caffe is transfer_caffe.caffe and caffe.Net is Net and caffe.io is transfer_caffe.caffe.io
assert caffe.proto.caffe_pb2 is caffe_pb2 is other and caffe.NetSpec is NetSpec and caffe.SGDSolver is SGDSolver
print(caffe.__version__, sys.argv[1:], __name__, sys.path[0])
caffe.log("said")
"""


def run(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return python.run("-m", "transfer_caffe.caffe", *arguments, cwd=cwd, env={**environment(), **more})


def program(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return python.run("-c", code, cwd=cwd, env=environment())


@pytest.fixture
def script(tmp_path: Path) -> Path:
    folder = tmp_path / "some scripts"
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    return folder / "script.py"


def test_the_command_runs_an_unchanged_script(script: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "transfer_caffe.caffe", str(script), "a", "--b"]
    env = {**environment(), "GLOG_minloglevel": "0"}
    result = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"1.0.0 ['a', '--b'] __main__ {script.parent}\n"
    assert "] said" in result.stderr
    assert "said" not in run(str(script), cwd=tmp_path, GLOG_minloglevel="2").stderr


OLD = """
import sys
import unittest
import numpy as np

class Test(unittest.TestCase):
    def test(self):
        self.assertEquals(1, 1)
        self.assertNotEquals(1, 2)
        self.assertItemsEqual([1, 2], [2, 1])
        self.assertRaisesRegexp(ValueError, "invalid", int, "x")
        self.assertRegexpMatches("abc", "b")
        self.assertEqual(np.zeros(2, np.float).dtype, np.float64)
        self.assertTrue(np.array([True], np.bool)[0])
        self.assertEqual(np.arange(3).astype(np.int).sum(), np.asscalar(np.array([3])))
        self.assertEqual(np.Inf, np.inf)

unittest.main()
"""


def test_a_script_finds_the_names_that_python_and_numpy_have_removed(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text(OLD)
    result = run("old.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    check = "import numpy, transfer_caffe.caffe as caffe; caffe.install(); assert 'float' not in vars(numpy)"
    assert program(check, tmp_path).returncode == 0


def test_the_command_runs_an_unchanged_module(script: Path) -> None:
    result = run("-m", "script", "a", cwd=script.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"1.0.0 ['a'] __main__ {script.parent}\n"
    (script.parent / "test_it.py").write_text("import caffe\ndef test_it():\n    assert caffe.TEST == 1\n")
    assert "1 passed" in run("-m", "pytest", "test_it.py", cwd=script.parent).stdout


def test_errors_of_the_script_keep_their_traceback_and_exit_codes(script: Path) -> None:
    script.write_text("import caffe\ncaffe.Net('none.prototxt', caffe.TEST)\n")
    result = run(str(script), cwd=script.parent)
    assert result.returncode == 1
    assert "line 2, in <module>" in result.stderr
    assert result.stderr.splitlines()[-1].endswith(
        "CaffeError: Could not open file none.prototxt: No such file or directory"
    )
    script.write_text("import sys\nsys.exit(7)\n")
    assert run(str(script), cwd=script.parent).returncode == 7
    script.write_text("1 / 0\n")
    assert "ZeroDivisionError" in run(str(script), cwd=script.parent).stderr


def test_wrong_arguments_are_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["none.py"], "none.py: no such file"), (["-m"], "names no script"), (["--prefer-real"], "names no script"),
    ):  # fmt: skip
        assert command.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert command.main(["--help"]) == 0
    assert "script.py arguments" in capsys.readouterr().out


def test_a_real_pycaffe_wins_only_if_asked_for(script: Path) -> None:
    (script.parent / "caffe.py").write_text("__version__ = 'real'\n")
    script.write_text("import caffe\nprint(caffe.__version__)\n")
    path = {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{script.parent}"}
    assert run(str(script), cwd=script.parent.parent, **path).stdout == "1.0.0\n"
    assert run("--prefer-real", str(script), cwd=script.parent.parent, **path).stdout == "real\n"
    assert run("--prefer-real", str(script), cwd=script.parent.parent).stdout == "1.0.0\n"


def test_install_serves_a_notebook_and_leaves_an_imported_caffe_alone(tmp_path: Path) -> None:
    code = "import transfer_caffe.caffe as ours; ours.install(); import caffe; print(caffe is ours)"
    other = "import sys, types; sys.modules['caffe'] = types.ModuleType('caffe'); " + code
    for text, expected in ((code, "True\n"), (other, "False\n")):
        result = program(text, tmp_path)
        assert result.stdout == expected, result.stderr


def test_an_import_under_another_name_claims_and_logs_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, transfer_caffe.caffe as caffe; caffe.log('quiet'); print('caffe' in sys.modules);"
        "caffe.init_log(0); caffe.log('loud'); caffe.init_log(2); caffe.log('off')"
    )
    result = program(code, tmp_path)
    assert result.stdout == "False\n"
    assert [line.split("] ")[1] for line in result.stderr.splitlines()] == ["loud"]


def test_the_modules_functions() -> None:
    assert caffe.TRAIN == 0
    assert caffe.TEST == 1
    assert {"Convolution", "Data", "InnerProduct", "Python"} <= set(caffe.layer_type_list())
    assert caffe.layer_type_list() == sorted(caffe.layer_type_list())
    assert not caffe.has_nccl()
    with pytest.raises(RuntimeError, match="one device"):
        caffe.NCCL(None, "id")
    assert caffe.solver_count() == 1
    caffe.set_solver_count(2)
    caffe.set_solver_rank(1)
    caffe.set_multiprocess(True)
    assert (caffe.solver_count(), caffe.solver_rank()) == (2, 1)
    caffe.set_solver_count(1)
    caffe.set_solver_rank(0)
    caffe.set_mode_cpu()


def test_without_a_gpu_gpu_mode_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(RuntimeError, match="finds no GPU"):
        caffe.set_mode_gpu()
    with pytest.raises(RuntimeError, match="has 0 usable GPUs"):
        caffe.set_device(0)


def test_timer(capsys: pytest.CaptureFixture[str]) -> None:
    timer = caffe.Timer()
    assert timer.ms == 0
    assert "never been run" in capsys.readouterr().err
    timer.start()
    timer.start()
    timer.stop()
    first = timer.ms
    assert first > 0
    assert timer.ms == first
