"""The paper's figures from the authors' table: markers, axes, and figures that compare it with another table."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from support.tables import NETWORKS, REDUCED, markers, table, write_table

from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.figures import draw, style
from transfer_caffe.figures.__main__ import main as figures_main
from transfer_caffe.figures.figure1 import TREATMENTS, draw_figure1, treatments_of, weights_of
from transfer_caffe.figures.figure2 import draw_bottom
from transfer_caffe.figures.sources import Source
from transfer_caffe.results.reference import NETWORKS as PAPER
from transfer_caffe.results.table import load
from transfer_caffe.utils.errors import UserError

CREDIT = "Data: Yosinski et al. 2014"
KINDS = {"base": ("#ffffff", 0.0), "BnB": ("#0000ff", -0.25), "BnB+": ("#aaaaff", -0.09), "AnB": ("#ff0000", 0.09),
         "AnB+": ("#ffaaaa", 0.27)}  # fmt: skip


class Shown:
    """The figures of one run: their files, and the drawn matplotlib figures by title."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.figures: dict[str, Figure] = {}
        original = Figure.savefig

        def savefig(figure: Figure, *args: object, **kwargs: object) -> None:
            title = kwargs["metadata"]["Title"]  # pyright: ignore
            self.figures[title] = figure
            original(figure, *args, **kwargs)  # pyright: ignore

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Figure, "savefig", savefig)
            assert figures_main([*arguments, "--out", str(folder)]) == 0

    def axes(self, words: str) -> list[Axes]:
        (figure,) = [figure for title, figure in self.figures.items() if words in title]
        return figure.axes

    def table(self, name: str) -> list[dict[str, str]]:
        return table(self.folder / f"{name}.csv")


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> Shown:
    return Shown(tmp_path_factory.mktemp("paper"), "--results", "paper", "--metric", "top10")


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Shown:
    folder = tmp_path_factory.mktemp("both")
    results = write_table(folder, [*NETWORKS, *REDUCED])
    return Shown(folder / "out", "--results", str(results), "--compare", "paper")


def authors(split: str) -> Iterator[dict[str, str]]:
    """Yield the rows of the authors' table that have a log and whose split begins with ``split``."""
    with open(PAPER, newline="") as file:
        yield from (row for row in csv.DictReader(file) if row["split"].startswith(split) and row["logged"] == "1")


def kind(row: dict[str, str]) -> str:
    if not row["source"]:
        return "base"
    return ("BnB" if row["source"] == row["target"] else "AnB") + "+" * (row["finetuned"] == "1")


def points(axes: Axes, face: str, marker: str = "oDhvs") -> list[tuple[float, float]]:
    """Return the positions of the markers of this face colour, without those of the legend and the error bars."""
    found = []
    for line in axes.lines:
        if str(line.get_marker()) in marker and to_hex(line.get_markerfacecolor()) == face:  # pyright: ignore
            found += zip(line.get_xdata(), line.get_ydata(), strict=True)  # pyright: ignore
    return sorted((float(x), float(y)) for x, y in found)


def test_the_word_paper_is_the_authors_170_networks_of_which_148_have_accuracies():
    rows = load("paper")
    assert len(rows) == 170
    assert [row.accuracy_top10 is not None for row in rows] == [row.logged for row in rows]
    assert sum(row.logged for row in rows) == 148


def test_table_1_lies_beside_the_papers_figures_with_the_published_numbers(paper):
    rows = paper.table("table1")
    assert [row["layers"] for row in rows] == ["1-7", "3-7", "5-7"]
    assert [round(float(row["over_baseB"]), 1) for row in rows] == [1.6, 1.8, 2.1]
    assert [round(float(row["over_BnB+"]), 1) for row in rows] == [1.4, 1.4, 1.7]
    assert (
        "| 5-7 | 2.1 (0.9 due to easier halves) | 1.7 (1.6 due to easier halves) |"
        in (paper.folder / "table1.md").read_text()
    )


def test_table_1_beside_both_is_of_ones_own_networks_alone(both):
    (row, *_) = both.table("table1")
    assert row["recipe"] == "demo"
    assert {row["recipe"] for row in both.table("table1")} == {"demo"}
    assert float(row["over_baseB"]) == pytest.approx(100 * (0.71 - (0.60 + 0.62 + 0.70) / 3))


