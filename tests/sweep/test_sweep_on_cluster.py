"""A sweep on a real Slurm with three simulated nodes and cluster failures: the final weights are the same."""

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import support
from support.slurm_cluster import Cluster, running_cluster, why_not
from support.small_world import draw_shapes, experiment
from support.waiting import PATIENCE, wait_for

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.results.table import read_results
from transfer_caffe.sweep.__main__ import main as sweep_main
from transfer_caffe.sweep.slurm import queue
from transfer_caffe.utils import processes
from transfer_caffe.utils.files import read_json, sha256, write_text

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no private Slurm: {why_not()}")

# 3 of a node's 4 processors: one job per node, so that killing a node only ends one job
RECIPE = experiment(
    "{random0: [baseA, baseB, A3B, A3B+, B3B, B5A], whole: [base, R2]}",
    "display: 1, snapshot: 5, solver_mode: CPU",
    'slurm: {time: "1", memory: 100M, cpus: 3, signal_seconds: 55}\n',
)
RUNS = Path("runs/tiny")
BASE_A, BASE_B, BASE = "random0-baseA-s0", "random0-baseB-s0", "whole-base-s0"
FAILING = "random0-B5A-s0"
ENGINE = shlex.join([sys.executable, str(Path(str(support.__file__)).with_name("held_engine.py"))])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running_cluster(tmp_path_factory.mktemp("slurm") / "c") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the checksums of the final weights, by network, of a sweep on one machine with the embedded engine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    make_world(folder)
    argv = [sys.executable, "-m", "transfer_caffe.sweep", "run", "--recipe", "tiny.yaml", "--jobs", "2"]
    subprocess.run(argv, cwd=folder, env=processes.environment(), check=True)
    return weights(folder)


@pytest.fixture
def world(tmp_path, monkeypatch, cluster):
    """Change to a folder whose name a shell must quote, and connect Slurm's commands to the cluster."""
    folder = tmp_path / 'it\'s "here" $HOME 100%j'
    folder.mkdir()
    make_world(folder)
    monkeypatch.chdir(folder)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield folder
    cluster.ask("scancel", f"--user={os.getuid()}")
    wait_for(lambda: not cluster.ask("squeue", "-h", "-o", "%i"), "an empty queue")


def make_world(folder: Path) -> None:
    before = Path.cwd()
    os.chdir(folder)
    draw_shapes()
    write_text("tiny.yaml", RECIPE)
    Path("hold").mkdir()
    os.chdir(before)


def command(*more: str) -> list[str]:
    return ["run", "--recipe", "tiny.yaml", "--engine", ENGINE, *more]


def start(*more: str) -> "subprocess.Popen[str]":
    """Start a submit pass as a separate process."""
    argv = [sys.executable, "-m", "transfer_caffe.sweep", *command("--slurm", "--time", "10", *more)]
    return subprocess.Popen(argv, env=processes.environment(), stdout=subprocess.PIPE, text=True)


def weights(folder: Path) -> dict[str, str]:
    paths = folder.glob("runs/tiny/*/snapshots/net_iter_20.caffemodel")
    return {path.parts[-3]: sha256(path) for path in paths if (path.parents[1] / "done.json").exists()}


def jobs() -> dict[str, queue.Job]:
    tag = queue.tag(load_recipe("tiny.yaml"), Path("runs"))
    return {name: job for name, job in queue.jobs(tag).items() if job.live}


def log(name: str) -> str:
    path = RUNS / "slurm" / f"{name}.log"
    return path.read_text() if path.exists() else ""


def hold(*names: str) -> None:
    for name in names:
        Path("hold", name).touch()


def release(name: str) -> None:
    Path("hold", name).unlink()


def wait_until_held(*names: str) -> None:
    wait_for(lambda: all(Path("hold", f"{name}.there").exists() for name in names), lambda: f"held: {jobs()}")


def wait_until_gone(*names: str) -> None:
    wait_for(lambda: not set(names) & set(jobs()), lambda: f"an end of {names}: {jobs()}")


