"""The report: a self-contained page with the numbers of the results table, in which all text is escaped."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import html
import re
from pathlib import Path

import pytest
from support.report_runs import SETTINGS, make_runs, text_of, write_done, write_network
from support.tables import NETWORKS, write_table

from transfer_caffe import report
from transfer_caffe.analysis import analyse
from transfer_caffe.formats.log import Row as LogRow
from transfer_caffe.report import network
from transfer_caffe.report.__main__ import main as report_main
from transfer_caffe.report.page import COLUMNS, missing_words
from transfer_caffe.report.words import effects_tables
from transfer_caffe.results.table import load, read_results


@pytest.fixture
def runs(tmp_path) -> Path:
    return make_runs(tmp_path)


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """Skip the figures, which take seconds to draw, in tests that do not need them."""
    monkeypatch.setattr(report, "draw_figures", lambda *_: [])


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """Return the page of `make_runs`, with figures."""
    folder = tmp_path_factory.mktemp("report")
    return page_of(make_runs(folder), folder / "out")


def detail_of(page: str, name: str) -> str:
    """Return the page of one network, unpacked."""
    packed = re.search(rf'<template data-network="{re.escape(html.escape(name))}">([^<]*)</template>', page)
    assert packed
    return gzip.decompress(base64.b64decode(packed[1])).decode()


def page_of(runs: Path, out: Path, *more: str) -> str:
    assert report_main(["--runs", str(runs), "--out", str(out), *more]) == 0
    return (out / "index.html").read_text(encoding="utf-8")


def test_the_page_needs_no_other_file_and_no_network(page):
    assert not re.search(r"https?://|//[a-z]+\.", page.replace("</script>", ""))
    assert all(re.match("data:|#", each) for each in re.findall(r"(?:src|href)=\"([^\"]*)", page))
    assert len(page) < 10_000_000


def test_every_picture_has_words_for_those_who_do_not_see_it(page):
    pictures = re.findall(r"<img[^>]*>", page)
    assert len(pictures) == 7
    assert all(re.search(r'alt="[^"]{30,}"', picture) for picture in pictures)


def test_the_summary_gives_base_accuracies_and_paired_effects(page):
    text = text_of(page)
    assert "half B 70.0%" in text and "man-made 50.0%, natural 65.0%" in text and "all classes: 50.0%" in text
    # seed 0: B3A -0.03, A3B -0.04; seed 1: B3A -0.04; each against its own target's base
    assert "compared with the base network (AnB − base): −3.75 points" in text
    assert "(95% confidence interval −6.93 to −0.57; 2 seeds of one split, 3 paired differences)" in text
    assert "interval excludes zero at n = 3 (−3.75)" in text
    assert "Random weights, all classes" in text and "−30.00 points on average over n = 3 (1 paired difference" in text


@pytest.mark.usefixtures("no_figures")
def test_a_single_split_and_seed_is_said_to_give_no_interval(tmp_path):
    folder = tmp_path / "runs"
    write_table(folder, [each for each in NETWORKS if each[2] == 0])
    text = text_of(page_of(folder, tmp_path / "out"))
    assert "only one split and one seed" in text and "(95% confidence interval" not in text
    assert "impossible random: variation between seeds" in text


def test_a_table_of_effects_has_intervals_what_they_rest_on_and_the_papers_number(tmp_path):
    (analysis,) = analyse(read_results(write_table(tmp_path, NETWORKS)))
    causes = effects_tables(analysis, paper=False)[0]
    assert causes.columns[1] == ("representation specificity", "AnB − BnB")
    (n, (lost, specific, _, frozen)), *_ranges = causes.rows
    assert n == "3" and lost and specific and frozen
    assert (lost.mean, lost.interval, lost.counts, lost.verdict) == ("−1.50", "", "2", "unknown")
    assert (frozen.mean, frozen.counts, frozen.verdict) == ("−3.75", "2 seeds, 3", "below")
    assert specific.paper == "−0.11"  # by accuracy_final; effects.csv of the paper's table
    assert {
        each.paper for table in effects_tables(analysis, paper=True) for _, row in table.rows for each in row if each
    } == {""}


def test_over_a_range_the_papers_number_is_of_the_same_n(tmp_path):
    networks = [("random0", name, 0, 0.5) for name in ("baseA", "A5A", "A7A")]
    (analysis,) = analyse(read_results(write_table(tmp_path, networks)))
    rows = dict(effects_tables(analysis, paper=False)[0].rows)
    single = [rows[n][0] for n in ("5", "7")]
    assert rows["1-7"][0] and all(single)
    mean = sum(float(each.paper.replace("−", "-")) for each in single if each) / 2  # over all n it is -0.73
    assert float(rows["1-7"][0].paper.replace("−", "-")) == pytest.approx(mean, abs=0.011)


@pytest.mark.usefixtures("no_figures")
def test_the_papers_boost_is_shown_with_what_easier_halves_make_of_it(tmp_path):
    text = text_of(page_of(Path("paper"), tmp_path / "out", "--metric", "top10"))
    assert "AnB+ is +1.38 points above BnB+; +1.38 points of this are due to" in text
    assert "confounded random: AnB+ - BnB+ (as published)" in text
    assert "148 networks of the paper's authors" in text
    assert "is at chance level" in text  # R3, and five networks on few images
    assert (
        "transferability of features: nolearn_1_3, reduced-0005, reduced-0010, reduced-0025, reduced-0050 and 1 more."
        in text
    )


def test_planned_networks_without_a_result_are_counted_and_named(page):
    text = text_of(page)
    assert "Incomplete: 15 of 16 planned networks have a result. Missing: random0: A5B." in text
    assert "rewrites this page as networks finish: reload it" in text and "continues where it stopped" in text
    assert "random0-A5B-s0" in text  # in full below the table


def test_missing_networks_are_named_shortly_whatever_they_are_called():
    names = [f"random0-{each}-s0" for each in ("A3B", "A5B", "baseB", "B7B+")]
    assert missing_words(names) == "random0: A{3,5}B, baseB, B7B+"
    assert missing_words([*names[:1], "natman-A1B-s0", "whole-R3-s0"]) == "random0: A3B; natman: A1B; whole: R3"
    assert missing_words(["random0-A3B-s0", "random0-A3B-s1"]) == "random0 (seed 0): A3B; random0 (seed 1): A3B"
    assert missing_words(["nolearn_1_3", "random0-A0B-s0"]) == "nolearn_1_3, random0-A0B-s0"
    many = missing_words([f"random{number}-A3B-s0" for number in range(9)])
    assert many.endswith("random5: A3B; and networks of 3 more splits or seeds, listed below the table")


def test_settings_machine_versions_and_times_are_shown(page):
    text = text_of(page)
    assert "base_lr: 0.02" in text and "Abacus 3000" in text and "torch 9.9" in text
    assert "5 min 0 s (15 networks)" in text
    assert "from the first start to the last finish 10 min 0 s" in text


@pytest.mark.usefixtures("no_figures")
def test_networks_trained_with_other_settings_are_a_warning(runs, tmp_path):
    write_done(runs, "random0-A3B-s0", settings={**SETTINGS, "solver": {"base_lr": 0.5}}, finished="2029-01-01T10:00")
    text = text_of(page_of(runs, tmp_path / "out"))
    assert "trained with other settings" in text and "random0-A3B-s0" in text
    write_done(runs, "random0-A3B-s0", settings={**SETTINGS, "seeds": [0, 1]}, finished="2029-01-01T10:00")
    assert "trained with other settings" not in text_of(page_of(runs, tmp_path / "out"))


@pytest.mark.usefixtures("no_figures")
def test_text_from_files_is_escaped(runs, tmp_path):
    evil = "<script>alert(1)</script>"
    results = runs / "results.csv"
    results.write_text(results.read_text().replace("natman-A3B-s0", evil).replace(",demo,", f',"{evil}",'))
    write_done(runs, "random0-baseA-s0", machine=evil, versions={evil: evil}, settings={"name": evil, "note": evil})
    page = page_of(runs, tmp_path / "out")
    assert evil not in page
    assert page.count("<script") == 1
    assert html.escape(evil) in page


def test_the_same_runs_give_the_same_page_and_their_figures_beside_it(page, runs, tmp_path):
    assert page_of(runs, tmp_path / "out") == page
    assert len(list((tmp_path / "out" / "figures").glob("*.png"))) == 7


@pytest.mark.usefixtures("no_figures")
def test_results_alone_are_enough_for_a_page(tmp_path):
    write_table(tmp_path / "runs", NETWORKS[:1])
    text = text_of(page_of(tmp_path / "runs", tmp_path / "out"))
    assert "half A 60.0%" in text and "no done.json" in text


def test_a_folder_without_results_is_exit_2_and_says_what_to_do(tmp_path, capsys):
    assert report_main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "transfer_caffe.sweep" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unreadable_done_file_is_an_error_that_names_it(runs, tmp_path, capsys):
    (runs / "random0-baseA-s0" / "done.json").write_text("{")
    assert report_main(["--runs", str(runs), "--out", str(tmp_path / "out")]) == 2
    assert "random0-baseA-s0/done.json" in capsys.readouterr().err


def test_every_row_of_the_table_has_a_cell_for_every_heading(page):
    body = page.split('<table id="networks">')[1].split("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body.split("<tbody>")[1])
    assert len(rows) == len(NETWORKS)
    assert {row.count("<td") for row in rows} == {len(COLUMNS)} == {body.count('<th scope="col"')}


@pytest.mark.usefixtures("no_figures")
def test_a_networks_page_has_its_training_layers_settings_origin_and_log(runs, tmp_path):
    write_network(runs / "random0-A3B-s0")
    write_done(runs, "random0-A3B-s0", base_sha256="feedbeef")
    detail = detail_of(page_of(runs, tmp_path / "out"), "demo/random0-A3B-s0")
    text = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", detail)).split())
    assert "layers 1 to 3 are copied from the base network of half A of random0 and frozen" in text
    assert "accuracy of its own base network 0.7000 difference from its own base −4.00 points" in text
    assert "of the same target 0.6800 difference from that selffer network −2.00 points" in text
    assert "conv1 copied from random0-baseA-s0 frozen 0, 0 12 × 3 × 5 × 5; 12" in text
    assert "fc8 random learns 1, 2 50 × 128; 50" in text
    assert "base_lr: 0.125" in text and "Abacus 3000" in text and "base_sha256 feedbeef" in text
    assert "first line & <b>" in text and "the last line" in text and "<b>" not in detail


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("split", "treatment", "words"),
    [
        ("natman", "P3A", "stages 1 to 3 are copied from the recipe's weights P and frozen; the other stages are "
         "re-initialised; the network is trained on the man-made classes."),
        ("random0", "P1B+", "stage 1 is copied from the recipe's weights P and fine-tuned; the other stages are "
         "re-initialised; the network is trained on half B of random0."),
        ("whole", "Q2", "stages 1 to 2 are copied from the recipe's weights Q and frozen; the other stages are "
         "re-initialised; the network is trained on all classes."),
    ],
)  # fmt: skip
def test_a_network_of_existing_weights_is_said_to_be_copied_from_the_recipes_weights(tmp_path, split, treatment, words):
    folder = tmp_path / "runs"
    write_table(folder, [*NETWORKS, (split, treatment, 0, 0.6)])
    detail = detail_of(page_of(folder, tmp_path / "out"), f"demo/{split}-{treatment}-s0")
    text = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", detail)).split())
    assert f"Existing weights: {words}" in text


@pytest.mark.usefixtures("no_figures")
def test_a_networks_training_is_drawn_over_the_papers_of_the_same_treatment(runs, tmp_path):
    write_network(runs / "random0-A3B-s0")
    detail = detail_of(page_of(runs, tmp_path / "out"), "demo/random0-A3B-s0")
    (svg,) = re.findall(r"<svg.*?</svg>", detail, re.S)
    assert "paper: A3B, random0 (450,000 iterations, rescaled to the same length)" in svg
    assert "random0-A3B-s0: from 0.020 to 0.660 at iteration 1,000" in svg
    own, theirs = (re.findall(rf'<path class="{look}" d="M[\d.]+,([^"]*)"', svg)[0] for look in ("own", "paper"))
    assert len(own.split()) == 3 and len(theirs.split()) == 90
    assert own.split()[-1].split(",")[0] == theirs.split()[-1].split(",")[0]  # both end at the right


@pytest.mark.parametrize(
    ("split", "treatment", "images", "networks"),
    [
        ("random0", "A3B", None, ["random0 A3B"]),
        ("random7", "A3B", None, [f"random{split} A3B" for split in range(4)]),
        ("random0", "B3B", None, [f"random{split} A3A" for split in range(4)]),
        ("natman", "A3B", None, ["natman A3B"]),
        ("natman", "A3A", None, []),
        ("whole", "R3", None, ["whole R3"]),
        ("whole", "base", None, ["whole base"]),
        ("whole", "base", 100, ["whole base"]),
        ("whole", "base", 99, []),
    ],
)
def test_the_papers_networks_that_a_curve_is_drawn_over(split, treatment, images, networks):
    paper = load("paper")
    row = dataclasses.replace(paper[0], split=split, treatment=treatment, images_per_class=images)
    found = network.alike(row, paper, {each.network: [LogRow(1, 0.5, 1.0, None, None)] for each in paper})
    assert [f"{each.split} {each.treatment}" for each in found] == networks
    assert {each.images_per_class for each in found} <= {images}


def test_a_long_log_is_shown_with_its_beginning_its_end_and_how_much_is_left_out(tmp_path):
    path = tmp_path / "train.log"
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    text = network.excerpt(path, 1000)
    assert text.startswith("line 0\n") and text.endswith("line 999\n") and len(text) < 1200
    (left,) = (int(each.replace(",", "")) for each in re.findall(r"\.\.\. ([\d,]+) bytes left out", text))
    shown = re.sub(r"\n\.\.\. .*\n\n", "", text)
    assert len(shown) + left == path.stat().st_size
    assert all(re.fullmatch(r"line \d+", line) for line in shown.splitlines())


@pytest.mark.parametrize("file", ["surgery.json", "curve.csv", "train_val.prototxt"])
def test_a_damaged_file_of_a_network_is_an_error_that_names_it(runs, tmp_path, capsys, file):
    write_network(runs / "random0-A3B-s0")
    (runs / "random0-A3B-s0" / file).write_text("iteration,x\n{")
    assert report_main(["--runs", str(runs), "--out", str(tmp_path / "out")]) == 2
    assert f"random0-A3B-s0/{file}" in capsys.readouterr().err
    assert not (tmp_path / "out" / "index.html").exists()


@pytest.mark.usefixtures("no_figures")
def test_names_that_are_no_folders_names_are_not_followed(runs, tmp_path):
    results = runs / "results.csv"
    (tmp_path / "runs" / "secret").mkdir()
    (tmp_path / "runs" / "secret" / "train.log").write_text("a secret")
    results.write_text(results.read_text().replace("natman-A3B-s0", "../secret"))
    assert "a secret" not in detail_of(page_of(runs, tmp_path / "out"), "demo/../secret")
