"""One copy of the records for several processes: who starts the holder, when it ends, and what happens on a kill."""

import argparse
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import cv2
import lmdb
import numpy as np
import pytest
import torch
from support.waiting import PATIENCE, gone

from transfer_caffe.engine.batches import resident, sharing
from transfer_caffe.engine.batches.holder import Holder
from transfer_caffe.engine.batches.sharing import Share, Source, User
from transfer_caffe.engine.layers import Context
from transfer_caffe.engine.layers.data import Data, Images
from transfer_caffe.engine.layers.sources import ImageData
from transfer_caffe.formats.datum import raw_datum
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import Datum, LayerParameter
from transfer_caffe.formats.views import open_records
from transfer_caffe.utils import processes
from transfer_caffe.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("logged")

COUNT, BATCH = 10, 4
LAYER = f"""name: "d" type: "Data" top: "data" top: "label" transform_param {{ crop_size: 5 mirror: true }}
data_param {{ source: "SOURCE" batch_size: {BATCH} backend: LMDB }}"""

USER = """
import sys, torch
sys.path[:0] = sys.argv[1:]
from test_engine_sharing import device, layer
from transfer_caffe.engine import glog
device("device")
log = glog.logging()
log.__enter__()
made = layer()
print("resident", made.resident, flush=True)
for line in sys.stdin:
    print(float(made.forward([], int(line))[0].sum()), flush=True)
"""


def device(where):
    """Let batches be built "on the device", with the records there or in the host's memory."""
    Images._made_by_device = ("cpu",)
    resident.device_memory = lambda _: ((80 << 30) * (where == "device"), 0)


