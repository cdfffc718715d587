"""Which trainings cause a warning, and which do not, checked on the paper's own networks."""

import csv
import math
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from support.small_world import RECIPE, fake_engine, make_world

from transfer_caffe import driver
from transfer_caffe.experiment.read import load_recipe, recipe_names
from transfer_caffe.experiment.recipe import Network
from transfer_caffe.formats.log import Row
from transfer_caffe.results.__main__ import main as results_main
from transfer_caffe.results.reference import CURVES, NETWORKS
from transfer_caffe.run.folder import LOG
from transfer_caffe.run.watch import at_chance, remarks, remarks_of
from transfer_caffe.sweep.__main__ import main as sweep_main
from transfer_caffe.utils.errors import UserError

PAPER = load_recipe("paper")


@pytest.fixture
def world(tmp_path, monkeypatch):
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)


def rows(*tests: tuple[int, float, float], train: float | None = None) -> list[Row]:
    """Return a curve of (iteration, accuracy, loss)."""
    return [Row(iteration, accuracy, loss, train, None) for iteration, accuracy, loss in tests]


def authors() -> list[tuple[Network, list[Row], int, float]]:
    """Return each of the authors' networks with a log: network, curve, number of classes, final accuracy."""
    curves: dict[str, list[Row]] = defaultdict(list)
    with open(CURVES, newline="") as file:
        for row in csv.DictReader(file):
            test = (int(row["iteration"]), float(row["test_accuracy"]), float(row["test_loss"]))
            curves[row["network"]] += rows(test)
    found = []
    with open(NETWORKS, newline="") as file:
        for row in csv.DictReader(file):
            if row["logged"] == "1":
                split = f"reduced{row['images_per_class']}" if row["images_per_class"] else row["split"]
                network = PAPER.network(split, row["treatment"])
                final = float(row["accuracy_final"])
                found.append((network, curves[row["network"]], int(row["target_classes"]), final))
    return found


def test_of_the_papers_networks_six_are_named_that_never_left_chance_and_nothing_else():
    said = {each[0].name: lines for each in authors() if (lines := remarks(*each))}
    never = {"whole-R3-s0", *(f"reduced{count}-base-s0" for count in (5, 10, 25, 50, 100))}
    assert set(said) == never
    assert said["whole-R3-s0"] == [
        "never left chance level: test loss 6.910, random guessing gives 6.908, accuracy 0.0009"
    ]  # fmt: skip
    assert len(authors()) == 148


def test_what_the_paper_learned_is_never_taken_for_chance_nor_chance_for_learning():
    late = {"whole-R3-s0": 450_000, "whole-R4-s0": 175_000, "whole-R5-s0": 50_000, "whole-R6-s0": 65_000}
    for network, curve, classes, _ in authors():
        last = max((row.iteration for row in curve if at_chance(row, classes)), default=0)
        if network.split.startswith("reduced"):
            stuck = network.split in {f"reduced{count}" for count in (5, 10, 25, 50, 100)}
            assert last == 200_000 if stuck else last <= 5000, network.name
        elif network.name == "whole-R7-s0":
            assert 100_000 <= last < 205_000
        elif network.name in late:
            assert abs(last - late[network.name]) <= 5_000, (network.name, last)
        else:
            assert last <= 5000, network.name


def test_a_network_in_training_is_still_at_chance_only_after_the_recipes_number_of_iterations():
    network = PAPER.network("random0", "baseA")
    stuck = rows((1000, 0.002, math.log(500)), (14000, 0.002, math.log(500)))
    assert remarks(network, stuck, 500) == []
    stuck += rows((15000, 0.002, math.log(500)))
    assert remarks(network, stuck, 500) == [
        "still at chance level at iteration 15000: test loss 6.215, random guessing gives 6.215, accuracy 0.0020"
    ]  # fmt: skip
    assert remarks(network, [*stuck, *rows((16000, 0.05, 5.5))], 500) == []
    assert remarks(network, stuck, None) == []  # the number of classes is unknown


def test_by_default_a_tenth_of_the_iterations_may_pass_at_chance():
    network = load_recipe("demo").network("random0", "baseA")
    assert network.recipe.watch.chance_after is None and network.chance_after == network.max_iter // 10
    assert PAPER.network("random0", "baseA").chance_after == 15000


def test_a_loss_far_above_guessing_with_an_accuracy_above_it_is_no_chance():
    assert not at_chance(
        rows((1, 0.0027, 21.5))[0], 1000
    )  # overfitted, as the paper's network with one image per class
    assert at_chance(rows((1, 0.0010, 7.37))[0], 1000)  # worse than guessing, as R7 for many iterations
    assert not at_chance(Row(1, None, None, 6.9, None), 1000)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", [1, 2, 3])
def test_a_number_that_is_none_is_named(value, where):
    numbers = [100, 0.1, 5.0, 5.0, 0.01]
    numbers[where] = value
    said = remarks(PAPER.network("random0", "baseA"), [Row(*numbers)], 500)  # pyright: ignore[reportArgumentType]
    assert said == ["the loss or accuracy is NaN or inf at iteration 100: the training diverged"]


