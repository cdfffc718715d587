"""The recipe's key `slurm`."""

import pytest

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.slurm_settings import SlurmSettings, flags, read_slurm, seconds_of
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.strict_yaml import Section


def test_time_limits_are_read_as_slurm_reads_them():
    seconds = {"90": 5400, "1:30": 90, "2:00:00": 7200, "1-12": 129600, "1-12:30": 131400, "1-00:00:01": 86401}
    assert {text: seconds_of(text) for text in seconds} == seconds
    assert [seconds_of(text) for text in ("", "soon", "1:2:3:4", "-5")] == [None] * 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tiem": "1"}, "unknown key tiem"),
        ({"time": 86400}, "without quotes"),
        ({"time": "a day"}, "time: "),
        ({"time": "2"}, "is not longer than signal_seconds, 120 s"),
        ({"memory": "16 GB"}, "memory: a number"),
        ({"gpus": 2}, "0 or 1 was expected"),
        ({"cpus": 0}, "1 or more"),
        ({"signal_seconds": 70000, "time": "2-00:00:00"}, "65535"),
        ({"extra": "--qos=low"}, "a list of sbatch flags"),
        ({"extra": ["--array=1-3"]}, "the sweep sets this flag"),
        ({"partition": 3}, "text was expected"),
    ],
)
def test_what_sbatch_would_not_take_is_an_error_that_names_the_key(given, said):
    with pytest.raises(UserError, match=said):
        read_slurm(Section(given, "r.yaml: slurm"))


@pytest.mark.parametrize(
    "flag",
    ["-Jfoo", "-J=foo", "-o/x", "-d1", "-H", "--job=x", "--job-n=x", "--outp=/x", "--dep=singleton", "--arr=1-3",
     "--o=x", "-M", "-Mall", "--clusters=all", "--cluster=all"],
)  # fmt: skip
def test_flags_that_the_sweep_sets_are_refused_however_they_are_spelled(flag):
    with pytest.raises(UserError, match=f"r.yaml: slurm: {flag}: the sweep sets this flag of sbatch itself; remove it"):
        read_slurm(Section({"extra": [flag]}, "r.yaml: slurm"))


def test_flags_that_only_look_like_those_of_the_sweep_are_passed_on():
    given = [
        "--wait-all-nodes=1",
        "--constraint=a100",
        "--open-mode=append",
        "-pgpu",
        "-C a100",
        "--qos=long",
        "-xnode1",
    ]
    assert read_slurm(Section({"extra": given}, "r.yaml: slurm")).extra == tuple(given)


def test_extra_flags_come_last_so_that_they_win():
    given = flags(SlurmSettings(extra=("--gres=gpu:a100:1",)), threads=8, gpus=1)
    assert "--cpus-per-task=8" in given
    assert list(given)[-1] == "--gres=gpu:a100:1"


def test_it_is_no_setting_of_the_networks(tmp_path):
    text = (tmp_path / "x.yaml", "name: x\ndataset: d\nimages: {resize: [32, 32]}\narchitecture: mini\ncrop: 28\n"
            "mirror: true\nbatch: {train: 4, test: 2}\nsolver: {base_lr: 0.5, lr_policy: fixed, max_iter: 8, "
            "test_interval: 4}\nnetworks: {whole: [base]}\n")  # fmt: skip
    path, plain = text
    path.write_text(plain)
    before = load_recipe(path)
    path.write_text(plain + "slurm: {partition: gpu}\n")
    after = load_recipe(path)
    assert after.slurm.partition == "gpu" and after.settings() == before.settings() and after == before
