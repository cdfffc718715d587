"""Fake sbatch, squeue, scancel and scontrol that keep their queue in a file, to test submit passes in milliseconds.

The queue is queue.json in the folder of the programs. Their calls, including batch scripts, are recorded in calls.json.
If a file `refuse` exists, sbatch accepts as many jobs as the number in it, and refuses the next.
"""

import json
import shlex
import sys
from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")


def install(folder: Path) -> None:
    """Write the programs into a folder that the caller puts at the front of PATH."""
    folder.mkdir()
    for name in PROGRAMS:
        # started by a shell, because a #! line cannot hold an interpreter path with a space
        command = shlex.join([sys.executable, str(Path(__file__).resolve()), str(folder / name)])
        (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / name).chmod(0o755)


def options(argv: list[str]) -> dict[str, str]:
    """Return the flags --NAME=VALUE of a command line by name."""
    pairs = (flag.removeprefix("--").partition("=") for flag in argv)
    return {name: value for name, _, value in pairs}


def main() -> int:
    here, name, argv = Path(sys.argv[1]).parent, Path(sys.argv[1]).name, sys.argv[2:]
    queue = json.loads((here / "queue.json").read_text()) if (here / "queue.json").exists() else []
    calls = json.loads((here / "calls.json").read_text()) if (here / "calls.json").exists() else []
    given = sys.stdin.read() if name == "sbatch" else ""
    if name == "sbatch":
        refuse = here / "refuse"
        if refuse.exists() and sum(call["name"] == "sbatch" for call in calls) >= int(refuse.read_text()):
            sys.stderr.write("sbatch: error: QOSMaxSubmitJobPerUserLimit\n")
            sys.stderr.write("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy\n")
            return 1
        said, number = options(argv), 100 + len(queue)
        queue.append([number, "PENDING", "", said["job-name"], "Priority", said["comment"]])
        print(number)
    elif name == "squeue":
        for job in queue:
            print("|".join(map(str, [*job[:-1], "1:02:03", job[-1]])))
    elif name == "scancel":
        queue = [job for job in queue if str(job[0]) not in argv]
    (here / "queue.json").write_text(json.dumps(queue))
    (here / "calls.json").write_text(json.dumps([*calls, {"name": name, "argv": argv, "script": given}]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
