"""Figures: the networks behind each number, pairing, missing values in the table, filters, curves, files.

The tests of the paper's table, alone and compared with another, are in test_figures_paper.py.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.tables import NETWORKS, REDUCED, add_folder, markers, table, write_table

from transfer_caffe.analysis.__main__ import main as analysis_main
from transfer_caffe.figures import curves, draw, filters
from transfer_caffe.figures.__main__ import main as figures_main
from transfer_caffe.results.markers import Cell, limits, markers_of, pooled_sd
from transfer_caffe.results.table import read_results
from transfer_caffe.utils.errors import UserError


def run(results: Path, out: Path, *more: str) -> int:
    return figures_main(["--results", str(results), "--out", str(out), *more])


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Draw the figures of `NETWORKS` and `REDUCED`; one of the networks has a folder."""
    folder = tmp_path_factory.mktemp("figures")
    results = write_table(folder / "runs", [*NETWORKS, *REDUCED])
    add_folder(folder / "runs" / "random0-baseA-s0")
    assert run(results, folder / "out") == 0
    return folder / "out"


def test_letters_are_pooled_as_in_the_paper(tmp_path):
    kinds = {marker.network: marker.kind for marker in markers(tmp_path, NETWORKS)}
    assert kinds["random0-A3A-s0"] == kinds["random0-B3B-s0"] == "BnB"
    assert kinds["random0-B3A-s0"] == kinds["random0-A3B-s0"] == "AnB"
    assert kinds["random0-A3B+-s0"] == "AnB+"
    assert kinds["whole-R3-s0"] == "R"


def test_each_network_is_paired_with_the_base_of_its_own_target_split_and_seed(tmp_path):
    found = {marker.network: marker for marker in markers(tmp_path, NETWORKS)}
    assert found["random0-B3A-s0"].gain == pytest.approx(0.57 - 0.60)
    assert found["random0-A3B-s0"].gain == pytest.approx(0.66 - 0.70)
    assert found["random0-B3A-s1"].gain == pytest.approx(0.58 - 0.62)
    assert found["natman-B3A-s0"].gain == pytest.approx(0.45 - 0.50)
    assert found["whole-R3-s0"].gain == pytest.approx(0.20 - 0.50)
    assert found["random0-baseA-s0"].gain is None


def test_a_transfer_network_is_compared_with_the_selffer_of_its_own_target_and_kind(tmp_path):
    found = {marker.network: marker for marker in markers(tmp_path, NETWORKS)}
    assert found["random0-B3A-s0"].over_control == pytest.approx(0.57 - 0.59)
    assert found["random0-A3B-s0"].over_control == pytest.approx(0.66 - 0.68)
    assert found["random0-A3B+-s0"].over_control is None  # there is no B3B+
    assert found["random0-B3A-s1"].over_control is None  # A3A of seed 1 was not trained


def test_a_network_without_its_own_base_has_no_gain(tmp_path):
    (lonely,) = [m for m in markers(tmp_path, [*NETWORKS[:1], ("random1", "B3A", 0, 0.5)]) if m.kind == "AnB"]
    assert lonely.gain is None


def test_networks_of_different_recipes_are_not_paired(tmp_path):
    path = write_table(tmp_path, [("random0", "baseA", 0, 0.6), ("random0", "B3A", 0, 0.5)])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2].replace("demo", "other")]) + "\n")
    assert [marker.gain for marker in markers_of(read_results(path), "final")] == [None, None]


def test_the_csv_beside_a_figure_holds_the_means_computed_by_hand(out):
    rows = {(row["kind"], row["n"]): row for row in table(out / "figure2_bottom.csv")}
    assert float(rows["base", "0"]["mean"]) == pytest.approx((0.60 + 0.70 + 0.62) / 3, abs=1e-6)
    assert float(rows["AnB", "3"]["mean"]) == pytest.approx((0.57 + 0.66 + 0.58) / 3, abs=1e-6)
    deviation = float(np.std([0.57, 0.66, 0.58], ddof=1))
    assert float(rows["AnB", "3"]["standard_deviation"]) == pytest.approx(deviation, abs=1e-6)
    assert float(rows["AnB", "3"]["standard_error"]) == pytest.approx(deviation / math.sqrt(3), abs=1e-6)
    assert rows["AnB+", "3"]["networks"] == "1" and rows["AnB+", "3"]["standard_error"] == ""
    paired = {(row["kind"], row["n"]): row for row in table(out / "figure2_paired.csv")}
    assert float(paired["AnB", "3"]["mean"]) == pytest.approx((-0.03 - 0.04 - 0.04) / 3, abs=1e-6)
    assert float(paired["BnB", "3"]["mean"]) == pytest.approx((-0.01 - 0.02) / 2, abs=1e-6)


