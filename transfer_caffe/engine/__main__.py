"""Command line of the embedded engine: the commands and flags of `caffe`, on PyTorch.

python -m transfer_caffe.engine train --solver solver.prototxt [--weights init.caffemodel] [--gpu 0]
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable

from transfer_caffe.engine.iteration import waiting  # noqa: F401 - first, since it has no effect once torch is imported

# isort: split
import torch

from transfer_caffe.engine import glog, timing
from transfer_caffe.engine.iteration import threads
from transfer_caffe.engine.iteration.graph import TestPass
from transfer_caffe.engine.net import Net
from transfer_caffe.engine.precision import PRECISIONS, use_precision
from transfer_caffe.engine.solver.settings import read_solver
from transfer_caffe.engine.solver.solver import Signals, Solver, test_pass
from transfer_caffe.engine.solver.solverstate import read_state
from transfer_caffe.formats.nets import read_net, state_of
from transfer_caffe.formats.proto.caffe_pb2 import TEST, TRAIN, SolverParameter
from transfer_caffe.utils.errors import ArgumentParser, UserError, command, require_file
from transfer_caffe.utils.machine import keep_freed_memory


@command
def main(argv: list[str] | None = None) -> int:
    """Run one of `caffe`'s commands."""
    args = _parser().parse_args(argv)
    for flag, remedy in _REMEDIES.items():
        for path in _files(given) if (given := getattr(args, flag, "")) else []:
            require_file(path, remedy)
    keep_freed_memory()  # otherwise small nets spend a fifth of their time on page faults
    with glog.logging():
        return args.run(args)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m transfer_caffe.engine",
        description="Train, test and time Caffe nets with the flags of `caffe`.",
        epilog="example: python -m transfer_caffe.engine train --solver solver.prototxt --weights init.caffemodel",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], summary: str, flags: str) -> None:
        sub = commands.add_parser(name, help=summary, description=summary)
        for flag in flags.split():
            # gflags accepts one dash or two
            sub.add_argument(f"--{flag}", f"-{flag}", **_FLAGS[flag])
        sub.set_defaults(run=run)

    add(
        "train",
        train,
        "train or fine-tune a net",
        "solver snapshot weights gpu stage level precision deterministic sigint_effect sighup_effect",
    )
    add("test", test, "score a net", "model weights iterations gpu stage level precision deterministic")
    add("time", time_net, "time a net layer by layer", "model iterations gpu stage level precision deterministic phase")
    add("device_query", device_query, "show the properties of the GPUs", "gpu")
    return parser


_FLAGS: dict[str, dict] = {
    "solver": {"required": True, "metavar": "FILE", "help": "the solver prototxt"},
    "model": {"required": True, "metavar": "FILE", "help": "the net prototxt"},
    "snapshot": {"default": "", "metavar": "FILE", "help": "resume from this .solverstate or .solverstate.h5"},
    "weights": {
        "default": "",
        "metavar": "FILE[,FILE]",
        "help": "load the weights in these .caffemodel or .caffemodel.h5 files",
    },
    "gpu": {"default": "", "metavar": "ID", "help": "number of the GPU; `all`: the first (device_query: all)"},
    "stage": {"default": "", "metavar": "NAME[,NAME]", "help": "stages of the net state"},
    "level": {"default": 0, "type": int, "metavar": "N", "help": "level of the net state"},
    "precision": {
        "default": "fp32",
        "choices": PRECISIONS,
        "help": "numerical precision of the computation; weights stay float32 (default fp32; tf32 requires a GPU)",
    },
    "deterministic": {
        "default": "on",
        "choices": ("on", "off"),
        "help": "off: let cuDNN benchmark its algorithms and use the fastest, even if results vary between runs "
        "(default on)",
    },
    "phase": {"default": "TRAIN", "choices": ("TRAIN", "TEST"), "help": "phase to time"},
    "iterations": {"default": 50, "type": int, "metavar": "N", "help": "batches to run (default 50)"},
    "sigint_effect": {
        "default": "stop",
        "choices": ("snapshot", "stop", "none"),
        "help": "what SIGINT does (default stop)",
    },
    "sighup_effect": {
        "default": "snapshot",
        "choices": ("snapshot", "stop", "none"),
        "help": "what SIGHUP does (default snapshot)",
    },
}


_GENERATE = "`python -m transfer_caffe.generate --treatment baseA` writes a solver and its net"
_TRAIN = "`python -m transfer_caffe.engine train --solver FILE` writes weights and solver states"
_REMEDIES = {"solver": _GENERATE, "model": _GENERATE, "weights": _TRAIN, "snapshot": _TRAIN}
"""The command that writes the file that a flag names."""


def _device(gpu: str, solver: SolverParameter | None = None) -> torch.device:
    """Return the device that --gpu names; without --gpu, follow solver_mode as far as this machine allows."""
    if gpu:
        count = torch.cuda.device_count()
        index = 0 if gpu == "all" else int(gpu) if gpu.isdecimal() else -1
        if not 0 <= index < count:
            raise UserError(
                f"--gpu {gpu}: this machine has {count} usable GPUs; leave --gpu out to run on the CPU"
                if "," not in gpu
                else f"--gpu {gpu}: one net runs on one GPU"
            )
        return _use(torch.device("cuda", index))
    if solver and solver.solver_mode == SolverParameter.GPU and torch.cuda.is_available():
        return _use(torch.device("cuda", solver.device_id))
    return _use(torch.device("cpu"))


