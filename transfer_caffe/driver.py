"""Train one network from its recipe to done.json. The steps of `train` are in the order in which they happen.

    python -m transfer_caffe.driver --treatment A3B+ --recipe demo --split random0
    python -m transfer_caffe.driver --treatment baseA --recipe demo --engine caffe

A network that is done is left unchanged. A network that was stopped or killed is resumed from its newest intact
snapshot. Every file is written atomically, and done.json is written last, so that an incomplete network is never taken
for a finished one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transfer_caffe.experiment.architecture import classes_of, outputs_of, weighted_layers, weights_of_stages
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.recipe import Network
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.formats.log import START, LogParser, read_log
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter
from transfer_caffe.generate import Prototxts, SettingsDiffer, render
from transfer_caffe.run import snapshots, started
from transfer_caffe.run.differences import changed_setting, changed_source
from transfer_caffe.run.engines import Engine
from transfer_caffe.run.folder import (
    CURVE,
    DONE,
    INIT,
    LOG,
    NET,
    PREFIX,
    SOLVER,
    SURGERY,
    Say,
    arguments_of,
    read_done,
    read_done_or_set_aside,
    set_aside,
    weights_path,
)
from transfer_caffe.run.inputs import require_data, require_labels, require_made
from transfer_caffe.run.outcome import RunFailed, require_finished, require_sound
from transfer_caffe.run.record import curve_csv, record, record_sha256
from transfer_caffe.surgery import take_over
from transfer_caffe.utils import processes
from transfer_caffe.utils.errors import ArgumentParser, UserError, command, require_file, say_error
from transfer_caffe.utils.files import read_record, sha256, sync, write_json, write_text
from transfer_caffe.utils.locks import Busy, lock


def train(
    network: Network, runs: str | os.PathLike[str] = "runs", data: str | os.PathLike[str] = "data",
    engine: Engine | str = "embedded", gpu: str | None = None, restart: bool = False, say: Say = print,
    wait: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Train a network until it is done, and return the content of its done.json.

    Raise UserError for a problem that has to be fixed first, RunFailed if the training failed, and KeyboardInterrupt if
    it was told to stop (the engine has then written a snapshot). If another process is using the network, wait for it,
    or without ``wait`` raise `locks.Busy`.
    """
    runs, data = Path(runs), Path(data)
    if isinstance(engine, str):
        engine = Engine.find(engine)
    folder = network.folder(runs)
    try:
        done = None if restart else read_done(network, runs)
    except UserError:
        done = None  # a damaged done.json is renamed below, under the lock
    if done:
        require_unchanged(network, runs, data, done)
        say(f"already done (engine {done.get('engine')}), test accuracy {done['accuracy_final']:.4f}; nothing to do")
        return done

    require_made(network, data)  # before anything is written; everything else is checked under the lock
    require_base(network, runs)
    with lock(folder.parent / f".{network.name}.lock", network.name, say, wait) as held:
        # the process that held the lock may have finished it
        if not restart and (done := read_done_or_set_aside(network, runs, say)):
            require_unchanged(network, runs, data, done)
            say("finished by another process in the meantime; nothing to do")
            return done

        # 1. Check the data and write the prototxts
        precision = engine.computing_in(network.recipe.precision, network.recipe.deterministic)
        require_data(network, data, views=engine.reads_views)
        if restart:  # after the checks: if they fail, the finished network stays where it is
            set_aside(folder, say)
        net = render_here(network, folder, data).net
        layers = weighted_layers(net)
        names = [layer.name for layer in layers]
        copied = weights_of_stages(net, network.treatment.n, network.recipe.cuts)
        outputs = {layer.name: outputs_of(layer) for layer in layers if outputs_of(layer)}
        expected = snapshots.Expected(outputs, network.random_seed, network.max_iter)
        require_labels(network, data, classes_of(net))
        snapshots.remove_partial(folder)
        started.require_same(network, folder, engine, data)

        # 2. Choose the initial weights: the network's own snapshot, layers copied from its base, or the fillers
        argv = [*engine.argv, "train", "--solver", SOLVER, *precision]
        iteration = snapshots.newest(folder, expected, say)
        base_sha = surgery(network, runs, folder) if network.treatment.copies else None
        if iteration is not None:
            argv += ["--snapshot", f"{PREFIX}_iter_{iteration}.solverstate"]
            say(f"resuming from the snapshot of iteration {iteration} of {network.max_iter}")
            if engine.name != "embedded":
                say(
                    "real Caffe restarts its random numbers and its data from the beginning when it resumes: the "
                    "result will differ from that of an uninterrupted run"
                )
        elif network.treatment.copies:
            argv += ["--weights", INIT]
        if gpu is not None:
            argv += ["--gpu", gpu]

        # 3. Train
        started.begin_run(folder, iteration or 0, gpu)
        try:
            written = functools.partial(look_after_snapshots, network, folder, expected, say)
            code = run_engine(argv, folder, engine.environment(network.recipe.threads), held, written, say)
        finally:
            snapshots.keep_checksums(folder)
            started.end_run(folder)
        log = read_log(folder / LOG)

        # 4. Check the result
        require_finished(log, code, folder, network.max_iter)
        final = weights_path(folder, network.max_iter)
        frozen = require_sound(network, folder, log, final, names, _unmoved(network, layers, copied))

        # 5. Record the result
        write_text(folder / CURVE, curve_csv(log.rows()))
        snapshots.thin(folder, network.max_iter, network.recipe.snapshots_kept(done=True))
        done = record(network, folder, data, engine, started.read(folder), log)
        done |= {"frozen_layers": frozen, "base_sha256": base_sha}
        if len(log.devices) > 1:
            say(f"trained on {' and '.join(log.devices)}: the result differs from that of training on a single device")
        write_json(folder / DONE, done | {"record_sha256": record_sha256(done)})
    say(f"done: test accuracy {done['accuracy_final']:.4f}, {done['wall_seconds']:.0f} s")
    return done