def write(name="db", sizes=(8,)):
    draw = np.random.RandomState(0)
    with lmdb.open(name, map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for index in range(COUNT):
            image = draw.randint(0, 256, (sizes[index % len(sizes)], 8, 3)).astype(np.uint8)
            transaction.put(f"{index:08d}_x".encode(), raw_datum(image, index))


def layer(source="db"):
    made = Data(
        parse_text(LAYER.replace("SOURCE", source), LayerParameter(), ""), Context(1, torch.device("cpu"), True)
    )
    made.setup([])
    return made


@pytest.fixture(autouse=True)
def share(tmp_path, monkeypatch):
    """The `Share` of this process; holders that a test leaves running are ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Images, "_made_by_device", Images._made_by_device)
    monkeypatch.setattr(resident, "device_memory", resident.device_memory)
    monkeypatch.setattr(sharing, "_started", [])
    folder = tmp_path / ("a folder with a name too long for the address of a socket " * 3) / "records"
    monkeypatch.setenv(processes.SHARED_RECORDS, f"2:{folder}")
    write()
    yield Share(2, folder)
    for holder in sharing._started:
        holder.kill()
        holder.wait()


def holder():
    [process] = sharing._started
    return process


def joined(share, name="db"):
    with share.lock():
        return share.join(Source(Path(name).resolve(), None))


def files(share):
    return sorted(path.suffix for path in share.folder.iterdir())


def test_users_see_one_copy_and_its_holder_ends_with_the_last_of_them(share):
    expected = [layer().forward([], number) for number in range(3)]
    assert not sharing._started
    device("device")
    made = layer()
    assert made.resident and files(share) == ["", ".log", ".socket"]
    for number, (images, labels) in enumerate(expected):
        ours = made.forward([], number)
        assert torch.equal(ours[0], images) and torch.equal(ours[1], labels)
    other = joined(share)
    assert other and other.pid == holder().pid and other.room and other.on_device
    received = other.receive()
    assert not isinstance(received, str)
    received[0][3] = 77  # the same memory
    assert (made._batches()._pixels[3] == 77).all()
    del made
    time.sleep(0.5)
    assert holder().poll() is None
    other.give_up()
    assert holder().wait(PATIENCE) == 0
    assert files(share) == [""]
    assert joined(share) is None


def test_records_that_are_divided_between_a_gpu_and_the_host_are_one_copy_too(share, capfd):
    expected = [layer().forward([], number) for number in range(3)]
    gc.collect()  # frees memory that earlier tests have promised
    Images._made_by_device = ("cpu",)
    resident.device_memory = lambda _: (7 * 192 + 300, 1000)  # room for 7 records beside two networks
    made = layer()
    for number, (images, labels) in enumerate(expected):
        ours = made.forward([], number)
        assert torch.equal(ours[0], images) and torch.equal(ours[1], labels)
    assert made._copy is not None and made._copy.split == resident.Split(7, COUNT)
    assert "7 of them are kept there, the others in the host's memory" in capfd.readouterr().err
    other = joined(share)
    assert other and other.room and other.on_device
    received = other.receive()
    assert not isinstance(received, str)
    pixels, rest, labels = received
    assert rest is not None and len(pixels) == 7 and len(rest) == 3 and len(labels) == COUNT
    for one, ours in ((pixels, made._copy.pixels), (rest, made._copy.rest)):
        one[1] = 77  # the same memory
        assert ours is not None and (ours[1] == 77).all()
    del made
    other.give_up()
    assert holder().wait(PATIENCE) == 0
    assert files(share) == [""]


def test_a_user_that_is_killed_counts_no_more_and_one_that_loses_the_holder_ends_with_a_line(share, tmp_path):
    argv = [sys.executable, "-c", USER, str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    environment = processes.environment() | {"OMP_NUM_THREADS": "1"}
    users = [
        subprocess.Popen(argv, stdin=-1, stdout=-1, stderr=-1, text=True, env=environment, bufsize=1) for _ in range(2)
    ]
    said = []
    for user in users:
        assert user.stdin and user.stdout
        assert user.stdout.readline() == "resident True\n"
        user.stdin.write("1\n")
        said.append(user.stdout.readline())
    assert said[0] == said[1] != ""
    own = joined(share)
    assert own
    users[0].kill()
    errors = users[0].communicate()[1]
    pid = own.pid
    assert not gone(pid)  # whichever of the two started it
    os.kill(pid, signal.SIGKILL)
    assert users[1].wait(timeout=PATIENCE) == 2
    last = users[1].communicate()[1]
    assert last.splitlines()[-1] == (
        f"python -m transfer_caffe.engine: error: {tmp_path}/db: process {pid}, which keeps its records on the GPU for "
        "several networks, has ended; run the same command again to resume from the newest snapshot"
    )
    assert (errors + last).count("shares the records kept by process") == 1
    # the files it left behind do not disturb later holders
    device("device")
    assert layer().resident and holder().pid != pid


def test_records_in_the_hosts_memory_outlive_their_holder(share):
    expected = layer().forward([], 0)[0]
    device("host")
    made = layer()
    assert not made.resident and made.keeps_records
    holder().kill()
    holder().wait()
    assert torch.equal(made.forward([], 0)[0], expected)


def test_a_holder_that_dies_while_it_decodes_is_an_error_and_its_lines_are_in_the_log(capfd):
    ours, its = socket.socketpair()
    other = Connection(its.detach())
    other.send(("allocated", 77, True, True))
    other.send(("said", "db: 3 of 10 records decoded, 9 s left"))
    user = User(ours, Source(Path("db"), None))
    other.close()
    with pytest.raises(UserError, match="db: process 77, which keeps its records for several networks, has ended; run"):
        user.receive()
    assert "db: 3 of 10 records decoded, 9 s left" in capfd.readouterr().err


def test_where_processes_cannot_share_a_gpus_memory_that_is_said():
    def refuse():
        raise RuntimeError("CUDA error: invalid device context\nCUDA kernel errors might be reported later")

    for answer in (("error", "as the holder says it"), ("records", (refuse, ()), None, np.zeros(1))):
        ours, its = socket.socketpair()
        other = Connection(its.detach())
        other.send(("allocated", 77, True, True))
        user = User(ours, Source(Path("db"), None))
        user._message = lambda answer=answer: answer
        with pytest.raises(UserError, match=r"as the holder says it|db: processes cannot share .*\); use --jobs 1"):
            user.receive()
        other.close()
    ours, its = socket.socketpair()
    with Connection(its.detach()) as other:  # it has ended after its answer, so there is nothing to map any more
        other.send(("allocated", 77, False, True))
        other.send(("records", (sharing.mapped, ("/proc/77/fd/gone", (1,))), None, np.zeros(1)))
    with pytest.raises(UserError, match="db: process 77, which keeps its records for several networks, has ended; run"):
        User(ours, Source(Path("db"), None)).receive()


def test_damaged_records_are_every_users_error_and_the_holder_ends(share):
    with lmdb.open("db") as env, env.begin(write=True) as transaction:
        transaction.put(b"00000005_x", b"\xff\xff")
    device("device")
    made, other = layer(), joined(share)
    assert other
    for ask in (lambda: made.forward([], 0), other.receive):
        with pytest.raises(UserError, match="record '00000005_x': damaged: it does not parse as a Datum"):
            ask()
    other.give_up()
    assert made._copy
    made._copy = None
    assert holder().wait(PATIENCE) == 0


def test_records_that_are_not_alike_are_read_anew_by_each(share, capfd):
    write("sizes", (8, 9))
    expected = layer("sizes").forward([], 2)[0]
    device("device")
    made = layer("sizes")
    assert not made.resident
    assert torch.equal(made.forward([], 2)[0], expected)
    said = capfd.readouterr().err
    assert "sizes: not kept in memory: record 1 is [3, 9, 8], not the shape of the first record; the records" in said


def test_where_the_holder_gets_no_memory_each_reads_anew(share, capfd, monkeypatch):
    monkeypatch.setattr(resident, "shape_of", lambda records: (10, 8, 8, 3))
    device("host")
    monkeypatch.setattr(resident, "available_memory", lambda: 1 << 62)
    real = sharing.processes.environment
    # the size of files, and memory files, that a process may write can be limited
    monkeypatch.setattr(
        sharing.processes, "environment", lambda: real() | {"PYTHONPATH": f"{Path.cwd()}:{real()['PYTHONPATH']}"}
    )
    Path("sitecustomize.py").write_text(
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    )
    made = layer()
    assert not made.keeps_records and not made.resident
    assert "db: not kept in memory: there is not enough free memory any more" in capfd.readouterr().err
    assert holder().wait(PATIENCE) == 0


def test_a_database_made_anew_is_another_source():
    source = Source(Path("db").resolve(), None)
    before = source.name()
    assert Source(Path("db").resolve(), True).name() != before
    write()
    assert source.name() != before


def test_each_network_on_a_gpu_has_its_own_reserve(share, capfd):
    gc.collect()  # frees memory that earlier tests have promised
    Images._made_by_device = ("cpu",)
    # 15% of 1000 is reserved for each of two networks; the records take 10 * 8 * 8 * 3
    for free, split in ((1920 + 300, None), (1920 + 299, resident.Split(9, 10))):
        resident.device_memory = lambda _, free=free: (free, 1000)
        made = layer()
        made.prepare(0)
        assert made._copy and made._copy.on_device and made._copy.split == split
        del made
        for process in sharing._started:
            process.wait()


def test_nothing_is_shared_unless_a_sweep_says_so(monkeypatch):
    for value in ("", "2", "x:/tmp"):
        monkeypatch.setenv(processes.SHARED_RECORDS, value)
        assert Share.of_this_process() is None
    device("device")
    assert layer().resident and not sharing._started


def test_a_holder_that_cannot_start_is_an_error_that_names_its_log(share, monkeypatch):
    device("device")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match=r"could not start; .*\.log says why; with --jobs 1 it is not needed"):
        layer()


def test_images_that_a_list_names_are_not_shared(share):
    for index in range(5):
        cv2.imwrite(f"{index}.png", np.full((6, 6, 3), index, np.uint8))
    Path("list.txt").write_text("".join(f"{index}.png {index}\n" for index in range(5)))
    text = 'name: "d" type: "ImageData" top: "data" top: "label" image_data_param { source: "list.txt" batch_size: 4 }'
    device("device")
    made = ImageData(parse_text(text, LayerParameter(), ""), Context(1, torch.device("cpu"), True))
    made.setup([])
    assert made.resident and not sharing._started


def test_a_holder_for_the_hosts_memory_takes_none_of_the_device(share, monkeypatch):
    asked = []

    def start(self, source, device, on_device):
        asked.append((device, on_device))
        return SimpleNamespace(room=True, on_device=on_device > 0, give_up=lambda: None)

    monkeypatch.setattr(Share, "start", start)
    records, gpu = open_records("db", None), torch.device("cuda", 1)
    for where in ("device", "host"):
        device(where)
        copy = resident.copy_of(records, Source(Path("db").resolve(), None), "db", gpu)
        assert copy is not None and copy.on_device is (where == "device")
        del copy
    assert asked == [(gpu, COUNT), (torch.device("cpu"), 0)]


@pytest.mark.parametrize(("stored", "forced"), [(1, "force_color"), (3, "force_gray")])
def test_a_holder_decodes_images_as_its_user_asks(stored, forced, share, monkeypatch):
    draw = np.random.RandomState(0)
    with lmdb.open("images", map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for index in range(COUNT):
            image = cv2.imencode(".png", draw.randint(0, 256, (8, 8, stored)).astype(np.uint8))[1].tobytes()
            value = Datum(data=image, label=index, encoded=True).SerializeToString()
            transaction.put(f"{index:08d}_x".encode(), value)
    monkeypatch.setitem(globals(), "LAYER", LAYER.replace("mirror: true", f"{forced}: true"))
    expected = layer("images").forward([], 0)[0]
    device("device")
    made = layer("images")
    assert made.resident and torch.equal(made.forward([], 0)[0], expected)
    assert expected.shape[1] == 4 - stored


def test_decisions_are_made_by_one_process_at_a_time(share):
    entered = threading.Event()

    def enter():
        with share.lock():
            entered.set()

    other = threading.Thread(target=enter)
    with share.lock():
        other.start()
        assert not entered.wait(0.3)
    assert entered.wait(PATIENCE)
    other.join()


def test_a_holder_that_ends_when_it_is_asked_is_none(share):
    source = Source(Path("db").resolve(), None)
    with share.lock(), socket.socket(socket.AF_UNIX) as listener, share._address(source) as address:
        listener.bind(address)
        listener.listen(1)
        ends = threading.Thread(target=lambda: listener.accept()[0].close())
        ends.start()
        assert share.join(source) is None
        ends.join()
    assert files(share) == [""]


def test_a_holder_does_not_end_with_its_starter_or_by_its_terminal_but_by_sigterm(share):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in an engine; conftest.py restores both
    signal.signal(signal.SIGINT, signal.default_int_handler)
    device("host")
    made = layer()
    assert made._copy is not None and os.getsid(holder().pid) != os.getsid(0)
    assert made._copy.ready()
    holder().send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        holder().wait(0.5)
    other = joined(share)
    assert other and not isinstance(other.receive(), str)
    holder().terminate()
    assert holder().wait(PATIENCE) == -signal.SIGTERM


def test_a_holder_stays_as_long_as_a_process_decides_and_may_connect(share):
    device("device")
    made = layer()
    assert made.resident
    with share.lock():
        del made
        time.sleep(0.6)  # several times the interval in which it looks
        other = share.join(Source(Path("db").resolve(), None))
        assert other and other.pid == holder().pid
    assert not isinstance(other.receive(), str)
    other.give_up()
    assert holder().wait(PATIENCE) == 0


def started(share, change=""):
    """Start a holder as `Share.start` does, after a ``change`` to its modules, but do not connect to it."""
    code = "import sys, time, torch\nfrom transfer_caffe.engine.batches import holder, resident\n"
    code += f"{change}\nsys.exit(holder.main(sys.argv[1:]))"
    source = Source(Path("db").resolve(), None)
    with share.lock(), socket.socket(socket.AF_UNIX) as listener, share._address(source) as address:
        listener.bind(address)
        listener.listen(8)
        argv = [sys.executable, "-c", code, "--folder", str(share.folder), "--source", str(source.path)]
        argv += ["--device", "cpu", "--on-device", str(COUNT), "--listen", str(listener.fileno())]
        with open("said", "wb") as said:
            process = subprocess.Popen(
                argv, stdout=said, stderr=said, env=processes.environment(), pass_fds=[listener.fileno()]
            )  # fmt: skip
    sharing._started.append(process)  # the fixture ends it
    return process


def test_a_holder_to_which_no_one_connects_ends_after_a_while(share):
    timed = "holder.SECONDS_FOR_A_FIRST_USER = 1.0\nrun = holder.Holder.run\ndef timed(self):\n"
    timed += "    since = time.monotonic()\n    run(self)\n    print(time.monotonic() - since)\n"
    process = started(share, f"{timed}holder.Holder.run = timed")
    assert process.wait(PATIENCE) == 0 and files(share) == [""]
    assert float(Path("said").read_text()) > 1


def test_a_fault_of_the_holder_ends_it_and_its_users_wait_no_longer(share):
    fault = (
        "import os\ndef fault(*_):\n    while not os.path.exists('go'):\n        time.sleep(0.01)\n    raise KeyError"
    )
    process = started(share, f"{fault}\nresident.load = fault")
    user = joined(share)
    assert user
    Path("go").touch()
    assert process.wait(PATIENCE) == 1 and "KeyError" in Path("said").read_text()
    with pytest.raises(UserError, match="has ended"):
        user.receive()


def test_a_holder_for_which_the_device_has_no_memory_says_so(share):
    process = started(share, "def full(*_):\n    raise torch.OutOfMemoryError('no memory')\nholder.allocate = full")
    user = joined(share)
    assert user and not user.room
    user.give_up()
    assert process.wait(PATIENCE) == 0


def test_a_holder_whose_users_leave_does_not_decode_to_the_end(share):
    slow = "from concurrent.futures import ThreadPoolExecutor as Pool\n"
    slow += "resident.load = lambda *_: Pool(1).submit(time.sleep, 3600).result()"
    process = started(share, slow)
    user = joined(share)
    assert user and user.room
    user.give_up()
    assert process.wait(PATIENCE) == 0


@pytest.fixture
def serving():
    """A `Holder` in this process that is not running, and a function that connects a user to it."""
    own, other = socket.socketpair()
    made = Holder(argparse.Namespace(source=Path("db"), color=None, on_device=True, listen=own.detach()))
    threads = []

    def connect():
        ours, its = socket.socketpair()
        thread = threading.Thread(target=made._serve, args=(Connection(its.detach()), True), daemon=True)
        threads.append(thread)
        made.users += 1
        thread.start()
        connection = Connection(ours.detach())
        assert connection.recv() == ("allocated", os.getpid(), True, True)
        return connection, thread

    yield made, connect
    made.listener.close()
    other.close()


def test_each_user_gets_each_line_once_and_counts_until_it_leaves(serving):
    made, connect = serving
    first, thread = connect()
    for line in ("one", "two"):
        made._say(line)
        assert first.poll(PATIENCE) and first.recv() == ("said", line)
    second, _ = connect()
    made._say("three")
    for user in (first, second):
        assert user.poll(PATIENCE) and user.recv() == ("said", "three")
    made._settle(lambda: ("unlike", "why"))
    for user in (first, second):
        assert user.poll(PATIENCE) and user.recv() == ("unlike", "why")
    thread.join(0.2)
    assert thread.is_alive() and made.users == 2
    first.close()
    thread.join(PATIENCE)
    assert made.users == 1
    second.close()


def test_memory_is_exported_anew_for_each_user_and_a_gpu_that_cannot_is_each_users_error(serving, monkeypatch):
    made, connect = serving
    exported = []
    monkeypatch.setattr(resident, "load", lambda *_: "labels")

    def export():
        exported.append(len(exported))
        if len(exported) > 2:
            raise RuntimeError("invalid device context\nmore")
        return exported[-1]

    made._load(None, [(torch.zeros(1), export)])
    answers = []
    for _ in range(3):
        user, _ = connect()
        assert user.poll(PATIENCE)
        answers.append(user.recv())
        user.close()
    # CUDA counts the users of a handle
    assert answers[:2] == [("records", 0, None, "labels"), ("records", 1, None, "labels")]
    why = "processes cannot share its records on this GPU (invalid device context); use --jobs 1"
    assert answers[2] == ("error", f"db: {why}")
