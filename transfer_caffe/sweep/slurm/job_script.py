"""The batch script of a network's job, and what its log, runs/RECIPE/slurm/NETWORK.log, tells afterwards.

The script says when a job starts and ends, so that of a job that ended without a word that much can be told.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer_caffe.utils.processes import PACKAGE_PARENT

# Slurm warns the shell alone (--signal=B:...), and a shell that waits for a child in the foreground hears nothing;
# so the child runs in the background. `wait` ends when a signal comes: it is repeated until the child is gone.
SCRIPT = """\
#!/bin/sh
# Made by `python -m transfer_caffe.sweep run --slurm`: one job of a sweep.
export PYTHONPATH={package}${{PYTHONPATH:+:$PYTHONPATH}}
{environment}
say() {{ echo "transfer_caffe: job $SLURM_JOB_ID $* on ${{SLURMD_NODENAME:-$(uname -n)}}, $(date -u +%Y-%m-%dT%H:%M:%SZ)"; }}
told= child=
tell() {{ told=$1; [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null; }}
trap 'tell USR1' USR1   # the time limit is near
trap 'tell TERM' TERM   # cancelled
say starts
{command} &
child=$!
[ -z "$told" ] || kill -s "$told" "$child" 2>/dev/null   # it came before there was a child
while :; do wait "$child"; code=$?; kill -0 "$child" 2>/dev/null || break; done
# a driver that ends with 1 or 2 says that its network failed by itself
if [ "$told" = USR1 ] && [ "$code" -gt 2 ]; then
    say "is queued again: its time limit is near; it ends"
    # 99: should the controller not answer, and should the cluster's RequeueExit say so
    scontrol requeue "$SLURM_JOB_ID"
    exit 99
fi
{after}say "ends with exit code $code"
exit "$code"
"""  # noqa: E501

_STARTS = re.compile(r"^transfer_caffe: job (\d+) starts on (\S+),", re.MULTILINE)
_ENDS = re.compile(r"^transfer_caffe: job \d+ ends with exit code (\d+) on ", re.MULTILINE)


def script(command: Sequence[str], after: Sequence[str] | None, gpus: int) -> str:
    """The batch script that runs ``command``, and where that came to its end ``after``, whose failure is none."""
    # a job that asked for no GPU must not find one that happens to be on its node: its bytes would be others
    environment = "" if gpus else "export CUDA_VISIBLE_DEVICES="
    then = f'[ "$code" != 0 ] || {shlex.join(after)}\n' if after else ""
    package = shlex.quote(PACKAGE_PARENT)
    return SCRIPT.format(package=package, environment=environment, command=shlex.join(command), after=then)


@dataclass(frozen=True)
class Told:
    """What the last start in a log tells: the job, its node, and why it ended, if it was not as it should be."""

    job: int
    node: str
    why: str | None


def read_log(path: Path) -> Told | None:
    """What a job's log tells of its last start; None if there is none."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    starts = list(_STARTS.finditer(text))
    if not starts:
        return None
    job, node = int(starts[-1][1]), starts[-1][2]
    return Told(job, node, _why(text[starts[-1].end() :], node))


# slurmstepd's own words, and ours for them
_SLURMS = (
    ("oom", "out of memory on {node}: ask for more, by `memory` in the recipe's slurm key"),
    ("DUE TO TIME LIMIT", "ended by its time limit; is signal_seconds too short for a snapshot?"),
    ("DUE TO NODE FAILURE", "its node {node} failed"),
    ("DUE TO PREEMPTION", "preempted on {node}"),
    ("CANCELLED", "cancelled"),
)


def _why(text: str, node: str) -> str | None:
    end = _ENDS.search(text)
    if end and end[1] == "0":
        return None
    lines = text.splitlines()
    by_slurm = [line for line in lines if line.startswith("slurmstepd")]
    for sign, words in _SLURMS:
        if any(sign in line for line in by_slurm):
            return words.format(node=node)
    own = [line.split(": error: ", 1)[1] for line in lines if ": error: " in line and line not in by_slurm]
    if own:
        return own[-1]
    if any(line.endswith(": interrupted") for line in lines):
        return "stopped"
    if end:
        return f"ended with exit code {end[1]} on {node}"
    return f"its job ended without a word (killed, or its node {node} was lost)"
