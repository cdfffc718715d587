"""The analysis: the paper's numbers from the paper's table, intervals that cover, and what a design cannot say."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import ttest_1samp

from transfer_caffe import analysis
from transfer_caffe.analysis import Analysis, Effect, Finding, analyse, costs_of, effects_of, interval, published_number
from transfer_caffe.analysis.design import half_differences, patterns, to_train
from transfer_caffe.errors import UserError
from transfer_caffe.figures.cells import Marker, cells_of, markers_of
from transfer_caffe.results import Row, load, to_csv
from transfer_caffe.treatment import Treatment, expand


def row(split: str, name: str, seed: int, accuracy: float | None, recipe: str = "demo", **other) -> Row:
    """A row as the results module makes it; accuracy_top10 is 0.01 above accuracy_final."""
    treatment = Treatment.parse(name)
    return Row(
        **{
            "network": f"{split}-{name}-s{seed}", "split": split, "treatment": name,
            "source": "random" if treatment.is_random else treatment.source, "target": treatment.target or "whole",
            "n": treatment.n, "finetuned": treatment.finetuned, "images_per_class": None, "target_classes": 50,
            "outputs": 50, "max_iter": 1000, "logged": accuracy is not None, "accuracy_final": accuracy,
            "accuracy_top10": None if accuracy is None else accuracy + 0.01, "accuracy_max": accuracy,
            "iteration_of_max": 1000, "test_loss_final": 1.5, "train_loss_last1000": 1.2,
            "seconds_per_iteration": 0.02, "seconds_per_test": 0.5, "recipe": recipe, "seed": seed,
            "wall_seconds": 20.0,
        }
        | other
    )  # fmt: skip


def rows_of(networks: Iterable[tuple[str, str, int, float | None]]) -> list[Row]:
    return [row(*network) for network in networks]


def effect(analyses: list[Analysis], comparison: str, n: str, pairing: str = "own base", family: str = "random"):
    (found,) = [
        each
        for one in analyses
        for each in one.effects
        if (each.comparison, each.n, each.pairing, each.family) == (comparison, n, pairing, family)
    ]
    return found


def finding(analyses: list[Analysis], comparison: str, pairing: str = "own base", family: str = "random") -> Finding:
    (found,) = [
        each
        for one in analyses
        for each in one.findings
        if (each.comparison, each.pairing, each.family) == (comparison, pairing, family)
    ]
    return found


def run(*arguments: str | Path) -> int:
    return analysis.main([str(each) for each in arguments])


# The paper's own table


@pytest.fixture(scope="module")
def paper() -> list[Analysis]:
    return analyse(load("paper"), "top10")


def in_points(value: float | None, digits: int = 2) -> float:
    assert value is not None
    return round(100 * value, digits)


def test_paper_base_accuracy_is_the_mean_of_the_eight_random_halves(paper):
    (one,) = paper
    bases = cells_of([m for m in one.markers if m.family == "random"], "accuracy")["base", 0]
    assert bases.count == 8
    assert round(bases.mean, 4) == 0.6251
    (whole,) = [m.accuracy for m in markers_of(load("paper"), "final") if m.split == "whole" and m.kind == "base"]
    assert round(100 * (1 - whole), 1) == 42.5


@pytest.mark.parametrize("metric", ["top10", "final"])
def test_paper_table_1_as_published(metric):
    analyses = analyse(load("paper"), metric)
    for other, digits in (("base", [1.6, 1.8, 2.1]), ("BnB+", [1.4, 1.4, 1.7])):
        numbers = [effect(analyses, f"AnB+ - {other}", n, "as published") for n in ("1-7", "3-7", "5-7")]
        assert [in_points(number.estimate, 1) for number in numbers] == digits
        assert all(number.low is None and number.high is None for number in numbers)


def test_paper_boost_over_the_selffer_is_the_difference_of_the_halves(paper):
    members = [marker for marker in paper[0].markers if marker.family == "random"]
    number = published_number(members, "BnB+", 1, 7)
    assert number is not None and number.halves is not None
    assert (number.networks, number.others) == (10, 10)
    assert in_points(number.difference) == 1.38 and in_points(number.halves) == 1.38
    assert abs(number.difference - number.halves) < 1e-5
    number = published_number(members, "base", 1, 7)
    assert number is not None and number.halves is not None
    assert in_points(number.difference - number.halves) == 0.97


def test_paper_paired_gains_and_the_error_that_independent_networks_would_have(paper):
    for kind in ("AnB+", "BnB+"):
        gain = effect(paper, f"{kind} - base", "1-7")
        assert (in_points(gain.mean), in_points(gain.naive_error), gain.networks) == (0.97, 0.11, 10)
        assert (gain.clusters, gain.unit) == (2, "split")


def test_paper_specificity_on_the_same_target(paper):
    numbers = [effect(paper, "AnB - BnB", str(n), "same target") for n in range(1, 8)]
    assert [in_points(each.estimate) for each in numbers] == [0.15, -0.01, -0.14, -0.62, -1.68, -3.90, -8.24]
    assert {(each.clusters, each.networks) for each in numbers} == {(4, 4)}
    assert [each.n for each in numbers if each.sure] == ["4", "5", "6", "7"]


def test_paper_lost_co_adaptation_is_in_the_middle_layers(paper):
    numbers = [effect(paper, "BnB - base", str(n)) for n in range(1, 8)]
    assert [each.n for each in numbers if each.sure] == ["4", "5", "6"]
    assert [in_points(each.estimate) for each in numbers[3:6]] == [-1.85, -2.97, -0.45]


def test_paper_causes_add_up_on_the_same_networks(paper):
    for n in range(1, 8):
        both = effect(paper, "AnB - base", str(n), "targets with BnB").estimate
        parts = effect(paper, "BnB - base", str(n)), effect(paper, "AnB - BnB", str(n), "same target")
        assert both == pytest.approx(sum(part.estimate for part in parts), abs=1e-12)
    assert effect(paper, "AnB - base", "3").networks == 8


def test_paper_drop_at_seven_layers_of_similar_and_dissimilar_halves(paper):
    assert in_points(effect(paper, "AnB - base", "7").estimate, 1) == -8.3
    assert in_points(effect(paper, "AnB - base", "7", family="natman").estimate, 1) == -25.0


def test_paper_half_b_of_split_0_is_the_easier_one(paper):
    assert in_points(half_differences(paper[0].markers)["random0"][0], 1) == 1.9


def test_paper_seconds_an_iteration_and_days(paper):
    costs = costs_of(load("paper"))
    assert round(costs.full or 0, 2) == 1.77
    assert [round(costs.frozen[n], 2) for n in range(1, 8)] == [1.48, 1.19, 1.01, 0.83, 0.69, 0.66, 0.65]
    assert round(costs.full_days or 0, 1) == 9.9
    # 148 logs, and with the 22 missing ones at the median of their like
    assert (costs.known, round(costs.known_days)) == (148, 1002)
    assert (costs.networks, round(costs.all_days or 0)) == (170, 1219)


def test_paper_what_its_design_cannot_say_is_named_with_numbers(paper):
    confounded = finding(paper, "AnB+ - BnB+", "as published")
    assert confounded.status == "confounded"
    assert "AnB+ have B (10) of random0, random1" in confounded.why and "BnB+ A (10)" in confounded.why
    assert "+1.38 points easier, of a difference of +1.38" in confounded.why
    assert "random0 B than random0 A +1.90 points" in confounded.why
    assert "random0: B{1-7}A+, B{1-7}B+; random1: A{1-2,4,7}A+, A{1,5-7}B+, B{1-7}A+, B{1-7}B+" in confounded.remedy
    base = finding(paper, "AnB+ - base", "as published")
    assert base.status == "confounded" and "difference of +1.60; what remains is +0.97" in base.why
    for comparison, family in (("AnB - base", "natman"), ("R - base", "whole")):
        one_seed = finding(paper, comparison, family=family)
        assert one_seed.status == "confounded" and "one seed" in one_seed.why
    assert finding(paper, "AnB+ - BnB+", "same target").status == "impossible"
    natman = finding(paper, "AnB - BnB", "same target", "natman")
    assert (natman.status, natman.remedy) == ("impossible", "natman: A{1-7}A, B{1-7}B")
    for comparison, pairing in (("BnB - base", "own base"), ("AnB - BnB", "same target"), ("AnB - base", "own base")):
        assert finding(paper, comparison, pairing).status == "supported"
    assert "half A" in finding(paper, "BnB - base").why
    assert "28 AnB networks have no BnB" in finding(paper, "AnB - BnB", "same target").why
    assert "random0 n = 1-7, random1 n = 2-4" in finding(paper, "AnB+ - base").why
    assert finding(paper, "luck of one training", "").status == "impossible"


# Intervals


def test_the_interval_is_that_of_students_t_test():
    values = [0.1, 0.4, -0.2, 0.3]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values) == pytest.approx((expected.low, expected.high))
    assert interval([0.1]) is None and interval([]) is None
    assert interval([0.25, 0.25]) == (0.25, 0.25)


def simulated(draw: np.random.RandomState, splits: int, missing: float) -> list[Marker]:
    """Splits with two halves, each with a base whose luck is in all of its gains; true effects -0.02 and -0.01 - n/100.

    ``missing`` is the chance of each frozen network not to be there.
    """
    markers = []

    def add(split: int, name: str, accuracy: float, base: float | None, control: float | None) -> None:
        markers.append(Marker(name, "r", f"random{split}", 0, Treatment.parse(name), accuracy, base, control))

    for split in range(splits):
        own, other = draw.normal(0, 0.004, 2)  # the treatment on these classes
        hard = draw.normal(0, 0.02)
        luck = {half: draw.normal(0, 0.003) for half in "AB"}
        for half, source in (("A", "B"), ("B", "A")):
            level = 0.6 + (hard if half == "A" else -hard)
            base = level + luck[half]
            add(split, f"base{half}", base, base, None)
            for n in (1, 3, 5, 7):
                selffer = level - 0.02 + own + draw.normal(0, 0.002)
                transfer = selffer - 0.01 - n / 100 + other + luck[source] / 2 + draw.normal(0, 0.002)
                there = draw.uniform(size=2) >= missing
                if there[0]:
                    add(split, f"{half}{n}{half}", selffer, base, None)
                if there[1]:
                    add(split, f"{source}{n}{half}", transfer, base, selffer if there[0] else None)
    return markers


TRUTH = {("BnB - base", "1-7"): -0.02, ("BnB - base", "5"): -0.02, ("AnB - BnB", "3"): -0.04}


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_the_interval_over_splits_covers_and_one_over_networks_does_not(missing):
    draw = np.random.RandomState(1)
    hits: dict[tuple[str, str], list[bool]] = {key: [] for key in TRUTH}
    naive = []
    for _ in range(500):
        for each in effects_of(simulated(draw, 4, missing)):
            truth = TRUTH.get((each.comparison, each.n))
            if truth is None or each.low is None or each.high is None or each.naive_error is None:
                continue  # with many networks missing there may be one split left
            hits[each.comparison, each.n].append(each.low <= truth <= each.high)
            if each.n == "1-7":
                reach = stdtrit(each.networks - 1, 0.975) * each.naive_error
                naive.append(abs(each.mean - truth) <= reach)
    for key, each in hits.items():
        assert len(each) > 250
        assert 0.91 <= np.mean(each) <= 0.99, key
    assert np.mean(naive) < 0.8


def test_every_split_counts_once_however_many_networks_it_has():
    networks = [("random0", "baseA", 0, 0.6), ("random1", "baseA", 0, 0.6), ("random1", "B1A", 0, 0.5)]
    networks += [("random0", f"B{n}A", 0, 0.55) for n in (1, 2, 3)]
    gain = effect(analyse(rows_of(networks)), "AnB - base", "1-7")
    assert gain.estimate == pytest.approx(-0.075)
    assert gain.mean == pytest.approx((-0.1 - 3 * 0.05) / 4)
    assert (gain.clusters, gain.networks, gain.unit) == (2, 4, "split")
    assert gain.low == pytest.approx(-0.075 - 12.706 * 0.025, abs=1e-5)


def test_seeds_of_several_splits_are_not_counted_as_independent():
    networks = []
    for split, loss in (("random0", 0.01), ("random1", 0.03)):
        for seed in range(5):
            networks += [(split, "baseB", seed, 0.6), (split, "A3B", seed, 0.6 - loss)]
    gain = effect(analyse(rows_of(networks)), "AnB - base", "3")
    assert (gain.clusters, gain.unit, gain.networks) == (2, "split", 10)


def test_one_split_and_one_seed_have_no_interval_and_it_is_said():
    networks = [("random0", "baseA", 0, 0.6), ("random0", "B3A", 0, 0.5), ("random0", "B5A", 0, 0.4)]
    analyses = analyse(rows_of(networks))
    gain = effect(analyses, "AnB - base", "1-7")
    assert (gain.low, gain.high, gain.clusters, gain.unit, gain.sure) == (None, None, 1, "", False)
    found = finding(analyses, "AnB - base")
    assert found.status == "confounded" and "no interval" in found.why and "other splits" in found.remedy


def test_seeds_of_one_split_give_an_interval_about_that_split_alone():
    networks = [("random0", "baseA", seed, 0.6) for seed in range(3)]
    networks += [("random0", "B3A", seed, 0.5 + seed / 100) for seed in range(3)]
    analyses = analyse(rows_of(networks))
    gain = effect(analyses, "AnB - base", "3")
    assert (gain.clusters, gain.unit) == (3, "seed")
    assert (gain.low, gain.high) == pytest.approx(interval([-0.1, -0.09, -0.08]))
    found = finding(analyses, "AnB - base")
    assert found.status == "confounded" and "says nothing about other classes" in found.why
    assert "luck of one training" not in {each.comparison for each in analyses[0].findings}


def test_man_made_and_natural_are_one_split_so_that_seeds_settle_it():
    networks = []
    for seed in range(3):
        networks += [("natman", "baseA", seed, 0.5), ("natman", "baseB", seed, 0.6)]
        networks += [("natman", "B7A", seed, 0.3), ("natman", "A7B", seed, 0.4)]
    assert finding(analyse(rows_of(networks)), "AnB - base", family="natman").status == "supported"
    one_way = [network for network in networks if network[1] in ("baseB", "A7B")]
    found = finding(analyse(rows_of(one_way)), "AnB - base", family="natman")
    assert found.status == "confounded" and "direction" in found.why and found.remedy.count("baseA, B7A") == 1


# Pairs


def test_gains_are_paired_with_the_own_seed_and_recipe():
    rows = [
        row("random0", "baseA", 0, 0.60), row("random0", "baseA", 1, 0.70),
        row("random0", "B3A", 0, 0.55), row("random0", "B3A", 1, 0.60),
        row("random0", "baseA", 0, 0.20, "other"), row("random0", "B3A", 0, 0.19, "other"),
    ]  # fmt: skip
    demo, other = analyse(rows)
    assert (demo.recipe, other.recipe) == ("demo", "other")
    assert effect([demo], "AnB - base", "3").estimate == pytest.approx(-0.075)
    assert effect([other], "AnB - base", "3").estimate == pytest.approx(-0.01)


def test_gains_over_own_bases_compare_where_no_target_has_both():
    networks = [("random0", "baseA", 0, 0.6), ("random0", "baseB", 0, 0.7), ("random0", "A3A+", 0, 0.61)]
    networks += [("random0", "A3B+", 0, 0.73), ("random0", "A5B+", 0, 0.9)]
    analyses = analyse(rows_of(networks))
    between = effect(analyses, "AnB+ - BnB+", "1-7", "own bases")
    assert (between.estimate, between.networks) == (pytest.approx(0.02), 1)
    assert not [each for each in analyses[0].effects if each.pairing == "same target"]
    assert finding(analyses, "AnB+ - BnB+", "same target").status == "impossible"


def complete(split: str, level: float) -> list[tuple[str, str, int, float | None]]:
    names = ["baseA", "baseB"] + [
        f"{source}3{target}{plus}" for source in "AB" for target in "AB" for plus in ("", "+")
    ]
    return [(split, name, 0, level + 0.05 * ("B" in name.strip("+")[-1]) - 0.01 * ("3" in name)) for name in names]


def test_a_complete_design_supports_every_comparison_and_needs_nothing():
    analyses = analyse(rows_of(complete("random0", 0.5) + complete("random1", 0.6)))
    found = {(each.comparison, each.pairing): each for each in analyses[0].findings if each.pairing}
    assert {each.status for each in found.values()} == {"supported"}
    assert {each.remedy for each in found.values()} == {""}
    assert ("AnB+ - BnB+", "own bases") not in found  # every one has its own control
    assert ("AnB+ - BnB+", "as published") in found


def test_one_complete_split_supports_nothing_about_others_paired_or_not(tmp_path, capsys):
    rows = rows_of(complete("random0", 0.5))
    found = [each for each in analyse(rows)[0].findings if each.pairing]
    assert {each.status for each in found} == {"confounded"} and len(found) == 8
    (tmp_path / "results.csv").write_text(to_csv(rows))
    assert run("--results", tmp_path / "results.csv") == 0
    text = capsys.readouterr().out
    assert text.count("peculiar to the classes of random0") == 1  # said once for all comparisons
    assert "BnB - base (own base), AnB - BnB (same target)" in " ".join(text.split())
    assert "intervals: about one" not in text


def test_selffers_of_other_layers_are_no_fair_comparison_as_published():
    networks = complete("random0", 0.5) + complete("random1", 0.5)
    networks = [(each[0], each[1].replace("A3A+", "A5A+"), *each[2:]) for each in networks]
    found = finding(analyse(rows_of(networks)), "AnB+ - BnB+", "as published")
    assert found.status == "confounded" and "halves or n" in found.why
    assert "random0, random1: A3A+" in found.remedy


def test_networks_without_their_own_base_are_named_with_what_to_train():
    networks = [("random0", "baseA", 0, 0.6), ("random0", "A3B", 0, 0.5), ("random0", "A5B", 0, 0.5)]
    networks += [("random1", "B3A", 0, 0.5), ("random0", "B3A", 1, 0.5)]
    analyses = analyse(rows_of(networks))
    found = finding(analyses, "own base", "")
    assert found.status == "impossible" and found.why.startswith("4 networks")
    for place in ("2 of random0 B", "1 of random1 A", "1 of random0 A seed 1"):
        assert place in found.why
    assert found.remedy == "random0: baseB; random0 seed 1, random1: baseA"
    assert finding(analyses, "AnB - base").status == "impossible"


def test_kinds_that_nobody_planned_are_not_complained_about():
    networks = [("random0", "baseA", 0, 0.6), ("random0", "B3A", 0, 0.5)]
    compared = {each.comparison for each in analyse(rows_of(networks))[0].findings}
    assert "AnB - BnB" in compared and not [each for each in compared if "+" in each or "R" in each]
    planned = analyse(rows_of([*networks, ("random0", "B3A+", 0, None)]))
    found = finding(planned, "AnB+ - base")
    assert found.status == "impossible" and "no network of a kind AnB+ has an accuracy" in found.why


def test_treatments_are_named_as_a_recipe_takes_them():
    treatments = [Treatment.parse(name) for name in ("A1B+", "A2B+", "A3B+", "A5B+", "baseA", "R3", "B7A")]
    text = patterns(treatments)
    assert text == "baseA, B7A, R3, A{1-3,5}B+"
    assert {each for name in ("baseA", "B7A", "R3", "A{1-3,5}B+") for each in expand(name)} == set(treatments)


def test_long_lists_of_what_to_train_are_cut_in_the_report_alone(capsys, tmp_path):
    networks = [(f"random{split}", name, 0, 0.5) for split in range(24) for name in ("baseA", "baseB", "A7A")]
    networks += [(f"random{split}", f"A{n}A", 0, 0.5) for split in range(24) for n in range(1, 6) if split >> n - 1 & 1]
    (tmp_path / "results.csv").write_text(to_csv(rows_of(networks)))
    assert run("--results", tmp_path / "results.csv", "--out", tmp_path / "out") == 0
    text = " ".join(capsys.readouterr().out.split("What these networks can tell")[1].split())
    assert "random23" not in text and "... (findings.csv has all)." in text
    (line,) = [line for line in read(tmp_path / "out" / "findings.csv") if line["comparison"] == "AnB - BnB"]
    assert "random23: " in line["remedy"] and line["remedy"].startswith("random0")
    assert line["remedy"].index("random2") < line["remedy"].index("random10")


def test_what_to_train_are_the_halves_that_are_not_there():
    markers = markers_of(rows_of([("random0", "baseA", 0, 0.6), ("random0", "B3A", 0, 0.5)]), "final")
    assert to_train(markers, "AnB", "base") == "random0: baseB, A3B"
    assert to_train(markers, "AnB", "BnB") == "random0: A3A, A3B, B3B"
    whole = markers_of(rows_of([("whole", "base", 0, 0.6), ("whole", "R3", 0, 0.5)]), "final")
    assert to_train(whole, "R", "base") == ""


# Odd tables


@pytest.mark.parametrize(
    "networks",
    [
        [("random0", "baseA", 0, 0.6)],
        [("random0", "A3B", 0, 0.6)],
        [("random0", "A3B+", 0, 0.6), ("random1", "B3B+", 2, 0.6)],
        [("natman", "A3B", 0, 0.0), ("natman", "baseB", 0, 1.0)],
        [("whole", "R7", 0, 0.0)],
        [("random0", "R7A", 0, 0.1), ("random0", "baseA", 0, 0.2), ("random0", "A1A", 0, math.nan)],
        [("random0", "baseA", 0, math.nan), ("random0", "B3A", 0, 0.5), ("random0", "A3A", 0, math.inf)],
    ],
)
def test_few_networks_still_give_a_report(tmp_path, capsys, networks):
    (tmp_path / "results.csv").write_text(to_csv(rows_of(networks)))
    assert run("--results", tmp_path / "results.csv", "--out", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "nan" not in text.lower().replace("natman", "")
    assert "networks with accuracy_final" in text


def test_reduced_data_and_recipes_without_accuracies_are_told_apart(tmp_path, capsys):
    rows = rows_of([("random0", "baseA", 0, 0.6), ("random0", "B1A", 0, None)])
    rows += [row("whole", "base", 0, 0.1, images_per_class=5), row("random0", "baseA", 0, None, "later")]
    (tmp_path / "results.csv").write_text(to_csv(rows))
    assert run("--results", tmp_path / "results.csv") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Recipe demo: 1 networks with accuracy_final (after the last iteration). Without one: 1." in text
    assert "another experiment: 1." in text
    assert "Recipe later: no network has accuracy_final." in text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("random0", "baseA", 0, None)], "no network has accuracy_final"),
        ([row("random0", "baseA", 0, 61.5)], "random0-baseA-s0: accuracy_final is 61.5: a fraction from 0 to 1"),
        ([row("random0", "baseA", 0, 0.5)] * 2, "are both treatment baseA of split random0"),
        ([row("halves", "baseA", 0, 0.5)], "there is no split 'halves'"),
        ([], "no networks in it"),
    ],
)
def test_what_cannot_be_analysed_is_one_line(tmp_path, capsys, rows, message):
    (tmp_path / "results.csv").write_text(to_csv(rows))
    assert run("--results", tmp_path / "results.csv", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_metric_names_the_known_ones(capsys):
    with pytest.raises(UserError, match=r"best.*final, top10"):
        analyse([], "best")
    assert run("--results", "paper", "--metric", "best") == 2


def test_a_missing_table_is_one_line_that_names_it(tmp_path, capsys):
    assert run("--results", tmp_path / "no such.csv") == 2
    assert "no such.csv: no such file" in capsys.readouterr().err


def test_columns_of_others_are_passed_over(tmp_path, capsys):
    lines = to_csv(rows_of([("random0", "baseA", 0, 0.6)])).splitlines()
    text = "\r\n".join(line + "," + ("remark" if index == 0 else "grün") for index, line in enumerate(lines))
    (tmp_path / "mit Umlaut ü.csv").write_bytes(text.encode())
    assert run("--results", tmp_path / "mit Umlaut ü.csv") == 0
    assert "random0  0.6000" in capsys.readouterr().out


# Times


def test_networks_without_times_are_taken_as_their_like():
    rows = [
        row("random0", "baseA", 0, 0.6, wall_seconds=86400.0), row("random0", "A3B", 0, 0.6, wall_seconds=None),
        row("random0", "B3A", 0, 0.6, wall_seconds=None, seconds_per_iteration=86.4, seconds_per_test=43200.0),
        row("random0", "A3A", 0, None, wall_seconds=None, seconds_per_iteration=None),
    ]  # fmt: skip
    rows[1] = row("random0", "A3B", 0, 0.6, wall_seconds=43200.0)
    costs = costs_of(rows)
    assert (costs.known, costs.networks, costs.full_days) == (3, 4, 1.0)
    assert costs.known_days == pytest.approx(1 + 0.5 + 1.5)
    assert costs.all_days == pytest.approx(3 + 1.0)  # the median of half a day and one and a half
    reduced = row("whole", "base", 0, 0.1, images_per_class=5, seconds_per_iteration=9.0)
    assert costs_of([reduced, rows[0]]).full == 0.02
    alone = costs_of([rows[0], row("random0", "A5A", 0, None, wall_seconds=None, seconds_per_iteration=math.nan)])
    assert alone.all_days is None and list(alone.frozen) == []


# Files


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_tables_with_the_papers_digits(tmp_path, capsys):
    out = tmp_path / "a b"
    assert run("--results", "paper", "--metric", "top10", "--out", out) == 0
    text = capsys.readouterr().out
    assert "Mean of the 8 bases of random halves: 0.6251" in text and str(out / "effects.csv") in text
    table1 = read(out / "table1.csv")
    assert [line["layers"] for line in table1] == ["1-7", "3-7", "5-7"]
    assert [round(float(line["over_baseB"]), 1) for line in table1] == [1.6, 1.8, 2.1]
    assert [round(float(line["over_BnB+"]), 1) for line in table1] == [1.4, 1.4, 1.7]
    assert table1[0]["over_BnB+_by_halves"] == "1.3833" and table1[0]["over_BnB+_remains"] == "-0.0002"
    assert table1[0]["AnB+_own_base_clusters"] == "2" and table1[0]["AnB+_BnB+_same_target"] == ""
    assert table1[2]["AnB+_own_base"] == "1.1626" and table1[2]["AnB+_own_base_low"] == ""
    markdown = (out / "table1.md").read_text()
    assert (
        "| 1-7 | 1.6 (0.6 of it: easier halves) | 1.4 (1.4 of it: easier halves) | +0.95 [+0.31, +1.60] |" in markdown
    )
    effects = {
        (line["family"], line["comparison"], line["n"], line["pairing"]): line for line in read(out / "effects.csv")
    }
    line = effects["random", "AnB - BnB", "7", "same target"]
    assert (line["estimate"], line["clusters"], line["cluster_unit"], line["networks"]) == (
        "-8.2429",
        "4",
        "split",
        "4",
    )
    assert float(line["low"]) < -8.2429 < float(line["high"]) < 0
    line = effects["natman", "AnB - base", "7", "own base"]
    assert (line["low"], line["high"], line["clusters"], line["networks"]) == ("", "", "1", "2")
    statuses = {line["status"] for line in read(out / "findings.csv")}
    assert statuses == {"supported", "confounded", "impossible"}


def test_a_table_1_of_another_table_does_not_stay(tmp_path):
    assert run("--results", "paper", "--out", tmp_path / "out") == 0
    (tmp_path / "out" / "mine.txt").write_text("mine")
    (tmp_path / "results.csv").write_text(to_csv(rows_of([("random0", "baseA", 0, 0.6)])))
    assert run("--results", tmp_path / "results.csv", "--out", tmp_path / "out") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"effects.csv", "findings.csv", "mine.txt"}


def test_the_report_says_everything_a_reader_needs(capsys):
    assert run("--results", "paper", "--metric", "top10") == 0
    text = capsys.readouterr().out
    words = " ".join(text.split())
    assert "136 networks with accuracy_top10" in text and "Without one: 22." in words
    assert "random0 0.6151 0.6341 +1.90 2" in words
    assert "4 -1.85 [-2.15, -1.55] 4/4 -0.62 [-1.06, -0.19] 4/4 -2.47 [-2.86, -2.08] 4/4" in words
    assert "Interval without zero: lost co-adaptation at n = 4-6; specificity at n = 4-7;" in words
    assert "1-7 +1.60 +0.63 +0.97 +1.38 +1.38 +0.00" in words
    assert "CONFOUNDED random: AnB+ - BnB+ (as published)" in words
    assert "To settle it, train natman: A{1-7}A, B{1-7}B." in words
    assert "9.9 days" in words
    assert max(map(len, text.splitlines())) < 150


def test_the_report_gives_remedies_only_where_something_is_to_be_settled(capsys):
    assert run("--results", "paper") == 0
    text = capsys.readouterr().out
    assert "error 42.5%" in text
    supported = [each for each in text.split("\n- ") if each.startswith("SUPPORTED")]
    assert len(supported) == 6
    assert not [each for each in supported if "To settle it" in each]


def test_a_complete_design_shows_one_column_of_frozen_transfer_and_seeds_are_marked(tmp_path, capsys):
    networks = complete("random0", 0.5) + [(*each[:2], 1, (each[3] or 0) + 0.01) for each in complete("random0", 0.5)]
    (tmp_path / "results.csv").write_text(to_csv(rows_of(networks)))
    assert run("--results", tmp_path / "results.csv") == 0
    text = capsys.readouterr().out
    assert "both, same networks" in text and "all frozen transfer" not in text
    assert "3     -1.00 [-1.00, -1.00] 2s/4" in text


def test_table_1_is_about_random_splits_alone(tmp_path):
    networks = complete("random0", 0.5) + [(each[0], each[1], each[2], 0.3) for each in complete("natman", 0.3)]
    (tmp_path / "results.csv").write_text(to_csv(rows_of(networks)))
    assert run("--results", tmp_path / "results.csv", "--out", tmp_path / "out") == 0
    line = read(tmp_path / "out" / "table1.csv")[0]
    assert (line["over_baseB"], line["AnB+_own_base"]) == ("-1.0000", "-1.0000")


def test_the_analysis_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "transfer_caffe.analysis", "--results", "none.csv"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("python -m transfer_caffe.analysis: error: none.csv")


def test_effects_tell_whether_their_interval_leaves_zero_out():
    values = ("r", "random", "AnB - base", "1", "own base", 0.1)
    assert Effect(*values, 0.05, 0.2, 2, "split", 2, 0.1, 0.1).sure
    assert not Effect(*values, -0.05, 0.2, 2, "split", 2, 0.1, 0.1).sure
    assert not Effect(*values, None, None, 1, "", 2, 0.1, 0.1).sure