# ---- before the training ----------------------------------------------------------------------------------------


def require_unchanged(network: Network, runs: Path, data: Path, done: dict[str, Any]) -> None:
    """Raise UserError if the recipe, the final weights or the base of a finished network have changed since."""
    folder = network.folder(runs)
    render_here(network, folder, data)
    if note := changed_setting(network, done):  # settings that no prototxt holds: image preparation, threads
        raise UserError(f"{network.name}: done, but its recipe has changed: {note}; {_take_back(network, runs, data)}")
    final = weights_path(folder, network.max_iter)
    if final.exists() and sha256(final) != done["sha256"]["final"]:
        raise UserError(
            f"{final}: damaged or replaced: its sha256 is not the one in {DONE}; restore an intact copy, or retrain "
            f"{network.name} with --restart"
        )
    if note := changed_source(network, done):
        raise UserError(f"{network.name}: done, but {note}; {_take_back(network, runs, data)}")
    base = read_done(network.base, runs) if network.base else None
    if base and base["sha256"]["final"] != done.get("base_sha256"):
        raise UserError(
            f"{network.name}: its base {base['network']} has been retrained since; retrain this network with --restart"
        )


def render_here(network: Network, folder: Path, data: Path) -> Prototxts:
    """Write the prototxts, or keep existing ones that are equal. Raise UserError if existing ones differ."""
    try:
        return render(network, data, folder)
    except SettingsDiffer as error:
        raise UserError(
            f"{error.what}: the settings have changed since the network was started; "
            + _take_back(network, folder.parent.parent, data)
        ) from None


def _take_back(network: Network, runs: Path, data: Path) -> str:
    again = f"python -m transfer_caffe.driver {arguments_of(network, runs, data)} --restart"
    return f"undo the change, or retrain it with `{again}`, which renames the old folder"


def require_base(network: Network, runs: Path) -> dict[str, Any] | None:
    """Return the content of the base's done.json, None for a network without a base. Raise UserError if not done."""
    if network.base is None:
        return None
    base = read_done(network.base, runs)
    if base is None:
        raise UserError(
            f"{network.name} copies layers from {network.base.name}, which is not done; train that first: "
            f"python -m transfer_caffe.driver {arguments_of(network.base, runs)}"
        )
    if note := changed_setting(network.base, base):
        raise UserError(f"{network.name}: its base {network.base.name} is out of date: {note}; retrain that first")
    return base


