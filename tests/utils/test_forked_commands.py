"""Commands that are imported once and then forked behave like new processes of Python."""

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from transfer_caffe.utils import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are forked on Linux only")

COMMAND = '''
"""What a child is told, and finds."""
import json, os, signal, sys, time
print("imported", os.getpid(), file=sys.stderr)

def main(argv):
    what = argv[0]
    if what == "look":
        files = sorted(int(name) for name in os.listdir("/proc/self/fd"))
        print(json.dumps({
            "argv": sys.argv, "folder": os.getcwd(), "variable": os.environ.get("V"), "home": "HOME" in os.environ,
            "files": [each for each in files if os.path.exists(f"/proc/self/fd/{each}")], "input": sys.stdin.read(),
            "group": os.getpgrp() == os.getpid(),
            "signals": [signal.getsignal(number) is wanted for number, wanted in (
                (signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_IGN),
                (signal.SIGUSR1, signal.SIG_DFL))],
        }))
        return 5
    if what == "fail":
        raise ValueError("a bug")
    if what == "exit":
        sys.exit(3)
    print("waiting", os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
'''

PARENT = """
import json, os, signal, sys, tempfile, time
from pathlib import Path
from transfer_caffe.utils import processes
processes.interrupt_on_signals()
if sys.argv[1] == "preload":
    processes.preload("command")

def start(*words, **more):
    output = tempfile.TemporaryFile()
    process = processes.start([sys.executable, "-m", "command", *words], output, **more)
    return process, output

def said(output):
    output.seek(0)
    return output.read().decode()

print("in the parent's buffer")
"""


@pytest.fixture
def run(tmp_path):
    """Run code in a process that has preloaded the command; return its output, or the process."""
    (tmp_path / "command.py").write_text(COMMAND)

    def run(code: str, preload: str = "preload", wait: bool = True):
        (tmp_path / "parent.py").write_text(PARENT + textwrap.dedent(code))
        environment = processes.environment() | {"V": "the parent's"}
        environment["PYTHONPATH"] += f":{tmp_path}"
        argv = [sys.executable, str(tmp_path / "parent.py"), preload]
        process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if not wait:
            return process
        found, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return found.replace("in the parent's buffer\n", "", 1), errors

    return run


LOOK = """
lock = os.open("lock", os.O_CREAT | os.O_RDWR)
other = os.open("other", os.O_CREAT | os.O_RDWR)
environment = {**os.environ, "V": "its own"}
del environment["HOME"]
process, output = start("look", "a b", folder=Path("/"), env=environment, keep_open=[lock])
code = process.wait()
print(json.dumps([code, process.poll(), lock, said(output)]))
"""


def test_a_forked_command_finds_what_a_started_one_finds(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for preload in ("preload", "start"):
        found, errors = run(LOOK, preload)
        code, again, lock, text = json.loads(found)
        looked = json.loads(text.splitlines()[-1])
        assert (code, again) == (5, 5)
        assert looked["argv"][1:] == ["look", "a b"]
        assert (looked["folder"], looked["variable"], looked["home"], looked["input"]) == ("/", "its own", False, "")
        assert looked["group"] and looked["signals"] == [True, True, True]
        # the standard ones and the lock
        assert looked["files"] == [0, 1, 2, lock]
        # imported once, by the parent; or by the child
        assert ("imported" in errors) == (preload == "preload") != ("imported" in text)
        assert "parent's buffer" not in text


def test_how_it_ended_is_known(run):
    found, _ = run("""
        for words in (["fail"], ["exit"]):
            process, output = start(*words)
            print(process.wait(timeout=50), "ValueError: a bug" in said(output))
        process, output = start("wait")
        try:
            process.wait(timeout=0.2)
        except Exception as error:
            print(type(error).__name__, process.poll(), process.returncode)
        process.kill()
        print(process.wait())
        process.send_signal(signal.SIGINT)  # to nobody
        process, output = start("wait")
        while "waiting" not in said(output):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)  # ignored
        process.send_signal(signal.SIGINT)
        print(process.wait())
    """)
    assert found.split("\n")[:-1] == ["1 True", "3 False", "TimeoutExpired None None", "-9", "130"]


def test_it_dies_with_its_parent(run):
    process = run(
        """
        process, output = start("wait")
        while "waiting" not in said(output):
            time.sleep(0.01)
        print("child", process.pid, flush=True)
        time.sleep(60)
        """,
        wait=False,
    )
    line = process.stdout.readline()
    while not line.startswith("child"):
        line = process.stdout.readline()
    child = Path("/proc", line.split()[1])
    assert child.exists()
    process.kill()
    process.communicate()
    for _ in range(1000):
        if not child.exists() or ") Z " in (child / "stat").read_text():
            return
        time.sleep(0.01)
    raise AssertionError("the child still runs")


def test_only_the_preloaded_commands_are_forked(run):
    found, _ = run("""
        output = tempfile.TemporaryFile()
        process = processes.start([sys.executable, "-c", "print(1 + 1)"], output)
        print(process.wait(), said(output).strip(), type(process).__name__)
        print(type(start("exit")[0]).__name__)
    """)
    assert found.split("\n")[:-1] == ["0 2 Popen", "Forked"]


def test_a_process_that_may_have_computed_with_pytorch_is_not_forked(run):
    code = """
        sys.modules["torch"] = sys
        processes.preload("command")
        process, output = start("exit")
        print(type(process).__name__, process.wait())
    """
    assert run(code, "later")[0] == "Popen 3\n"


def test_a_process_that_has_started_threads_since_is_not_forked(run):
    found, _ = run("""
        import threading
        print(type(start("exit")[0]).__name__)
        end = threading.Event()
        thread = threading.Thread(target=end.wait)
        thread.start()
        print(type(start("exit")[0]).__name__)
        end.set()
        thread.join()
        print(type(start("exit")[0]).__name__)
    """)
    assert found.split() == ["Forked", "Popen", "Forked"]


def test_pytorch_uses_the_childs_number_of_threads(tmp_path):
    (tmp_path / "command.py").write_text("import torch\n\ndef main(argv):\n    print(torch.get_num_threads())\n")
    code = """
import os, sys, tempfile
from transfer_caffe.utils import processes
processes.preload("command")
for threads in ("1", "3"):
    output = tempfile.TemporaryFile()
    process = processes.start([sys.executable, "-m", "command"], output, env={**os.environ, "OMP_NUM_THREADS": threads})
    assert process.wait() == 0 and type(process).__name__ == "Forked"
    output.seek(0)
    print(output.read().decode().strip())
"""
    environment = processes.environment()
    environment["PYTHONPATH"] += f":{tmp_path}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1", "3"], done.stderr