def require_trained_once(name: str) -> None:
    """Check that no two engines trained the network at once, and that none repeated iterations before a snapshot."""
    runs = re.split(r"^.*\] Starting .*$", (RUNS / name / "train.log").read_text(), flags=re.MULTILINE)[1:]
    trained = [[int(number) for number in re.findall(r"Iteration (\d+), lr = ", run)] for run in runs]
    for each in trained:  # two at once would mix their lines
        assert not each or each == list(range(each[0], each[0] + len(each))), trained
    begun = [each for each in trained if each]
    for before, after in itertools.pairwise(begun):
        assert before[-1] - 5 < after[0] <= before[-1] + 1, trained  # 5: iterations between snapshots
    assert begun[-1][-1] == 19


def test_a_sweep_survives_everything_that_happens_to_a_cluster(cluster: Cluster, world, undisturbed):
    # the submit pass is killed midway; then two concurrent passes find the jobs that it submitted
    Path("fail").mkdir()
    Path("fail", FAILING).write_text("once\ntwice\n")
    hold(BASE_A, BASE_B, BASE)
    first = start()
    assert first.stdout
    for _ in range(4):  # the lines on the missing data, its job, and two networks
        first.stdout.readline()
    first.kill()
    first.communicate()
    assert 3 <= len(jobs()) <= 9
    both = [start(), start()]
    said = [each.communicate(timeout=PATIENCE)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0]
    assert sorted(re.findall(r"(\d+) submitted now", text)[0] for text in said)[0] == "0"
    names = Counter(cluster.ask("squeue", "-h", "-o", "%j").split())
    assert set(names.values()) == {1} and set(names) | {"data"} == {
        *undisturbed,
        "data",
    }  # the data may be built by now

    # a node fails; on another one only slurmd is killed, so that its job continues while a requeued copy is started
    wait_until_held(BASE_A, BASE_B, BASE)
    lost, half_lost = jobs()[BASE_A].node, jobs()[BASE_B].node
    cluster.kill_node(lost)
    cluster.kill_slurmd(half_lost)
    release(BASE_A)
    for node in (lost, half_lost):  # else Slurm only notices after a while
        cluster.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    # the controller is killed, with jobs pending and running, after it has saved its state
    time.sleep(cluster.SAVES_WITHIN)
    cluster.kill_controller()
    cluster.start_controller()
    # a network is signalled, as before its time limit, to write a snapshot and is requeued
    cluster.ask("scancel", "--batch", "--signal=USR1", str(jobs()[BASE].id))
    wait_for(lambda: "is queued again" in log(BASE), "a job queued again")
    release(BASE)

    # of two live copies, one trains and the other waits for it
    cluster.start_node(lost)
    wait_for(lambda: "is using it; waiting until it ends" in log(BASE_B), lambda: f"a second copy: {jobs()}")
    release(BASE_B)
    wait_for(lambda: "finished by another process" in log(BASE_B), "the end of the second copy")
    cluster.kill_node(half_lost)
    cluster.start_node(half_lost)

    # the same command submits the missing jobs; one network fails twice
    def again() -> bool:
        assert sweep_main(command("--slurm", "--time", "10")) == 0
        return len(weights(world)) == 8

    wait_for(again, lambda: f"the end: {jobs()}")
    assert log(FAILING).count("not today") == 2
    assert weights(world) == undisturbed
    for name in undisturbed:
        require_trained_once(name)
    wait_for(lambda: (RUNS / "results.csv").exists() and len(read_results(RUNS / "results.csv")) == 8, "a table")


def test_a_network_longer_than_the_time_limit_takes_several_jobs(cluster, world, undisturbed):
    hold(BASE)  # never released: only Slurm's signal, 5 s to 35 s after the start, lets it continue
    assert sweep_main(command("--slurm", "--only", "base", "--split", "whole")) == 0
    wait_for(lambda: len(weights(world)) == 1, lambda: f"the end: {jobs()} {log(BASE)}")
    assert weights(world)[BASE] == undisturbed[BASE]
    # two starts, or more if the signal arrived while Python was starting
    assert "its time limit is near" in log(BASE) and log(BASE).count(" starts on ") >= 2
    assert read_json(RUNS / BASE / "started.json")["runs"][-1]["from_iteration"] == 16
    require_trained_once(BASE)


