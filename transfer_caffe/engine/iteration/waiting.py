"""Let PyTorch's threads sleep soon when they wait for each other: what a program imports before torch.

A thread that has done its part of an operation waits for the others. By default it spins for long before it sleeps: on
a machine that has something else to do, that takes the core from the very thread that is waited for. Beside two busy
loops on two cores an iteration of CaffeNet took 4.5 s by default and 2.1 s with a short spin, and nets of some hundred
small operations came to a standstill.

OpenMP reads these variables when it is loaded. What the user has set about it stays.
"""

import os

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"  # GNU's OpenMP: some 20 microseconds
    os.environ["KMP_BLOCKTIME"] = "0"  # LLVM's and Intel's: milliseconds