def _unmoved(network: Network, layers: Sequence[LayerParameter], copied: Sequence[str]) -> list[str]:
    """Return the layers of the first n stages whose blobs must not change: those that are frozen.

    The statistics of BatchNorm layers move if they are those of the mini-batch.
    """
    if network.treatment.finetuned:
        return []
    stored = network.recipe.batch_norm == "stored" and not network.treatment.is_random
    moving = {layer.name for layer in layers if layer.type == "BatchNorm" and not stored}
    return [name for name in copied if name not in moving]


def surgery(network: Network, runs: Path, folder: Path) -> str:
    """Write init.caffemodel from the base's final weights, or the source's, unless it exists; return their sha256."""
    weights, base_sha, name = base_weights(network, runs)
    record_path = folder / SURGERY
    if record_path.exists() and (folder / INIT).exists():
        kinds = {"base_sha256": str, "init_sha256": str}
        made = read_record(record_path, kinds, "remove it, or retrain the network with --restart")
        if made["base_sha256"] == base_sha and made["init_sha256"] == sha256(folder / INIT):
            return base_sha
        if made["base_sha256"] != base_sha and snapshots.iterations(folder):
            raise UserError(
                f"{record_path}: the weights of {name} have changed since {network.name} was started from them; "
                "retrain it with --restart"
            )
    rows = take_over(weights, folder / NET, network.treatment, folder / INIT, cuts=network.recipe.cuts)
    write_json(
        record_path,
        {
            "base": name,
            "base_sha256": base_sha,
            "init_sha256": sha256(folder / INIT),
            "layers": [asdict(row) for row in rows],
        },
    )
    return base_sha


def base_weights(network: Network, runs: Path) -> tuple[Path, str, str]:
    """Return the weights that stages are copied from, their sha256, and the name of their network or file.

    Raise UserError if they are missing, or are not what done.json or the recipe says.
    """
    if network.base is None:
        assert network.source is not None
        given = network.recipe.sources[network.treatment.source]
        require_file(network.source, f"the recipe's source {network.treatment.source} names it: correct the path")
        found = sha256(network.source)
        if given.sha256 is not None and given.sha256.lower() != found:
            raise UserError(
                f"{network.source}: its sha256 is {found}, but the recipe's source {network.treatment.source} has "
                f"{given.sha256}: another file, or a damaged one"
            )
        return network.source, found, given.weights
    base = require_base(network, runs)
    assert base is not None
    base_sha: str = base["sha256"]["final"]
    weights = weights_path(network.base.folder(runs), network.base.max_iter)
    if sha256(weights) != base_sha:
        raise UserError(
            f"{weights}: damaged or replaced: its sha256 is not the one in {DONE}; retrain {network.base.name} with "
            "--restart"
        )
    return weights, base_sha, network.base.name


# ---- the training -----------------------------------------------------------------------------------------------


def run_engine(
    argv: list[str], folder: Path, env: dict[str, str], lock: int, written: Callable[[list[int]], None], say: Say
) -> int:
    """Run the engine in the network's folder until it ends, append its output to train.log, and return its exit code.

    ``written`` is called with the iterations of new snapshots once the log reports that they are complete.
    KeyboardInterrupt (Ctrl-C, SIGTERM) is passed on to the engine as SIGINT: it then writes a snapshot and exits. Any
    other exception, for example because the standard output is closed, stops the engine in the same way. The engine
    inherits the lock, so that if it outlives this process, other processes still wait for it.
    """
    path = folder / LOG
    _drop_cut_off_line(path)
    with open(path, "ab") as output:
        before = output.tell()
        line = f"{time.strftime('I%m%d %H:%M:%S')}.000000 {os.getpid():5d} {START}:1] Starting {' '.join(argv)}\n"
        output.write(line.encode())
        output.flush()
        process = processes.start(argv, output, folder, env, keep_open=[lock])
    try:
        _follow(process, path, before, written, say)
    except BaseException:  # also an output that is closed or full: the engine would die with this process
        with contextlib.suppress(OSError):
            say("stopping: the engine writes a snapshot (press Ctrl-C again to end it without one)")
        process.send_signal(signal.SIGINT)
        try:
            process.wait()
        except KeyboardInterrupt:
            process.kill()
            process.wait()
        raise
    return process.wait()