def test_a_sweep_moves_from_the_cluster_to_one_machine_and_back(cluster, world, undisturbed, capsys):
    only = ["--only", "base[AB]"]
    hold(BASE_A)
    assert sweep_main(command("--slurm", "--time", "10", *only)) == 0
    stranger = cluster.ask("sbatch", "--parsable", "--hold", "--wrap=true", f"--job-name={BASE_A}").strip()
    wait_until_held(BASE_A)
    capsys.readouterr()
    assert sweep_main(["status", "--recipe", "tiny.yaml"]) == 0
    status = capsys.readouterr().out
    assert re.search(
        rf"{BASE_A} +running on node\d as job \d+, \S+ left until its time limit; "
        r"at iteration 15 of 20, last snapshot 15",
        status,
    )
    assert sweep_main(["cancel", "--recipe", "tiny.yaml"]) == 0
    assert not jobs() and cluster.ask("squeue", "-h", "-o", "%i").split() == [stranger]
    assert (RUNS / BASE_A / "snapshots/net_iter_16.solverstate").exists()  # it first finishes its iteration
    release(BASE_A)
    assert sweep_main(["status", "--recipe", "tiny.yaml"]) == 0
    status = capsys.readouterr().out
    assert re.search(rf"{BASE_A} +cancelled \(job \d+\); at iteration 1\d", status), status

    # train on this machine, and stop another network during its training
    hold("random0-A3B-s0")
    local = subprocess.Popen(
        [sys.executable, "-m", "transfer_caffe.sweep", *command("--only", "A3B")], env=processes.environment()
    )
    wait_until_held("random0-A3B-s0")
    local.send_signal(signal.SIGTERM)
    assert local.wait(timeout=PATIENCE) == 130
    assert weights(world)[BASE_A] == undisturbed[BASE_A]
    release("random0-A3B-s0")

    assert sweep_main(command("--slurm", "--time", "10", "--only", "A3B")) == 0
    wait_for(lambda: "random0-A3B-s0" in weights(world), lambda: f"the end: {jobs()}")
    assert weights(world)["random0-A3B-s0"] == undisturbed["random0-A3B-s0"]
    runs = read_json(RUNS / "random0-A3B-s0" / "started.json")["runs"]
    assert [run["from_iteration"] for run in runs] == [0, 16]


def test_a_failure_is_told_with_its_reason_and_takes_along_what_needs_it(cluster, world, capsys):
    Path("fail").mkdir()
    Path("fail", BASE_B).write_text("once\n")
    assert sweep_main(command("--slurm", "--time", "10", "--only", "B3B")) == 0
    wait_for(lambda: not jobs(), lambda: f"an empty queue: {jobs()}")
    capsys.readouterr()
    assert sweep_main(["status", "--recipe", "tiny.yaml", "--split", "random0"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"{BASE_B} +FAILED: the engine failed.*not today.* \(job \d+, node\d\)", out), out
    assert re.search(r"random0-B3B-s0 +cancelled before it started; to do", out), out
    assert "1 failed, 1 stopped" in out


def test_a_submit_pass_over_580_networks_submits_each_once(cluster, world, capsys):
    for part in ("train", "val"):
        write_text(f"data/ilsvrc2012/{part}.txt", "1.jpg 0\n")
    argv = ["--recipe", "balanced", "--slurm", "--sbatch=--cpus-per-task=1 --mem=100M --begin=now+1hour"]
    assert sweep_main(["run", *argv]) == 0
    assert len(cluster.ask("squeue", "-h", "-o", "%i").split()) == 581  # including the data job
    assert sweep_main(["run", *argv]) == 0
    assert "580 already in the queue, 0 submitted now" in capsys.readouterr().out
    assert sweep_main(["cancel", "--recipe", "balanced"]) == 0
    assert not cluster.ask("squeue", "-h", "-o", "%i")
