"""What this process may use of its machine: processors and memory, within a container's limits."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Iterator
from pathlib import Path


def cores(root: Path = Path("/")) -> int:
    """The processors that this process may use: those of its affinity, or of a container's quota if that is less.

    A quota of one and a half is one: two threads would wait for the next period. ``root`` is where proc and sys lie.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups(root, "cpu"):
        count = min(count, *(max(1, math.floor(quota)) for quota in _quotas(group)), count)
    return count


def _quotas(group: Path) -> Iterator[float]:
    """The processors that a cgroup's quota allows, if it has one; of version 2, or 1."""
    with contextlib.suppress(OSError, ValueError):  # a quota of `max` is no number
        most, period = (group / "cpu.max").read_text().split()
        yield int(most) / int(period)
    with contextlib.suppress(OSError, ValueError):
        most, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        if most > 0:
            yield most / period


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the cgroups of this process that a controller may limit, up to the root; of version 2, and 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers in ("", controller) or controller in controllers.split(","):
            for place in ("sys/fs/cgroup", f"sys/fs/cgroup/{controllers}", f"sys/fs/cgroup/{controller}"):
                group = root / place / name.lstrip("/")
                yield from (group, *group.parents)


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next record or iteration; else it comes again as pages to be cleared.

    That saves half of the time of writing a database. Elsewhere than on glibc nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def available_memory(root: Path = Path("/")) -> int:
    """The bytes of memory that may be filled without the system, or a job's limit (a cgroup's), objecting.

    Pages of files that were read do not count as used: they make room. ``root`` is where proc and sys lie.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    available = [int(found["MemAvailable"].split()[0]) << 10]
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        for place, limit, used in (
            ("sys/fs/cgroup", "memory.max", "memory.current"),
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            if controllers in ("", "memory"):
                group = root / place / name.lstrip("/")
                available += [_room(each, limit, used) for each in (group, *group.parents)]
    return max(0, min(available))


def _room(group: Path, limit: str, used: str) -> int:
    """What a cgroup's limit leaves; very much where there is none, or no such cgroup can be seen."""
    try:
        most, now = int((group / limit).read_text()), int((group / used).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most - now + int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    except (OSError, ValueError):  # a limit of `max` is no number
        return 1 << 62
