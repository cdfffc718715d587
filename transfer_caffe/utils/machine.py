"""The processors and the memory that this process may use, including the limits of a container."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Iterator
from pathlib import Path


def cores(root: Path = Path("/")) -> int:
    """Return the number of processors that this process may use: its CPU affinity, or a container's quota if smaller.

    Fractional quotas are rounded down: with a quota of 1.5, two threads would wait for the next period. ``root``: the
    folder that contains proc and sys.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups(root, "cpu"):
        count = min(count, *(max(1, math.floor(quota)) for quota in _quotas(group)), count)
    return count


def _quotas(group: Path) -> Iterator[float]:
    """Yield the number of processors that a cgroup's quota allows, if it has one; cgroup version 2, then version 1."""
    with contextlib.suppress(OSError, ValueError):  # the quota may be the word `max`
        most, period = (group / "cpu.max").read_text().split()
        yield int(most) / int(period)
    with contextlib.suppress(OSError, ValueError):
        most, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        if most > 0:
            yield most / period


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroups for a controller, up to the root; of cgroup versions 2 and 1."""
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
    """Make glibc keep freed memory for the next record or iteration instead of returning it to the system.

    Memory that was returned comes back as pages that the kernel has to clear. Keeping it halves the time of writing a
    database. Without glibc this function does nothing.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process can still use, within the limit of its job (a cgroup) if it has one.

    The page cache of files counts as available: the kernel can drop it. ``root``: the folder with proc and sys.
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
    """Return the bytes left below a cgroup's memory limit; a very large number if it has none or cannot be read."""
    try:
        most, now = int((group / limit).read_text()), int((group / used).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most - now + int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    except (OSError, ValueError):  # the limit may be the word `max`
        return 1 << 62
