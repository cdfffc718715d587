"""A private Slurm cluster for tests: slurmctld, slurmd and munged of our own, under one folder, gone at the end.

    with Cluster(tmp_path) as cluster:      # root, and Debian's packages slurmctld slurmd slurm-client munge
        subprocess.run(["sinfo"], env=cluster.environment)
        cluster.nodes[0].power_off()

Three nodes on this machine, of four pretended cores and two pretended GPUs each. Each node is a PID namespace whose
first process is a shell that starts slurmd: to kill the shell is a power failure of the whole node, to kill slurmd
leaves its jobs running without it. All daemons are children of the test and die with it; all talk is on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from transfer_caffe import processes

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "munged", "unshare")
NODES = 3

CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=100000
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=5
SlurmctldTimeout=10
InactiveLimit=0
KillWait=10
MessageTimeout=5
TCPTimeout=2
{more}
"""


def missing() -> str:
    """Why there can be no cluster here; empty if there can."""
    lacking = [name for name in PROGRAMS if _program(name) is None]
    if lacking:
        return f"{lacking[0]} is not installed (Debian's packages slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "a private Slurm cluster needs root"


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")


class Node:
    """One pretended machine."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.process: subprocess.Popen[bytes] | None = None

    def power_on(self) -> None:
        """Start its first process, and slurmd under it."""
        # the loop buries the dead, which is the duty of a first process
        script = 'slurmd -D -N "$0" -f "$SLURM_CONF" & while :; do sleep 0.2; done'
        argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, self.name]
        self.process = self.cluster.start(argv, f"{self.name}.out")

    def power_off(self) -> None:
        """Kill all that runs on it, at once."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def slurmd(self) -> int | None:
        """The process of its slurmd, as seen from here."""
        assert self.process
        for child in _descendants(self.process.pid):
            name = Path(f"/proc/{child}/comm")
            if name.exists() and name.read_text().strip() == "slurmd":
                return child
        return None

    def kill_slurmd(self) -> None:
        """Kill slurmd alone: its jobs go on."""
        pid = self.slurmd()
        assert pid is not None
        os.kill(pid, 9)

    def start_slurmd(self) -> None:
        """Start slurmd again, beside the jobs that the old one left."""
        assert self.process
        first = _descendants(self.process.pid)[0]
        argv = ["nsenter", "--target", str(first), "--pid", "--mount", "slurmd", "-D", "-N", self.name]
        self.cluster.start([*argv, "-f", self.cluster.environment["SLURM_CONF"]], f"{self.name}.again.out")

    def set_down(self) -> None:
        """Tell slurmctld what it would find out by itself half a minute later."""
        self.cluster.run("scontrol", "update", f"nodename={self.name}", "state=down", "reason=test")


class Cluster:
    """The cluster, as a context manager. ``more``: further lines for slurm.conf."""

    def __init__(self, folder: Path, more: str = "RequeueExit=99") -> None:
        self.folder = folder / "cluster"
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self.environment["PATH"] = os.environ["PATH"] + os.pathsep + "/usr/sbin"
        self.nodes = [Node(self, f"node{number}") for number in range(1, NODES + 1)]
        self.slurmctld: subprocess.Popen[bytes] | None = None
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._write(more)

    def _write(self, more: str) -> None:
        self.folder.mkdir(mode=0o755)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        ports = _free_ports(1 + NODES)
        lines = [CONFIGURATION.format(folder=self.folder, ports=ports, more=more)]
        for node, port in zip(self.nodes, ports[1:], strict=True):
            lines.append(
                f"NodeName={node.name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000 "
                "Gres=gpu:2 State=UNKNOWN\n"
            )
        lines.append(f"PartitionName=main Nodes=node[1-{NODES}] Default=YES MaxTime=INFINITE State=UP\n")
        (self.folder / "slurm.conf").write_text("".join(lines))
        # a GPU's file must be a device, or Slurm sets no CUDA_VISIBLE_DEVICES
        for number, device in enumerate(("/dev/null", "/dev/zero")):
            (self.folder / f"gpu{number}").symlink_to(device)
        (self.folder / "gres.conf").write_text(f"NodeName=node[1-{NODES}] Name=gpu File={self.folder}/gpu[0-1]\n")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (self.folder / "plugstack.conf").touch()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)

    def start(self, argv: list[str], output: str) -> subprocess.Popen[bytes]:
        """Start a daemon."""
        with open(self.folder / output, "ab") as out:
            process = processes.start(argv, out, env=self.environment)
        self._daemons.append(process)
        return process

    def start_slurmctld(self) -> None:
        """Start slurmctld, from its saved state if it ran before."""
        self.slurmctld = self.start(["slurmctld", "-D"], "slurmctld.out")

    def kill_slurmctld(self) -> None:
        """Kill slurmctld."""
        assert self.slurmctld
        self.slurmctld.kill()
        self.slurmctld.wait()

    def run(self, *argv: str) -> str:
        """Run one of Slurm's commands and return what it prints."""
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def jobs(self) -> dict[str, list[str]]:
        """The live jobs: name -> [id, state, node]. An AssertionError if two have one name."""
        rows = [line.split("|") for line in self.run("squeue", "-h", "-o", "%j|%i|%T|%N").splitlines()]
        names = [row[0] for row in rows]
        assert len(names) == len(set(names)), f"a network is queued twice: {sorted(names)}"
        return {row[0]: row[1:] for row in rows}

    def idle(self) -> bool:
        """Whether all nodes are up and have nothing to do."""
        states = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%T"], env=self.environment, capture_output=True, text=True, timeout=30
        )
        return states.stdout.split() == ["idle"] * NODES

    def __enter__(self) -> Cluster:
        """Start all daemons and wait until the nodes are idle."""
        try:
            munge = [f"--key-file={self.folder}/munge.key", f"--socket={self.folder}/munge.socket"]
            munge += [f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")]
            self.start(["munged", "--foreground", "--force", "--num-threads=2", *munge], "munged.out")
            wait_for((self.folder / "munge.socket").exists, "munged")
            self.start_slurmctld()
            for node in self.nodes:
                node.power_on()
            wait_for(self.idle, "idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all that was started, by process."""
        for process in self._daemons:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.1)


def _descendants(pid: int) -> list[int]:
    """The processes below this one, parents first."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(each for child in children for each in _descendants(child))]


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, from below the range in which the system itself picks some for connections."""
    free: list[int] = []
    for port in random.sample(range(12000, 30000), 1000):
        with socket.socket() as each, contextlib.suppress(OSError):
            each.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            return free
    raise AssertionError("no free ports")