def test_an_accuracy_that_the_recipe_does_not_expect_is_named_when_the_network_is_done():
    network = PAPER.network("random0", "baseA")
    assert remarks(network, [], 500, 0.61) == [] and remarks(network, [], 500, 0.65) == []
    assert remarks(network, [], 500, 0.59) == [
        "final accuracy 0.5900 is outside of the range that the recipe expects, 0.6 to 0.65"
    ]
    assert remarks(network, [], 500, 0.66) != []
    assert PAPER.network("whole", "R3").expected_accuracy is None


def test_the_first_pattern_that_fits_counts():
    demo = load_recipe("demo")
    assert demo.network("whole", "base").expected_accuracy == (0.635, 0.69)
    assert demo.network("natman", "baseB").expected_accuracy == (0.685, 0.74)
    assert demo.network("random0", "A3B+").expected_accuracy == (0.7, 0.755)
    assert demo.network("random0", "A3A").expected_accuracy == (0.69, 0.745)
    assert demo.network("random0", "A3B").expected_accuracy == (0.57, 0.745)


@pytest.mark.parametrize("name", recipe_names())
def test_every_pattern_of_the_recipes_that_ship_decides_for_some_network(name):
    recipe = load_recipe(name)
    ranges = {network.expected_accuracy for network in recipe.networks()}
    assert set(recipe.watch.expect.values()) <= ranges
    assert (
        all(network.expected_accuracy for network in recipe.networks() if network.treatment.is_base) or name == "paper"
    )


def recipe_with(watch: object) -> str:
    return RECIPE + yaml.safe_dump({"watch": watch})


@pytest.mark.parametrize(
    ("watch", "message"),
    [
        ([], "watch: a mapping"),
        ({"after": 3}, "watch: unknown key after; known keys: expect"),
        ({"chance_after": -1}, "watch: chance_after: a whole number, 0 or more"),
        ({"chance_after": None}, "watch: chance_after: a whole number"),
        ({"expect": [0.1, 0.2]}, "watch: expect: a mapping"),
        (
            {"expect": {"*": 0.5}},
            r"watch: expect: \*: \[lowest, highest\] accuracy, from 0 to 1, was expected",
        ),
        ({"expect": {"*": [0.7, 0.6]}}, r"expect: \*: \[lowest"),
        ({"expect": {"*": [60, 65]}}, r"expect: \*: \[lowest"),
        ({"expect": {"*": [False, True]}}, r"expect: \*: \[lowest"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(world, watch, message):
    Path("small.yaml").write_text(recipe_with(watch))
    with pytest.raises(UserError, match=message):
        load_recipe("small.yaml")


def test_status_run_and_results_name_what_is_odd_and_exit_with_0(world, capsys):
    Path("small.yaml").write_text(recipe_with({"expect": {"random0-base*": [0.2, 0.3]}}))
    line = "final accuracy 1.0000 is outside of the range that the recipe expects, 0.2 to 0.3"
    assert sweep_main(["run", "--recipe", "small.yaml", "--engine", fake_engine(), "--jobs", "2"]) == 0
    assert f"! random0-baseA-s0: {line}" in capsys.readouterr().out
    assert sweep_main(["status", "--recipe", "small.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.count(f"! {line}") == 2 and "6 of 6 networks are done" in out
    assert results_main(["--recipe", "small.yaml"]) == 0
    assert f"! random0-baseB-s0: {line}" in capsys.readouterr().out


def test_watching_differently_leaves_networks_done(world, capsys):
    assert driver.main(["--recipe", "small.yaml", "--treatment", "baseA", "--engine", fake_engine()]) == 0
    before = load_recipe("small.yaml").settings()
    Path("small.yaml").write_text(recipe_with({"chance_after": 4}))
    assert load_recipe("small.yaml").settings() == before
    capsys.readouterr()
    assert driver.main(["--recipe", "small.yaml", "--treatment", "baseA", "--engine", fake_engine()]) == 0
    assert "already done" in capsys.readouterr().out
    assert sweep_main(["plan", "--recipe", "small.yaml"]) == 0
    assert "changed" not in (out := capsys.readouterr().out) and "  done\n" in out


def test_a_network_that_stopped_amid_training_is_watched_by_its_log(world):
    network = load_recipe("small.yaml").network("random0", "baseA")
    assert remarks_of(network, Path("runs"), Path("data")) == []  # not started
    assert driver.main(["--recipe", "small.yaml", "--treatment", "baseA", "--engine", fake_engine("nan")]) == 1
    assert remarks_of(network, Path("runs"), Path("data")) == [
        "the loss or accuracy is NaN or inf at iteration 4: the training diverged"
    ]  # fmt: skip


def test_a_loss_that_is_no_number_between_two_tests_is_named(world):
    network = load_recipe("small.yaml").network("random0", "baseA")
    log = network.folder("runs") / LOG
    log.parent.mkdir(parents=True)
    log.write_text("I1123 13:41:00.000000  9956 solver.cpp:239] Iteration 20, loss = nan\n")
    said = remarks_of(network, Path("runs"), Path("data"))
    assert said == ["the training loss is nan at iteration 20: the training diverged"]


def test_the_error_that_ended_the_last_run_is_named(world):
    assert driver.main(["--recipe", "small.yaml", "--treatment", "baseA", "--engine", fake_engine("dies")]) == 1
    network = load_recipe("small.yaml").network("random0", "baseA")
    said = remarks_of(network, Path("runs"), Path("data"))
    assert "its last run ended with an error: Check failed: not today" in said
