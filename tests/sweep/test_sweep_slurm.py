"""Submit passes, batch scripts and job states, with fake Slurm commands."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from support import fake_slurm
from support.small_world import RECIPE, fake_engine, make_world
from support.waiting import PATIENCE, wait_for

from transfer_caffe import driver
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.results.table import read_results
from transfer_caffe.sweep.__main__ import main as sweep_main
from transfer_caffe.sweep.slurm import job_script, queue

RUNS = Path("runs/small")
SLURM = RECIPE + 'slurm: {partition: long, account: vision, time: "2-00:00:00", memory: 8G, extra: [--qos=low]}\n'


@pytest.fixture(autouse=True)
def _world(tmp_path, monkeypatch):
    make_world(tmp_path, SLURM)
    monkeypatch.chdir(tmp_path)
    fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


def submit(*more: str, engine: str | None = None) -> int:
    return sweep_main(["run", "--recipe", "small.yaml", "--engine", engine or fake_engine(), "--slurm", *more])


def calls(program: str = "sbatch") -> list[dict]:
    path = Path("bin/calls.json")
    return [call for call in json.loads(path.read_text()) if call["name"] == program] if path.exists() else []


def submitted() -> dict[str, dict[str, str]]:
    """Return the sbatch flags of the submitted jobs, by job name, in order of submission."""
    every = [fake_slurm.options(call["argv"]) for call in calls()]
    return {flags["job-name"]: flags for flags in every}


def in_queue(*jobs: tuple[int, str, str, str, str], comment: str | None = None) -> None:
    """Replace the jobs in the queue by these: id, state, node, name and reason of each."""
    comment = comment or queue.tag(load_recipe("small.yaml"), Path("runs"))
    Path("bin/queue.json").write_text(json.dumps([[*job, comment] for job in jobs]))


def test_every_network_gets_a_job_that_depends_on_its_bases_job():
    assert submit() == 0
    jobs = submitted()
    assert list(jobs)[:2] == ["random0-baseA-s0", "random0-baseB-s0"] and list(jobs)[-2:] == [
        "whole-base-s0",
        "whole-R2-s0",
    ]
    assert len(jobs) == 6
    base = jobs["random0-baseA-s0"]
    number = 100 + list(jobs).index("random0-baseA-s0")
    assert "dependency" not in base
    for name in ("random0-A3B-s0", "random0-A3B+-s0"):
        assert jobs[name]["dependency"] == f"afterok:{number}" and jobs[name]["kill-on-invalid-dep"] == "yes"
    assert "dependency" not in jobs["whole-R2-s0"]
    wanted = {
        "time": "2-00:00:00", "mem": "8G", "cpus-per-task": "1", "signal": "B:USR1@120",
        "partition": "long", "account": "vision", "qos": "low", "open-mode": "append", "requeue": "", "parsable": "",
    }  # fmt: skip
    assert wanted.items() <= base.items()
    assert base["comment"] == f"transfer_caffe small {Path('runs').resolve()}"


def test_the_command_line_wins_over_the_recipe():
    assert submit("--partition", "short", "--time", "30", "--sbatch=--gres=gpu:a100:1 '--constraint=a b'") == 0
    flags = submitted()["random0-baseA-s0"]
    assert (flags["partition"], flags["time"], flags["account"]) == ("short", "30", "vision")
    assert (flags["gres"], flags["constraint"], flags["qos"]) == ("gpu:a100:1", "a b", "low")


def test_what_is_done_or_in_the_queue_is_not_submitted_and_a_second_pass_has_nothing_to_do(capsys):
    arguments = ["--recipe", "small.yaml", "--engine", fake_engine(), "--treatment"]
    assert driver.main([*arguments, "baseA"]) == 0
    in_queue((7, "RUNNING", "node1", "random0-baseB-s0", "None"), (8, "COMPLETING", "node2", "whole-base-s0", "None"))
    assert submit() == 0
    assert set(submitted()) == {"random0-A3B-s0", "random0-A3B+-s0", "whole-R2-s0"}
    assert all("dependency" not in flags for flags in submitted().values())
    capsys.readouterr()
    assert submit() == 0
    assert len(calls()) == 3
    assert "6 networks of small: 1 done, 5 already in the queue, 0 submitted now" in capsys.readouterr().out


def test_jobs_that_ended_are_submitted_again_and_a_dependent_waits_for_a_live_parent():
    in_queue(
        (7, "RUNNING", "node1", "random0-baseA-s0", "None"),
        (8, "FAILED", "", "random0-A3B-s0", "NonZeroExitCode"),
        (9, "PENDING", "", "random0-A3B+-s0", "DependencyNeverSatisfied"),
    )
    assert submit("--only", "A3B*") == 0
    jobs = submitted()
    assert set(jobs) == {"random0-A3B-s0", "random0-A3B+-s0"}
    assert {flags["dependency"] for flags in jobs.values()} == {"afterok:7"}
    assert calls("scancel")[0]["argv"] == ["9"]


def test_a_job_that_slurm_holds_because_a_node_could_not_start_it_is_let_go(capsys):
    in_queue((7, "PENDING", "", "random0-baseA-s0", "launch failed requeued held"))
    assert submit("--only", "baseA") == 0
    assert [call["argv"] for call in calls("scontrol")] == [["release", "7"]]
    assert submitted() == {}
    assert "job 7 was held because a node could not start it" in capsys.readouterr().out


def test_where_only_others_may_release_a_held_job_another_takes_its_place():
    Path("bin/scontrol").write_text("#!/bin/sh\necho 'scontrol: error: Access denied' >&2; exit 1\n")
    in_queue((7, "PENDING", "", "random0-baseA-s0", "launch failed requeued held"))
    assert submit("--only", "baseA") == 0
    assert [call["argv"] for call in calls("scancel")] == [["7"]]
    assert set(submitted()) == {"random0-baseA-s0"}


def test_what_is_submitted_again_is_said_with_the_failure_before(capsys):
    (RUNS / "slurm").mkdir(parents=True)
    log = f"{STARTS}python -m transfer_caffe.driver: error: random0-baseA-s0: not today\n"
    ends = "transfer_caffe: job 12 ends with exit code 1 on node3\n"
    (RUNS / "slurm" / "random0-baseA-s0.log").write_text(log + ends)
    assert submit("--only", "base?") == 0
    out = capsys.readouterr().out
    assert re.search(r"random0-baseA-s0: job \d+; the previous job, 12: random0-baseA-s0: not today", out)
    assert re.search(r"random0-baseB-s0: job \d+$", out, re.MULTILINE)


def test_another_sweeps_jobs_of_the_same_names_are_not_ours():
    in_queue((7, "RUNNING", "node1", "random0-baseA-s0", "None"), comment="transfer_caffe small /elsewhere/runs")
    assert submit("--only", "baseA") == 0
    assert set(submitted()) == {"random0-baseA-s0"}
    assert sweep_main(["cancel", "--recipe", "small.yaml"]) == 0
    assert [job[0] for job in json.loads(Path("bin/queue.json").read_text())] == [7]


def test_missing_data_is_made_by_one_job_first():
    Path("data/pictures/random0/B/mean.binaryproto").unlink()
    assert submit() == 0
    jobs = submitted()
    assert next(iter(jobs)) == "data" and "gres" not in jobs["data"]
    assert jobs["random0-baseA-s0"]["dependency"] == jobs["whole-R2-s0"]["dependency"] == "afterok:100"
    assert "transfer_caffe.data --recipe small.yaml --data data --copies" in calls()[0]["script"]
    assert submit() == 0 and len(calls()) == 7


def test_what_sbatch_refuses_is_one_line_and_the_next_pass_submits_the_rest(capsys):
    Path("bin/refuse").write_text("2")
    assert submit() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "QOSMaxSubmitJobPerUserLimit; Batch job submission failed" in error and "2 jobs were submitted" in error
    Path("bin/refuse").unlink()
    assert submit() == 0
    assert len(calls()) == len(submitted()) == 6


def test_a_network_that_would_be_another_one_now_is_said_and_its_dependents_are_not_submitted(capsys):
    assert driver.main(["--recipe", "small.yaml", "--engine", fake_engine(), "--treatment", "baseA"]) == 0
    Path("small.yaml").write_text(SLURM.replace("base_lr: 0.5", "base_lr: 0.25"))
    assert submit("--split", "random0") == 1
    assert set(submitted()) == {"random0-baseB-s0"}
    error = capsys.readouterr().err
    assert "random0-baseA-s0: done, but out of date: solver.base_lr was 0.5 and is 0.25" in error
    assert "random0-A3B-s0: not submitted: there is a problem with its base random0-baseA-s0" in error


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--slurm", "--jobs", "2"], "--jobs: with --slurm"),
        (["--slurm", "--gpu", "0"], "--gpu: with --slurm"),
        (["--partition", "gpu"], "--partition is only for jobs on a cluster"),
        (["--slurm", "--time", "1:00"], "is not longer than signal_seconds, 120 s"),
        (["--slurm", "--time", "soon"], "time: "),
        (["--slurm", "--sbatch=--comment=mine"], "the sweep sets this flag"),
        (["--slurm", "--sbatch=--comment='mine"], "No closing quotation"),
    ],
)
def test_bad_usage_is_one_line_and_2(given, said, capsys):
    assert sweep_main(["run", "--recipe", "small.yaml", "--engine", fake_engine(), *given]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not calls()


def test_without_slurm_the_error_says_so(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert submit(engine="/bin/true") == 2
    assert "there is no squeue here" in capsys.readouterr().err


# ---- the batch script -------------------------------------------------------------------------------------------


def start_script(name: str) -> "subprocess.Popen[str]":
    """Run a submitted script as Slurm would, with its output in the job's log."""
    script = next(call["script"] for call in calls() if f"--job-name={name}" in call["argv"])
    log = RUNS / "slurm" / f"{name}.log"
    environment = {**os.environ, "SLURM_JOB_ID": "100", "SLURMD_NODENAME": "node7"}
    with open(log, "a") as output:
        argv = ["sh", "-c", script]
        return subprocess.Popen(argv, env=environment, stdout=output, stderr=output, text=True)