def test_figure_2_top_shows_the_papers_112_markers_at_their_accuracy_and_place(paper):
    (axes,) = paper.axes("Figure 2, top")
    drawn = {name: points(axes, face) for name, (face, _) in KINDS.items()}
    assert {name: len(each) for name, each in drawn.items()} == {
        "base": 8, "BnB": 28, "BnB+": 10, "AnB": 56, "AnB+": 10,
    }  # fmt: skip
    wanted: dict[str, list[tuple[float, float]]] = {name: [] for name in KINDS}
    for row in authors("random"):
        wanted[kind(row)].append((int(row["n"]) + KINDS[kind(row)][1], float(row["accuracy_top10"])))
    for name, each in drawn.items():
        np.testing.assert_allclose(each, sorted(wanted[name]), atol=1e-4)
    assert len(paper.table("figure2_top")) == 112


def test_figure_2_has_the_papers_axes_colours_and_legend(paper):
    (top,), (bottom,) = paper.axes("Figure 2, top"), paper.axes("Figure 2, bottom")
    for axes, ends in ((top, (0.52, 0.66)), (bottom, (0.54, 0.655))):
        assert axes.get_xlim() == pytest.approx((-0.2, 7.3)) and axes.get_ylim() == pytest.approx(ends)
        assert list(axes.figure.get_size_inches()) == [15, 8]
        assert axes.get_ylabel() == "Top-1 accuracy (higher is better)"
        assert axes.get_xlabel() == "Layer n at which network is chopped and retrained"
        legend = axes.get_legend()
        assert legend is not None
        labels = [text.get_text().replace("$^+$", "+") for text in legend.get_texts()]
        assert labels == ["baseB", "selffer BnB", "selffer BnB+", "transfer AnB", "transfer AnB+"]
    shades = [to_hex(each.get_facecolor()[0]) for each in bottom.collections]  # pyright: ignore
    assert shades == ["#ffeeee", "#eeeeff", "#ffcccc"]
    assert [text.get_text() for text in bottom.texts if text.get_text().isdigit()] == ["2", "3", "4", "5"]


def test_figure_2_bottom_goes_through_the_means_from_the_base_mean_on(paper):
    (axes,) = paper.axes("Figure 2, bottom")
    values: dict[tuple[str, int], list[float]] = {}
    for row in authors("random"):
        values.setdefault((kind(row), int(row["n"])), []).append(float(row["accuracy_top10"]))
    base = np.mean(values["base", 0])
    assert base == pytest.approx(0.6251, abs=5e-5)
    for name, (colour, _) in KINDS.items():
        if name != "base":
            (line,) = [
                each for each in axes.lines if each.get_linestyle() == "-" and to_hex(each.get_color()) == colour
            ]
            means = [base, *(np.mean(values[name, n]) for n in range(1, 8))]
            assert list(line.get_xdata()) == list(range(8))  # pyright: ignore
            np.testing.assert_allclose(line.get_ydata(), means, atol=1e-6)
    (dashed,) = [each for each in axes.lines if each.get_linestyle() == "--"]
    assert dashed.get_color() == "black" and dashed.get_ydata() == pytest.approx([base, base])


def test_figure_2_paired_pairs_each_network_with_its_own_base(paper):
    means = {(row["kind"], int(row["n"])): float(row["mean"]) for row in paper.table("figure2_paired")}
    # not in the paper: both fine-tuned kinds gain 0.97 points on average over n = 1 to 7
    gains = {name: [] for name in ("BnB+", "AnB+")}
    for row in paper.table("figure2_top"):
        if row["kind"] in gains:
            gains[row["kind"]].append(float(row["gain"]))
    assert np.mean(gains["AnB+"]) == pytest.approx(0.0097, abs=1e-4)
    assert np.mean(gains["BnB+"]) == pytest.approx(0.0097, abs=1e-4)
    assert means["AnB", 7] == pytest.approx(-0.0826, abs=1e-4)


