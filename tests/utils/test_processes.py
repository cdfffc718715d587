"""Tests of the processors and memory that a process may use, of how its threads wait, and of signals that stop it."""

import os
import signal
import subprocess
import sys

import pytest

from transfer_caffe.utils.machine import available_memory, cores
from transfer_caffe.utils.processes import interrupt_on_signals

GIB = 1 << 30


def machine(root, available, groups, cgroup):
    """Write a root folder with /proc/meminfo and cgroups: {folder: (limit, used, statistics)}. Return it."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 999 kB\nMemAvailable: {available >> 10} kB\nHugePages_Total: 0\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, (limit, used, statistics) in groups.items():
        folder = root / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        old = "memory/" in name
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(f"{limit}\n")
        (folder / ("memory.usage_in_bytes" if old else "memory.current")).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(statistics)
    return root


def test_memory_is_what_the_system_says_where_there_is_no_limit(tmp_path):
    assert available_memory(machine(tmp_path, 5 * GIB, {"job": ("max", 1, "")}, "0::/job\n")) == 5 * GIB


def test_a_jobs_limit_counts_also_that_of_a_group_above_and_files_read_make_room(tmp_path):
    groups = {
        "slurm/job/step": ("max", 2 * GIB, "anon 5\ninactive_file 0\n"),
        "slurm/job": (8 * GIB, 3 * GIB, f"anon 5\ninactive_file {GIB}\n"),
    }
    assert available_memory(machine(tmp_path, 99 * GIB, groups, "0::/slurm/job/step\n")) == 6 * GIB


def test_a_limit_of_the_older_kind_counts_too(tmp_path):
    groups = {"memory/job": (4 * GIB, GIB, f"total_inactive_file {GIB // 2}\n")}
    cgroup = "5:cpu:/\n4:memory:/job\n0::/\n"
    assert available_memory(machine(tmp_path, 99 * GIB, groups, cgroup)) == 3 * GIB + GIB // 2


def test_a_group_above_its_limit_leaves_nothing(tmp_path):
    assert available_memory(machine(tmp_path, GIB, {"a": (GIB, 2 * GIB, "")}, "0::/a\n")) == 0


def test_this_machine_has_some():
    assert available_memory() > 1 << 20


@pytest.mark.parametrize(
    ("files", "cgroup", "quota"),
    [
        ({"job/cpu.max": "150000 100000"}, "0::/job\n", 1),
        ({"job/cpu.max": "max 100000", "cpu.max": "250000 100000"}, "0::/job\n", 2),
        ({"job/cpu.max": "50000 100000"}, "0::/job\n", 1),
        ({"cpu,cpuacct/job/cpu.cfs_quota_us": "200000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"},
         "4:cpu,cpuacct:/job\n0::/\n", 2),
        ({"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, "4:cpu:/job\n", 64),
        ({}, "0::/elsewhere\n", 64),
    ],
)  # fmt: skip
def test_a_containers_quota_counts_as_its_number_of_cores(files, cgroup, quota, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    for name, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{n}": t for n, t in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores(tmp_path) == quota


def test_the_affinity_counts_where_it_is_less_than_the_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    for name, text in {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores(tmp_path) == 1


def test_a_closed_terminal_stops_a_command_in_order_unless_nohup_has_it_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupt_on_signals()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)  # repeated
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt_on_signals()
    signal.raise_signal(signal.SIGHUP)


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_the_engines_threads_wait_briefly_unless_the_user_says_otherwise(given):
    code = "import os, transfer_caffe.engine.__main__; print(os.environ.get('GOMP_SPINCOUNT'))"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_", "KMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env={**kept, **given}, capture_output=True, text=True)
    assert done.stdout.strip() == ("10000" if not given else given.get("GOMP_SPINCOUNT", "None"))
