"""A fake engine: it has Caffe's command line, files and log lines, takes a fraction of a second, and learns nothing.

    python tests/support/fake_engine.py [MISBEHAVIOUR ...] train --solver solver.prototxt [--weights W | --snapshot S]

The weights only depend on seed and iteration, so that an interrupted run ends with the same bytes as an undisturbed
one.

Misbehaviours:
    slow        if started from scratch, wait after the first snapshot until a stop signal, or until a file `go` exists
                in the folder that holds runs/
    lingers     wait in the same way after iteration 6
    nan         log a NaN loss
    dies        abort with a failed check
    early       stop early with a snapshot
    moves       change frozen layers
    ignores     ignore the layers of --weights
    loses       delete the final weights
    tears       truncate the weights of iteration 6
    silent      end without `Optimization Done.`
    quits       exit with 0 during training
    rots        write final weights that are not finite, with finite losses
    untested    skip the last test
    cpu         fail on --gpu
    deaf        continue after a stop signal
    notes       append a line per start, with the GPU that the engine sees, to the file `notes` beside runs/
    unsealed    write snapshots without checksums and seed, as real Caffe does
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from transfer_caffe.engine import glog
from transfer_caffe.experiment.architecture import weight_shapes, weighted_layers
from transfer_caffe.formats import seal
from transfer_caffe.formats.proto import array_to_blob, blob_to_array, read_binary, read_text, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, SolverParameter, SolverState
from transfer_caffe.utils.files import sha256

GO = Path("../../../go")


def main() -> int:
    at = sys.argv.index("train")
    bad = set(sys.argv[1:at])
    parser = argparse.ArgumentParser()
    for flag in ("--solver", "--weights", "--snapshot", "--gpu", "--precision", "--deterministic"):
        parser.add_argument(flag)
    args = parser.parse_args(sys.argv[at + 1 :])
    stop: list[int] = []

    def interrupted(*_: object) -> None:
        if stop:
            os._exit(9)  # second stop signal
        if "deaf" not in bad:
            stop.append(1)

    signal.signal(signal.SIGINT, interrupted)
    if "notes" in bad:
        with GO.with_name("notes").open("a") as notes:
            notes.write(f"{Path.cwd().name} {os.environ.get('CUDA_VISIBLE_DEVICES')} {args.gpu}\n")

    solver = read_text(args.solver, SolverParameter())
    net = read_text(solver.net, NetParameter())
    shapes = weight_shapes(net)
    frozen = {layer.name for layer in weighted_layers(net) if not any(p.lr_mult for p in layer.param)}
    draw = np.random.default_rng(solver.random_seed)
    weights = {name: [draw.normal(size=shape).astype("f4") for shape in each] for name, each in shapes.items()}
    start = 0
    if args.snapshot:
        state = read_binary(args.snapshot, SolverState())
        start = state.iter
        weights = _load(state.learned_net)
    elif args.weights:
        taken = _load(args.weights)
        for name in taken:
            glog.info("net.cpp:746", f"Ignoring source layer {name}" if "ignores" in bad else f"Copying {name}")
        weights |= {} if "ignores" in bad else taken

    def snapshot(iteration: int) -> None:
        path = f"{solver.snapshot_prefix}_iter_{iteration}"
        out = NetParameter(name=net.name)
        for name, each in weights.items():
            out.layer.add(name=name, type="", blobs=[array_to_blob(array) for array in each])
        glog.info("solver.cpp:464", f"Snapshotting to binary proto file {path}.caffemodel")
        write_binary(f"{path}.caffemodel", out)
        glog.info("sgd_solver.cpp:284", f"Snapshotting solver state to binary proto file {path}.solverstate")
        state = SolverState(iter=iteration, learned_net=f"{path}.caffemodel")
        state.history.extend(array_to_blob(array) for each in weights.values() for array in each)
        if "unsealed" not in bad:
            state.random_seed, state.learned_net_sha256 = solver.random_seed, sha256(f"{path}.caffemodel")
        write_binary(f"{path}.solverstate", state)
        if "unsealed" in bad:
            for each in (f"{path}.caffemodel", f"{path}.solverstate"):
                Path(each).write_bytes(seal.read(each))

    def test(iteration: int) -> None:
        glog.info("solver.cpp:347", f"Iteration {iteration}, Testing net (#0)")
        glog.info("solver.cpp:414", f"    Test net output #0: accuracy = {iteration / solver.max_iter:g}")
        glog.info("solver.cpp:414", "    Test net output #1: loss = 1.5 (* 1 = 1.5 loss)")

    if "cpu" in bad and args.gpu:
        sys.stderr.write("F1123 13:41:53.000000 9956 common.cpp:66] Cannot use GPU in CPU-only Caffe: check mode.\n")
        os.abort()
    glog.info("solver.cpp:289", "Solving fake")
    for iteration in range(start, solver.max_iter):
        if iteration % solver.test_interval == 0:
            test(iteration)
        loss = "nan" if "nan" in bad and iteration else "2.5"
        glog.info("solver.cpp:239", f"Iteration {iteration} (5 iter/s, 0s/5 iters), loss = {loss}")
        glog.info("sgd_solver.cpp:112", f"Iteration {iteration}, lr = {solver.base_lr:g}")
        step = np.float32(solver.random_seed % 7 + iteration)
        for name, each in weights.items():
            if name not in frozen or "moves" in bad:
                weights[name] = [array + step for array in each]
        done = iteration + 1
        if done > start + 1 and "quits" in bad:
            return 0
        if done > start + 1 and "dies" in bad:
            sys.stderr.write("F1123 13:41:53.000000 9956 data_layer.cpp:9] Check failed: not today\n")
            sys.stderr.write("*** Check failure stack trace: ***\n")
            os.abort()
        if done == solver.max_iter and "rots" in bad:
            weights["fc8"][0][0] = np.nan
        if done % solver.snapshot == 0 or done == solver.max_iter:
            snapshot(done)
        if "tears" in bad and done == 6:
            os.truncate(f"{solver.snapshot_prefix}_iter_6.caffemodel", 5000)
            glog.info("solver.cpp:0", "The snapshot is written")
        while "lingers" in bad and done == 6 and not stop and not GO.exists():
            glog.info("solver.cpp:0", "Lingering")
            time.sleep(0.05)
        while "slow" in bad and not start and done >= solver.snapshot and not stop and not GO.exists():
            time.sleep(0.02)
        if stop or ("early" in bad and done == start + 2):
            snapshot(done)
            glog.info("solver.cpp:311", "Optimization stopped early.")
            glog.info("caffe.cpp:250", "Optimization Done.")
            return 0
    if "untested" not in bad:
        test(solver.max_iter)
    if "loses" in bad:
        Path(f"{solver.snapshot_prefix}_iter_{solver.max_iter}.caffemodel").unlink()
    if "silent" not in bad:
        glog.info("solver.cpp:332", "Optimization Done.")
    return 0


def _load(path: str) -> dict[str, list[np.ndarray]]:
    net = read_binary(path, NetParameter())
    return {layer.name: [blob_to_array(blob, path) for blob in layer.blobs] for layer in net.layer}


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), glog.logging():
        sys.exit(main())
