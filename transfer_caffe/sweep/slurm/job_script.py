"""Write the batch script of a network's job, and read the job's log, runs/RECIPE/slurm/NETWORK.log, afterwards.

The script logs the start and the end of a job, so that jobs that ended without an error message can be recognised.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer_caffe.utils.processes import PACKAGE_PARENT

# Slurm only signals the shell (--signal=B:...), and a shell does not handle signals while a child runs in the
# foreground. So the child runs in the background. `wait` returns when a signal arrives, so it is repeated until the
# child has ended.
SCRIPT = """\
#!/bin/sh
# Written by `python -m transfer_caffe.sweep run --slurm`: one job of a sweep.
export PYTHONPATH={package}${{PYTHONPATH:+:$PYTHONPATH}}
{environment}
say() {{ echo "transfer_caffe: job $SLURM_JOB_ID $* on ${{SLURMD_NODENAME:-$(uname -n)}}, $(date -u +%Y-%m-%dT%H:%M:%SZ)"; }}
told= child=
tell() {{ told=$1; [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null; }}
trap 'tell USR1' USR1   # sent shortly before the time limit
trap 'tell TERM' TERM   # cancelled
say starts
{command} &
child=$!
[ -z "$told" ] || kill -s "$told" "$child" 2>/dev/null   # the signal arrived before the child was started
while :; do wait "$child"; code=$?; kill -0 "$child" 2>/dev/null || break; done
# exit codes 1 and 2 of the driver mean that the training failed, not that it was interrupted
if [ "$told" = USR1 ] && [ "$code" -gt 2 ]; then
    say "is queued again: its time limit is near; it ends"
    # 99: if the controller does not answer, the cluster requeues the job if its RequeueExit is set to this code
    scontrol requeue "$SLURM_JOB_ID"
    exit 99
fi
{after}say "ends with exit code $code"
exit "$code"
"""  # noqa: E501

_STARTS = re.compile(r"^transfer_caffe: job (\d+) starts on (\S+),", re.MULTILINE)
_ENDS = re.compile(r"^transfer_caffe: job \d+ ends with exit code (\d+) on ", re.MULTILINE)


def script(command: Sequence[str], after: Sequence[str] | None, gpus: int) -> str:
    """Return the batch script that runs ``command``, and if that succeeds ``after``, whose failure is ignored."""
    # a job that did not request a GPU must not use one that happens to be on its node: the weights would differ
    environment = "" if gpus else "export CUDA_VISIBLE_DEVICES="
    then = f'[ "$code" != 0 ] || {shlex.join(after)}\n' if after else ""
    package = shlex.quote(PACKAGE_PARENT)
    return SCRIPT.format(package=package, environment=environment, command=shlex.join(command), after=then)


@dataclass(frozen=True)
class Told:
    """The last start in a job's log: job id, node, and why the job ended (None if it succeeded)."""

    job: int
    node: str
    why: str | None


def read_log(path: Path) -> Told | None:
    """Read the last start from a job's log; None if there is none."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    starts = list(_STARTS.finditer(text))
    if not starts:
        return None
    job, node = int(starts[-1][1]), starts[-1][2]
    return Told(job, node, _why(text[starts[-1].end() :], node))


# texts in the messages of slurmstepd, and the reasons reported for them
_SLURMS = (
    ("oom", "out of memory on {node}: request more with `memory` in the recipe's slurm key"),
    ("DUE TO TIME LIMIT", "ended by its time limit; increase signal_seconds if that is too short for a snapshot"),
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
    return f"its job ended without a message (it was killed, or its node {node} was lost)"
