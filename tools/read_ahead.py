"""Let the system fetch a large file's next part while this one is worked on, where it cannot know the order by itself.

Databases are opened without readahead, as records are read in any order; going through one from end to end then waits
for every 4 KiB: 80 MB/s instead of 500 from a disk that was measured.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_AHEAD = 64 << 20  # bytes


@contextlib.contextmanager
def read_ahead(path: Path) -> Iterator[Callable[[float], None]]:
    """Yield a function to be told now and then how far in the file one is, from 0 to 1."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        asked = 0

        def at(part: float) -> None:
            nonlocal asked
            end = min(int(part * size) + _AHEAD, size)
            if end > asked and hasattr(os, "posix_fadvise"):  # macOS has none
                begin = max(asked, int(part * size))
                os.posix_fadvise(file.fileno(), begin, end - begin, os.POSIX_FADV_WILLNEED)
                asked = end

        yield at
