"""The helper that detects a host waiting for a GPU restores the mode, although PyTorch warns when it is set."""

import warnings

import pytest
import torch
from support.gpu import never_waiting

GPU = torch.device("cuda", 0)


def test_the_mode_is_reset_whatever_happens_and_its_warning_is_no_error(monkeypatch):
    modes = []

    def set_mode(mode):
        modes.append(mode)
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with pytest.raises(ValueError, match="within"), never_waiting(GPU):
        assert modes == ["error"]
        raise ValueError("within")
    assert modes == ["error", "default"]


def test_the_mode_is_reset_if_setting_it_fails(monkeypatch):
    modes = []

    def set_mode(mode):
        modes.append(mode)
        if mode == "error":
            raise RuntimeError("no driver")

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with pytest.raises(RuntimeError, match="no driver"), never_waiting(GPU):
        pass
    assert modes == ["error", "default"]
