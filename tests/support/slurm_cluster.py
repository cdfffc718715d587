"""A private Slurm cluster with three simulated nodes, for tests: real daemons, free ports, all files in one folder.

    with Cluster(tmp_path) as cluster:          # takes about three seconds
        os.environ.update(cluster.environment)  # sbatch, squeue, scancel, scontrol now use this cluster
        cluster.kill_node("node1")              # simulates a power failure; start_node restarts it

It needs root and the packages slurmctld, slurmd, slurm-client and munge. All daemons are children of this process, and
end with it. Each slurmd runs in a separate PID namespace, so that all processes of a node end with the node. The nodes
share the machine's files, as the nodes of a cluster share a file system.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support.waiting import wait_for

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "munged", "unshare")
NODES = ("node1", "node2", "node3")
GPUS = 2  # per node

SLURM_CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=100000{scheduler}
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=5
SlurmctldTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=300
MaxJobCount=20000
MessageTimeout=10
TCPTimeout=2
JobRequeue=1
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return why a private cluster cannot be started here, or None if it can."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"{missing[0]} is not installed (apt-get install slurmctld slurmd slurm-client munge)"
    return "needs root" if os.geteuid() else None


class Cluster:
    """The daemons of a small cluster; with ``environment`` set, Slurm's commands use this cluster."""

    SAVES_WITHIN = 7
    """Seconds after which slurmctld has saved its state to disk: it waits at most 5 s (SAVE_MAX_WAIT) before saving."""

    def __init__(self, folder: Path, scheduler: str = "") -> None:
        """``folder`` must be empty and have a short name without spaces; ``scheduler``: more SchedulerParameters."""
        self.folder = folder
        ports = _free_ports(1 + len(NODES))
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "gpu", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir(mode=0o700)
        for number in range(GPUS):  # File= in gres.conf must list different device files
            (folder / "gpu" / str(number)).symlink_to(("/dev/null", "/dev/zero")[number])
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(64))
        key.chmod(0o600)
        nodes = "\n".join(
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000 "
            f"Gres=gpu:{GPUS} State=UNKNOWN"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        (folder / "slurm.conf").write_text(
            SLURM_CONF.format(
                controller=ports[0], folder=folder, nodes=nodes, names=",".join(NODES), scheduler=scheduler
            )
        )
        (folder / "gres.conf").write_text(f"NodeName={','.join(NODES)} Name=gpu File={folder}/gpu/[0-{GPUS - 1}]\n")
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (folder / "plugstack.conf").write_text("")

    def __enter__(self) -> Cluster:
        try:
            files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
            socket_path = self.folder / "munge.socket"
            # --force: munged rejects the permissions of the tests' folders otherwise
            self._start("munged", "munged", "--foreground", "--force", f"--socket={socket_path}", *files)
            wait_for(socket_path.exists, "munged")
            self.start_controller()
            for node in NODES:
                self.start_node(node)
            wait_for(lambda: set(self.states().values()) == {"idle"}, lambda: f"idle nodes: {self.states()}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.children)):
            self._kill(name)

    # ---- daemons -------------------------------------------------------------------------------------------------

    def start_controller(self) -> None:
        """Start slurmctld with the saved state of an earlier one."""
        self._start("slurmctld", "slurmctld", "-D")
        wait_for(lambda: self._answers(), "slurmctld")

    def kill_controller(self) -> None:
        """Kill slurmctld, as in a power failure."""
        self._kill("slurmctld")

    def start_node(self, node: str) -> None:
        """Start a node that was killed, or was never started."""
        # the shell is the first process of the namespace, whose processes all end with it; it survives `kill_slurmd`
        script = f"slurmd -D -N {node} & while :; do wait; sleep 1; done"
        self._start(node, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script)

    def kill_node(self, node: str) -> None:
        """Kill slurmd and all processes on its node, as in a power failure."""
        self._kill(node)

    def kill_slurmd(self, node: str) -> None:
        """Kill only slurmd: the jobs on its node continue, but Slurm treats them as lost."""
        shell = _children(self.children[node].pid)[0]
        for number in _children(shell):
            if Path(f"/proc/{number}/comm").read_text() == "slurmd\n":
                os.kill(number, signal.SIGKILL)

    def states(self) -> dict[str, str]:
        """Return the state of each node, as printed by sinfo (idle, mix, alloc, down*, ...)."""
        out = self.ask("sinfo", "-h", "-N", "-o", "%N %t")
        return dict(line.split() for line in out.splitlines())

    def ask(self, *argv: str) -> str:
        """Return the output of one of Slurm's commands; "" if it fails."""
        done = subprocess.run(argv, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    def _answers(self) -> bool:
        return "UP" in self.ask("scontrol", "ping")

    def _start(self, name: str, *argv: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.children[name] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **self.environment}, preexec_fn=_die_with_parent,
            )  # fmt: skip

    def _kill(self, name: str) -> None:
        child = self.children.pop(name)
        child.kill()
        child.wait()


def _children(parent: int) -> list[int]:
    """Return the child processes of a process, including adopted ones, oldest first."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return sorted(found)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def running_cluster(folder: Path, scheduler: str = "") -> Iterator[Cluster]:
    """Start a cluster in a new folder, and stop it at the end of the block."""
    folder.mkdir(parents=True)
    with Cluster(folder, scheduler) as cluster:
        yield cluster
