"""How PyTorch's threads wait for each other: to be called before torch is imported.

    wait_briefly()
    import torch

A thread that has done its part of an operation waits for the others. By default it spins for long before it sleeps: on
a machine that has something else to do, that takes the core from the very thread that is waited for. Beside two busy
loops on two cores an iteration of CaffeNet took 4.5 s by default and 2.1 s with a short spin, and nets of some hundred
small operations came to a standstill.
"""

from __future__ import annotations

import os


def wait_briefly() -> None:
    """Let threads that wait sleep soon. What the user has set about it stays."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"  # GNU's OpenMP: some 20 microseconds
        os.environ["KMP_BLOCKTIME"] = "0"  # LLVM's and Intel's: milliseconds