def test_a_job_trains_its_network_and_writes_the_table_of_results():
    assert submit("--only", "baseA") == 0
    assert start_script("random0-baseA-s0").wait(timeout=PATIENCE) == 0
    assert [row.network for row in read_results(RUNS / "results.csv")] == ["random0-baseA-s0"]
    told = job_script.read_log(RUNS / "slurm" / "random0-baseA-s0.log")
    assert told == job_script.Told(100, "node7", None)


def test_a_job_whose_base_is_not_done_fails_and_says_so():
    assert submit("--only", "A3B") == 0
    assert start_script("random0-A3B-s0").wait(timeout=PATIENCE) == 2
    told = job_script.read_log(RUNS / "slurm" / "random0-A3B-s0.log")
    assert told and told.why and "random0-baseA-s0, which is not done" in told.why


@pytest.mark.parametrize(
    ("number", "code", "requeued"), [(signal.SIGUSR1, 99, [["requeue", "100"]]), (signal.SIGTERM, 130, [])]
)
def test_a_job_that_is_warned_writes_a_snapshot_and_only_before_its_time_limit_it_is_queued_again(
    number, code, requeued
):
    assert submit("--only", "baseA", engine=fake_engine("slow")) == 0
    job = start_script("random0-baseA-s0")
    wait_for(lambda: list(RUNS.glob("*/snapshots/net_iter_3.solverstate")), "a snapshot", job)
    job.send_signal(number)
    job.send_signal(number)
    assert job.wait(timeout=PATIENCE) == code
    assert [call["argv"] for call in calls("scontrol")] == requeued
    assert "Optimization stopped early." in (RUNS / "random0-baseA-s0" / "train.log").read_text()


