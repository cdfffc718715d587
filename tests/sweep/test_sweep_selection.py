"""Which networks --only, --split, --layers and --seed select, and the errors if they select nothing."""

import pytest

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.sweep.selection import coarse_to_fine, in_order, select, shown_treatments
from transfer_caffe.utils.errors import UserError

PAPER = load_recipe("paper")


def chosen(*args, **kwargs) -> set[str]:
    """Return the names of the selected networks, without the bases that were added."""
    selection = select(PAPER, *args, **kwargs)
    return {network.name for network in selection.networks} - {network.name for network in selection.added}


def test_without_options_every_network_is_chosen_and_nothing_is_said():
    selection = select(PAPER)
    assert selection.networks == in_order(PAPER.networks()) and selection.added == []
    assert selection.words() is None


def test_bases_that_chosen_networks_need_are_added_first_and_named():
    selection = select(PAPER, ["A3B", "R3"], ["random1", "whole"])
    assert [network.name for network in selection.networks] == ["random1-baseA-s0", "random1-A3B-s0", "whole-R3-s0"]
    assert [network.name for network in selection.added] == ["random1-baseA-s0"]
    words = selection.words()
    assert words == "2 of the 170 networks of paper are selected, and added as bases: random1-baseA-s0"


def test_a_base_that_was_chosen_itself_is_not_called_added():
    selection = select(PAPER, ["baseA", "A3B"], ["random1"])
    assert selection.added == []
    assert selection.words() == "2 of the 170 networks of paper are selected"


def test_patterns_are_those_of_a_shell_or_have_a_list_in_braces():
    assert chosen(["A*B+"]) == {f"random{k}-A{n}B+-s0" for k in (0, 1) for n in range(1, 8)}
    assert chosen(["A{3-5}B+"], ["random0"]) == {f"random0-A{n}B+-s0" for n in (3, 4, 5)}
    assert chosen(["base"]) == {"whole-base-s0"} | {name for name in chosen(splits=["reduced*"])}
    assert len(chosen(splits=["random[01]", "natman"])) == 44 + 44 + 16


def test_layers_are_numbers_and_ranges_of_n():
    assert chosen(["A*B"], ["natman"], "2,4-5") == {f"natman-A{n}B-s0" for n in (2, 4, 5)}
    assert {network.treatment.n for network in select(PAPER, layers="6").networks} == {0, 6}
    assert chosen(layers="0") == {network.name for network in PAPER.networks() if network.treatment.is_base}


def test_seeds_are_those_of_the_recipe():
    balanced = load_recipe("balanced")
    assert {network.seed for network in select(balanced, seeds=[1]).networks} == {1}
    with pytest.raises(UserError, match=r"--seed 2: the recipe balanced has the seeds 0, 1"):
        select(balanced, seeds=[2])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"only": ["A*C"]}, r"--only A\*C: nothing .* matches; treatments are baseA, baseB, A\{1-7\}A, A\{1-7\}B, "),
        ({"only": ["A1B", "a2b"]}, r"--only a2b: nothing"),
        ({"splits": ["random9"]}, r"--split random9: .*its splits are random0, random1, random2, "),
        ({"layers": "8"}, r"--layers 8: numbers and ranges from 0 to 7 were expected"),
        ({"layers": "5-3"}, r"--layers 5-3: numbers"),
        ({"layers": ""}, r"--layers : numbers"),
        (
            {"only": ["A*B+"], "splits": ["natman", "whole"]},
            r"--only A\*B\+ --split natman --split whole: no network of paper matches all of these; it has "
            r"natman: baseA, baseB, A\{1-7\}B, B\{1-7\}A; whole: base, R\{1-7\}$",
        ),
    ],
)
def test_a_choice_of_nothing_is_an_error_that_says_what_there_is(choice, message):
    with pytest.raises(UserError, match=message):
        select(PAPER, **choice)


def test_the_narrowed_recipe_holds_what_the_chosen_networks_need_and_no_more():
    narrowed = select(PAPER, ["A3B"], ["random1"]).narrowed()
    assert [network.name for network in narrowed.networks()] == ["random1-baseA-s0", "random1-A3B-s0"]


def test_treatments_are_shown_shortly():
    assert shown_treatments(load_recipe("demo"), "whole") == "base, R{1,3,5,7}"


def test_numbers_of_layers_go_from_coarse_to_fine():
    assert coarse_to_fine([1, 3, 5, 7]) == {1: 0, 7: 0, 3: 1, 5: 2}
    assert coarse_to_fine(range(1, 8)) == {1: 0, 7: 0, 4: 1, 2: 2, 5: 2, 3: 3, 6: 3}
    assert coarse_to_fine([3, 3]) == {3: 0} and coarse_to_fine([2, 6]) == {2: 0, 6: 0} and coarse_to_fine([]) == {}


def test_the_demo_shows_a_whole_figure_early_and_its_other_splits_last():
    names = [network.name.removesuffix("-s0") for network in in_order(load_recipe("demo").networks())]
    assert names[:2] == ["random0-baseA", "random0-baseB"]
    assert names[2:10] == [f"random0-{x}{n}{y}" for n in (7, 1) for x, y in ("AB", "BA", "AA", "BB")]
    assert {name[-2:] for name in names[10:18]} == {"A+", "B+"}
    assert [name.split("-")[0] for name in names] == ["random0"] * 34 + ["natman"] * 10 + ["whole"] * 5
    steps = [int(name[9]) for name in names[2:34]]
    assert set(steps[:16]) == {1, 7} and steps[16:] == [3] * 8 + [5] * 8


@pytest.mark.parametrize("name", ["demo", "demo_caffe", "paper", "balanced"])
def test_the_order_never_puts_a_network_before_its_base(name):
    seen: set[str] = set()
    for network in in_order(load_recipe(name).networks()):
        assert network.base is None or network.base.name in seen
        seen.add(network.name)
    assert len(seen) == len(load_recipe(name).networks())


def test_seeds_come_one_after_the_other():
    seeds = [network.seed for network in in_order(load_recipe("balanced").networks())]
    assert seeds == sorted(seeds)