def test_figure_3_falls_by_8_points_for_similar_halves_and_by_25_for_dissimilar_ones(paper):
    drop = {(row["line"], row["n"]): -float(row["gain"]) for row in paper.table("figure3") if row["panel"] == "bottom"}
    assert round(100 * drop["random A/B splits", "7"], 1) == 8.3
    assert round(100 * drop["man-made/natural split", "7"], 1) == 25.0
    assert drop["random, untrained filters", "1"] == pytest.approx(0.576305 - 0.491662, abs=1e-6)


def test_figure_3_shows_the_papers_numbers_on_its_axes(paper):
    natman, random, bottom = paper.axes("Figure 3")
    wanted = {target: sorted((float(row["n"]), float(row["accuracy_top10"])) for row in authors("natman")
                             if row["target"] == target and row["source"]) for target in "AB"}  # fmt: skip
    np.testing.assert_allclose(points(natman, "#ff8800", "h"), wanted["B"], atol=1e-4)
    np.testing.assert_allclose(points(natman, "#ffcc88", "h"), wanted["A"], atol=1e-4)
    assert [y for _, y in points(natman, "#ffffff", "o")] == pytest.approx([0.537244, 0.653399], abs=1e-4)
    filters = sorted((float(r["n"]), float(r["accuracy_top10"])) for r in authors("whole") if r["source"] == "random")
    np.testing.assert_allclose(points(random, "#aaaa00", "v"), filters, atol=1e-4)
    assert bottom.get_ylim() == pytest.approx((-0.3, 0.03))
    assert len(points(bottom, "#ff0000", "D")) == len(points(bottom, "#ff8800", "h")) == 7


def test_the_supplements_figure_has_all_numbers_of_images_in_both_panels(paper):
    linear, logarithmic = paper.axes("supplement")
    wanted = sorted((float(row["images_per_class"]), float(row["accuracy_top10"])) for row in authors("whole")
                    if row["images_per_class"])  # fmt: skip
    assert [k for k, _ in wanted] == [1, 2, 5, 10, 25, 50, 100, 250, 500, 750, 1000, 1300]
    for axes, scale in ((linear, "linear"), (logarithmic, "log")):
        np.testing.assert_allclose(points(axes, "#008844", "s"), wanted, atol=1e-4)
        assert (axes.get_xscale(), axes.get_yscale()) == (scale, scale)


def test_the_curves_are_the_papers(paper):
    (axes, *_) = paper.axes("Training curves")
    assert len(axes.lines) == 8
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(0.614559, abs=1e-4)  # pyright: ignore


def test_the_papers_figures_say_whose_data_they_show(paper):
    captions = (paper.folder / "captions.md").read_text()
    for block in captions.split("\n## ")[1:]:
        title, caption = block.split("\n\n")[:2]
        assert block.startswith("Overview of the treatments") or (CREDIT in title and CREDIT in caption)
    assert "selected on the test set" in captions
    for name in set(draw.NAMES) - {"figure1", "conv1_filters", "study"}:
        for ending in ("svg", "pdf", "png"):
            data = (paper.folder / f"{name}.{ending}").read_bytes()
            assert CREDIT.encode() in data or CREDIT.encode("utf-16-be") in data, (name, ending)
    for path in paper.folder.glob("figure[23]*.csv"):
        assert {row["source"] for row in table(path)} == {"paper"}


def test_the_last_accuracies_of_the_papers_networks_fit_its_axes_too(monkeypatch, tmp_path):
    monkeypatch.setattr(draw, "read_tests", lambda _: {})  # drawing the curves takes the longest
    shown = Shown(tmp_path, "--results", str(PAPER))
    (axes,) = shown.axes("Figure 2, top")
    assert axes.get_ylim() == pytest.approx((0.52, 0.66))
    assert min(points(axes, "#ffffff"))[1] == pytest.approx(0.614559, abs=1e-6)


def test_both_tables_are_in_every_figure_and_the_axes_fit_both(both):
    for name in ("figure2_top", "figure2_bottom", "figure2_paired", "figure3", "reduced"):
        assert {row["source"] for row in both.table(name)} == {"yours", "paper"}, name
    rows = both.table("figure2_top")
    assert sum(row["source"] == "paper" for row in rows) == 112
    assert sum(row["source"] == "yours" for row in rows) == 9
    for words in ("Figure 2, top", "Figure 2, bottom"):
        (axes,) = both.axes(words)
        low, high = axes.get_ylim()
        assert low < 0.532 and high > 0.71
    for title in both.figures:
        assert CREDIT in title or "Overview" in title or "curves" in title