@pytest.mark.parametrize(("code", "requeued"), [(1, []), (2, []), (130, [["requeue", "100"]])])
def test_a_network_that_fails_by_itself_near_the_limit_is_not_queued_again(code, requeued):
    driver_like = ["sh", "-c", f"trap 'exit {code}' USR1; touch ready; while :; do sleep 0.02; done"]
    environment = {**os.environ, "SLURM_JOB_ID": "100"}
    job = subprocess.Popen(["sh", "-c", job_script.script(driver_like, None, gpus=0)], env=environment)
    wait_for(Path("ready").exists, "the driver", job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=PATIENCE) == (99 if requeued else code)
    assert [call["argv"] for call in calls("scontrol")] == requeued


@pytest.mark.parametrize(("recipe", "hidden"), [(SLURM.replace("slurm: {", "slurm: {gpus: 1, "), False), (SLURM, True)])
def test_a_job_without_a_gpu_sees_none(recipe, hidden):
    Path("small.yaml").write_text(recipe)
    assert submit("--only", "baseA") == 0
    assert ("gres" in submitted()["random0-baseA-s0"]) is not hidden
    script = calls()[0]["script"]
    assert bool(re.search("^export CUDA_VISIBLE_DEVICES=$", script, re.MULTILINE)) is hidden
    assert ("--gpu 0" in script) is not hidden  # never on the CPU if a GPU was requested


