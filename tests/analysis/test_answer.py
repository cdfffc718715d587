"""The answer of a study: which treatment is best, what cannot be told from it, and what one seed can say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import t
from support.tables import write_table

from transfer_caffe.analysis import analyse
from transfer_caffe.analysis.answer import Option, answers, export_commands, options_of, seeds_to_decide
from transfer_caffe.analysis.effects import Effect, decides, interval
from transfer_caffe.analysis.text import report_text
from transfer_caffe.figures import study as study_figure
from transfer_caffe.figures.draw import draw_figures
from transfer_caffe.report import write_report
from transfer_caffe.report.words import verdict
from transfer_caffe.results.markers import markers_of
from transfer_caffe.results.probes import Probe
from transfer_caffe.results.table import read_results

MEANS = {"base": 0.50, "P1": 0.55, "P2": 0.60, "P3": 0.40, "P1+": 0.58, "P2+": 0.63, "P3+": 0.628}
LUCK = (0.0, 0.004, -0.004, 0.002, -0.002, 0.003)
"""What a seed adds; the treatments get it in different orders, so that differences vary by some tenths of a point."""


def study(folder: Path, seeds: int, means: dict[str, float] = MEANS):
    networks = [
        ("whole", name, seed, round(mean + LUCK[(seed + place) % len(LUCK)], 4))
        for seed in range(seeds)
        for place, (name, mean) in enumerate(means.items())
    ]
    return read_results(write_table(folder, networks))


def test_the_best_is_named_with_what_it_gains_and_what_cannot_be_told_from_it(tmp_path):
    best, close, *_ = answers(markers_of(study(tmp_path, 6), "final"))
    assert best.startswith("Best: P2+, copy the first 2 stages and fine-tune them, 63.")
    assert "from scratch 50." in best and "+13.0 points, 95% interval" in best
    assert close.startswith("Not distinguishable from P2+: P3+ (-0.2 points, 95% interval")
    assert "P1" not in close and "P2 " not in close


def test_the_number_of_seeds_that_would_decide_is_the_first_whose_interval_excludes_zero(tmp_path):
    (options,) = options_of(markers_of(study(tmp_path, 6), "final")).values()
    best, other = options[0], next(option for option in options if option.name == "P3+")
    pairs = [best.by_seed[seed] - other.by_seed[seed] for seed in range(6)]
    needed = seeds_to_decide(other, best)
    assert needed is not None and needed > 6
    for seeds, enough in ((needed - 1, False), (needed, True)):
        reach = t.ppf(0.975, seeds - 1) * np.std(pairs, ddof=1) / seeds**0.5
        assert (reach < np.mean(pairs)) == enough
    lines = answers(markers_of(study(tmp_path / "again", 6), "final"))
    assert f"About {needed - 6} more seeds would decide for P3+" in lines[1]
    same = Option("P1", "X", 1, {0: 0.5, 1: 0.6}), Option("P2", "X", 2, {0: 0.6, 1: 0.5})
    assert seeds_to_decide(*same) is None and seeds_to_decide(Option("P1", "X", 1, {0: 0.5}), same[1]) is None


def networks_of(folder: Path, accuracies: dict[str, dict[int, float]]):
    """Results of networks on all classes: treatment -> seed -> accuracy."""
    rows = [("whole", name, seed, value) for name, each in accuracies.items() for seed, value in each.items()]
    return markers_of(read_results(write_table(folder, rows)), "final")


def test_while_networks_are_missing_treatments_are_compared_by_the_same_seeds(tmp_path):
    markers = networks_of(
        tmp_path, {"base": {0: 0.50, 1: 0.51, 2: 0.60}, "P3": {0: 0.60, 1: 0.62, 2: 0.72}, "P5": {2: 0.66}}
    )
    best = answers(markers)[0]
    assert best.startswith("Best: P3, copy the first 3 stages and freeze them, 64.7% (from scratch 53.7%, +11.0 points")
    only = networks_of(tmp_path / "less", {"base": {0: 0.50, 1: 0.40}, "P3": {1: 0.6}})
    assert answers(only)[0].startswith(
        "Best: P3, copy the first 3 stages and freeze them, 60.0% (from scratch 40.0%, +20.0"
    )
    without = networks_of(tmp_path / "no base", {"P3": {0: 0.5, 1: 0.7}, "P5": {1: 0.65}})
    assert "Best: P5" in answers(without)[0]


def test_the_seeds_that_are_missing_are_counted_from_those_that_both_treatments_have(tmp_path):
    markers = networks_of(
        tmp_path,
        {
            "base": {seed: 0.5 for seed in range(5)},
            "P3": {0: 0.600, 1: 0.604, 2: 0.602, 3: 0.6, 4: 0.6},
            "P5": {0: 0.595, 1: 0.598},
        },
    )
    (options,) = options_of(markers).values()
    needed = seeds_to_decide(options[1], options[0])
    assert options[0].name == "P3" and needed is not None and needed > 2
    assert f"About {needed - 2} more seed" in " ".join(answers(markers))


def test_the_same_difference_in_all_seeds_decides_nothing_however_it_is_rounded(tmp_path):
    differences = [0.62 - 0.6, 0.3 - 0.28]  # one of 50 images; in floats they differ
    assert differences[0] != differences[1]
    found = networks_of(tmp_path, {"base": {0: 0.5, 1: 0.2}, "P3": {0: 0.62, 1: 0.3}, "P5": {0: 0.6, 1: 0.28}})
    said = " ".join(answers(found))
    assert "worse" not in said and "Too few seeds, or too few validation images, to compare it with P5" in said
    low, high = interval(differences) or (0, 1)
    assert low == high and not decides((low, high)) and decides(interval([0.02, 0.03]))
    effect = Effect("r", "reduced", "frozen", "3", "seed", 0.02, low, high, 2, "seed", 2, 0.02, None)
    assert not effect.sure and verdict(effect) == "unknown"
    assert verdict(replace(effect, high=0.03)) == "above"


def test_times_probes_and_what_would_separate_the_causes_are_said(tmp_path):
    rows = [
        replace(row, seconds_per_iteration=0.02 if row.treatment == "P1" else 0.05, wall_seconds=1800.0)
        for row in study(tmp_path, 6, {"base": 0.50, "P1": 0.629, "P3": 0.40, "P1+": 0.630, "P3+": 0.52})
    ]
    probes = [Probe("whole", "", "P", n, f"conv{n}", f"pool{n}", 64, 100, 50, 0.01, 0.3 + n / 100) for n in (1, 2, 3)]
    lines = answers(markers_of(rows, "final"), rows, probes)
    text = " ".join(lines)
    assert "Best: P1+, copy the first stage (up to conv1) and fine-tune them" in text
    assert "costs nothing that these seeds can show; an iteration is 2.5 times as fast" in text
    assert "a linear classifier on the features of the first 3 stages (up to conv3) reaches 33.0%" in text
    assert "Freezing the first 3 stages (up to conv3) costs +12.0 points" in text
    # three networks of half an hour each: the base of the half, and two selffers
    assert '`random0: ["A{1,3}A"]` under `networks` (3 networks per seed, at most 1.5 hours of training)' in text


def test_the_export_command_names_the_most_accurate_network_of_the_best_treatment(tmp_path):
    markers = markers_of(study(tmp_path, 6), "final")
    [command] = export_commands(markers, "my runs/pets")
    best = max((each for each in markers if str(each.treatment) == "P2+"), key=lambda each: each.accuracy)
    assert f"--network 'my runs/pets/{best.network}' --onnx " in command
    base = [each for each in markers if each.kind == "base"]
    assert base and export_commands(base, "runs") == []


def test_with_one_seed_nothing_is_decided(tmp_path):
    (answer,) = answers(markers_of(study(tmp_path, 1), "final"))
    assert answer.startswith("Best: P")
    assert "one seed only, so no difference can be told from chance" in answer and "interval" not in answer


def test_freezing_that_costs_nothing_is_said(tmp_path):
    means = {"base": 0.50, "P1": 0.629, "P2": 0.55, "P1+": 0.630, "P2+": 0.52}
    lines = answers(markers_of(study(tmp_path, 6, means), "final"))
    assert lines[0].startswith("Best: P1+")
    assert "Freezing the first stage costs nothing that these seeds can show." in lines


def test_what_cannot_be_compared_is_named_and_nothing_is_claimed_of_it(tmp_path):
    rows = study(tmp_path, 6, {"base": 0.50, "P2": 0.60, "P1+": 0.63})
    lonely = [("whole", name, seed, 0.1 + 0.001 * seed) for name, seed in (("P1", 0),)]
    known = [("whole", row.treatment, row.seed, row.accuracy_final) for row in rows]
    text = " ".join(answers(markers_of(read_results(write_table(tmp_path / "more", known + lonely)), "final")))
    assert "Too few seeds, or too few validation images, to compare it with P1." in text
    assert "Every treatment that can be compared is worse" in text and "costs nothing" not in text
    # the same difference in both seeds: an interval without width says nothing
    same = [("whole", name, seed, mean + 0.1 * seed) for name, mean in (("base", 0.5), ("P1", 0.25)) for seed in (0, 1)]
    text = " ".join(answers(markers_of(read_results(write_table(tmp_path / "same", same)), "final")))
    assert "to compare it with P1" in text and "worse" not in text


def test_sources_are_not_mixed(tmp_path, monkeypatch):
    means = {"base": 0.2, "P1": 0.30, "P1+": 0.31, "Q1": 0.85, "Q1+": 0.91}
    rows = study(tmp_path, 6, means)
    text = " ".join(answers(markers_of(rows, "final"), rows))
    assert "Best: Q1+" in text and "+59" not in text and "+60" not in text
    drawn: list[list[float]] = []
    monkeypatch.setattr(
        study_figure, "draw_line", lambda axes, look, x, y: drawn.append([round(each, 2) for each in y])
    )
    draw_figures(rows, tmp_path / "figures")
    assert sorted(drawn) == [[0.3], [0.31], [0.85], [0.91]]  # a line for each source, frozen and fine-tuned


def test_a_table_without_existing_weights_has_no_answer(tmp_path):
    rows = read_results(write_table(tmp_path, [("whole", "base", 0, 0.5), ("whole", "R3", 0, 0.2)]))
    assert answers(markers_of(rows, "final")) == [] and not options_of(markers_of(rows, "final"))


def test_intervals_cover_the_true_difference_as_often_as_they_say(tmp_path):
    """Of 200 studies of 4 seeds each 190 are expected; fewer than 177 come up once in 10,000 times."""
    draw = np.random.RandomState(0)
    covered = 0
    for number in range(200):
        luck = 0.01 * draw.standard_normal(4)
        networks = [
            ("whole", name, seed, float(mean + luck[seed] + 0.005 * draw.standard_normal()))
            for seed in range(4)
            for name, mean in (("base", 0.5), ("P1+", 0.55))
        ]
        rows = read_results(write_table(tmp_path / str(number), networks))
        (effect,) = [e for e in analyse(rows)[0].effects if (e.comparison, e.n) == ("X+ - base", "1")]
        assert effect.low is not None and effect.high is not None
        covered += effect.low <= 0.05 <= effect.high
    assert covered >= 177


def test_text_figure_and_report_say_it(tmp_path):
    rows = study(tmp_path / "runs", 3)
    text = " ".join(report_text(analyse(rows)).split())
    assert "Best: P" in text and "existing weights, fine-tuned" in text
    drawn = {each.name: each for each in draw_figures(rows, tmp_path / "figures")}
    assert "study" in drawn and (tmp_path / "figures" / "study.png").exists()
    table = (tmp_path / "figures" / "study.csv").read_text().splitlines()
    assert table[0].split(",")[0] == "source" and len(table) == 1 + 3 * 6
    page = write_report(tmp_path / "runs", tmp_path / "report")
    assert "Best: P" in page.read_text()


def test_a_deep_nets_stages_are_pooled_over_its_own_range(tmp_path):
    means = {"base": 0.5, **{f"P{n}+": 0.5 + 0.01 * n for n in range(1, 17)}}
    effects = analyse(study(tmp_path, 2, means))[0].effects
    assert {e.n for e in effects if "-" in e.n} == {"1-16", "9-16"}
    assert "study" in {each.name for each in draw_figures(study(tmp_path, 2, means), tmp_path / "figures")}
