"""Train one network, from recipe to done. Read from top to bottom this is the path of a network.

    python -m transfer_caffe.driver --treatment A3B+ --recipe demo --split random0
    python -m transfer_caffe.driver --treatment baseA --recipe demo --engine caffe

A network that is done stays untouched; one that was stopped or killed goes on from its newest whole snapshot. Every
step leaves whole files or none, and done.json comes last, so that nothing half made ever looks made.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.recipe import Network
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.formats.log import START, LogParser, read_log
from transfer_caffe.formats.nets import layers_with_weights
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter
from transfer_caffe.generate import Prototxts, SettingsDiffer, render
from transfer_caffe.run import snapshots, started
from transfer_caffe.run.differences import changed_setting
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
    iterations,
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
from transfer_caffe.utils.errors import ArgumentParser, UserError, command, say_error
from transfer_caffe.utils.files import read_record, sha256, sync, write_json, write_text
from transfer_caffe.utils.locks import Busy, lock


def train(
    network: Network, runs: str | os.PathLike[str] = "runs", data: str | os.PathLike[str] = "data",
    engine: Engine | str = "embedded", gpu: str | None = None, restart: bool = False, say: Say = print,
    wait: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Take a network to done and return what done.json says of it.

    UserError for what has to be put right first, RunFailed for a training that went wrong, KeyboardInterrupt when
    it was told to stop (the engine has then written a snapshot). If another process is at work on the network it
    waits for that, or without ``wait`` raises processes.Busy.
    """
    runs, data = Path(runs), Path(data)
    if isinstance(engine, str):
        engine = Engine.find(engine)
    folder = network.folder(runs)
    try:
        done = None if restart else read_done(network, runs)
    except UserError:
        done = None  # under the lock it is set aside
    if done:
        require_unchanged(network, runs, data, done)
        say(f"done already (engine {done.get('engine')}), test accuracy {done['accuracy_final']:.4f}; nothing to do")
        return done

    require_made(network, data)  # before anything is written; all else is looked at under the lock
    require_base(network, runs)
    with lock(folder.parent / f".{network.name}.lock", network.name, say, wait) as held:
        if restart:
            set_aside(folder, say)
        elif done := read_done_or_set_aside(network, runs, say):  # whoever held the lock has finished it
            require_unchanged(network, runs, data, done)
            say("done meanwhile; nothing to do")
            return done

        # 1. What it is trained on, and its files
        precision = engine.computing_in(network.recipe.precision)
        require_data(network, data, views=engine.reads_views)
        layers = layers_with_weights(render_here(network, folder, data).net)
        names = [layer.name for layer in layers]
        expected = snapshots.Expected(_outputs(layers), network.random_seed, network.max_iter)
        require_labels(network, data, layers[-1].inner_product_param.num_output)
        snapshots.remove_partial(folder)
        started.require_same(network, folder, engine, data)

        # 2. Where it starts: a snapshot of its own, or the layers of its base, or the fillers' values
        argv = [*engine.argv, "train", "--solver", SOLVER, *precision]
        iteration = snapshots.newest(folder, expected, say)
        base_sha = surgery(network, runs, folder) if network.base else None
        if iteration is not None:
            argv += ["--snapshot", f"{PREFIX}_iter_{iteration}.solverstate"]
            say(f"going on from the snapshot of iteration {iteration} of {network.max_iter}")
            if engine.name != "embedded":
                say("real Caffe draws anew what is random, and reads its data from the start: it will end elsewhere")
        elif network.base:
            argv += ["--weights", INIT]
        if gpu is not None:
            argv += ["--gpu", gpu]

        # 3. Training
        started.begin_run(folder, iteration or 0, gpu)
        try:
            written = functools.partial(look_after_snapshots, network, folder, expected, say)
            code = run_engine(argv, folder, engine.environment(network.recipe.threads), held, written, say)
        finally:
            snapshots.keep_checksums(folder)
            started.end_run(folder)
        log = read_log(folder / LOG)

        # 4. Is it what it should be?
        require_finished(log, code, folder, network.max_iter)
        final = weights_path(folder, network.max_iter)
        frozen = require_sound(network, folder, log, final, names)

        # 5. Done
        write_text(folder / CURVE, curve_csv(log.rows()))
        snapshots.thin(folder, network.max_iter, network.recipe.snapshots_kept(done=True))
        done = record(network, folder, data, engine, started.read(folder), log)
        done |= {"frozen_layers": frozen, "base_sha256": base_sha}
        if len(log.devices) > 1:
            say(f"it was trained on {' and '.join(log.devices)}: on one of them alone it would have ended elsewhere")
        write_json(folder / DONE, done | {"record_sha256": record_sha256(done)})
    say(f"done: test accuracy {done['accuracy_final']:.4f}, {done['wall_seconds']:.0f} s")
    return done