def test_the_csv_of_single_markers_gives_every_network_of_the_random_splits_once(out):
    rows = {row["network"]: row for row in table(out / "figure2_top.csv")}
    assert sorted(rows) == sorted(f"{s}-{t}-s{seed}" for s, t, seed, _ in NETWORKS if s == "random0")
    assert rows["random0-A3B-s0"]["accuracy"] == "0.660000" and rows["random0-A3B-s0"]["gain"] == "-0.040000"
    assert rows["random0-A3B-s0"]["x"] == "3.090000"
    figure3 = {row["network"]: row for row in table(out / "figure3.csv")}
    assert figure3["whole-R3-s0"]["gain"] == "-0.300000"
    assert "random0-A3A-s0" not in figure3


def test_the_means_of_figure_3_are_beside_it(out):
    means = {(row["line"], row["n"]): row for row in table(out / "figure3.csv") if row["panel"] == "bottom"}
    assert float(means["man-made/natural split", "3"]["gain"]) == pytest.approx((-0.10 - 0.05) / 2, abs=1e-6)
    assert means["man-made/natural split", "3"]["networks"] == "2"
    assert float(means["random A/B splits", "3"]["gain"]) == pytest.approx((-0.03 - 0.04 - 0.04) / 3, abs=1e-6)
    assert float(means["random, untrained filters", "3"]["gain"]) == pytest.approx(-0.3, abs=1e-6)


def test_networks_on_reduced_data_have_a_figure_of_their_own(out):
    rows = table(out / "reduced.csv")
    assert [(row["images_per_class"], row["accuracy"]) for row in rows] == [
        ("5", "0.020000"), ("50", "0.300000"), ("50", "0.400000"), ("", "0.500000"),
    ]  # fmt: skip
    assert {row["chance"] for row in rows} == {"0.020000"}
    assert "Accuracy below 1.5 times the chance level: k = 5." in (out / "captions.md").read_text()
    assert not any("reduced" in row["network"] for row in table(out / "figure3.csv"))


def test_a_table_of_reduced_data_alone_is_drawn(tmp_path):
    assert run(write_table(tmp_path, [*REDUCED, ("reduced9", "base", 0, 0.0)]), tmp_path / "out") == 0
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == ["figure1", "reduced"]


def test_the_analysis_of_reduced_data_alone_is_an_error_that_says_so(tmp_path, capsys):
    assert analysis_main(["--results", str(write_table(tmp_path, REDUCED))]) == 2
    assert "apart from networks trained on reduced data" in capsys.readouterr().err


def test_a_network_on_no_images_is_an_error_that_names_it(tmp_path, capsys):
    assert run(write_table(tmp_path, [("reduced0", "base", 0, 0.1)]), tmp_path / "out") == 2
    assert "reduced0-base-s0: images_per_class is 0" in capsys.readouterr().err


@pytest.mark.parametrize("accuracy", [62.5, -0.1])
@pytest.mark.parametrize("split", ["random0", "reduced5"])
def test_an_accuracy_that_is_no_fraction_is_an_error_that_names_the_network(tmp_path, capsys, split, accuracy):
    name = "base" if split == "reduced5" else "baseA"
    assert run(write_table(tmp_path, [*NETWORKS[1:2], (split, name, 7, accuracy)]), tmp_path / "out") == 2
    assert f"{split}-{name}-s7: accuracy_final is {accuracy:g}" in capsys.readouterr().err


def test_columns_that_nobody_knows_do_no_harm(tmp_path):
    path = write_table(tmp_path, NETWORKS[:2])
    header, *lines = path.read_text().splitlines()
    path.write_text("\r\n".join([f"mood,{header}", *(f"fine,{line}" for line in lines)]) + "\r\n")
    assert run(path, tmp_path / "out") == 0


@pytest.mark.parametrize("content", ["", "\n", "a,b\n1,2\n"])
def test_what_is_no_results_table_is_an_error_of_one_line(tmp_path, capsys, content):
    (tmp_path / "results.csv").write_text(content)
    assert run(tmp_path / "results.csv", tmp_path / "out") == 2
    assert "not a results table" in capsys.readouterr().err


def test_thousands_of_networks_are_drawn(tmp_path):
    names = [
        f"{source}{n}{target}{plus}" for source in "AB" for n in range(1, 8) for target in "AB" for plus in ("", "+")
    ]
    many = [(f"random{s}", name, 0, 0.5 + s / 1000) for s in range(70) for name in ("baseA", "baseB", *names)]
    assert run(write_table(tmp_path, many), tmp_path / "out") == 0
    assert len(table(tmp_path / "out" / "figure2_top.csv")) == 70 * 58


