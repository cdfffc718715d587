"""The analysis command: its text, its files, and unusual tables."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from support.analysis_tables import complete, read, row, rows_of, run

from transfer_caffe.analysis import analyse, table1_md
from transfer_caffe.analysis.text import table1_rows
from transfer_caffe.results.table import to_csv
from transfer_caffe.utils.errors import UserError

# Unusual tables


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
    assert (
        "Recipe demo: 1 networks with accuracy_final (after the last iteration). Networks without an accuracy: 1."
        in text
    )
    assert "a separate experiment: 1." in text
    assert "Recipe later: no network has accuracy_final." in text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("random0", "baseA", 0, None)], "no network has accuracy_final"),
        ([row("random0", "baseA", 0, 61.5)], "random0-baseA-s0: accuracy_final is 61.5; a fraction from 0 to 1"),
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


# Files


def test_the_command_writes_tables_with_the_papers_digits(tmp_path, capsys):
    out = tmp_path / "a b"
    assert run("--results", "paper", "--metric", "top10", "--out", out) == 0
    text = capsys.readouterr().out
    assert "Mean of the 8 base networks of random halves: 0.6251" in text and str(out / "effects.csv") in text
    table1 = read(out / "table1.csv")
    assert [line["layers"] for line in table1] == ["1-7", "3-7", "5-7"]
    assert [round(float(line["over_baseB"]), 1) for line in table1] == [1.6, 1.8, 2.1]
    assert [round(float(line["over_BnB+"]), 1) for line in table1] == [1.4, 1.4, 1.7]
    assert table1[0]["over_BnB+_by_halves"] == "1.3833" and table1[0]["over_BnB+_remains"] == "-0.0002"
    assert table1[0]["AnB+_own_base_clusters"] == "2" and table1[0]["AnB+_BnB+_same_target"] == ""
    assert table1[2]["AnB+_own_base"] == "1.1626" and table1[2]["AnB+_own_base_low"] == ""
    markdown = (out / "table1.md").read_text()
    assert (
        "| 1-7 | 1.6 (0.6 due to easier halves) | 1.4 (1.4 due to easier halves) | +0.95 [+0.31, +1.60] |" in markdown
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


def test_a_table_1_that_the_analysis_did_not_write_stays_as_it_is(tmp_path):
    own = [tmp_path / "out" / name for name in ("table1.csv", "table1.md")]
    (tmp_path / "out").mkdir()
    for path in own:
        path.write_bytes(b"mine\xff\n")
    (tmp_path / "results.csv").write_text(to_csv(rows_of([("random0", "baseA", 0, 0.6)])))
    assert run("--results", tmp_path / "results.csv", "--out", tmp_path / "out") == 0
    assert {path.read_bytes() for path in own} == {b"mine\xff\n"}


def test_the_report_says_everything_a_reader_needs(capsys):
    assert run("--results", "paper", "--metric", "top10") == 0
    text = capsys.readouterr().out
    words = " ".join(text.split())
    assert "136 networks with accuracy_top10" in text and "Networks without an accuracy: 22." in words
    assert "random0 0.6151 0.6341 +1.90 2" in words
    assert "4 -1.85 [-2.15, -1.55] 4/4 -0.62 [-1.06, -0.19] 4/4 -2.47 [-2.86, -2.08] 4/4" in words
    assert "interval excludes zero: fragile co-adaptation at n = 4-6; representation specificity at n = 4-7;" in words
    assert "1-7 +1.60 +0.63 +0.97 +1.38 +1.38 +0.00" in words
    assert "CONFOUNDED random: AnB+ - BnB+ (as published)" in words
    assert "To resolve this, train natman: A{1-7}A, B{1-7}B." in words
    assert "9.9 days" in words
    assert max(map(len, text.splitlines())) < 150


def test_the_report_gives_remedies_only_where_something_is_to_be_settled(capsys):
    assert run("--results", "paper") == 0
    text = capsys.readouterr().out
    assert "error 42.5%" in text
    supported = [each for each in text.split("\n- ") if each.startswith("SUPPORTED")]
    assert len(supported) == 6
    assert not [each for each in supported if "To resolve this" in " ".join(each.split())]


def test_a_complete_design_shows_one_column_of_frozen_transfer_and_seeds_are_marked(tmp_path, capsys):
    networks = complete("random0", 0.5) + [(*each[:2], 1, (each[3] or 0) + 0.01) for each in complete("random0", 0.5)]
    (tmp_path / "results.csv").write_text(to_csv(rows_of(networks)))
    assert run("--results", tmp_path / "results.csv") == 0
    text = capsys.readouterr().out
    assert "both causes, same networks" in text and "all frozen transfer" not in text
    assert "3     -1.00 [-1.00, -1.00] 2s/4" in text


def test_table_1_of_a_deep_net_has_its_own_ranges_with_their_pairs(tmp_path):
    networks = [("random0", f"base{half}", seed, 0.5) for half in "AB" for seed in (0, 1)]
    for source, target in ("AB", "BA", "AA", "BB"):
        gain = 0.02 if source != target else 0.01
        networks += [
            ("random0", f"{source}{n}{target}+", seed, 0.5 + gain * (n > 5)) for n in range(1, 11) for seed in (0, 1)
        ]
    analyses = analyse(rows_of(networks))
    rows = table1_rows(analyses)
    assert [row["layers"] for row in rows] == ["1-10", "6-10"]
    assert [round(100 * row["base"].difference, 6) for row in rows] == [1, 2]
    assert [round(100 * row["selffer"].difference, 6) for row in rows] == [0.5, 1]
    assert [round(100 * row["AnB+_BnB+_same_target"].estimate, 6) for row in rows] == [0.5, 1]
    assert "no pairs" not in table1_md(analyses)
    published = [each for each in analyses[0].effects if each.pairing == "as published"]
    assert {each.n for each in published} == {"1-10", "6-10"}
    why = {each.comparison: each.why for each in analyses[0].findings if each.pairing == "as published"}
    assert set(why) == {"AnB+ - base", "AnB+ - BnB+"}


def test_the_part_of_easier_halves_is_that_of_all_stages_of_a_deep_net():
    networks = [("random0", "baseA", 0, 0.5), ("random0", "baseB", 0, 0.6)]
    networks += [("random0", f"A{n}B+", 0, 0.6 + 0.01 * (n > 7)) for n in range(1, 15)]
    findings = analyse(rows_of(networks))[0].findings
    (why,) = (each.why for each in findings if (each.comparison, each.pairing) == ("AnB+ - base", "as published"))
    assert "the pooled difference of +5.50 points" in why  # all 14 stages; +5.00 of the first 7


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


def test_long_lists_of_what_to_train_are_cut_in_the_report_alone(capsys, tmp_path):
    networks = [(f"random{split}", name, 0, 0.5) for split in range(24) for name in ("baseA", "baseB", "A7A")]
    networks += [(f"random{split}", f"A{n}A", 0, 0.5) for split in range(24) for n in range(1, 6) if split >> n - 1 & 1]
    (tmp_path / "results.csv").write_text(to_csv(rows_of(networks)))
    assert run("--results", tmp_path / "results.csv", "--out", tmp_path / "out") == 0
    text = " ".join(capsys.readouterr().out.split("Which comparisons these networks support")[1].split())
    assert "random23" not in text and "... (complete list in findings.csv)." in text
    (line,) = [line for line in read(tmp_path / "out" / "findings.csv") if line["comparison"] == "AnB - BnB"]
    assert "random23: " in line["remedy"] and line["remedy"].startswith("random0")
    assert line["remedy"].index("random2") < line["remedy"].index("random10")
