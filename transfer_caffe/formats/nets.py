"""Reading of net prototxts, and the layers that a net has in a given NetState (caffe/net.cpp)."""

from __future__ import annotations

import os
from collections.abc import Iterable

from transfer_caffe.formats.proto import read_text
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter, NetParameter, NetState, NetStateRule
from transfer_caffe.formats.upgrade import upgrade_net
from transfer_caffe.utils.errors import UserError

python_folders: dict[str, None] = {}
"""The folders of the nets with Python layers that were read, in that order: the layers' modules are searched there."""


def read_net(path: str | os.PathLike[str]) -> NetParameter:
    """Read a net prototxt. Old formats (before 2015) are upgraded, as Caffe does when it reads them."""
    net = upgrade_net(read_text(path, NetParameter()), os.fspath(path))
    if any(layer.type == "Python" for layer in net.layer):
        python_folders[os.path.dirname(os.path.abspath(path))] = None
    return net


def state_of(param: NetParameter, phase: int, level: int = 0, stages: Iterable[str] = ()) -> NetState:
    """Return the NetState of a net that runs without a solver: its ``state`` with phase and level, stages added."""
    state = NetState()
    state.CopyFrom(param.state)
    state.phase, state.level = phase, level  # pyright: ignore[reportAttributeAccessIssue]
    state.stage.extend(stages)
    return state


def included(layer: LayerParameter, state: NetState) -> bool:
    """Return whether a layer is in the net in this state, by its include or exclude rules (Net::FilterNet)."""
    if layer.include and layer.exclude:
        raise UserError(f"layer {layer.name!r} has both include and exclude rules; use only one kind")
    if layer.include:
        return any(_meets(rule, state) for rule in layer.include)
    return not any(_meets(rule, state) for rule in layer.exclude)


def _meets(rule: NetStateRule, state: NetState) -> bool:
    """Return whether a state meets a rule (Net::StateMeetsRule)."""
    if rule.HasField("phase") and rule.phase != state.phase:
        return False
    if rule.HasField("min_level") and state.level < rule.min_level:
        return False
    if rule.HasField("max_level") and state.level > rule.max_level:
        return False
    return set(rule.stage) <= set(state.stage) and not set(rule.not_stage) & set(state.stage)