def test_what_is_behind_is_hollow_pale_and_beside_ones_own(both):
    (axes,) = both.axes("Figure 2, top")
    assert len(points(axes, "#ff0000")) == 3  # yours
    paper = [row for row in both.table("figure2_top") if row["source"] == "paper"]
    wanted = sorted((float(row["x"]), float(row["accuracy"])) for row in paper)
    behind = [line for line in axes.lines if line.get_markeredgecolor() not in ("black", "#000000")]
    drawn = [xy for line in behind if line.get_marker() != "+"
             for xy in zip(line.get_xdata(), line.get_ydata(), strict=True)]  # pyright: ignore  # fmt: skip
    np.testing.assert_allclose(sorted(drawn), wanted, atol=1e-6)
    assert all(to_hex(line.get_markerfacecolor()) == "#ffffff" for line in behind if line.get_marker() != "+")  # pyright: ignore
    assert {row["x"] for row in paper if row["treatment"] == "A3B"} == {"3.170000"}
    assert min(line.get_zorder() for line in axes.lines if line.get_markeredgecolor() == "black") > max(
        line.get_zorder() for line in behind
    )


def test_the_legend_tells_the_two_apart(both):
    for words in ("Figure 2, top", "Figure 3"):
        for axes in both.axes(words):
            legend = axes.get_legend()
            assert legend is not None
            labels = [text.get_text() for text in legend.get_texts()]
            assert labels[-2:] == ["full colour: yours", "pale, hollow: the paper"]


def test_a_kind_that_only_the_paper_has_is_said_to_be_the_papers(both):
    (axes,) = both.axes("Figure 2, top")
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert "selffer BnB$^+$ (paper only)" in labels and "selffer BnB" in labels


def test_a_caption_says_whether_ones_own_means_cover_the_same_halves(tmp_path):
    fair = markers(tmp_path, [("random0", name, 0, 0.5) for name in ("baseA", "baseB", "A3B", "B3A")])
    unfair = markers(tmp_path, [("random0", name, 0, 0.5) for name in ("baseA", "baseB", "A3B")])
    for own, other, words in ((fair, unfair, "Every mean covers"), (unfair, fair, "The means do not all cover")):
        sources = [Source("yours", own), Source("paper", other, behind=True)]
        assert words in draw_bottom(sources, tmp_path, "").caption


def test_paired_differences_of_both_are_drawn_from_their_own_bases(both):
    rows = {(row["source"], row["kind"], row["n"]): float(row["mean"]) for row in both.table("figure2_paired")}
    assert rows["yours", "AnB", "3"] == pytest.approx((-0.03 - 0.04 - 0.04) / 3, abs=1e-6)
    assert rows["paper", "AnB", "7"] == pytest.approx(-0.083, abs=1e-3)
    (axes,) = both.axes("minus its own base")
    dashed = [line for line in axes.lines if line.is_dashed() and len(line.get_xdata()) == 8]  # pyright: ignore
    assert len(dashed) == 4


def test_the_paper_beside_itself_is_an_error(tmp_path, capsys):
    assert figures_main(["--results", "paper", "--compare", "paper", "--out", str(tmp_path / "out")]) == 2
    assert "both are the paper's networks" in capsys.readouterr().err
    assert figures_main(["--compare", "paper", "--out", str(tmp_path / "out")]) == 2
    assert "needs --results" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_process_writes_the_same_bytes_without_a_date(paper, tmp_path):
    command = [sys.executable, "-m", "transfer_caffe.figures", "--results", "paper", "--metric", "top10"]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run([*command, "--out", str(tmp_path)], check=True, env=environment, stdout=subprocess.DEVNULL)
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (paper.folder, tmp_path))
    assert one == two
    assert {name.rpartition(".")[2] for name in one} == {"png", "svg", "pdf", "csv", "md"}
    for name, data in one.items():
        assert b"CreationDate" not in data and b"<dc:date>" not in data, name


