"""What tests and checks on a GPU share."""

import contextlib
import warnings
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def never_waiting(device: torch.device) -> Iterator[None]:
    """Raise RuntimeError if the host waits for a GPU within the context; does nothing for a CPU."""
    if device.type != "cuda":
        yield
        return
    with contextlib.ExitStack() as stack:
        # the reset comes first: setting the mode warns, and a warning that is raised as an error would leave it set
        stack.callback(_set_mode, "default")
        _set_mode("error")
        yield


def _set_mode(mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says once that the mode is a prototype
        torch.cuda.set_sync_debug_mode(mode)
