"""What a process has of the machine."""

from transfer_caffe.processes import available_memory

GIB = 1 << 30


def machine(root, available, groups, cgroup):
    """A root folder with a /proc/meminfo and cgroups: {folder: (limit, used, its statistics)}."""
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