# ---- before the training ----------------------------------------------------------------------------------------


def require_unchanged(network: Network, runs: Path, data: Path, done: dict[str, Any]) -> None:
    """UserError if a network that is done would be another one by the recipe, or by its base, as they are now."""
    folder = network.folder(runs)
    render_here(network, folder, data)
    if note := changed_setting(network, done):  # what no prototxt tells: how images are made, threads
        raise UserError(f"{network.name}: done, but by the recipe {note}; {_take_back(network, runs, data)}")
    final = weights_path(folder, network.max_iter)
    if final.exists() and sha256(final) != done["sha256"]["final"]:
        raise UserError(
            f"{final}: damaged or replaced: not the weights that {DONE} tells of; take a copy that is whole, or train "
            f"{network.name} anew with --restart"
        )
    base = read_done(network.base, runs) if network.base else None
    if base and base["sha256"]["final"] != done.get("base_sha256"):
        raise UserError(
            f"{network.name}: its base {base['network']} was trained anew since; train this one anew, with --restart"
        )


def render_here(network: Network, folder: Path, data: Path) -> Prototxts:
    """Write the prototxts, or find that they are there already; others there are refused."""
    try:
        return render(network, data, folder)
    except SettingsDiffer as error:
        raise UserError(
            f"{error.what}: the settings of a network that was started have changed; "
            + _take_back(network, folder.parent.parent, data)
        ) from None


def _take_back(network: Network, runs: Path, data: Path) -> str:
    again = f"python -m transfer_caffe.driver {arguments_of(network, runs, data)} --restart"
    return f"take that back, or start it anew with `{again}`, which sets the old folder aside"


def _outputs(layers: list[LayerParameter]) -> dict[str, int]:
    return {layer.name: layer.convolution_param.num_output or layer.inner_product_param.num_output for layer in layers}


def require_base(network: Network, runs: Path) -> dict[str, Any] | None:
    """Return what the done.json of the network's base says, None for a network without one. UserError if not done."""
    if network.base is None:
        return None
    base = read_done(network.base, runs)
    if base is None:
        raise UserError(
            f"{network.name} takes over layers of {network.base.name}, which is not done; train that first: "
            f"python -m transfer_caffe.driver {arguments_of(network.base, runs)}"
        )
    return base


def surgery(network: Network, runs: Path, folder: Path) -> str:
    """Make init.caffemodel out of the base's final weights, unless it is there; gives the sha256 of those."""
    assert network.base is not None
    base = require_base(network, runs)
    assert base is not None
    base_sha: str = base["sha256"]["final"]
    record_path = folder / SURGERY
    if record_path.exists() and (folder / INIT).exists():
        kinds = {"base_sha256": str, "init_sha256": str}
        made = read_record(record_path, kinds, "remove it, or start the network anew with --restart")
        if made["base_sha256"] == base_sha and made["init_sha256"] == sha256(folder / INIT):
            return base_sha
        if made["base_sha256"] != base_sha and iterations(folder):
            raise UserError(
                f"{record_path}: {network.name} was started from other weights than {network.base.name} has now; "
                "start it anew with --restart"
            )
    base_weights = weights_path(network.base.folder(runs), network.base.max_iter)
    if sha256(base_weights) != base_sha:
        raise UserError(
            f"{base_weights}: not the weights that {DONE} beside it tells of; train {network.base.name} anew with "
            "--restart"
        )
    rows = take_over(base_weights, folder / NET, network.treatment, folder / INIT)
    write_json(
        record_path,
        {
            "base": network.base.name,
            "base_sha256": base_sha,
            "init_sha256": sha256(folder / INIT),
            "layers": [asdict(row) for row in rows],
        },
    )
    return base_sha


