"""Tensors between pages of memory that no one may read or write: a program that does is ended by the kernel."""

import ctypes
import mmap

import numpy as np
import torch

_libc = ctypes.CDLL(None, use_errno=True)


def guarded(tensor, at_end):
    """Return a copy of a dense tensor right after a page without access, or right before one (``at_end``)."""
    assert tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)
    size, page = tensor.numel() * tensor.element_size(), mmap.PAGESIZE
    room = -(-size // page) * page
    memory = mmap.mmap(-1, room + 2 * page)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (begin, begin + page + room):
        assert _libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    values = np.frombuffer(memory, np.uint8, size, offset=page + (room - size if at_end else 0))
    made = torch.from_numpy(values).view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
    return made.copy_(tensor)
