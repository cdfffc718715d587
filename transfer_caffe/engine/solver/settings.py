"""Read and validate a solver prototxt before anything is built, and find the nets that it names."""

from __future__ import annotations

import os

from transfer_caffe.engine import glog
from transfer_caffe.engine.solver import rates, updates
from transfer_caffe.formats.nets import read_net
from transfer_caffe.formats.proto import read_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, NetState, SolverParameter
from transfer_caffe.formats.upgrade import upgrade_solver
from transfer_caffe.utils.errors import UserError, require_file


def read_solver(path: str) -> SolverParameter:
    """Read and check a solver prototxt; the paths of its nets are relative to the current folder, as with Caffe."""
    param = upgrade_solver(read_text(path, SolverParameter()), path)
    updates.check(param, path)
    for field in ("max_iter", "base_lr", "lr_policy"):
        if not param.HasField(field):
            raise UserError(f"{path}: {field} is missing")
    rates.check(param, path)
    if param.regularization_type not in ("L1", "L2"):
        raise UserError(f"{path}: unknown regularization_type {param.regularization_type!r}; known: L1, L2")
    if param.iter_size < 1 or param.average_loss < 1:
        raise UserError(f"{path}: iter_size and average_loss must be at least 1")
    _check_nets(param, path)
    _set_prefix(param, path)
    return param


def _check_nets(param: SolverParameter, path: str) -> None:
    """Check what Solver::InitTrainNet and InitTestNets check: one training net, and test_iter and test_state to match.

    Raise UserError otherwise.
    """
    fields = [name for name in ("net", "net_param", "train_net", "train_net_param") if param.HasField(name)]
    if len(fields) > 1:
        raise UserError(f"{path}: names the training net more than once: {', '.join(fields)}; keep one")
    if not fields:
        raise UserError(f'{path}: names no training net; set net: "train_val.prototxt"')
    for net in (param.net, param.train_net, *param.test_net):
        if net:
            require_file(net, f"{path} names it: run the command in the folder to which this path is relative")
    nets, tests = len(param.test_net) + len(param.test_net_param), len(param.test_iter)
    general = fields[0] in ("net", "net_param")
    if tests < nets or (tests > nets and not general):
        raise UserError(f"{path}: has {nets} test nets and {tests} test_iter; give one test_iter for each")
    if len(param.test_state) not in (0, tests):
        raise UserError(f"{path}: has {len(param.test_state)} test_state for {tests} test nets; give one for each")
    if tests and param.test_interval < 1:
        raise UserError(f"{path}: sets test_iter, but no test_interval")


def _set_prefix(param: SolverParameter, path: str) -> None:
    """Derive snapshot_prefix from the solver file's name without its extension, if it is not set or is a folder."""
    name = os.path.splitext(path)[0]
    if not param.snapshot_prefix:
        param.snapshot_prefix = name
        glog.info("upgrade_proto.cpp:1108", f"snapshot_prefix was not specified and is set to {name}")
    elif os.path.isdir(param.snapshot_prefix):
        param.snapshot_prefix = os.path.join(param.snapshot_prefix, os.path.basename(name))
        glog.info(
            "upgrade_proto.cpp:1113", f"snapshot_prefix was a directory and is replaced to {param.snapshot_prefix}"
        )


def train_net(param: SolverParameter) -> NetParameter:
    """Return the net to train."""
    if param.HasField("train_net"):
        return read_net(param.train_net)
    return param.train_net_param if param.HasField("train_net_param") else _general_net(param)


def test_net(param: SolverParameter, index: int) -> tuple[NetParameter, NetState]:
    """Return test net ``index`` and its test_state, in Caffe's order: test_net_param, test_net, then net or net_param.

    There are as many test nets as test_iter.
    """
    state = param.test_state[index] if param.test_state else NetState()
    if index < len(param.test_net_param):
        return param.test_net_param[index], state
    index -= len(param.test_net_param)
    return (read_net(param.test_net[index]) if index < len(param.test_net) else _general_net(param)), state


def _general_net(param: SolverParameter) -> NetParameter:
    return read_net(param.net) if param.HasField("net") else param.net_param
