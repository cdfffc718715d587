"""The slots of a sweep: detection and choice of GPUs, and locks that keep two sweeps from sharing one."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from transfer_caffe.sweep import slots
from transfer_caffe.sweep.slots import CpuSlots, Gpu, GpuSlots, choose, find_gpus
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.processes import SHARED_RECORDS

LISTED = """\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-aaaa-1)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-aabb-2)
GPU 2: Tesla K20c (UUID: GPU-cccc-3)
"""
MIG = """\
GPU 0: NVIDIA A100 (UUID: GPU-aaaa-1)
  MIG 3g.20gb     Device  0: (UUID: MIG-1111)
  MIG 3g.20gb     Device  1: (UUID: MIG-2222)
GPU 1: NVIDIA A100 (UUID: GPU-bbbb-2)
"""
GPUS = [Gpu(0, "GPU-a", "one"), Gpu(1, "GPU-b", "two")]


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def machine(monkeypatch):
    """Return a function that sets the output of `nvidia-smi -L` and of PyTorch, and CUDA_VISIBLE_DEVICES."""

    def pretend(smi: str | None, torch: str | None = None, visible: str | None = None) -> list[Gpu]:
        monkeypatch.setattr(slots, "_output", lambda argv: smi if argv[0] == "nvidia-smi" else torch)
        monkeypatch.delenv(slots.VISIBLE, raising=False)
        if visible is not None:
            monkeypatch.setenv(slots.VISIBLE, visible)
        return find_gpus()

    return pretend


def keys(gpus: list[Gpu]) -> list[str]:
    return [gpu.key for gpu in gpus]


def test_gpus_are_those_of_nvidia_smi_by_their_uuids(machine):
    assert machine(LISTED)[2] == Gpu(2, "GPU-cccc-3", "Tesla K20c")
    assert keys(machine(LISTED)) == ["GPU-aaaa-1", "GPU-aabb-2", "GPU-cccc-3"]


def test_of_a_gpu_that_is_cut_up_the_parts_are_used(machine):
    assert keys(machine(MIG)) == ["MIG-1111", "MIG-2222", "GPU-bbbb-2"]
    assert machine(MIG)[0].name == "MIG 3g.20gb     Device  0"


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("2,0", ["GPU-cccc-3", "GPU-aaaa-1"]),
        ("GPU-aabb", ["GPU-aabb-2"]),
        ("1,7,0", ["GPU-aabb-2"]),  # CUDA stops at an unknown GPU
        ("GPU-aa", []),  # and does not accept an ambiguous prefix
        ("", []),
        ("-1", []),
    ],
)
def test_cuda_visible_devices_is_respected(machine, visible, expected):
    found = machine(LISTED, visible=visible)
    assert keys(found) == expected
    assert [gpu.number for gpu in found] == list(range(len(found)))


def test_without_nvidia_smi_pytorch_is_asked_in_a_child(machine):
    assert machine(None, "some GPU\nsome GPU\n") == [Gpu(0, "0", "some GPU"), Gpu(1, "1", "some GPU")]
    assert keys(machine(None, "some GPU\n", visible="3")) == ["3"]  # PyTorch only counts visible GPUs
    assert machine(None, "") == [] and machine(None, None) == []


def test_where_none_is_visible_none_is_found_by_the_real_programs(monkeypatch):
    monkeypatch.setenv(slots.VISIBLE, "-1")
    assert find_gpus() == []


def test_a_program_that_is_missing_or_fails_says_nothing():
    assert slots._output(["no-such-program"]) is None
    assert slots._output([sys.executable, "-c", "raise SystemExit(3)"]) is None


def test_gpus_are_chosen_by_number_or_all():
    assert choose("all", GPUS) == GPUS
    assert choose("1", GPUS) == GPUS[1:]
    assert choose("1, 0", GPUS) == GPUS[::-1]


@pytest.mark.parametrize("given", ["2", "0,2", "", "0,", "x", "-1"])
def test_a_gpu_that_is_not_there_is_an_error_that_says_which_are(given):
    with pytest.raises(UserError, match=r"there is no GPU .* numbers of these GPUs: 0 \(one\), 1 \(two\)"):
        choose(given, GPUS)


def test_no_gpu_at_all_and_one_named_twice_are_errors(monkeypatch):
    monkeypatch.setenv(slots.VISIBLE, "-1")
    with pytest.raises(UserError, match=r"--gpu all: no GPU can be used here \(CUDA_VISIBLE_DEVICES is '-1'; omit"):
        choose("all", [])
    with pytest.raises(UserError, match=r"a GPU is listed twice; use --jobs"):
        choose("0,0", GPUS)


def test_there_are_as_many_slots_as_said():
    cpu = CpuSlots(2)
    first = cpu.take()
    assert first is not None and cpu.take() is not None and cpu.take() is None
    cpu.give_back(first)
    assert cpu.take() is not None


def test_networks_are_spread_over_the_gpus_and_see_their_own_alone():
    gpus = GpuSlots(GPUS, 2, print)
    taken = [gpus.take() for _ in range(5)]
    assert taken[4] is None and gpus.count == 4
    seen = [slot.environment[slots.VISIBLE] for slot in taken if slot]
    assert seen == ["GPU-a", "GPU-b", "GPU-a", "GPU-b"]
    assert taken[1]
    gpus.give_back(taken[1])
    again = gpus.take()
    assert again and again.environment[slots.VISIBLE] == "GPU-b"


def test_networks_that_share_a_gpu_are_told_where_they_meet_and_one_alone_is_not(tmp_path):
    gpus = GpuSlots(GPUS, 2, print)
    gpus.environment = {"MORE": "1"}
    places = [gpus.take() for _ in range(4)]
    told = [slot.environment for slot in places if slot]
    folder = tmp_path / f"transfer_caffe-{os.getuid()}"
    assert [each[SHARED_RECORDS] for each in told] == [f"2:{folder}/records-GPU-{gpu}" for gpu in "abab"]
    assert all(each["MORE"] == "1" for each in told)
    for slot in places:
        assert slot
        gpus.give_back(slot)
    alone = GpuSlots(GPUS, 1, print).take()
    assert alone and dict(alone.environment) == {slots.VISIBLE: "GPU-a"}


def test_a_gpu_is_for_one_sweep_at_a_time_and_that_is_said_once():
    said: list[str] = []
    one, other = GpuSlots(GPUS[:1], 2, said.append), GpuSlots(GPUS, 1, said.append)
    first, second = one.take(), one.take()  # two networks of one sweep may share a GPU
    assert first and second
    free = other.take()
    assert free and free.gpu == GPUS[1]
    assert other.take() is None and other.take() is None
    assert said == ["GPU 0 (one): another sweep is using it; waiting until it ends"]
    one.give_back(first)
    assert other.take() is None
    one.give_back(second)
    now = other.take()
    assert now and now.gpu == GPUS[0]


def test_the_gpu_stays_taken_while_a_network_runs_though_its_sweep_is_gone():
    one, other = GpuSlots(GPUS[:1], 1, print), GpuSlots(GPUS[:1], 1, print)
    slot = one.take()
    assert slot
    network = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=slot.keep_open
    )
    os.close(slot.keep_open[0])  # as when the sweep ends
    assert other.take() is None
    network.communicate(b"\n")
    assert other.take() is not None


def test_locks_lie_in_a_folder_of_the_users_own(tmp_path):
    folder = slots.lock_folder()
    assert folder == tmp_path / f"transfer_caffe-{os.getuid()}"
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert slots.lock_folder() == folder
