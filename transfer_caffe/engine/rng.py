"""Random numbers without hidden state: each is a function of (seed, use), and the use includes the iteration.

A run that was stopped or killed and resumed at any iteration therefore samples the same numbers as an uninterrupted
run.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derived_seed(seed: int, *use: object) -> int:
    """Return a 63-bit seed for one use, e.g. ``derived_seed(seed, "dropout", "drop6", iteration)``."""
    text = "\0".join(str(part) for part in (seed, *use))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_generator(seed: int, *use: object) -> np.random.Generator:
    """Return a NumPy generator for one use."""
    return np.random.Generator(np.random.Philox(key=derived_seed(seed, *use)))


def torch_generator(seed: int, *use: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a PyTorch generator for one use, on a device."""
    generator = torch.Generator(device=device)
    generator.manual_seed(derived_seed(seed, *use))
    return generator
