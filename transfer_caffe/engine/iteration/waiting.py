"""Let PyTorch's threads sleep soon when they wait for each other. Import this module before torch.

A thread that has finished its part of an operation waits for the others. By default it spins for a long time before it
sleeps; on a busy machine, this takes the core away from the thread that it waits for. With two busy loops on the same
two cores, an iteration of CaffeNet took 4.5 s by default and 2.1 s with a short spin, and nets with hundreds of small
operations almost stopped.

OpenMP reads these environment variables when it is loaded. Variables that the user has set are not changed.
"""

import os

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"  # GNU OpenMP: about 20 microseconds
    os.environ["KMP_BLOCKTIME"] = "0"  # LLVM and Intel OpenMP: in milliseconds
