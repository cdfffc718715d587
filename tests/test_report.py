"""The report: one page that needs nothing else, says what the table says, and shows nothing unescaped."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from test_figures import NETWORKS, add_folder, write_table

from transfer_caffe import report
from transfer_caffe.figures.cells import markers_of
from transfer_caffe.results import read_results
from transfer_caffe.summary import effects_tables

SETTINGS = {
    "name": "demo",
    "solver": {"base_lr": 0.02, "max_iter": 1000},
    "seeds": [0],
    "networks": {"random0": ["baseA", "baseB", "A3B", "A5B"]},
}


def write_done(runs: Path, network: str, **changes: object) -> None:
    record = {
        "network": network,
        "settings": SETTINGS,
        "engine": "embedded",
        "machine": {"cpu": "Abacus 3000", "cores": 2},
        "versions": {"torch": "9.9"},
        "started": "2030-01-01T10:00:00+00:00",
        "finished": "2030-01-01T10:10:00+00:00",
    }
    (runs / network).mkdir(parents=True, exist_ok=True)
    (runs / network / "done.json").write_text(json.dumps({**record, **changes}))


@pytest.fixture
def runs(tmp_path) -> Path:
    return make_runs(tmp_path)


def make_runs(parent: Path) -> Path:
    folder = parent / "runs" / "demo"
    write_table(folder, NETWORKS)
    add_folder(folder / "random0-baseA-s0")
    write_done(folder, "random0-baseA-s0")
    return folder


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """For what is not about figures: drawing takes seconds."""
    monkeypatch.setattr(report, "draw_figures", lambda *_: [])


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """The page of `make_runs`, with figures."""
    folder = tmp_path_factory.mktemp("report")
    return page_of(make_runs(folder), folder / "out")


def page_of(runs: Path, out: Path, *more: str) -> str:
    assert report.main(["--runs", str(runs), "--out", str(out), *more]) == 0
    return (out / "index.html").read_text(encoding="utf-8")


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page.split("<main>")[1])).split())


def test_the_page_needs_no_other_file_and_no_network(page):
    assert not re.search(r"https?://|//[a-z]+\.", page.replace("</script>", ""))
    assert set(re.findall(r"(?:src|href)=\"([a-z]+:)?", page)) == {"data:"}
    assert len(page) < 10_000_000


def test_every_picture_has_words_for_those_who_do_not_see_it(page):
    pictures = re.findall(r"<img[^>]*>", page)
    assert len(pictures) == 7
    assert all(re.search(r'alt="[^"]{30,}"', picture) for picture in pictures)


def test_the_summary_gives_base_accuracies_and_paired_effects(page):
    text = text_of(page)
    assert "half B 70.0%" in text and "man-made 50.0%, natural 65.0%" in text and "all classes: 50.0%" in text
    # B3A -0.03 and A3B -0.04 with seed 0, B3A -0.04 with seed 1, each against its own target's base
    assert "AnB (features of the other half, frozen) against the own base: −3.67 points" in text
    assert "random0 A −3.00" in text and "random0 A seed 1 −4.00" in text and "random0 B −4.00" in text


@pytest.mark.usefixtures("no_figures")
def test_one_seed_is_called_one_seed(tmp_path):
    folder = tmp_path / "runs"
    write_table(folder, [each for each in NETWORKS if each[2] == 0])
    assert "There is one seed" in text_of(page_of(folder, tmp_path / "out"))
    write_table(folder, NETWORKS)
    assert "There is one seed" not in text_of(page_of(folder, tmp_path / "out"))


def test_a_table_of_effects_counts_the_networks_behind_each_number(tmp_path):
    markers = markers_of(read_results(write_table(tmp_path, NETWORKS)), "final")
    random = effects_tables(markers)[0]
    assert random.columns == ["BnB − base", "AnB − base", "AnB+ − base", "AnB − BnB"]
    ((n, row),) = random.rows
    assert n == 3
    assert [(effect.mean, effect.count) for effect in row if effect] == [
        ("−1.50", 2),
        ("−3.67", 3),
        ("+1.00", 1),
        ("−2.00", 2),
    ]


def test_planned_networks_without_a_result_are_counted_and_named(page):
    text = text_of(page)
    assert "Not complete: 1 planned networks" in text
    assert "random0-A5B-s0" in text


def test_settings_machine_versions_and_times_are_shown(page):
    text = text_of(page)
    assert "base_lr: 0.02" in text and "Abacus 3000" in text and "torch 9.9" in text
    assert "5 min 0 s (15 networks)" in text
    assert "from the first start to the last end 10 min 0 s" in text


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
    assert report.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "transfer_caffe.sweep" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unreadable_done_file_is_an_error_that_names_it(runs, tmp_path, capsys):
    (runs / "random0-baseA-s0" / "done.json").write_text("{")
    assert report.main(["--runs", str(runs), "--out", str(tmp_path / "out")]) == 2
    assert "random0-baseA-s0/done.json" in capsys.readouterr().err


def test_every_row_of_the_table_has_a_cell_for_every_heading(page):
    body = page.split('<table id="networks">')[1].split("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body.split("<tbody>")[1])
    assert len(rows) == len(NETWORKS)
    assert {row.count("<td") for row in rows} == {len(report.COLUMNS)} == {body.count('<th scope="col"')}