def test_names_that_are_no_folders_are_not_looked_for(tmp_path):
    path = write_table(tmp_path / "runs", NETWORKS[:2])
    add_folder(tmp_path / "elsewhere")
    path.write_text(path.read_text().replace("random0-baseA-s0", "../elsewhere"))
    assert run(path, tmp_path / "out") == 0
    assert not (tmp_path / "out" / "curves.png").exists()


def test_the_papers_metric_is_drawn_when_asked_for(tmp_path):
    run(write_table(tmp_path, NETWORKS[:1]), tmp_path / "out", "--metric", "top10")
    assert {row["network"]: row["accuracy"] for row in table(tmp_path / "out" / "figure2_top.csv")}[
        "random0-baseA-s0"
    ] == "0.610000"


def test_an_unknown_metric_is_exit_2(tmp_path):
    assert run(write_table(tmp_path, NETWORKS), tmp_path / "out", "--metric", "best") == 2
    with pytest.raises(UserError, match=r"best.*final, top10"):
        draw.draw_figures(read_results(tmp_path / "results.csv"), tmp_path / "out", "best")


def test_networks_without_a_finite_accuracy_are_left_out(tmp_path):
    gaps = [("random0", "A1A", 0, None), ("random0", "A5A", 0, math.nan)]
    assert len(markers(tmp_path, [*NETWORKS, *gaps])) == len(NETWORKS)


def test_a_table_without_any_accuracy_is_an_error_of_one_line(tmp_path, capsys):
    assert run(write_table(tmp_path, [("random0", "baseA", 0, None)]), tmp_path / "out") == 2
    assert "no network has accuracy_final" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "networks",
    [
        [("random0", "baseA", 0, 0.6)],
        [("random0", "baseA", 0, 0.6), ("random0", "baseB", 0, 0.6)],
        [("random0", "A3B", 0, 0.6)],
        [("random0", "baseB", 0, 0.6), ("random0", "A3B", 0, 0.6)],
        [("natman", "A3B", 0, 0.6)],
        [("whole", "R7", 0, 0.0)],
        [("random1", "baseA", 0, 0.0), ("random1", "R2A", 0, 1.0), ("random1", "B1A+", 0, 1.0)],
    ],
)
def test_few_networks_still_give_figures(tmp_path, networks):
    assert run(write_table(tmp_path, networks), tmp_path / "out") == 0
    written = sorted((tmp_path / "out").iterdir())
    assert written and all(path.stat().st_size > 50 for path in written)


def test_bases_of_natman_alone_are_an_error_that_says_what_is_missing(tmp_path, capsys):
    assert run(write_table(tmp_path, [("natman", "baseA", 0, 0.6)]), tmp_path / "out") == 2
    assert "nothing to draw but Figure 1" in capsys.readouterr().err