# ---- states of jobs ---------------------------------------------------------------------------------------------

STARTS = "transfer_caffe: job 12 starts on node3, 2026-01-01T00:00:00Z\n"


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=12.batch. Some of the step tasks\n", "out of memory"),
        ("slurmstepd: error: *** JOB 12 ON node3 CANCELLED AT 2026 DUE TO TIME LIMIT ***\n", "its time limit"),
        ("slurmstepd: error: *** JOB 12 ON node3 CANCELLED AT 2026 DUE TO NODE FAILURE, SEE LOG ***\n", "node3 failed"),
        ("slurmstepd: error: *** JOB 12 ON node3 CANCELLED AT 2026 DUE TO PREEMPTION ***\n", "preempted on node3"),
        ("slurmstepd: error: *** JOB 12 ON node3 CANCELLED AT 2026-01-01T01:00:00 ***\n", "cancelled"),
        ("python -m transfer_caffe.driver: error: the disk is full\ntransfer_caffe: job 12 ends with exit code 2 on\n",
         "the disk is full"),
        ("transfer_caffe: job 12 ends with exit code 3 on node3\n", "ended with exit code 3 on node3"),
        ("iteration 4\n", "without a message"),
    ],
)  # fmt: skip
def test_a_failed_job_is_told_with_its_reason(log, why, capsys):
    (RUNS / "slurm").mkdir(parents=True)
    (RUNS / "slurm" / "random0-baseA-s0.log").write_text(f"{STARTS}an: error: of an earlier start\n{STARTS}{log}")
    assert sweep_main(["status", "--recipe", "small.yaml"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "random0-baseA-s0" in line)
    assert why in line and "job 12" in line and "earlier" not in line


def test_status_tells_what_runs_what_waits_and_for_what_and_what_is_held(capsys):
    assert submit("--only", "A3B") == 0
    in_queue(
        (7, "RUNNING", "node4", "random0-baseA-s0", "None"),
        (8, "PENDING", "", "random0-A3B-s0", "Dependency"),
        (9, "PENDING", "", "random0-A3B+-s0", "Resources"),
        (10, "PENDING", "", "whole-R2-s0", "JobHeldUser"),
    )
    assert sweep_main(["status", "--recipe", "small.yaml"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"random0-baseA-s0 +running on node4 as job 7, 1:02:03 left until its time limit", out)
    assert re.search(r"random0-A3B-s0 +waiting for random0-baseA-s0 \(job 8\)", out)
    assert re.search(r"random0-A3B\+-s0 +waiting for free resources \(job 9\)", out)
    assert re.search(r"whole-R2-s0 +HELD \(JobHeldUser\): release it with `scontrol release 10`", out)
    assert "0 of 6 networks are done, 1 held, 1 running, 2 waiting" in out


def test_cancel_spares_the_bases_of_what_is_selected(capsys):
    assert submit() == 0
    assert sweep_main(["cancel", "--recipe", "small.yaml", "--only", "A3B*"]) == 0
    assert "2 jobs of small cancelled" in capsys.readouterr().out
    left = {job[3] for job in json.loads(Path("bin/queue.json").read_text())}
    assert left == {"random0-baseA-s0", "random0-baseB-s0", "whole-base-s0", "whole-R2-s0"}


def test_cancel_where_nothing_was_submitted_is_an_error(capsys):
    assert sweep_main(["cancel", "--recipe", "small.yaml", "--runs", "others"]) == 2
    assert "no jobs of small were submitted" in capsys.readouterr().err and not Path("others").exists()
