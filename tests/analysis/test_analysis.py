"""The analysis: the paper's published numbers, the coverage of the intervals, and unsupported comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import ttest_1samp
from support.analysis_tables import complete, effect, finding, row, rows_of, run

from transfer_caffe.analysis import Analysis, Effect, analyse, costs_of, effects_of, interval, published_number
from transfer_caffe.analysis.design import half_differences, patterns, to_train
from transfer_caffe.experiment.treatment import Treatment, expand
from transfer_caffe.results.markers import Marker, cells_of, markers_of
from transfer_caffe.results.table import load, to_csv

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
    # 148 networks with logs; the other 22 are estimated by the median of similar networks
    assert (costs.known, round(costs.known_days)) == (148, 1002)
    assert (costs.networks, round(costs.all_days or 0)) == (170, 1219)


def test_paper_what_its_design_cannot_say_is_named_with_numbers(paper):
    confounded = finding(paper, "AnB+ - BnB+", "as published")
    assert confounded.status == "confounded"
    assert "the 10 AnB+ networks are B (10) of random0, random1" in confounded.why
    assert "the 10 BnB+ networks are A (10)" in confounded.why
    assert "+1.38 points more accurate than the BnB+ networks' own bases" in confounded.why
    assert "part of the pooled difference of +1.38 points" in confounded.why
    assert "baseB minus accuracy of baseA: random0 +1.90 points" in confounded.why
    assert "random0: B{1-7}A+, B{1-7}B+; random1: A{1-2,4,7}A+, A{1,5-7}B+, B{1-7}A+, B{1-7}B+" in confounded.remedy
    base = finding(paper, "AnB+ - base", "as published")
    assert base.status == "confounded" and "difference of +1.60 points; the remainder is +0.97" in base.why
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
    assert finding(paper, "variation between seeds", "").status == "impossible"


# Intervals


def test_the_interval_is_that_of_students_t_test():
    values = [0.1, 0.4, -0.2, 0.3]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values) == pytest.approx((expected.low, expected.high))
    assert interval([0.1]) is None and interval([]) is None
    assert interval([0.25, 0.25]) == (0.25, 0.25)


def simulated(draw: np.random.RandomState, splits: int, missing: float) -> list[Marker]:
    """Simulate splits with two halves, each with a base whose random error enters all gains over it.

    The true effects are -0.02 (BnB - base) and -0.01 - n/100 (AnB - BnB). ``missing`` is the probability that a frozen
    network is missing.
    """
    markers = []

    def add(split: int, name: str, accuracy: float, base: float | None, control: float | None) -> None:
        markers.append(Marker(name, "r", f"random{split}", 0, Treatment.parse(name), accuracy, base, control))

    for split in range(splits):
        own, other = draw.normal(0, 0.004, 2)  # variation of the two effects between splits
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
                continue  # if many networks are missing, only one split may be left
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
    assert "variation between seeds" not in {each.comparison for each in analyses[0].findings}


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


def test_a_complete_design_supports_every_comparison_and_needs_nothing():
    analyses = analyse(rows_of(complete("random0", 0.5) + complete("random1", 0.6)))
    found = {(each.comparison, each.pairing): each for each in analyses[0].findings if each.pairing}
    assert {each.status for each in found.values()} == {"supported"}
    assert {each.remedy for each in found.values()} == {""}
    assert ("AnB+ - BnB+", "own bases") not in found  # every AnB+ has its own BnB+
    assert ("AnB+ - BnB+", "as published") in found


def test_one_complete_split_supports_nothing_about_others_paired_or_not(tmp_path, capsys):
    rows = rows_of(complete("random0", 0.5))
    found = [each for each in analyse(rows)[0].findings if each.pairing]
    assert {each.status for each in found} == {"confounded"} and len(found) == 8
    (tmp_path / "results.csv").write_text(to_csv(rows))
    assert run("--results", tmp_path / "results.csv") == 0
    text = capsys.readouterr().out
    assert text.count("peculiar to the classes of random0") == 1  # one entry for all comparisons
    assert "BnB - base (own base), AnB - BnB (same target)" in " ".join(text.split())
    assert "about one in twenty" not in " ".join(text.split())


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
    assert found.status == "impossible" and "no AnB+ network has an accuracy" in found.why


def test_treatments_are_named_as_a_recipe_takes_them():
    treatments = [Treatment.parse(name) for name in ("A1B+", "A2B+", "A3B+", "A5B+", "baseA", "R3", "B7A")]
    text = patterns(treatments)
    assert text == "baseA, B7A, R3, A{1-3,5}B+"
    assert {each for name in ("baseA", "B7A", "R3", "A{1-3,5}B+") for each in expand(name)} == set(treatments)


def test_what_to_train_are_the_halves_that_are_not_there():
    markers = markers_of(rows_of([("random0", "baseA", 0, 0.6), ("random0", "B3A", 0, 0.5)]), "final")
    assert to_train(markers, "AnB", "base") == "random0: baseB, A3B"
    assert to_train(markers, "AnB", "BnB") == "random0: A3A, A3B, B3B"
    whole = markers_of(rows_of([("whole", "base", 0, 0.6), ("whole", "R3", 0, 0.5)]), "final")
    assert to_train(whole, "R", "base") == ""


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
    assert costs.all_days == pytest.approx(3 + 1.0)  # the median of 0.5 and 1.5 days
    reduced = row("whole", "base", 0, 0.1, images_per_class=5, seconds_per_iteration=9.0)
    assert costs_of([reduced, rows[0]]).full == 0.02
    alone = costs_of([rows[0], row("random0", "A5A", 0, None, wall_seconds=None, seconds_per_iteration=math.nan)])
    assert alone.all_days is None and list(alone.frozen) == []


def test_effects_tell_whether_their_interval_leaves_zero_out():
    values = ("r", "random", "AnB - base", "1", "own base", 0.1)
    assert Effect(*values, 0.05, 0.2, 2, "split", 2, 0.1, 0.1).sure
    assert not Effect(*values, -0.05, 0.2, 2, "split", 2, 0.1, 0.1).sure
    assert not Effect(*values, None, None, 1, "", 2, 0.1, 0.1).sure
