"""The size of a study within a budget of hours."""

import pytest

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.sweep.budget import STARTS, Size, candidates, fit, seconds, spread
from transfer_caffe.sweep.cost import Rate
from transfer_caffe.utils.errors import UserError


def test_n_are_spread_over_deep_nets():
    assert spread(8) == [1, 2, 3, 4, 5, 6, 7]
    assert spread(17) == [1, 4, 6, 8, 11, 14, 16]
    assert spread(60)[0] == 1 and spread(60)[-1] == 59 and len(spread(60)) == 7


def test_cuts_are_given_up_before_iterations():
    assert candidates(8, 1000) == [
        Size((1, 2, 3, 4, 5, 6, 7), 1000), Size((1, 2, 4, 6, 7), 1000), Size((1, 4, 7), 1000), Size((1, 7), 1000),
        Size((1, 7), 500), Size((1, 7), 250),
    ]  # fmt: skip
    assert candidates(3, 1000) == [Size((1, 2), 1000), Size((1, 2), 500), Size((1, 2), 250)]
    assert candidates(2, 8)[-1] == Size((1,), 4)


def test_the_first_that_fits_is_chosen_and_none_is_an_error():
    sizes = candidates(8, 1000)
    assert fit(1, sizes, lambda size: 3600 * len(size.numbers) / 3) == Size((1, 4, 7), 1000)
    with pytest.raises(UserError, match=r"too small for any study: n = 1, 7 with 250 iterations would take about"):
        fit(0.1, sizes, lambda size: 3.0 * size.iterations)


def test_seconds_are_those_of_all_networks_and_of_the_search():
    recipe = load_recipe("demo")
    rate = Rate(tuple(0.1 - 0.01 * n for n in range(8)), 0.002, "as given")  # seconds with n stages frozen
    size = Size((1, 7), 100)
    each = {0: 10.0, 1: 9.0, 7: 3.0}
    tests = 5 * 50 * 0.002
    # from scratch, frozen at 1 and 7, fine-tuned at 1 and 7
    networks = [each[n] + tests + STARTS for n in (0, 1, 7, 0, 0)]
    assert seconds(recipe, rate, size, 2, 50, 5, 0, 1) == pytest.approx(2 * sum(networks))
    searched = [each[n] / 2 + 50 * 0.002 + STARTS for n in (0, 7, 0)]
    assert seconds(recipe, rate, size, 2, 50, 5, 4, 1) == pytest.approx(2 * sum(networks) + 4 * sum(searched))
    assert seconds(recipe, rate, size, 2, 50, 5, 0, 2) < 1.3 * sum(networks)
