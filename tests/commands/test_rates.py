"""The search for learning rates: what it trains, what it chooses, and what it leaves behind."""

from pathlib import Path

import pytest
import yaml
from support.own_images import make_images
from support.tables import write_table

from transfer_caffe import rates
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.formats.image_list import read_list
from transfer_caffe.rates import best_of, block_of, kinds_of, main, search, table_of
from transfer_caffe.study import main as study
from transfer_caffe.utils.errors import UserError

ACCURACIES = {
    0.01: {"base": 0.5, "P2": 0.1, "P2+": 0.6},
    0.003: {"base": 0.4, "P2": 0.5, "P2+": 0.6},
    0.001: {"base": 0.3, "P2": 0.7},  # P2+ has diverged
}


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    """The recipe of a study, in the current folder."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path)
    arguments = ["--weights", "weights.caffemodel", "--net", "net.prototxt", "--images", "my photos", "--name", "pets"]
    assert study([*arguments, "--plan"]) == 0
    return load_recipe("pets.yaml")


class Sweep:
    """In the place of `sweep run`: writes the accuracies of `ACCURACIES`, and notes what it was asked for."""

    def __init__(self, codes=(), diverge=True):
        self.recipes, self.codes, self.lists, self.diverge = [], list(codes), None, diverge

    def __call__(self, argv: list[str]) -> int:
        code = self.codes.pop(0) if self.codes else 0
        if code not in (0, 1):
            return code
        recipe = load_recipe(argv[argv.index("--recipe") + 1])
        self.recipes.append(recipe)
        self.lists = {part: read_list(f"data/pets-rates/{part}.txt") for part in ("train", "val")}
        found = ACCURACIES[recipe.solver["base_lr"]]
        for treatment in recipe.treatments["whole"] if self.diverge else ():
            log = Path(argv[argv.index("--runs") + 1]) / recipe.name / f"whole-{treatment}-s0" / "train.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("the loss is nan: training diverged")
        write_table(Path(argv[argv.index("--runs") + 1]) / recipe.name, [("whole", *one) for one in
                    ((name, 0, value) for name, value in found.items())])  # fmt: skip
        return code


def test_every_kind_gets_its_best_rate_and_the_recipe_takes_the_block(recipe, monkeypatch, capsys):
    monkeypatch.setattr(rates, "sweep", run := Sweep(codes=[0, 0, 1]))
    found = search(recipe, Path("data"), Path("runs"), list(ACCURACIES))
    assert best_of(found) == {"base*": 0.01, "[PAB][0-9]*": 0.001, "[PAB][0-9]*+": 0.01}  # of equals the larger one
    assert [each.solver["base_lr"] for each in run.recipes] == list(ACCURACIES)
    for each in run.recipes:
        assert [str(treatment) for treatment in each.treatments["whole"]] == ["base", "P2", "P2+"]
        assert each.solver["max_iter"] == recipe.solver["max_iter"] // 2 and each.solver_for == {}
        assert each.solver["test_interval"] == each.solver["max_iter"] and each.mean == recipe.mean
    text = Path("pets.yaml").read_text()
    Path("pets.yaml").write_text(text + block_of(found))
    rate_of = {("whole", "base"): 0.01, ("whole", "P1"): 0.001, ("whole", "P2+"): 0.01, ("random0", "baseA"): 0.01,
               ("random0", "A1A"): 0.001, ("random0", "A1A+"): 0.01, ("random0", "P1B"): 0.001}  # fmt: skip
    for (split, treatment), rate in rate_of.items():
        assert load_recipe("pets.yaml").network(split, treatment).solver["base_lr"] == rate
    assert yaml.safe_load(block_of(found))["solver_for"] == {
        "base*": {"base_lr": 0.01}, "[PAB][0-9]*": {"base_lr": 0.001}, "[PAB][0-9]*+": {"base_lr": 0.01},
    }  # fmt: skip
    lines = table_of(found)
    assert "50.0%*" in lines[1] and "0.0%" in lines[3] and "at the end of what was tried" in lines[-1]


def test_the_search_never_sees_the_validation_images_and_holds_out_a_fifth_of_each_class(recipe, monkeypatch):
    monkeypatch.setattr(rates, "sweep", run := Sweep())
    search(recipe, Path("data"), Path("runs"), [0.01])
    assert run.lists is not None
    train, held = run.lists["train"], run.lists["val"]
    assert sorted(train + held) == sorted(read_list("data/pets/train.txt"))
    assert [sum(label == each for _, label in held) for each in range(3)] == [2, 2, 2]  # a fifth of 8, rounded up


def test_an_interrupted_search_resumes_and_a_finished_one_is_not_repeated(recipe, monkeypatch):
    monkeypatch.setattr(rates, "sweep", Sweep(codes=[0, 130]))
    with pytest.raises(SystemExit) as end:
        search(recipe, Path("data"), Path("runs"), list(ACCURACIES))
    assert end.value.code == 130 and Path("runs/pets/rates/pets-lr0.01/results.csv").exists()
    monkeypatch.setattr(rates, "sweep", Sweep())
    found = search(recipe, Path("data"), Path("runs"), list(ACCURACIES))
    assert not Path("runs/pets/rates").exists() and not Path("data/pets-rates").exists()
    monkeypatch.setattr(rates, "sweep", None)
    assert search(recipe, Path("data"), Path("runs"), list(ACCURACIES)) == found


def test_rates_of_other_weights_or_another_net_or_of_a_damaged_file_are_searched_again(recipe, monkeypatch):
    def searched() -> int:
        monkeypatch.setattr(rates, "sweep", run := Sweep())
        search(load_recipe("pets.yaml"), Path("data"), Path("runs"), list(ACCURACIES))
        return len(run.recipes)

    assert [searched(), searched()] == [3, 0]
    with open("weights.caffemodel", "ab") as weights:
        weights.write(b"\0")
    assert [searched(), searched()] == [3, 0]
    net = Path("net.prototxt").read_text()
    Path("net.prototxt").write_text(net.replace('"pretrained"', '"other"'))
    assert [searched(), searched()] == [3, 0]
    Path("runs/pets/rates.json").write_text("[1]\n")
    assert [searched(), searched()] == [3, 0]


def test_a_search_finds_net_weights_and_images_where_runs_and_data_are_links(recipe, monkeypatch):
    for name in ("runs", "data"):
        there = Path("other disk/deep", name)
        there.parent.mkdir(parents=True, exist_ok=True)
        if Path(name).exists():
            Path(name).rename(there)
        else:
            there.mkdir()
        Path(name).symlink_to(there.resolve())
    run = Sweep()

    def check(argv: list[str]) -> int:
        code = run(argv)
        made = run.recipes[-1]
        assert made.source_file("P").samefile("weights.caffemodel") and made.net_file.samefile("net.prototxt")
        images = recipe.dataset_folder(Path("data")) / recipe.images.root
        assert (made.dataset_folder(Path("data")) / made.images.root).samefile(images)
        return code

    monkeypatch.setattr(rates, "sweep", check)
    search(recipe, Path("data"), Path("runs"), [0.01])
    assert len(run.recipes) == 1


def test_a_dataset_of_the_users_is_neither_overwritten_nor_removed(recipe, monkeypatch):
    monkeypatch.setattr(rates, "sweep", Sweep())
    Path("data/pets-rates").mkdir()
    Path("data/pets-rates/train.txt").write_text("mine.png 0\n")
    with pytest.raises(
        UserError, match="data/pets-rates exists, and the search needs that name for its own lists; ren"
    ):
        search(recipe, Path("data"), Path("runs"), list(ACCURACIES))
    assert [each.name for each in Path("data/pets-rates").iterdir()] == ["train.txt"]
    assert Path("data/pets-rates/train.txt").read_text() == "mine.png 0\n"


def test_what_another_recipe_left_is_removed_and_not_used(recipe, monkeypatch):
    monkeypatch.setattr(rates, "sweep", Sweep(codes=[0, 130]))
    with pytest.raises(SystemExit):
        search(recipe, Path("data"), Path("runs"), list(ACCURACIES))
    left = Path("runs/pets/rates/pets-lr0.01/whole-base-s0")
    left.mkdir(parents=True, exist_ok=True)
    text = Path("pets.yaml").read_text()
    Path("pets.yaml").write_text(text.replace("momentum: 0.9", "momentum: 0.8"))

    def check(argv: list[str]) -> int:
        assert not left.exists()
        return run(argv)

    run = Sweep()
    monkeypatch.setattr(rates, "sweep", check)
    search(load_recipe("pets.yaml"), Path("data"), Path("runs"), [0.003])
    assert [each.solver["momentum"] for each in run.recipes] == [0.8]


def test_every_source_gets_its_own_rates(recipe):
    text = Path("pets.yaml").read_text()
    text = text.replace(
        "P: {weights: weights.caffemodel}", "P: {weights: weights.caffemodel}\n  Q: {weights: weights.caffemodel}"
    )
    Path("pets.yaml").write_text(text.replace("'P{1,2}+'", "'P{1,2}+', Q1, Q2"))
    assert kinds_of(load_recipe("pets.yaml")) == {
        "base*": "base", "[PAB][0-9]*": "P2", "[PAB][0-9]*+": "P2+", "Q[0-9]*": "Q2",
    }  # fmt: skip


def test_a_kind_that_diverges_with_every_rate_is_an_error():
    with pytest.raises(UserError, match=r"networks P\* diverged with every rate; try smaller ones than 0\.001"):
        best_of({"base*": {0.01: 0.5, 0.001: 0.4}, "P*": {0.01: 0.0, 0.001: 0.0}})


def test_a_path_with_nan_in_it_is_no_divergence(tmp_path):
    log = tmp_path / "banana" / "train.log"
    log.parent.mkdir()
    log.write_text(f"{log}: out of memory")
    with pytest.raises(UserError, match="did not diverge"):
        rates._require_diverged(log)
    log.write_text("solver.cpp:239] Iteration 100 (50 iter/s), loss = nan")
    rates._require_diverged(log)


def test_a_network_that_failed_but_did_not_diverge_ends_the_search(recipe, monkeypatch):
    monkeypatch.setattr(rates, "sweep", Sweep(codes=[0, 0, 1], diverge=False))
    with pytest.raises(UserError, match=r"whole-P2\+-s0/train\.log: a network of the search failed, and it did not"):
        search(recipe, Path("data"), Path("runs"), list(ACCURACIES))
    assert not Path("runs/pets/rates.json").exists() and Path("runs/pets/rates").exists()


def test_bad_input_is_one_line(recipe, monkeypatch, capsys):
    for given in ("", "fast", "0.1,-1", "0.1,0.1", "nan"):
        assert main(["--recipe", "pets.yaml", "--rates", given]) == 2
        assert "numbers above 0" in (error := capsys.readouterr().err) and error.count("\n") == 1
    with pytest.raises(UserError, match="no networks with stages from existing weights"):
        kinds_of(load_recipe("demo"))
    monkeypatch.setitem(ACCURACIES, 0.01, {})
    monkeypatch.setattr(rates, "sweep", Sweep())
    with pytest.raises(UserError, match="no network of the search"):
        search(recipe, Path("data"), Path("runs"), [0.01])