def _use(device: torch.device) -> torch.device:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # otherwise pinned memory would also open a context on the first GPU
        # the default stream cannot be captured, and warm-up iterations must run on the stream that is captured
        torch.cuda.set_stream(torch.cuda.Stream(device))
        glog.info("caffe.cpp:218", f"Using GPUs {device.index}: {torch.cuda.get_device_name(device)}")
    else:
        glog.info("caffe.cpp:197", "Use CPU.")
    return device


def _dtype(args: argparse.Namespace, device: torch.device) -> torch.dtype:
    """Apply --precision and --deterministic and return the dtype in which nets compute."""
    return use_precision(args.precision, args.deterministic == "on", device)


def _files(given: str) -> list[str]:
    """Split a list of files as Caffe does: FILE[,FILE], with or without spaces."""
    files = [name.strip() for name in given.split(",")]
    if not all(files):
        raise UserError(f"weights {given!r}: a file name is missing before or after a comma")
    return files


def _stages(args: argparse.Namespace) -> list[str]:
    return [stage for stage in args.stage.split(",") if stage]


def train(args: argparse.Namespace) -> int:
    """Run `caffe train`: train from scratch, fine-tune --weights, or resume from --snapshot."""
    if args.snapshot and args.weights:
        raise UserError("give --snapshot to resume or --weights to fine-tune, not both")
    param = read_solver(args.solver)
    state = read_state(args.snapshot) if args.snapshot else None
    if state and state.seed is not None and param.random_seed < 0:
        param.random_seed = state.seed  # the seed chosen when the run started
    device = _device(args.gpu, param)
    solver = Solver(param, device, _stages(args), args.level, _dtype(args, device), own_process=True)
    signals = Signals(args.sigint_effect, args.sighup_effect)
    if state:
        solver.restore(args.snapshot, state)
    else:
        for given in [args.weights] if args.weights else param.weights:
            for weights in _files(given):
                solver.finetune(weights)
    gc.collect()
    gc.freeze()  # these objects live until the end: scanning them repeatedly took 2% of an iteration of a small net
    glog.info("caffe.cpp:239", "Starting Optimization")
    try:
        if solver.solve(signals):
            glog.info("caffe.cpp:250", "Optimization Done.")
    finally:
        gc.unfreeze()
    return 0


def test(args: argparse.Namespace) -> int:
    """Run `caffe test`: report the mean outputs over --iterations batches."""
    if not args.weights:
        raise UserError(f"test needs --weights FILE, the weights to score; {_TRAIN}")
    net = _net(args, "TEST")
    for weights in _files(args.weights):
        net.copy_from(weights)
    if net.layers[0].context.device.type == "cpu":
        torch.set_num_threads(threads.plan(net).threads)
    glog.info("caffe.cpp:281", f"Running for {args.iterations} iterations.")

    losses: list[float] = []

    def each(batch: int, loss: torch.Tensor, outputs: dict[str, torch.Tensor]) -> None:
        losses.append(float(loss))
        for name, values in outputs.items():
            for value in values.reshape(-1).tolist():
                glog.info("caffe.cpp:304", f"Batch {batch}, {name} = {glog.number(value)}")

    means = test_pass(TestPass(net), range(args.iterations), each)
    glog.info("caffe.cpp:309", f"Loss: {glog.number(sum(losses) / len(losses))}")
    for name, values in means.items():
        weight = net.loss_weight(name)
        for value in values.reshape(-1).tolist():
            tail = f" (* {glog.number(weight)} = {glog.number(weight * value)} loss)" if weight else ""
            glog.info("caffe.cpp:321", f"{name} = {glog.number(value)}{tail}")
    if not all(bool(torch.isfinite(values).all()) for values in means.values()):
        raise UserError(f"{args.weights}: the outputs are not finite numbers; the weights are damaged or diverged")
    return 0


def _net(args: argparse.Namespace, phase: str) -> Net:
    if args.iterations < 1:
        raise UserError(f"--iterations must be at least 1, not {args.iterations}")
    param = read_net(args.model)
    state = state_of(param, {"TRAIN": TRAIN, "TEST": TEST}[phase], args.level, _stages(args))
    device = _device(args.gpu)
    return Net(param, state, 0, device, dtype=_dtype(args, device))


def time_net(args: argparse.Namespace) -> int:
    """Run `caffe time`: report the forward and backward time of each layer, averaged over --iterations."""
    timing.time_net(_net(args, args.phase), args.iterations)
    return 0


def device_query(args: argparse.Namespace) -> int:
    """Run `caffe device_query`: show the properties of the GPUs; exit code 2 if the requested GPU does not exist."""
    count = torch.cuda.device_count()
    wanted = range(count) if args.gpu in ("", "all") else [_device(args.gpu).index]
    for index in wanted:
        found = torch.cuda.get_device_properties(index)
        glog.info("common.cpp:0", f"Device id: {index}")
        glog.info("common.cpp:0", f"Name: {found.name}")
        glog.info("common.cpp:0", f"Total global memory: {found.total_memory}")
        glog.info("common.cpp:0", f"Major.minor revision: {found.major}.{found.minor}")
        glog.info("common.cpp:0", f"Number of multiprocessors: {found.multi_processor_count}")
    if not count:
        glog.info("common.cpp:0", f"No GPU can be used (PyTorch {torch.__version__}); nets run on the CPU.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
