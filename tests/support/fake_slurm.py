"""sbatch, squeue, scancel, scontrol that keep their queue in a file: what a submit pass says to Slurm, in milliseconds.

The queue is queue.json in the folder of the programs; what they were called with is in calls.json, scripts included.
Where there is a file `refuse` its number is how many jobs sbatch takes before it refuses the next.
"""

import json
import shlex
import sys
from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")


def install(folder: Path) -> None:
    """Write the programs into a folder, for the front of PATH."""
    folder.mkdir()
    for name in PROGRAMS:
        # by a shell: the line #! would end at a space in the interpreter's path
        command = shlex.join([sys.executable, str(Path(__file__).resolve()), str(folder / name)])
        (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / name).chmod(0o755)


def options(argv: list[str]) -> dict[str, str]:
    """The flags of a command line, --NAME=VALUE, by their names."""
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
