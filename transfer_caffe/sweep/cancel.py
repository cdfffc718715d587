"""`sweep cancel`: end a sweep's Slurm jobs, and no others. Networks in training write a snapshot first.

    python -m transfer_caffe.sweep cancel --recipe paper
    python -m transfer_caffe.sweep cancel --recipe paper --only 'A*B+' --layers 5-7

Nothing is lost: `sweep run`, with or without --slurm, resumes from the snapshots.
"""

from __future__ import annotations

import argparse
import time

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.sweep.selection import add_recipe_arguments, selected
from transfer_caffe.sweep.slurm import queue
from transfer_caffe.sweep.slurm.submit import DATA, log_folder, submit_lock
from transfer_caffe.utils import processes
from transfer_caffe.utils.errors import ArgumentParser, UserError

SUMMARY = "cancel a sweep's jobs on a cluster; those in training write a snapshot first"
EXAMPLES = """examples:
  python -m transfer_caffe.sweep cancel --recipe paper
  python -m transfer_caffe.sweep cancel --recipe paper --split natman
"""

SECONDS_BETWEEN_LOOKS = 1.0


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `sweep cancel`."""
    add_recipe_arguments(parser)


def main(args: argparse.Namespace) -> None:
    """Cancel pending jobs, tell running ones to stop, and wait until all have ended."""
    recipe = load_recipe(args.recipe)
    selection = selected(recipe, args)
    added = {network.name for network in selection.added}
    names = {network.name for network in selection.networks} - added  # do not stop bases that were not selected
    if selection.words() is None:
        names.add(DATA)
    if not (folder := log_folder(recipe, args.runs)).is_dir():
        raise UserError(
            f"{folder}: no such folder: no jobs of {recipe.name} were submitted with this --runs; submit them with "
            f"`python -m transfer_caffe.sweep run --recipe {args.recipe} --slurm`"
        )
    processes.interrupt_on_signals()
    with submit_lock(recipe, args.runs):  # else a submit pass could submit jobs that depend on cancelled ones
        ended, hurried = _cancel(queue.tag(recipe, args.runs), names, recipe.slurm.signal_seconds)
    print(f"{ended} jobs of {recipe.name} cancelled; `sweep run` resumes from their snapshots")
    if hurried:
        print(
            f"did not stop within {recipe.slurm.signal_seconds} s and were ended without a snapshot: "
            f"{', '.join(sorted(hurried))}"
        )


def _cancel(tag: str, names: set[str], patience: float) -> tuple[int, set[str]]:
    """Return the number of cancelled jobs, and the names of those that had to be ended after ``patience`` seconds."""
    told: set[int] = set()
    seen: set[int] = set()
    hurried: set[str] = set()
    end = time.monotonic() + patience
    while jobs := [job for name, job in queue.jobs(tag).items() if name in names and job.live]:
        seen.update(job.id for job in jobs)
        # scancel checks the state again: a job that has started in the meantime must not lose its progress
        queue.cancel((job.id for job in jobs if job.state == "PENDING"), "--state=PENDING")
        running = [job for job in jobs if job.state == "RUNNING" and job.id not in told]
        queue.cancel(
            (job.id for job in running), "--batch", "--signal=TERM"
        )  # only to the shell, which passes it on to the driver
        told.update(job.id for job in running)
        for job in running:
            print(f"{job.name}: job {job.id} on {job.node} writes a snapshot", flush=True)
        if time.monotonic() > end:
            late = [job for job in jobs if job.state != "COMPLETING"]
            queue.cancel(job.id for job in late)
            hurried.update(job.name for job in late)
            if not late:
                break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return len(seen), hurried
