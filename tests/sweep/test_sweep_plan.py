"""The plan of a sweep: networks, their order, cost, progress, and disk space."""

import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from support.small_world import RECIPE, fake_engine, make_world

from transfer_caffe import driver
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.formats.database import Database
from transfer_caffe.results.reference import NETWORKS
from transfer_caffe.run.engines import Engine
from transfer_caffe.sweep import measure, plan
from transfer_caffe.sweep.__main__ import main as sweep_main
from transfer_caffe.sweep.cost import COST, MINI_COST, Rate, Work, makespan
from transfer_caffe.sweep.plan import make_plan
from transfer_caffe.sweep.selection import select
from transfer_caffe.sweep.sizes import Sizes
from transfer_caffe.utils.errors import UserError

NOWHERE = Path("no-such-folder")


@pytest.fixture
def world(tmp_path, monkeypatch):
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)


def authors_rows() -> list[dict[str, str]]:
    with open(NETWORKS, newline="") as file:
        return list(csv.DictReader(file))


def test_the_plan_of_the_paper_is_the_authors_list_row_by_row():
    items = make_plan(select(load_recipe("paper")), NOWHERE, NOWHERE).items
    columns = [
        "split",
        "treatment",
        "source",
        "target",
        "n",
        "finetuned",
        "images_per_class",
        "target_classes",
        "outputs",
        "max_iter",
    ]
    ours = [
        {
            "split": "whole" if item.images_per_class else item.split,
            "treatment": item.treatment,
            "source": {"R": "random"}.get(item.source, item.source),
            "target": item.target or "whole",
            "n": str(item.n),
            "finetuned": str(int(item.finetuned)) if item.source else "",
            "images_per_class": str(item.images_per_class or ""),
            "target_classes": str(item.target_classes),
            "outputs": str(item.outputs),
            "max_iter": str(item.max_iter),
        }
        for item in items
    ]
    theirs = [{column: row[column] for column in columns} for row in authors_rows()]

    def key(row: dict[str, str]) -> list[str]:
        return list(row.values())

    assert sorted(ours, key=key) == sorted(theirs, key=key)
    assert len(ours) == 170


