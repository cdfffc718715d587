"""Net prototxts: reading them, and which layers a net has in which state (caffe/net.cpp)."""

from __future__ import annotations

import os
from collections.abc import Iterable

from transfer_caffe.formats.proto import caffe_pb2, read_text
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter, NetParameter, NetState, NetStateRule
from transfer_caffe.formats.upgrade import upgrade_net
from transfer_caffe.utils.errors import UserError


def read_net(path: str | os.PathLike[str]) -> NetParameter:
    """Read a net prototxt; what Caffe before 2015 wrote is upgraded as Caffe does on reading."""
    return upgrade_net(read_text(path, NetParameter()), os.fspath(path))


def state_of(param: NetParameter, phase: int, level: int = 0, stages: Iterable[str] = ()) -> NetState:
    """The state of a net that is run by itself: what it says of itself, in this phase and level, and more stages."""
    state = NetState()
    state.CopyFrom(param.state)
    state.phase, state.level = phase, level  # pyright: ignore[reportAttributeAccessIssue]
    state.stage.extend(stages)
    return state


def included(layer: LayerParameter, state: NetState) -> bool:
    """Whether a layer belongs to the net in this state: its include or exclude rules decide (Net::FilterNet)."""
    if layer.include and layer.exclude:
        raise UserError(f"layer {layer.name!r}: give include rules or exclude rules, not both")
    if layer.include:
        return any(_meets(rule, state) for rule in layer.include)
    return not any(_meets(rule, state) for rule in layer.exclude)


def _meets(rule: NetStateRule, state: NetState) -> bool:
    if rule.HasField("phase") and rule.phase != state.phase:
        return False
    if rule.HasField("min_level") and state.level < rule.min_level:
        return False
    if rule.HasField("max_level") and state.level > rule.max_level:
        return False
    return set(rule.stage) <= set(state.stage) and not set(rule.not_stage) & set(state.stage)


def layers_with_weights(net: NetParameter) -> list[caffe_pb2.LayerParameter]:
    """The layers that have weights, in the net's order: layer i of the paper is the i-th of them."""
    return [layer for layer in net.layer if layer.type in ("Convolution", "InnerProduct")]
