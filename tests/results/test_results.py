"""The results table: a written table is read back unchanged, and errors name the line."""

import json
from pathlib import Path

import pytest

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.results.__main__ import main as results_main
from transfer_caffe.results.table import COLUMNS, Row, collect, load, read_results, to_csv
from transfer_caffe.run.record import top10
from transfer_caffe.utils.errors import UserError

PAPER_COLUMNS = (
    "network,split,treatment,source,target,n,finetuned,images_per_class,target_classes,outputs,max_iter,logged,"
    "accuracy_final,accuracy_top10,accuracy_max,iteration_of_max,test_loss_final,train_loss_last1000,"
    "seconds_per_iteration,seconds_per_test"
)
PAPER = (
    PAPER_COLUMNS
    + """
half0A,random0,baseA,,A,0,,,500,1000,450000,1,0.614559,0.6151,0.61524,304000,1.74482,0.450545,1.76425,130.507
transfer3A3B_1_7,random3,A7B,A,B,7,0,,500,1000,450000,0,,,,,,,,
nolearn_1_1,whole,R1,random,whole,1,0,,1000,1000,450000,1,0.490781,0.491662,0.49188,415000,2.2892,1.6418,1.48195,132.736
reduced-0002,whole,base,,whole,0,,2,1000,1000,200000,1,0.00414,0.004448,0.00462,36000,13.386,0.00121343,3.335,130.359
"""
)


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "results.csv"
    path.write_text(PAPER)
    return path


def test_a_table_in_the_papers_columns_is_read_and_written_back(table):
    rows = read_results(table)
    assert rows[0].accuracy_top10 == 0.6151 and rows[0].finetuned is False and rows[0].recipe == ""
    assert rows[1].accuracy_final is None and rows[1].logged is False
    assert rows[2].source == "random" and rows[3].images_per_class == 2
    lines = to_csv(rows).splitlines()
    assert lines[0] == PAPER_COLUMNS + ",recipe,seed,wall_seconds"
    assert [line.removesuffix(",,0,") for line in lines[1:]] == PAPER.splitlines()[1:]


def test_a_table_of_ours_is_read_back_as_it_was(table):
    rows = [
        *read_results(table),
        Row(**vars(read_results(table)[1]) | {"recipe": "a, b", "seed": 3, "wall_seconds": 1.5}),
    ]
    table.write_text(to_csv(rows))
    assert read_results(table) == rows


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("accuracy_top10,", "", ":1: not a results table: the column accuracy_top10 is missing"),
        ("0.614559", "0,614559", ":2: 21 fields, the header has 20"),
        ("0.491662", "much", ":4: accuracy_top10: a number was expected, not 'much'"),
        ("304000", "304000.5", ":2: iteration_of_max: a whole number was expected"),
        ("R1,random,whole,1,0", "R1,random,whole,1,yes", ":4: finetuned: 0 or 1 was expected, not 'yes'"),
        (",A,B,7,", ",A,B,,", ":3: n: is empty"),
        ("A7B", "A9B", ":3: treatment A9B"),
        ("half0A", '"half0A', "not valid CSV"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(table, old, new, message):
    table.write_text(PAPER.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        read_results(table)
    assert message in str(error.value) and str(table) in str(error.value)


def test_an_n_that_is_not_the_treatments_is_named_with_its_line(table):
    table.write_text(PAPER.replace("random3,A7B,A,B,7,", "random3,A7B,A,B,6,"))
    with pytest.raises(UserError, match=r"results\.csv:3: n is 6, but the treatment is A7B"):
        read_results(table)


def test_a_missing_table_is_an_operating_system_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_results(tmp_path / "none.csv")


DONE = {
    "network": "random0-A3B+-s0",
    "recipe": "demo",
    "split": "random0",
    "treatment": "A3B+",
    "source": "A",
    "target": "B",
    "n": 3,
    "finetuned": True,
    "seed": 0,
    "accuracy_final": 0.6,
    "accuracy_top10": 0.61,
    "accuracy_max": 0.62,
    "iteration_of_max": 900,
    "test_loss_final": 1.2,
    "train_loss_last1000": 1.1,
    "max_iter": 1000,
    "outputs": 50,
    "target_classes": 50,
    "wall_seconds": 14.2,
    "seconds_per_iteration": None,
    "seconds_per_test": 0.2,
    "engine": "embedded",
}


def write_done(runs: Path, folder: str, **other: object) -> None:
    path = runs / "demo" / folder / "done.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(DONE | other))


def test_networks_that_are_done_are_collected_in_the_order_of_the_recipe(tmp_path):
    write_done(tmp_path, "random0-A3B+-s0")
    write_done(tmp_path, "random0-A3B+-s0.old1")  # renamed by --restart
    write_done(tmp_path, "random0-baseA-s0", network="random0-baseA-s0", treatment="baseA", source="", n=0)
    write_done(
        tmp_path,
        "reduced5-base-s0",
        network="reduced5-base-s0",
        treatment="base",
        split="reduced5",
        source="",
        target="",
    )
    rows = collect(load_recipe("demo"), tmp_path)
    assert [row.network for row in rows] == ["random0-baseA-s0", "random0-A3B+-s0", "reduced5-base-s0"]
    assert rows[1] == Row(
        **{name: DONE[name] for name in COLUMNS if name in DONE} | {"images_per_class": None, "logged": True}
    )
    assert (rows[2].split, rows[2].target, rows[2].images_per_class) == ("whole", "whole", 5)


def test_the_command_writes_the_table_and_says_how_much_is_missing(tmp_path, capsys):
    write_done(tmp_path, "random0-A3B+-s0")
    assert results_main(["--recipe", "demo", "--runs", str(tmp_path)]) == 0
    assert len(read_results(tmp_path / "demo" / "results.csv")) == 1
    assert ": 1 of " in capsys.readouterr().out


def test_a_done_file_of_another_kind_is_an_error_that_names_it(tmp_path, capsys):
    write_done(tmp_path, "random0-A3B+-s0")
    path = tmp_path / "demo" / "random0-A3B+-s0" / "done.json"
    path.write_text("{}")
    assert results_main(["--recipe", "demo", "--runs", str(tmp_path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_no_runs_at_all_is_an_error_that_names_the_command(tmp_path, capsys):
    assert results_main(["--recipe", "demo", "--runs", str(tmp_path)]) == 2
    assert "python -m transfer_caffe.sweep run --recipe demo" in capsys.readouterr().err


def test_top10_is_the_mean_of_the_ten_highest_or_of_all_where_there_are_fewer():
    assert top10([0.1 * number for number in range(11)]) == 0.55
    assert top10([0.2, 0.4]) == 0.3


def test_the_word_paper_loads_the_papers_table_and_a_path_loads_that_file(tmp_path, monkeypatch, table):
    rows = load("paper")
    assert len(rows) == 170 and sum(row.logged for row in rows) == 148
    assert all((row.accuracy_final is None) == (not row.logged) for row in rows)
    assert load(table) == read_results(table)
    monkeypatch.chdir(tmp_path)
    table.rename("paper")
    assert len(load("./paper")) == 4 and len(load("paper")) == 170