def test_every_figure_is_written_as_png_svg_and_pdf(out):
    for figure in set(draw.NAMES) - {"study"}:
        assert (out / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (out / f"{figure}.svg").read_bytes()[:1000]
        assert (out / f"{figure}.pdf").read_bytes().startswith(b"%PDF")


def test_captions_lie_beside_the_figures_and_name_their_files(out):
    text = (out / "captions.md").read_text()
    for path in out.iterdir():
        assert path.name in ("captions.md", "table1.csv", "table1.md") or path.name in text
    assert "the test accuracy after the last iteration" in text
    assert "Yosinski" not in text  # these are not the paper's data


def test_every_row_says_that_it_is_yours(out):
    for path in out.glob("*.csv"):
        if path.name not in ("figure1.csv", "table1.csv"):
            assert {row["source"] for row in table(path)} == {"yours"}, path.name


def test_the_same_table_gives_the_same_bytes_and_names_its_files(out, tmp_path, capsys):
    assert run(out.parent / "runs" / "results.csv", tmp_path / "again") == 0
    written = sorted((tmp_path / "again").iterdir())
    assert sorted(capsys.readouterr().out.split()) == [str(path) for path in written]
    assert [path.name for path in written] == sorted(path.name for path in out.iterdir())
    for path in written:
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_a_figure_of_an_earlier_table_does_not_stay(tmp_path):
    run(write_table(tmp_path, NETWORKS[-2:]), tmp_path / "out")
    assert (tmp_path / "out" / "figure3.png").exists()
    run(write_table(tmp_path, NETWORKS[:1]), tmp_path / "out")
    assert not list((tmp_path / "out").glob("figure3.*"))


@pytest.mark.parametrize("captions", [None, b"# Mine\n\nFiles: curves.csv\n", b"# Figures\n\n\xff\n"])
def test_files_that_no_earlier_figures_wrote_stay_as_they_are(tmp_path, captions):
    out = tmp_path / "out"
    out.mkdir()
    own = [out / name for name in ("curves.csv", "reduced.png", "table1.csv", "table1.md")]
    for path in own:
        path.write_bytes(b"mine\xff\n")
    if captions is not None:
        (out / "captions.md").write_bytes(captions)
    networks = write_table(tmp_path, NETWORKS[:1])
    for _ in range(2):  # the second run reads the captions of the first
        run(networks, out)
    assert {path.read_bytes() for path in own} == {b"mine\xff\n"}


def test_table_1_is_written_where_there_are_fine_tuned_transfer_networks_and_does_not_stay(tmp_path, capsys):
    run(write_table(tmp_path, NETWORKS), tmp_path / "out")
    tables = [tmp_path / "out" / name for name in ("table1.csv", "table1.md")]
    assert capsys.readouterr().out.split("\n")[-3:-1] == [str(path) for path in tables]
    (line,) = [row for row in table(tables[0]) if row["layers"] == "1-7"]
    assert float(line["AnB+_own_base"]) == pytest.approx(1)  # A3B+ 0.71, baseB 0.70
    assert run(write_table(tmp_path, [each for each in NETWORKS if each[1] != "A3B+"]), tmp_path / "out") == 0
    assert not any(path.exists() for path in tables)


def test_table_1_is_of_the_metric_that_is_drawn(tmp_path):
    results = write_table(tmp_path, [*NETWORKS, ("random0", "A5B+", 0, None)])
    results.write_text(results.read_text().replace("0.71,0.72", "0.71,0.75"))  # A3B+: accuracy_final, accuracy_top10
    run(results, tmp_path / "out", "--metric", "top10")
    (line,) = [row for row in table(tmp_path / "out" / "table1.csv") if row["layers"] == "1-7"]
    assert float(line["AnB+_own_base"]) == pytest.approx(4)


def test_two_networks_of_one_treatment_split_and_seed_are_an_error_that_names_them(tmp_path):
    twice = [("random0", "baseA", 0, 0.6), ("random0", "baseA", 0, 0.7)]
    with pytest.raises(UserError, match="random0-baseA-s0"):
        markers(tmp_path, twice)


def test_an_unknown_split_is_an_error(tmp_path):
    with pytest.raises(UserError, match="halves"):
        markers(tmp_path, [("halves", "baseA", 0, 0.6)])


def test_the_axes_of_the_papers_figure_follow_from_the_papers_range():
    assert limits([0.533, 0.6477], 0.01, 0.02) == pytest.approx((0.52, 0.66))
    assert limits([0.6], 0.01, 0.02) == pytest.approx((0.58, 0.62))


def test_the_spread_within_cells_is_pooled_over_those_with_several_networks():
    pooled = pooled_sd([Cell((0.0, 0.02)), Cell((0.01, 0.03)), Cell((0.5,))])
    assert pooled is not None
    assert pooled[0] == pytest.approx(math.sqrt(0.0002)) and pooled[1] == 2


def test_filters_are_read_from_the_final_weights(tmp_path):
    weights = filters.read_filters(add_folder(tmp_path / "net"))
    assert weights is not None
    np.testing.assert_array_equal(weights, np.arange(300, dtype=np.float32).reshape(4, 3, 5, 5))


def test_filters_are_shown_red_green_blue_each_over_its_own_range():
    blue = np.zeros((2, 3, 1, 1), dtype=np.float32)
    blue[0, 0], blue[1] = 5.0, 7.0  # Caffe's channel 0 is blue; the second filter is constant
    grid = filters.filter_grid(blue)
    assert grid[1, 1].tolist() == [0, 0, 1]
    assert grid[1, 3].tolist() == [0.5, 0.5, 0.5]
    assert grid[0].min() == 1


def test_a_damaged_weights_file_is_an_error_that_names_it(tmp_path):
    path = add_folder(tmp_path / "net")
    data = path.read_bytes()
    for damaged in (b"", data[: len(data) // 3], b"\xff" * 40):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="net_iter_1000"):
            filters.read_filters(path)


def test_filters_that_are_no_colours_are_not_shown(tmp_path):
    assert filters.read_filters(add_folder(tmp_path / "net", channels=2)) is None


def test_a_curve_leaves_out_what_was_not_tested(tmp_path):
    add_folder(tmp_path / "net")
    assert curves.read_curve(tmp_path / "net" / "curve.csv") == [(0, 0.02), (1000, 0.6)]


def test_a_broken_curve_is_an_error_that_names_file_and_line(tmp_path):
    (tmp_path / "curve.csv").write_text("iteration,test_accuracy\n0,0.02\n100,much\n")
    with pytest.raises(UserError, match=r"curve\.csv:3"):
        curves.read_curve(tmp_path / "curve.csv")


def test_importing_figures_and_report_does_not_import_torch():
    code = "import sys, transfer_caffe.figures, transfer_caffe.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
