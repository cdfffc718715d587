"""Run Python in a child process that need not import PyTorch, which takes 1.4 s of processor time.

    from support import python

    done = python.run("-m", "transfer_caffe.engine", "train", "--solver", "solver.prototxt", cwd=folder)

A server, which has imported PyTorch and nothing of this project, forks for each call. The child has its own working
folder, environment, arguments and output, and imports the project's modules as a new Python does. Use
`subprocess` to test how Python starts, what is imported, signals, or a process that a test looks at while it runs.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn


class _Server:
    """The process that forks; it ends when its input is closed."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        atexit.register(self.stop)

    def stop(self) -> None:
        if os.getpid() == self.owner:  # not in a process that a test has forked
            self.process.kill()
            self.process.communicate()

    def ask(self, request: dict[str, Any], patience: float) -> int:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], patience)[0]:
            self.stop()
            raise subprocess.TimeoutExpired(request["argv"], patience)
        return int(self.process.stdout.readline())


_servers: list[_Server] = []


def run(
    *argv: str | os.PathLike[str], cwd: str | os.PathLike[str] | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Return what `subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=cwd, env=env)` does.

    ``argv`` begins with `-m` and a module, `-c` and code, or the path of a script.
    """
    from support.waiting import PATIENCE

    if not _servers or _servers[0].owner != os.getpid() or _servers[0].process.poll() is not None:
        _servers[:] = [_Server()]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        request = {
            "argv": [os.fspath(word) for word in argv], "cwd": os.fspath(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env), "out": str(out), "err": str(err),
        }  # fmt: skip
        code = _servers[0].ask(request, PATIENCE)
        texts = [path.read_text(errors="replace") for path in (out, err)]
        return subprocess.CompletedProcess([sys.executable, *request["argv"]], code, *texts)


# ---- the server's process --------------------------------------------------------------------------------------------


def _serve() -> dict[str, Any]:
    """Fork for each request and answer with the child's exit code. Return in a child, with its request."""
    answers = os.dup(1)  # not inherited by programs that the children start
    null = os.open(os.devnull, os.O_RDWR)
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(null, 0)
    os.dup2(null, 1)
    for line in requests:
        pid = os.fork()
        if not pid:
            os.close(answers)
            os.close(requests.fileno())
            return json.loads(line)
        _, status = os.waitpid(pid, 0)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))
    sys.exit()


def _become(request: dict[str, Any]) -> list[str]:
    """Give this process the folder, environment, output and search path of a new Python; return its arguments."""
    import torch

    for target, name in ((1, "out"), (2, "err")):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["cwd"])
    env, argv = request["env"], request["argv"]
    os.environ.clear()
    os.environ.update(env)
    sys.dont_write_bytecode = bool(env.get("PYTHONDONTWRITEBYTECODE"))
    if threads := env.get("OMP_NUM_THREADS"):  # PyTorch has read that of the server
        torch.set_num_threads(int(threads))
    first = {"-m": request["cwd"], "-c": ""}.get(argv[0], os.path.dirname(os.path.abspath(argv[0])))
    given = [os.path.abspath(each) for each in env.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path[:] = [*([] if env.get("PYTHONSAFEPATH") else [first]), *given, *sys.path]
    return argv


def _run(argv: list[str]) -> None:
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    elif argv[0] == "-c":
        sys.argv = ["-c", *argv[2:]]
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(argv[1], "<string>", "exec"), module.__dict__)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


def _end(argv: list[str]) -> NoReturn:
    """Run the program and end the process as Python does, but without freeing its memory, which takes 0.5 s."""
    code = 0
    try:
        _run(argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if code == 1 and error.code != 1:
            print(error.code, file=sys.stderr)
    except BaseException as error:
        code = 1
        sys.excepthook(type(error), error, error.__traceback__)
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue] - waits for the threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    # remove this script's folder, and what the server was given: each child gets its own
    _given = os.environ.pop("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [each for each in sys.path[1:] if each not in map(os.path.abspath, filter(None, _given))]
    import torch  # noqa: F401 # pyright: ignore[reportUnusedImport]

    gc.freeze()  # a collection in a child would copy the memory that it shares with the server
    _end(_become(_serve()))
