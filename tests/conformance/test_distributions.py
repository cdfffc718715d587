"""Random values (fillers, dropout, crops, flips, shuffles) have the same distribution in both engines.

Real Caffe samples different numbers each time. All bounds are 5 standard deviations or equally unlikely, so that a test
fails by chance once in a hundred thousand runs.
"""

import contextlib
import math

import numpy as np
import pytest
from conformance.suite import needs_real_caffe
from support.tiny import write_lmdb

from transfer_caffe.compare import Case, build, compare, run_ours
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter

pytestmark = needs_real_caffe

FOUR, TWO, SQUARE = (40, 30, 5, 4), (60, 200), (40, 30, 4, 4)

FILLERS = {
    "constant": ('type: "constant" value: 0.3', FOUR),
    "uniform": ('type: "uniform" min: -0.5 max: 2', FOUR),
    "gaussian": ('type: "gaussian" mean: 0.5 std: 2', FOUR),
    "gaussian, sparse": ('type: "gaussian" std: 1 sparse: 12', TWO),
    "xavier": ('type: "xavier"', FOUR),
    "xavier, fan out": ('type: "xavier" variance_norm: FAN_OUT', FOUR),
    "xavier, average": ('type: "xavier" variance_norm: AVERAGE', TWO),
    "msra": ('type: "msra"', FOUR),
    "msra, fan out": ('type: "msra" variance_norm: FAN_OUT', TWO),
    "msra, average": ('type: "msra" variance_norm: AVERAGE', FOUR),
    "positive_unitball": ('type: "positive_unitball"', FOUR),
    "bilinear": ('type: "bilinear"', SQUARE),
}


def net(text):
    return parse_text(text, NetParameter(), "case")


def both(case):
    """Return the tops of the first batch in both engines, by name: ours, real Caffe's."""
    outcome = compare([case])[0]
    assert outcome.ours is None and outcome.real is None
    with contextlib.chdir(case.folder):
        values = {key.removeprefix("in/"): array for key, array in outcome.reference.items() if key.startswith("in/")}
        ours = run_ours(build(case.net, case.phase), values, False)
    return ours, outcome.reference


def same_distribution(one, other):
    """Return whether two samples of the same size may have the same distribution (Kolmogorov-Smirnov test)."""
    grid = np.sort(np.concatenate([one, other]))
    functions = [np.searchsorted(np.sort(sample), grid, side="right") / sample.size for sample in (one, other)]
    # 2.4 is exceeded by chance once in a hundred thousand; the bound is larger, since values need not be independent
    return np.abs(functions[0] - functions[1]).max() < 3 * math.sqrt(2 / one.size)


def same_share(ours, real, size):
    """Return whether two proportions of samples of ``size`` may differ by chance only."""
    middle = (ours + real) / 2
    return abs(ours - real) <= 5 * math.sqrt(2 * middle * (1 - middle) / size) + 1e-9


@pytest.fixture(scope="module")
def filled():
    """Values of each filler: ours, real Caffe's. DummyData layers use the same fillers as weights."""
    tops = " ".join(f'top: "f{index}"' for index in range(len(FILLERS)))
    shapes = " ".join(f"shape {{ {' '.join(f'dim: {size}' for size in shape)} }}" for _, shape in FILLERS.values())
    fillers = " ".join(f"data_filler {{ {text} }}" for text, _ in FILLERS.values())
    case = net(f'layer {{ name: "l" type: "DummyData" {tops} dummy_data_param {{ {shapes} {fillers} }} }}')
    ours, real = both(Case(case, backward=False))
    return {name: (ours[f"data/f{index}"], real[f"data/f{index}"]) for index, name in enumerate(FILLERS)}


@pytest.mark.parametrize("name", ["constant", "bilinear"])
def test_fillers_without_chance_give_the_same_values(name, filled):
    ours, real = filled[name]
    assert np.allclose(ours, real, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [name for name in FILLERS if name not in ("constant", "bilinear")])