def test_the_plan_of_the_paper_costs_what_the_authors_logs_say():
    recipe = load_recipe("paper")
    rate = Rate.of_seconds(1.765, recipe)
    items = make_plan(select(recipe), NOWHERE, NOWHERE, rate).items
    ours = {(item.split, item.treatment): item.hours or 0 for item in items}
    ratios = []
    for row in authors_rows():
        if row["logged"] == "1" and not row["images_per_class"]:
            tests = (int(row["max_iter"]) // 1000 + 1) * float(row["seconds_per_test"])
            theirs = (int(row["max_iter"]) * float(row["seconds_per_iteration"]) + tests) / 3600
            ratios.append(ours[row["split"], row["treatment"]] / theirs)
    assert len(ratios) == 136
    assert sum(0.9 < ratio < 1.1 for ratio in ratios) == 133  # three of the authors' took nearly twice as long
    assert statistics.median(ratios) == pytest.approx(1, abs=0.01)
    training = sum(item.max_iter * rate.iteration[item.frozen] for item in items) / 86400
    assert training == pytest.approx(1073, rel=0.03)  # the GPU days that all 170 took, without tests


def test_balanced_trains_every_treatment_on_every_half_with_several_seeds():
    items = make_plan(select(load_recipe("balanced")), NOWHERE, NOWHERE).items
    halves = [f"{kind}{plus}" for kind in ("A{n}A", "B{n}B", "A{n}B", "B{n}A") for plus in ("", "+")]
    treatments = {"baseA", "baseB"} | {half.format(n=n) for half in halves for n in range(1, 8)}
    splits = {"random0", "random1", "random2", "random3", "natman"}
    assert {(item.split, item.treatment, item.seed) for item in items} == {
        (split, treatment, seed) for split in splits for treatment in treatments for seed in (0, 1)
    }
    assert len(items) == 580
    assert {item.outputs for item in items if item.split != "natman"} == {500}
    assert {(item.target, item.outputs) for item in items if item.split == "natman"} == {("A", 551), ("B", 449)}


@pytest.mark.parametrize("recipe", ["paper", "balanced", "demo"])
def test_a_network_comes_after_the_base_that_it_needs(recipe):
    seen: set[str | None] = {None}
    for item in make_plan(select(load_recipe(recipe)), NOWHERE, NOWHERE).items:
        assert item.base in seen
        seen.add(item.name)


def test_planning_580_networks_is_little_work_and_takes_no_torch(tmp_path):
    # function calls are counted instead of seconds, which depend on the machine and its load
    program = (
        "import sys, itertools; from transfer_caffe.sweep import __main__ as sweep; calls = itertools.count(); "
        "sys.setprofile(lambda *_: next(calls)); assert sweep.main(['plan', '--recipe', 'balanced']) == 0; "
        "sys.setprofile(None); print('calls and returns:', next(calls)); "
        "sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "580 networks" in done.stdout
    # 2 million, in half a second; work that is quadratic in the number of networks would need many more
    assert int(done.stdout.split()[-1]) < 6e6


def plan_json(capsys, *arguments: str) -> dict:
    assert sweep_main(["plan", "--recipe", "small.yaml", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_json_has_the_keys_that_the_docstring_explains(world, capsys):
    found = plan_json(capsys, "--seconds-per-iteration", "0.5", "--gpus", "2")
    assert list(found) == ["recipe", "chosen", "rate", "networks", "total", "left", "slots", "disk"]
    docstring = plan.__doc__ or ""
    for key in [*found, *found["rate"], *found["networks"][0], *found["total"], *found["disk"]]:
        assert key in docstring, key
    first = found["networks"][0]
    assert (first["name"], first["base"], first["frozen"], first["state"]) == ("random0-baseA-s0", None, 0, "to do")
    # 8 iterations of 4 images; tests at 0, 4 and 8, each of 6 images
    assert (first["train_images"], first["tests"], first["test_images"]) == (32, 3, 18)
    assert first["hours"] == pytest.approx((8 * 0.5 + 18 * MINI_COST[7] * 0.5 / 4) / 3600)
    assert (first["outputs"], first["target_classes"]) == (3, 3)
    assert set(found["slots"]) == {"1", "2"}
    assert found["slots"]["1"] == pytest.approx(found["total"]["hours"])


def test_states_tell_what_is_done_started_and_changed_and_what_is_left(world, capsys):
    assert driver.main(["--recipe", "small.yaml", "--treatment", "baseA", "--engine", fake_engine()]) == 0
    assert driver.main(["--recipe", "small.yaml", "--treatment", "baseB", "--engine", fake_engine("early")]) == 1
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    capsys.readouterr()
    found = plan_json(capsys)
    states = {item["name"]: (item["state"], item["iteration"]) for item in found["networks"]}
    assert states["random0-baseA-s0"] == ("done", 8)
    assert states["random0-baseB-s0"] == ("started", 1)
    assert states["whole-base-s0"] == ("to do", 0)
    assert found["left"]["networks"] == 5 and found["total"]["networks"] == 6
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before  # a plan writes nothing

    Path("small.yaml").write_text(RECIPE.replace("base_lr: 0.5", "base_lr: 1"))
    changed = plan_json(capsys)["networks"][0]
    assert (changed["state"], changed["note"]) == ("changed", "solver.base_lr was 0.5 and is 1")
    Path("runs/small/random0-baseA-s0/done.json").write_text("{")
    damaged = plan_json(capsys)["networks"][0]
    assert damaged["state"] == "damaged" and "done.json: damaged" in damaged["note"]
    assert sweep_main(["plan", "--recipe", "small.yaml"]) == 0
    assert "damaged: runs/small" in capsys.readouterr().out


def test_what_does_not_change_the_training_leaves_a_done_network_done(world, capsys):
    assert driver.main(["--recipe", "small.yaml", "--treatment", "baseA", "--engine", fake_engine()]) == 0
    capsys.readouterr()
    other = RECIPE.replace("[base, R2]", "[base]") + "seeds: [0, 1]\nsolver_for: {'reduced*': {base_lr: 3}}\n"
    Path("small.yaml").write_text(other)
    assert plan_json(capsys)["networks"][0]["state"] == "done"


def test_solver_settings_of_a_split_change_the_networks_of_that_split_alone(world, capsys):
    for treatment in ("baseA", "base"):
        assert driver.main(["--recipe", "small.yaml", "--treatment", treatment, "--engine", fake_engine()]) == 0
    capsys.readouterr()
    Path("small.yaml").write_text(RECIPE + "solver_for: {'random*': {base_lr: 3}}\n")
    notes = {item["name"]: item["note"] for item in plan_json(capsys)["networks"] if item["state"] != "to do"}
    assert notes == {"random0-baseA-s0": "solver.base_lr was 0.5 and is 3", "whole-base-s0": ""}


def test_solver_settings_of_a_treatment_change_the_networks_of_that_treatment_alone(world, capsys):
    for treatment in ("baseA", "base"):
        assert driver.main(["--recipe", "small.yaml", "--treatment", treatment, "--engine", fake_engine()]) == 0
    capsys.readouterr()
    Path("small.yaml").write_text(RECIPE + "solver_for: {'base': {base_lr: 3}}\n")
    notes = {item["name"]: item["note"] for item in plan_json(capsys)["networks"] if item["state"] != "to do"}
    assert notes == {"random0-baseA-s0": "", "whole-base-s0": "solver.base_lr was 0.5 and is 3"}


def test_a_snapshot_beyond_the_last_iteration_saves_nothing(world, capsys):
    assert driver.main(["--recipe", "small.yaml", "--treatment", "baseA", "--engine", fake_engine("quits")]) == 1
    folder = Path("runs/small/random0-baseA-s0/snapshots")
    (folder / "net_iter_12.solverstate").write_bytes(b"")
    capsys.readouterr()
    first = plan_json(capsys, "--seconds-per-iteration", "1")["networks"][0]
    assert first["state"] == "started" and first["hours_left"] == first["hours"]


def test_a_network_whose_base_was_trained_anew_is_changed(world, capsys):
    for treatment in ("baseA", "A3B"):
        assert driver.main(["--recipe", "small.yaml", "--treatment", treatment, "--engine", fake_engine()]) == 0
    done = Path("runs/small/random0-baseA-s0/done.json")
    made = json.loads(done.read_text())
    done.write_text(json.dumps(made | {"sha256": made["sha256"] | {"final": "0" * 64}}))
    capsys.readouterr()
    states = {item["name"]: item["note"] for item in plan_json(capsys)["networks"]}
    assert states["random0-A3B-s0"] == "its base random0-baseA-s0 has been retrained since"


def test_a_started_network_costs_what_is_left_after_its_snapshot(world, capsys):
    assert driver.main(["--recipe", "small.yaml", "--treatment", "baseA", "--engine", fake_engine("early")]) == 1
    capsys.readouterr()
    first = plan_json(capsys, "--seconds-per-iteration", "1")["networks"][0]
    assert first["hours_left"] == pytest.approx(first["hours"] * (1 - 2 / 8))


def test_without_a_rate_there_are_costs_and_the_plan_says_how_to_get_hours(world, capsys):
    found = plan_json(capsys)
    assert found["rate"] is None and found["networks"][0]["hours"] is None and found["slots"] == {"1": None}
    assert found["networks"][0]["cost"] > found["networks"][-1]["cost"]
    assert sweep_main(["plan", "--recipe", "small.yaml"]) == 0
    assert "use --measure or --seconds-per-iteration" in capsys.readouterr().out


def test_networks_that_are_done_give_the_rate():
    recipe = load_recipe("paper")
    done = [
        (recipe.network("random0", name), {"seconds_per_iteration": seconds, "seconds_per_test": 50})
        for name, seconds in (("baseA", 2.0), ("baseB", 4.0), ("A3A", 1.5))
    ]
    rate = Rate.of_done(recipe, done)
    assert rate is not None
    assert rate.iteration[0] == 3.0 and rate.iteration[3] == pytest.approx(1.5)
    assert rate.iteration[7] == pytest.approx(1.5 * COST[7] / COST[3])  # beyond the known numbers: as in the paper
    assert rate.test_image == 0.001
    assert Rate.of_done(recipe, [(done[0][0], {"seconds_per_iteration": None})]) is None


def test_slots_wait_for_bases_instead_of_dividing_the_hours():
    works = [Work("base", None, 10), *[Work(f"A{n}B", "base", 2) for n in range(4)], Work("other", None, 3)]
    assert makespan(works, 1) == 21
    assert makespan(works, 2) == 14  # `other` runs beside the base, then the four run in pairs
    assert makespan(works, 100) == 12
    assert makespan([Work("A1B", "base that is done", 5)], 3) == 5
    assert makespan([], 3) == 0


def test_room_for_data_is_counted_where_it_is_there_and_else_estimated(world):
    recipe = load_recipe("small.yaml")
    there = Sizes(recipe, Path("data")).databases(copies=False)
    files = [path for path in Path("data").rglob("*_lmdb/*") if path.is_file()]
    assert there is not None and not there.estimated
    assert 0 <= there.bytes - sum(path.stat().st_size for path in files) < 40_000 + 3 * 12288  # plus the mean images
    for path in files:
        path.unlink()
    for folder in Path("data").rglob("*_lmdb"):
        folder.rmdir()
    estimate = Sizes(recipe, Path("data")).databases(copies=False)
    assert estimate is not None and estimate.estimated
    # 6 records of 3,072 pixels, each of which takes one page
    assert estimate.bytes == pytest.approx(6 * 6 * 4160 + 3 * 12288)


def test_views_take_little_room_and_copies_for_real_caffe_much():
    sizes = Sizes(load_recipe("paper"), NOWHERE)
    views, copies = sizes.databases(copies=False), sizes.databases(copies=True)
    assert views is not None and views.estimated and 40e9 < views.bytes < 60e9
    assert copies is not None and 4 < copies.bytes / views.bytes < 12


def test_a_dataset_that_nobody_knows_has_no_sizes_before_its_lists_are_there(world, capsys):
    Path("small.yaml").write_text(RECIPE.replace("dataset: pictures", "dataset: others"))
    found = plan_json(capsys)
    assert found["disk"] == {"data": None, "snapshots_end": None, "snapshots_peak": None}
    assert found["networks"][0]["test_images"] is None and found["networks"][0]["outputs"] is None
    assert sweep_main(["plan", "--recipe", "small.yaml"]) == 0
    assert "data unknown until the image lists exist; snapshots unknown" in capsys.readouterr().out


def test_room_for_snapshots_follows_from_the_architecture():
    recipe = load_recipe("paper")
    network = recipe.network("random0", "A3B")
    sizes = Sizes(recipe, NOWHERE)
    assert sizes.weights(network) == (243_860_896, 4 * (34_944 + 307_456 + 885_120))  # Caffe's CaffeNet; conv1 to conv3
    assert sizes.snapshot(network) == 2 * 243_860_896


def test_the_small_worlds_snapshots_are_as_large_as_planned(world, capsys, forked_trainings):
    assert sweep_main(["run", "--recipe", "small.yaml", "--engine", fake_engine(), "--jobs", "2"]) == 0
    capsys.readouterr()
    real = sum(path.stat().st_size for path in Path("runs").rglob("*.caffemodel"))
    real += sum(path.stat().st_size for path in Path("runs").rglob("*.solverstate"))
    assert plan_json(capsys)["disk"]["snapshots_end"]["bytes"] == pytest.approx(real, rel=0.05)


def test_a_selection_is_planned_alone_and_its_bases_are_said_to_be_added(world, capsys):
    found = plan_json(capsys, "--only", "A3B")
    assert [(item["name"], item["added"]) for item in found["networks"]] == [
        ("random0-baseA-s0", True), ("random0-A3B-s0", False)
    ]  # fmt: skip
    assert sweep_main(["plan", "--recipe", "small.yaml", "--only", "A3B"]) == 0
    out = capsys.readouterr().out
    assert (
        "to do (added)" in out and "1 of the 6 networks of small are selected, and added as bases: random0-baseA" in out
    )


def test_the_measured_net_is_the_recipes_with_so_many_frozen_layers_and_no_database():
    network = load_recipe("demo").network("random0", "A3B")
    for frozen in (0, 3, 7):
        net = measure.synthetic(network, frozen)
        assert [layer.type for layer in net.layer].count("Data") == 0
        assert list(net.layer[0].dummy_data_param.shape[0].dim) == [128, 3, 28, 28]
        learning = [layer.name for layer in net.layer if any(param.lr_mult for param in layer.param)]
        assert len(learning) == 8 - frozen


def test_what_is_measured_reads_noise_in_the_sizes_of_the_recipe(tmp_path):
    network = load_recipe("paper").network("random0", "baseA")
    net = measure.from_noise(measure.synthetic(network, 0), tmp_path)
    measure.from_noise(measure.synthetic(network, 0), tmp_path)  # a second time with the same folder
    (layer,) = (layer for layer in net.layer if layer.type == "Data")
    assert (layer.data_param.batch_size, layer.transform_param.crop_size) == (256, 227)
    records = Database(tmp_path / layer.data_param.source)
    image, label = records.record(5)
    assert image.shape == (3, 256, 256) and label == 0 and len(records) == measure.RECORDS
    assert image.std() > 60 and (image != records.record(6)[0]).mean() > 0.9  # uniform noise: 74


def test_measuring_needs_no_data_and_gives_hours(world, capsys, monkeypatch, forked_trainings):
    monkeypatch.setattr(measure, "PLACES", (0, 1))
    monkeypatch.setattr(measure, "ENOUGH", 0.3)
    monkeypatch.setattr(measure, "DISPLAY", 0.02)
    assert sweep_main(["plan", "--recipe", "small.yaml", "--measure", "--json"]) == 0
    captured = capsys.readouterr()
    rate = json.loads(captured.out)["rate"]
    assert "measured here with the engine embedded" in rate["source"]
    assert all(0 < seconds < 1 for seconds in rate["seconds_per_iteration"])
    assert "the measurement took" in captured.err


def test_an_engine_that_cannot_be_measured_is_an_error_with_its_own_words(world):
    with pytest.raises(UserError, match=r"--measure: the engine .* failed: "):
        measure.measure(select(load_recipe("small.yaml")), Engine.find(fake_engine("dies")))


@pytest.mark.parametrize(
    "wrong",
    [
        ["--gpus", "0"],
        ["--seconds-per-iteration", "-1"],
        ["--seconds-per-iteration", "nan"],
        ["--measure", "--seconds-per-iteration", "1"],
        ["--split", "random7"],
        ["--jobs", "2"],
    ],
)
def test_bad_usage_is_one_line_and_2(world, wrong, capsys):
    assert sweep_main(["plan", "--recipe", "small.yaml", *wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1