def _follow(process: processes.Child, path: Path, start: int, written: Callable[[list[int]], None], say: Say) -> None:
    """Wait for the engine to end, and report each test result; the engine's log begins at byte ``start``."""
    parser, said, summed = LogParser(), None, 0
    with open(path, encoding="utf-8", errors="replace") as log:
        log.seek(start)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            parser.feed(log.read())
            if new := parser.log.snapshots[summed:]:
                written(new)
                summed += len(new)
            rows = [row for row in parser.log.rows() if row.test_accuracy is not None and row.test_loss is not None]
            if rows and rows[-1] != said and (said is None or rows[-1].iteration != said.iteration):
                said = rows[-1]
                say(f"iteration {said.iteration}: test accuracy {said.test_accuracy:.4f}, loss {said.test_loss:.4f}")
            if process.returncode is not None:
                return


def look_after_snapshots(
    network: Network, folder: Path, expected: snapshots.Expected, say: Say, written: list[int]
) -> None:
    """Write checksums of new snapshots, and remove older snapshots if the newest one is intact."""
    sync(folder / LOG)  # after a resume, the log lines from before the snapshot are not written again
    snapshots.keep_checksums(folder, written)
    count = network.recipe.snapshots_kept(done=False)
    if count is None or max(written) == network.max_iter:  # snapshots older than the final one are removed at the end
        return
    try:
        snapshots.check_pair(folder, max(written), expected)
    except (UserError, OSError) as error:
        say(f"the snapshot of iteration {max(written)} is damaged, so older ones are kept: {error}")
        return
    # frozen random layers are compared with the first snapshot at the end, so that one is kept
    snapshots.thin(folder, max(written), count, first=network.treatment.is_random)


def _drop_cut_off_line(path: Path) -> None:
    """Remove an incomplete last line, left by a kill, so that the next line is not appended to it."""
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)


EXAMPLES = """examples:
  python -m transfer_caffe.driver --treatment baseB --recipe demo
  python -m transfer_caffe.driver --treatment A3B+ --recipe demo --split natman --engine caffe
"""


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the options that driver and sweep have in common."""
    parser.add_argument("--recipe", required=True, help="name of a recipe, or path of its YAML file")
    parser.add_argument(
        "--engine",
        default="embedded",
        help="embedded (default), caffe (environment variable CAFFE, the PATH, or built by `make caffe`), or a program "
        "with the same command line",
    )
    parser.add_argument("--gpu", metavar="N", help="GPU to train on (default: chosen by the engine)")
    parser.add_argument(
        "--runs", default="runs", type=Path, metavar="DIR", help="folder of the networks (default: runs)"
    )
    parser.add_argument(
        "--data", default="data", type=Path, metavar="DIR", help="folder of the datasets (default: data)"
    )


@command
def main(argv: list[str] | None = None) -> int | None:
    """Run the command line."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.driver",
        description="Train one network of a recipe, or resume its training; a network that is done is left unchanged.",
        epilog=EXAMPLES,
    )
    add_common_arguments(parser)
    parser.add_argument("--treatment", required=True, help="base, baseA, A3B, B3B, A3B+, R3, ...")
    parser.add_argument("--split", help="random0, natman, ... (default: random0; whole for base and R3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the network (default: 0)")
    parser.add_argument("--restart", action="store_true", help="rename the network's old folder and retrain it")
    parser.add_argument(
        "--no-wait", action="store_true", help="if another process is using the network, exit at once with code 75"
    )
    args = parser.parse_args(argv)
    processes.interrupt_on_signals()
    treatment = Treatment.parse(args.treatment)
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: a seed must be 0 or more")
    split = args.split or ("random0" if treatment.target else "whole")
    network = load_recipe(args.recipe).network(split, treatment, args.seed)

    def say(line: str) -> None:
        print(f"{network.name}: {line}", flush=True)

    try:
        engine = Engine.find(args.engine)
        train(network, args.runs, args.data, engine, args.gpu, args.restart, say, wait=not args.no_wait)
    except RunFailed as error:
        say_error(parser.prog, f"{network.name}: {error}")
        return 1
    except Busy as error:
        say_error(parser.prog, str(error))
        return os.EX_TEMPFAIL
    return 0


if __name__ == "__main__":
    sys.exit(main())
