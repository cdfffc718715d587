"""Recipes: reading them, their networks and settings, and the errors for invalid ones."""

from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from transfer_caffe.engine.precision import PRECISIONS
from transfer_caffe.engine.solver.rates import LR_POLICIES
from transfer_caffe.experiment import read
from transfer_caffe.experiment.read import load_recipe, recipe_names
from transfer_caffe.experiment.recipe import Recipe
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.strict_yaml import load_yaml

DEMO: dict[str, Any] = {
    "name": "small",
    "dataset": "photos",
    "images": {"root": "data/photos", "resize": [32, 32]},
    "architecture": "mini",
    "crop": 28,
    "mirror": True,
    "batch": {"train": 8, "test": 4},
    "solver": {"base_lr": 0.01, "lr_policy": "fixed", "max_iter": 10, "test_interval": 5},
    "networks": {"random0": ["baseA", "A3B"]},
}


def recipe_of(folder: Path, file: str = "small.yaml", **changes: Any) -> Recipe:
    path = folder / file
    path.write_text(yaml.safe_dump(DEMO | changes), encoding="utf-8")
    return load_recipe(path)


def names(recipe: Recipe) -> list[str]:
    return [network.name for network in recipe.networks()]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_ships_is_sound(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    networks = recipe.networks()
    assert len({network.name for network in networks}) == len(networks)
    assert len({network.random_seed for network in networks}) == len(networks)
    seen: set[str] = set()
    for network in networks:
        assert network.base is None or network.base.name in seen
        seen.add(network.name)


def test_the_paper_recipe_lists_the_170_networks_of_the_authors() -> None:
    networks = load_recipe("paper").networks()
    splits = {"random0": 44, "random1": 44, "random2": 23, "random3": 23, "natman": 16, "whole": 8}
    reduced = [1, 2, 5, 10, 25, 50, 100, 250, 500, 750, 1000, 1300]
    assert Counter(network.split for network in networks) == splits | {f"reduced{k}": 1 for k in reduced}
    assert len(networks) == 170
    kinds = Counter(
        (t.source or "base", t.target, t.finetuned) for network in networks for t in [network.treatment] if t.target
    )
    assert kinds == {
        ("base", "A", False): 5,
        ("base", "B", False): 5,
        ("A", "A", False): 28,
        ("A", "B", False): 35,
        ("B", "A", False): 35,
        ("A", "A", True): 14,
        ("A", "B", True): 14,
        ("B", "A", True): 14,
    }
    assert {network.split for network in networks if network.treatment.finetuned} == {"random0", "random1"}


def test_the_paper_recipe_trains_by_the_released_settings() -> None:
    recipe = load_recipe("paper")
    assert (recipe.architecture, recipe.crop, recipe.images.resize) == ("caffenet", 227, (256, 256))
    assert (recipe.batch.train, recipe.batch.test, recipe.test_images) == (256, 50, 50000)
    assert (recipe.outputs, recipe.mean, recipe.mirror) == (1000, "base", True)
    solver = {
        "base_lr": 0.01, "lr_policy": "step", "gamma": 0.1, "stepsize": 100000, "max_iter": 450000, "momentum": 0.9,
        "weight_decay": 0.0005, "test_interval": 1000, "display": 20, "snapshot": 10000, "solver_mode": "GPU",
    }  # fmt: skip
    assert recipe.network("random0", "A3B").solver == solver
    reduced = recipe.network("reduced100", "base")
    assert reduced.solver == solver | {"base_lr": 0.0125, "stepsize": 64000, "max_iter": 200000}
    assert reduced.max_iter == 200000


def test_the_demo_recipe_trains_each_treatment_on_both_halves() -> None:
    treatments = load_recipe("demo").treatments["random0"]
    other = str.maketrans("AB", "BA")
    mirrored = {str(treatment).translate(other) for treatment in treatments}
    assert mirrored == {str(treatment) for treatment in treatments}
    assert any(treatment.is_selffer and treatment.finetuned for treatment in treatments)


def test_bases_come_first_and_those_that_are_needed_are_added(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, networks={"random1": ["B{2,1}A"], "whole": ["R1", "base"]}, seeds=[3, 4])
    assert names(recipe) == [
        "random1-baseB-s3", "whole-base-s3", "random1-baseB-s4", "whole-base-s4",
        "random1-B2A-s3", "random1-B1A-s3", "whole-R1-s3", "random1-B2A-s4", "random1-B1A-s4", "whole-R1-s4",
    ]  # fmt: skip


def test_a_network_takes_its_weights_from_the_base_of_its_own_split_and_seed(tmp_path: Path) -> None:
    base = recipe_of(tmp_path).network("random7", "B3A+", seed=2).base
    assert base is not None
    assert base.name == "random7-baseB-s2"
    assert recipe_of(tmp_path).network("random7", "R3A", seed=2).base is None


def test_the_random_seed_follows_from_recipe_split_treatment_and_seed_and_is_never_the_bases(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    network = recipe.network("random0", "A3A")
    others = [
        recipe.network("random0", "baseA"), recipe.network("random1", "A3A"), recipe.network("random0", "A3A", seed=1),
        recipe_of(tmp_path, "other.yaml", name="other").network("random0", "A3A"),
    ]  # fmt: skip
    seeds = [each.random_seed for each in [network, *others]]
    assert len(set(seeds)) == 5
    assert all(0 < seed < 2**31 for seed in seeds)
    assert network.random_seed == recipe_of(tmp_path).network("random0", "A3A").random_seed == 168007540


def test_a_recipe_has_the_name_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(DEMO), encoding="utf-8")
    with pytest.raises(UserError, match="the recipe's name is small, not that of its file; set `name: mine`"):
        load_recipe(tmp_path / "mine.yaml")


def test_folders_follow_from_split_and_half(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, mean="base")
    network = recipe.network("random0", "A3B")
    assert network.folder("runs") == Path("runs/small/random0-A3B-s0")
    assert network.data_folder("data") == Path("data/photos/random0/B")
    assert network.mean_folder("data") == Path("data/photos/random0/A")
    assert recipe_of(tmp_path, mean="target").network("random0", "A3B").mean_folder("d") == Path("d/photos/random0/B")
    assert recipe.network("whole", "R3").mean_folder("data") == Path("data/photos/whole")
    assert recipe.dataset_folder("data") == Path("data/photos")
    elsewhere = recipe_of(tmp_path, dataset="/disk/birds")
    assert elsewhere.dataset_folder("data") == Path("/disk/birds")
    assert elsewhere.data_folder("data", "natman", "A") == Path("data/birds/natman/A")


def test_solver_settings_of_a_split_pattern_replace_the_recipes(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, solver_for={"random*": {"max_iter": 20}})
    assert recipe.network("random5", "A3B").solver == {**DEMO["solver"], "max_iter": 20}
    assert recipe.network("natman", "A3B").max_iter == 10


@pytest.mark.parametrize(
    "pattern, networks",
    [
        ("random*", ["random5-A3B", "random5-A3B+"]),
        ("A?B+", ["random5-A3B+", "natman-A3B+"]),
        ("*+", ["random5-A3B+", "natman-A3B+"]),
        ("natman-*+", ["natman-A3B+"]),
        ("natman-A3B", ["natman-A3B"]),
        ("whole", []),
    ],
)
def test_a_pattern_names_splits_treatments_or_both(tmp_path: Path, pattern: str, networks: list[str]) -> None:
    recipe = recipe_of(tmp_path, solver_for={pattern: {"base_lr": 0.5}})
    every = [recipe.network(split, name) for split in ("random5", "natman") for name in ("A3B", "A3B+")]
    changed = [f"{each.split}-{each.treatment}" for each in every if each.solver["base_lr"] == 0.5]
    assert changed == networks


def test_of_several_patterns_the_later_one_counts_more(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, solver_for={"*+": {"base_lr": 0.5, "momentum": 0.8}, "random*": {"base_lr": 0.25}})
    solver = recipe.network("random5", "A3B+").solver
    assert (solver["base_lr"], solver["momentum"]) == (0.25, 0.8)


def test_patterns_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    solver_for = {"*+": {"max_iter": 20, "test_interval": 10}, "A*": {"max_iter": 25}}
    recipe_of(tmp_path, networks={"random0": ["A3B"]}, solver_for=solver_for)
    with pytest.raises(UserError, match=r"random0-A3B\+: max_iter 25 is not a multiple of test_interval 10"):
        recipe_of(tmp_path, networks={"random0": ["A3B", "A3B+"]}, solver_for=solver_for)


def test_the_settings_written_as_yaml_are_the_same_recipe_again(tmp_path: Path) -> None:
    recipe = load_recipe("paper")
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump(recipe.settings()), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_a_precision_is_a_setting_that_is_told_only_where_it_is_not_the_default(tmp_path: Path) -> None:
    default, given, low = (
        recipe_of(tmp_path),
        recipe_of(tmp_path, precision="fp32"),
        recipe_of(tmp_path, precision="bf16"),
    )
    assert "precision" not in default.settings() and given.sha256() == default.sha256()
    assert low.settings()["precision"] == "bf16" and low.sha256() != default.sha256()


def test_determinism_is_a_setting_that_is_told_only_where_it_is_not_the_default(tmp_path: Path) -> None:
    default, given = recipe_of(tmp_path), recipe_of(tmp_path, deterministic=True)
    fastest = recipe_of(tmp_path, deterministic=False)
    assert "deterministic" not in default.settings() and given.sha256() == default.sha256()
    assert fastest.settings()["deterministic"] is False and fastest.sha256() != default.sha256()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"colour": 1}, "unknown key colour; known keys: name, dataset, images"),
    ({"images": {"root": "x", "resize": [32, 32], "size": 1}}, "images: unknown key size; known keys: root, val_root"),
    ({"images": {"root": "x", "resize": 32}}, "resize: .*height, width.* not 32"),
    ({"images": {"root": "x"}}, "the key `resize` is missing"),
    ({"solver": DEMO["solver"] | {"test_interval": 4}}, "max_iter 10 is not a multiple of test_interval 4"),
    ({"solver": DEMO["solver"] | {"test_interval": 0}}, "max_iter 10 is not a multiple of test_interval 0"),
    ({"solver_for": {"n*": {"max_iter": 11}}}, r"solver_for: n\*: max_iter 11 is not a multiple of test_interval 5"),
    ({"solver": DEMO["solver"] | {"lr_policy": "step"}}, "the policy step needs a stepsize"),
    ({"solver": DEMO["solver"] | {"lr_policy": ["step"]}}, r"lr_policy: one of fixed, step, .* not \['step'\]"),
    ({"solver": DEMO["solver"] | {"lr_policy": "mutlistep"}}, "lr_policy: one of fixed, step"),
    ({"images": None}, "images: a mapping .* not nothing"),
    ({"architecture": "resnet"}, "architecture: one of caffenet, mini"),
    ({"crop": "28"}, "crop: a whole number, 1 or more, was expected, not '28'"),
    ({"crop": 33}, "crop: 33 does not fit into images of 32 x 32"),
    ({"mirror": 1}, "mirror: true or false"),
    ({"batch": {"train": True, "test": 1}}, "batch: train: a whole number"),
    ({"outputs": "all"}, "outputs: `classes` or a whole number"),
    ({"outputs": True}, "outputs: `classes` or a whole number"),
    ({"mean": "both"}, "mean: one of target, base"),
    ({"name": "../up"}, "name: '../up' cannot be the name of a folder; use only letters"),
    ({"threads": 0}, "threads: a whole number, 1 or more"),
    ({"precision": "fp16"}, "precision: one of fp32, tf32, bf16 was expected, not 'fp16'"),
    ({"deterministic": "off"}, "deterministic: true or false"),
    ({"seeds": []}, "seeds: a list of whole numbers"),
    ({"seeds": [1, 1]}, "seeds: a seed is listed twice"),
    ({"solver": {"base_lr": 0.01, "lr_policy": "fixed"}}, "solver: the key `max_iter` is missing"),
    ({"solver": DEMO["solver"] | {"momentun": 1}}, "solver: unknown key momentun; known are .*momentum"),
    ({"solver": DEMO["solver"] | {"base_lr": "1e-4"}}, "solver: base_lr: a number .* not '1e-4' .*1.0e-4"),
    ({"solver": DEMO["solver"] | {"base_lr": float("nan")}}, "solver: base_lr: a number"),
    ({"solver": DEMO["solver"] | {"max_iter": 0}}, "solver: max_iter: 1 or more"),
    ({"solver": DEMO["solver"] | {"display": 2.5}}, "solver: display: a whole number"),
    ({"solver": DEMO["solver"] | {"random_seed": 3}}, "solver: random_seed: cannot be set in a recipe"),
    ({"solver": DEMO["solver"] | {"solver_mode": "TPU"}}, "solver: solver_mode: one of CPU, GPU"),
    ({"solver": DEMO["solver"] | {"stepvalue": 5}}, "solver: stepvalue: a list"),
    ({"solver_for": {"random*": {"bse_lr": 1}}}, "unknown key bse_lr"),
    ({"networks": {}}, "networks: no split is listed"),
    ({"networks": {"random0": []}}, "networks: random0: a list of treatments"),
    ({"networks": {"random0": ["A9B"]}}, "treatment A9B: n is 9, but the network has 8 stages"),
    ({"networks": {"random0": [3]}}, "random0: the name of a treatment was expected, not 3"),
    ({"networks": {"random0": ["R3"]}}, "treatment R3: the split random0 only supports treatments that end in a half"),
    ({"networks": {"whole": ["A3B"]}}, "treatment A3B: the split whole only supports treatments without a half"),
    ({"networks": {"reduced5": ["R1"]}}, "treatment R1: the split reduced5 only supports base"),
    ({"networks": {"randm0": ["baseA"]}}, "there is no split 'randm0'; splits are random0"),
    ({"networks": {"random01": ["baseA"]}}, "there is no split 'random01'"),
    ({"networks": {"random0": ["A3B", "A{1-7}B"]}}, "A3B is listed twice"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_what_a_recipe_cannot_mean_is_refused_by_file_and_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        recipe_of(tmp_path, **changes)
    assert str(caught.value).startswith(str(tmp_path / "small.yaml"))


@pytest.mark.parametrize(
    ("policy", "given", "missing"),
    [
        ("step", {"stepsize": 5}, "a gamma"), ("step", {}, "a stepsize and a gamma"), ("exp", {}, "a gamma"),
        ("inv", {"gamma": 0.1}, "a power"), ("multistep", {"gamma": 0.1}, "a stepvalue"),
        ("multistep", {"gamma": 0.1, "stepvalue": []}, "a stepvalue"), ("poly", {}, "a power"),
        ("sigmoid", {"gamma": 0.1}, "a stepsize"),
    ],
)  # fmt: skip
def test_a_rate_policy_without_its_parameters_is_refused_for_the_merged_solver_of_each_network(
    tmp_path: Path, policy: str, given: dict[str, Any], missing: str
) -> None:
    changed = {"lr_policy": policy, **given}
    words = rf"small\.yaml: solver: lr_policy: the policy {policy} needs {missing} \(random0-"
    with pytest.raises(UserError, match=words + "baseA"):
        recipe_of(tmp_path, solver=DEMO["solver"] | changed)
    with pytest.raises(UserError, match=words + "A3B"):
        recipe_of(tmp_path, solver_for={"A*": changed})
    rest = {"stepsize": 5, "stepvalue": [5], "gamma": 0.1, "power": 1}
    recipe = recipe_of(tmp_path, solver=DEMO["solver"] | rest, solver_for={"A*": {"lr_policy": policy}})
    assert recipe.network("random0", "A3B").solver == DEMO["solver"] | rest | {"lr_policy": policy}


def test_broken_yaml_is_refused_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: x\nimages: {root: [}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"broken\.yaml:2: not valid YAML"):
        load_recipe(path)


def test_a_key_twice_is_refused_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: x\ncrop: 3\ncrop: 4\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"twice\.yaml:3: .*duplicate key crop"):
        load_recipe(path)