def test_fillers_have_the_same_distribution(name, filled):
    ours, real = (values.ravel().astype(np.float64) for values in filled[name])
    assert same_share(np.mean(ours == 0), np.mean(real == 0), ours.size)
    ours, real = ours[ours != 0][:2000], real[real != 0][:2000]  # of a sparse filler, only the nonzero values
    size = min(ours.size, real.size)
    assert size > 500
    assert same_distribution(ours[:size], real[:size])


@pytest.mark.parametrize("name", [name for name in FILLERS if name not in ("constant", "bilinear")])
def test_fillers_have_the_same_moments_and_range(name, filled):
    ours, real = (values.reshape(len(values), -1).astype(np.float64) for values in filled[name])
    assert abs(ours.mean() - real.mean()) < 5 * real.std() * math.sqrt(2 / real.size)
    # item by item: within an item of positive_unitball, whose sum is fixed, the values are not independent
    squares = [((values - values.mean()) ** 2).mean(1) for values in (ours, real)]
    apart = abs(squares[0].mean() - squares[1].mean())
    assert apart < 5 * math.sqrt(sum(each.var() / each.size for each in squares))
    if "gaussian" not in name and "msra" not in name:
        span = real.max() - real.min()
        assert abs(ours.max() - real.max()) < 0.02 * span or name == "positive_unitball"
        assert abs(ours.min() - real.min()) < 0.02 * span


def test_each_item_of_positive_unitball_sums_to_one_in_both(filled):
    for values in filled["positive_unitball"]:
        assert values.min() >= 0
        assert np.allclose(values.reshape(len(values), -1).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_dropout_drops_the_same_share_and_scales_the_rest_alike(ratio):
    text = f"""layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 100 dim: 200 }} }} }}
      layer {{ name: "d" type: "Dropout" bottom: "x" top: "d" dropout_param {{ dropout_ratio: {ratio} }} }}"""
    ours, real = both(Case(net(text), "TRAIN", {"blob/x": np.ones((100, 200), np.float32)}, backward=False))
    ours, real = ours["data/d"], real["data/d"]
    assert same_share(np.mean(ours == 0), np.mean(real == 0), ours.size)
    assert np.allclose(np.unique(ours), np.unique(real), rtol=1e-6) and np.unique(ours).size == 2


SIZE, CROP, BATCH = 7, 4, 2000


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """Row, column and flip of each window cut from one image with distinct pixels: ours, real Caffe's."""
    folder = tmp_path_factory.mktemp("windows")
    image = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(1, SIZE, SIZE, 1).repeat(3, axis=3)
    write_lmdb(folder / "db", image, [0])
    text = f"""layer {{ name: "l" type: "Data" top: "x" transform_param {{ crop_size: {CROP} mirror: true }}
      data_param {{ source: "db" backend: LMDB batch_size: {BATCH} }} }}"""
    found = []
    for arrays in both(Case(net(text), "TRAIN", folder=folder, backward=False)):
        corner, beside = (arrays["data/x"][:, 0, 0, column].astype(int) for column in (0, 1))
        flipped = beside < corner
        rows, columns = np.divmod(corner, SIZE)
        found.append((rows, columns - flipped * (CROP - 1), flipped.astype(int)))
    return found


@pytest.mark.parametrize(("place", "values"), [(0, SIZE - CROP + 1), (1, SIZE - CROP + 1), (2, 2)])
def test_crops_and_flips_are_spread_alike(place, values, windows):
    ours, real = (np.bincount(found[place], minlength=values) for found in windows)
    assert ours.size == real.size == values and ours.min() > 0 and real.min() > 0
    for mine, theirs in zip(ours / BATCH, real / BATCH, strict=True):
        assert same_share(mine, theirs, BATCH)


def test_all_windows_and_both_flips_occur_together_equally_often(windows):
    counts = [np.bincount((rows * 4 + columns) * 2 + flips, minlength=32) for rows, columns, flips in windows]
    for count in counts:
        expected = BATCH / 32
        # chi-squared with 31 degrees of freedom: 90 is exceeded once in ten million
        assert ((count - expected) ** 2 / expected).sum() < 90