# ---- the training -----------------------------------------------------------------------------------------------


def run_engine(
    argv: list[str], folder: Path, env: dict[str, str], lock: int, written: Callable[[list[int]], None], say: Say
) -> int:
    """Run the engine to its end, in the network's folder, its output appended to train.log; gives its exit code.

    ``written`` is told the iterations of snapshots when the log says that they are complete.
    KeyboardInterrupt (Ctrl-C, SIGTERM) is passed on as SIGINT, on which engines write a snapshot and end. The lock
    is the engine's too: should it outlive this process, the next one waits for it.
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
    except KeyboardInterrupt:
        say("stopping: the engine writes a snapshot (once more Ctrl-C ends it without)")
        process.send_signal(signal.SIGINT)
        try:
            process.wait()
        except KeyboardInterrupt:
            process.kill()
            process.wait()
        raise
    return process.returncode


def _follow(
    process: subprocess.Popen[bytes], path: Path, start: int, written: Callable[[list[int]], None], say: Say
) -> None:
    """Wait for the engine to end, and say each test result as it comes; its log begins at byte ``start``."""
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
    """Give snapshots that were written just now checksums, and remove older ones if the newest of them is whole."""
    sync(folder / LOG)  # what it says of the time before a snapshot is not said again
    snapshots.keep_checksums(folder, written)
    count = network.recipe.snapshots_kept(done=False)
    if count is None or max(written) == network.max_iter:  # what the final one replaces goes when the network is done
        return
    try:
        snapshots.check_pair(folder, max(written), expected)
    except (UserError, OSError) as error:
        say(f"the snapshot of iteration {max(written)} is not whole, so that no older ones are removed: {error}")
        return
    # frozen layers that are not a base's are compared with the first snapshot, at the end
    snapshots.thin(folder, max(written), count, first=network.treatment.is_random)


def _drop_cut_off_line(path: Path) -> None:
    """Remove a last line without an end, left by a kill: the next line must not become a part of it."""
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)


EXAMPLES = """examples:
  python -m transfer_caffe.driver --treatment baseB --recipe demo
  python -m transfer_caffe.driver --treatment A3B+ --recipe demo --split natman --engine caffe
"""


def add_common_arguments(parser: ArgumentParser) -> None:
    """The options that the sweep has too."""
    parser.add_argument("--recipe", required=True, help="a recipe's name or its YAML file")
    parser.add_argument(
        "--engine",
        default="embedded",
        help="embedded (default), caffe (CAFFE=PROGRAM, the PATH's, or what `make caffe` made), or a program like it",
    )
    parser.add_argument("--gpu", metavar="N", help="which GPU (default: the engine's choice)")
    parser.add_argument("--runs", default="runs", type=Path, metavar="DIR", help="where networks go (default: runs)")
    parser.add_argument("--data", default="data", type=Path, metavar="DIR", help="where datasets are (default: data)")


@command
def main(argv: list[str] | None = None) -> int | None:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.driver",
        description="Train one network of a recipe, or go on with it; a network that is done stays as it is.",
        epilog=EXAMPLES,
    )
    add_common_arguments(parser)
    parser.add_argument("--treatment", required=True, help="base, baseA, A3B, B3B, A3B+, R3, ...")
    parser.add_argument("--split", help="random0, natman, ... (default: random0; whole for base and R3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the network (default: 0)")
    parser.add_argument("--restart", action="store_true", help="set the network's folder aside and start anew")
    parser.add_argument(
        "--no-wait", action="store_true", help="if another process is at work on the network, exit at once with 75"
    )
    args = parser.parse_args(argv)
    processes.interrupt_on_signals()
    treatment = Treatment.parse(args.treatment)
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: a seed is 0 or more")
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
