"""The grammar of the treatments."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_caffe.experiment.treatment import Treatment, expand
from transfer_caffe.utils.errors import UserError

HALVES = ("A", "B")
EVERY = (
    ["base", "baseA", "baseB"]
    + [f"{s}{n}{t}{plus}" for s in HALVES for n in range(1, 8) for t in HALVES for plus in ("", "+")]
    + [f"R{n}{t}" for n in range(1, 8) for t in ("", *HALVES)]
)


VALID = re.compile(r"base[AB]?|[AB][1-9][0-9]*[AB]\+?|R[1-9][0-9]*[AB]?|[C-QS-Z][1-9][0-9]*[AB]?\+?")
"""The grammar: without sources of the recipe, and with 8 stages, these are the 80 names of `EVERY`."""


def test_there_are_exactly_80_names_and_each_is_parsed_to_itself() -> None:
    made = set()
    for source in ("", "A", "B", "R"):
        for n in range(8):
            for target in ("", "A", "B"):
                for finetuned in (False, True):
                    try:
                        made.add(str(Treatment(source, n, target, finetuned)))
                    except UserError:
                        continue
    assert len(EVERY) == 80
    assert made == set(EVERY)
    assert [str(Treatment.parse(name)) for name in EVERY] == EVERY


@given(st.one_of(st.text(max_size=6), st.from_regex(r"\A(base|[ABRC][0-9]{1,2})[ABC]?[+]?\Z")))
def test_any_text_is_the_name_of_a_treatment_or_a_user_error(text: str) -> None:
    try:
        treatment = Treatment.parse(text)
    except UserError as error:
        assert not VALID.fullmatch(text)
        assert "allowed are" in str(error)
    else:
        assert VALID.fullmatch(text)
        assert str(treatment) == text


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("base", ("", 0, "", False)),
        ("baseB", ("", 0, "B", False)),
        ("A3B", ("A", 3, "B", False)),
        ("B3A+", ("B", 3, "A", True)),
        ("R7", ("R", 7, "", False)),
        ("R2A", ("R", 2, "A", False)),
    ],
)
def test_a_name_gives_source_n_target_and_whether_all_layers_learn(name: str, fields: tuple[object, ...]) -> None:
    treatment = Treatment.parse(name)
    assert (treatment.source, treatment.n, treatment.target, treatment.finetuned) == fields


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("A0B", "that network is baseB"),
        ("R3+", "no `\\+`"),
        ("Ä3B", "not the name"),
        ("A3C", "no half C"),
        ("A3", "A3A or A3B"),
        ("base+", "nothing to fine-tune"),
        ("a3b", "upper case"),
        ("BaseA", "upper case"),
        (" A3B", "no spaces"),
        ("A03B", "not the name"),
        ("A٣B", "not the name"),
        ("", "empty"),
    ],
)
def test_an_invalid_name_is_rejected_with_the_reason_and_the_allowed_names(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        Treatment.parse(name)
    assert "allowed are base, baseA" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("A9B", "n is 9, but the network has 8 stages and n is 1 to 7"),
        ("A8B", "that network is baseA itself"),
        ("R8", "that network is an untrained network"),
        ("P8+", "that network is the source P itself"),
    ],
)
def test_a_network_has_at_least_one_stage_that_is_not_copied(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Treatment.parse(name).require_stages(8)
    Treatment.parse(name).require_stages(10)


def test_a_source_of_the_recipe_copies_without_a_base_on_all_classes_or_on_a_half() -> None:
    for name, target, frozen in (("P3", "", 3), ("P3+", "", 0), ("Q2A", "A", 2)):
        treatment = Treatment.parse(name)
        assert (treatment.is_external, treatment.copies, treatment.base) == (True, True, None)
        assert (treatment.target, treatment.frozen) == (target, frozen)
    assert [Treatment.parse(name).copies for name in ("base", "R3", "A3B")] == [False, False, True]


def test_every_treatment_is_of_one_kind() -> None:
    def kinds(name: str) -> list[str]:
        treatment = Treatment.parse(name)
        return [
            kind for kind in ("base", "selffer", "transfer", "random", "external") if getattr(treatment, f"is_{kind}")
        ]

    assert kinds("baseA") == ["base"]
    assert kinds("A3A+") == ["selffer"]
    assert kinds("A3B") == ["transfer"]
    assert kinds("R3B") == ["random"]
    assert kinds("P3B") == ["external"]
    assert all(len(kinds(name)) == 1 for name in EVERY)


def test_weights_come_from_the_base_of_the_source_half_and_from_nowhere_for_bases_and_random_sources() -> None:
    assert str(Treatment.parse("A3B").base) == "baseA"
    assert str(Treatment.parse("B3B+").base) == "baseB"
    assert Treatment.parse("baseA").base is None
    assert Treatment.parse("R3").base is None


def test_layers_taken_over_are_frozen_unless_fine_tuned() -> None:
    assert [Treatment.parse(name).frozen for name in ("base", "A3B", "A3B+", "R4")] == [0, 3, 0, 4]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("baseA", "baseA"),
        ("A{1-7}B+", "A1B+ A2B+ A3B+ A4B+ A5B+ A6B+ A7B+"),
        ("R{1,3,5}", "R1 R3 R5"),
        ("B{5, 1-2}A", "B5A B1A B2A"),
    ],
)
def test_a_list_in_braces_names_several_treatments_in_its_order(pattern: str, names: str) -> None:
    assert [str(treatment) for treatment in expand(pattern)] == names.split()


@pytest.mark.parametrize("pattern", ["A{}B", "A{7-1}B", "A{1-}B", "A{1", "A{1}{2}B", "A{x}B", "A{1-9999}B"])
def test_a_pattern_that_names_no_treatments_is_refused(pattern: str) -> None:
    with pytest.raises(UserError):
        expand(pattern)