@pytest.mark.parametrize("number", ["010", "-017", "1:04", "1:04:30", "1:04.5"])
def test_numbers_that_yaml_reads_as_others_are_refused_by_file_and_line(tmp_path: Path, number: str) -> None:
    path = tmp_path / "number.yaml"
    path.write_text(f"name: x\ncrop: {number}\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"number\.yaml:2: .*: {number} would be read as another number"):
        load_recipe(path)
    path.write_text(f"{number}: x\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"number\.yaml:1: .*: {number} would"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("value", "kind"),
    [("2024-02-30", "timestamp"), ("0b_", "int"), ("!!int ''", "int"), ("!!float x", "float"), ("!!bool maybe", "bool"),
     ("!!timestamp soon", "timestamp")],
)  # fmt: skip
def test_values_that_yaml_cannot_read_are_refused_by_file_and_line(tmp_path: Path, value: str, kind: str) -> None:
    path = tmp_path / "value.yaml"
    path.write_text(f"name: x\nsolver: {{base_lr: {value}}}\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"value\.yaml:2: not valid YAML: .*cannot be read as {kind}; write text in"):
        load_recipe(path)


def test_numbers_that_mean_what_they_look_like_are_read(tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text("[0, -3, 0x10, 1_000, 0.05, 00.5, 1.0e-4, .inf, '010', '1:04', 2024-02-29]\n", encoding="utf-8")
    numbers = [0, -3, 16, 1000, 0.05, 0.5, 1e-4, float("inf"), "010", "1:04", date(2024, 2, 29)]
    assert load_yaml(path) == numbers


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"recipe papr: no such file, .*demo.*paper"):
        load_recipe("papr")


def test_the_balanced_recipe_has_every_treatment_on_every_half_with_its_own_mean_and_outputs() -> None:
    recipe = load_recipe("balanced")
    assert (recipe.outputs, recipe.mean, recipe.test_images) == (None, "target", None) and len(recipe.seeds) > 1
    kinds = {f"{s}{n}{t}{plus}" for n in range(1, 8) for s in "AB" for t in "AB" for plus in ("", "+")}
    for split, treatments in recipe.treatments.items():
        assert {str(each) for each in treatments} == kinds | {"baseA", "baseB"}, split


def test_recipes_know_the_precisions_and_rate_policies_that_the_engine_knows():
    assert tuple(read.PRECISIONS) == PRECISIONS
    assert tuple(read.LR_POLICIES) == tuple(LR_POLICIES)