def test_the_module_runs_and_without_results_draws_figure_1(tmp_path):
    command = [sys.executable, "-m", "transfer_caffe.figures", "--out", str(tmp_path / "with space")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        str(tmp_path / "with space" / f"figure1.{ending}") for ending in ("png", "svg", "pdf", "csv")
    ]


def test_figure_1_has_a_box_for_each_layer_with_its_weights_and_whether_they_learn(tmp_path):
    drawn = draw_figure1(treatments_of("baseA,baseB,A3B,B3B+,R2"), tmp_path)
    rows = table(tmp_path / "figure1.csv")
    assert len(rows) == 5 * 8 and drawn.files[-1] == tmp_path / "figure1.csv"
    by_row = {name: [row for row in rows if row["treatment"] == name] for name in ("baseA", "A3B", "B3B+", "R2")}
    letters = {name: "".join(row["weights"][0] for row in each) for name, each in by_row.items()}
    assert letters == {"baseA": "A" * 8, "A3B": "AAA" + "f" * 5, "B3B+": "BBB" + "f" * 5, "R2": "rr" + "f" * 6}
    learns = {name: "".join(row["learns"] for row in each) for name, each in by_row.items()}
    assert learns == {"baseA": "1" * 8, "A3B": "00011111", "B3B+": "1" * 8, "R2": "00111111"}
    assert {(row["images"], row["labels"]) for row in by_row["A3B"]} == {("B", "B")}
    assert {row["images"] for row in by_row["R2"]} == {"all"}


def test_figure_1_fits_networks_of_another_depth(tmp_path):
    for layers in (4, 20):
        draw_figure1(treatments_of("baseA,AnB", 3, layers), tmp_path, layers)
        assert len(table(tmp_path / "figure1.csv")) == 2 * layers


def test_nothing_of_figure_1_overlaps_or_is_cut_off(monkeypatch, tmp_path):
    drawn: list[Figure] = []
    monkeypatch.setattr(style, "write_bytes", lambda path, _: None)
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), original(figure, *a, **k)))
    draw_figure1(treatments_of("base,baseA,baseB,B7B+,R7,A1B"), tmp_path)
    (axes,) = drawn[0].axes
    renderer = FigureCanvasAgg(
        drawn[0]
    ).get_renderer()  # the last renderer was that of the PDF, with another resolution
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert all(box.x0 >= 0 and box.x1 <= 1500 and box.y0 >= 0 for box in boxes)
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(two) for two in boxes[i + 1 :])
    (left, *_) = sorted(patch.get_window_extent().x0 for patch in axes.patches if isinstance(patch, FancyBboxPatch))
    assert all(box.x1 < left for box in boxes if box.x0 < left and box.y0 > 60)  # above the legend


def test_the_treatments_of_figure_1_are_a_list_of_names_and_patterns():
    names = [str(each) for each in treatments_of("baseA, A{1,3}B ,BnB+,Rn,A3B", 5)]
    assert names == ["baseA", "A1B", "A3B", "B5B+", "R5"]
    assert [str(each) for each in treatments_of(TREATMENTS)] == ["baseA", "baseB", "A3B", "B3B", "A3B+", "B3B+"]
    assert [str(each) for each in treatments_of("baseA,A3B", 3)] == ["baseA", "A3B"]
    assert weights_of(Treatment.parse("base"), 1) == ""


@pytest.mark.parametrize(
    ("text", "n", "layers", "words"),
    [
        (" , ", None, 8, "the list is empty"),
        ("baseA,C3B", None, 8, "C"),
        ("baseA,A3B", 5, 8, "--n 5"),
        ("A5B", None, 5, "a network of 5 layers"),
    ],
)
def test_what_figure_1_cannot_draw_is_an_error_that_says_so(text, n, layers, words):
    with pytest.raises(UserError, match=words):
        treatments_of(text, n, layers)


def test_a_depth_that_cannot_be_drawn_is_exit_2(tmp_path):
    assert figures_main(["--layers", "1", "--out", str(tmp_path)]) == 2
    assert figures_main(["--layers", "many", "--out", str(tmp_path)]) == 2
