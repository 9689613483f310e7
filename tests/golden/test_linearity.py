"""How linear trajectories are, against the scalar reference, and the laws that the measures keep."""

import math

import pytest
import torch
from torch import Tensor

from rlvr.extrapolation.linearity import (
    HISTOGRAM_BINS,
    cosines,
    fit_of,
    histogram,
    kept_tokens,
    kept_weights,
    nearest_to_quantiles,
    step_r_squared,
    window_products,
)
from rlvr.extrapolation.linearity_measure import matrix_rank
from tests.reference import extrapolation, linearity

STEPS = [0, 100, 150, 300, 700, 720]
RANGE, DISTINCT = 1e-4, 4


def drawn(seed: int, count: int = 40, dtype: torch.dtype = torch.float64, noise: float = 0.3) -> Tensor:
    """Trajectories [T, N] that drift and wander about values as weights have them."""
    generator = torch.Generator().manual_seed(seed)
    start, slope = torch.randn(2, count, generator=generator, dtype=torch.float64)
    times = torch.tensor(STEPS, dtype=torch.float64).unsqueeze(1) / 1000
    wander = noise * torch.randn(len(STEPS), count, generator=generator, dtype=torch.float64)
    return (start + slope * times + wander).to(dtype)


def columns(values: Tensor) -> list[list[float]]:
    return [list(map(float, column)) for column in values.double().T.tolist()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 1])
def test_r_squared_is_that_of_the_least_squares_line(seed: int, dtype: torch.dtype) -> None:
    values = drawn(seed, dtype=dtype)
    found = step_r_squared(values, STEPS)
    assert found.dtype == torch.float64
    expected = [linearity.r_squared(column, STEPS) for column in columns(values)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert min(expected) < 0.3 < 0.7 < max(expected)


def test_small_moves_of_large_weights_keep_their_digits() -> None:
    values = (1000.0 + 1e-3 * drawn(3)).float()
    expected = [linearity.r_squared(column, STEPS) for column in columns(values)]
    assert step_r_squared(values, STEPS).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)


def test_a_line_has_1_and_what_stands_still_has_none() -> None:
    times = torch.tensor(STEPS, dtype=torch.float64)
    values = torch.stack([3.0 + 1e-6 * times, 5.0 - 0.25 * times, torch.full_like(times, 0.1)], dim=1)
    line, falling, still = step_r_squared(values, STEPS).tolist()
    assert line == pytest.approx(1.0, abs=1e-9)
    assert falling == pytest.approx(1.0, abs=1e-14)
    assert line <= 1.0
    assert falling <= 1.0
    assert math.isnan(still)
    many = drawn(2, 5000)[:1] + drawn(9, 5000)[:1] * times.unsqueeze(1)
    found = step_r_squared(many, STEPS)
    assert float(found.max()) == 1.0  # and not what rounding makes of it
    assert float(found.min()) > 1.0 - 1e-9


def test_r_squared_knows_no_units_and_no_order() -> None:
    values = drawn(4)
    found = step_r_squared(values, STEPS)
    assert torch.allclose(step_r_squared(-7.0 * values + 3.0, STEPS), found, rtol=1e-10)
    assert torch.allclose(step_r_squared(values, [3 * step + 40 for step in STEPS]), found, rtol=1e-10)
    order = [3, 0, 5, 1, 4, 2]
    assert torch.allclose(step_r_squared(values[order], [STEPS[each] for each in order]), found, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_kept_weights_are_those_of_the_reference(dtype: torch.dtype) -> None:
    values = drawn(5, 200, dtype, noise=0.01)
    found = kept_weights(values, 0.05, 5).tolist()
    assert found == [linearity.kept(column, 0.05, 5) for column in columns(values)]
    assert 0 < sum(found) < 200


@pytest.mark.parametrize(
    ("trajectory", "expected"),
    [
        ([1.0] * 6, False),  # constant
        ([0.0, 1.0, 1.0, 1.0, 1.0, 1.0], False),  # one jump
        ([0.0, 0.5, 1.0, 0.5, 0.0, 1.0], False),  # three values
        ([0.0, 0.5, 1.0, 1.5, 1.5, 1.5], True),  # four values
        ([0.0, 0.125, 0.25, 0.375, 0.25, 0.5], False),  # a range of just the threshold
        ([0.5, 0.125, 0.25, 0.375, 0.25, -0.125], True),
        ([-0.0, 0.0, 1.0, 2.0, 1.0, 2.0], False),  # the two zeros are one value
    ],
)
def test_keep_rule(trajectory: list[float], expected: bool) -> None:
    assert kept_weights(torch.tensor(trajectory).unsqueeze(1), 0.5, DISTINCT).tolist() == [expected]


def test_sixteen_bits_stand_still_where_the_weight_drifts() -> None:
    """Between 1 and 2, bfloat16 has a value every 2^-7: what drifts by less does not move, or jumps once."""
    drifts = torch.tensor([0.0, 0.001, 0.01, 0.05, 0.2])
    exact = 1.0 + drifts * torch.linspace(0.0, 1.0, 14).unsqueeze(1)
    assert kept_weights(exact, RANGE, DISTINCT).tolist() == [False, True, True, True, True]
    assert kept_weights(exact.bfloat16(), RANGE, DISTINCT).tolist() == [False, False, False, True, True]


def test_a_random_walk_is_kept_by_its_range_and_is_not_linear() -> None:
    generator = torch.Generator().manual_seed(6)
    walk = torch.randn(14, 4000, generator=generator, dtype=torch.float64).cumsum(dim=0)
    steps = list(range(0, 1400, 100))
    assert kept_weights(1e-3 * walk, RANGE, DISTINCT).all()
    assert not kept_weights(1e-6 * walk, RANGE, DISTINCT).any()
    # A walk drifts by chance: its R^2 is far from 0, which is why a high median means something only near 1.
    assert 0.35 < float(step_r_squared(walk, steps).median()) < 0.6
    off_diagonal = cosines(window_products(walk))[~torch.eye(13, dtype=torch.bool)]
    assert float(off_diagonal.abs().max()) < 0.1


def test_tokens_are_kept_by_their_ends() -> None:
    logprobs = torch.tensor([[-1.0, -1.0, -1.0, -1.0], [-9.0, -1.1, -1.0, -1.0], [-1.0, -1.25, -1.3, -0.5]])
    assert kept_tokens(logprobs, 0.25).tolist() == [False, False, True, True]


def test_statistics() -> None:
    r2 = torch.tensor([0.9, 0.1, 0.7, 0.75, 0.3, 0.8], dtype=torch.float64)
    fit = fit_of(r2, 24)
    assert (fit.looked_at, fit.kept) == (24, 6)
    for found, share in ((fit.low, 0.25), (fit.median, 0.5), (fit.high, 0.75)):
        assert found == pytest.approx(linearity.quantile(r2.tolist(), share), rel=1e-14)
    assert fit.linear == 0.5  # 0.7 itself is not above 0.7
    assert fit.to_json()["kept_fraction"] == 0.25
    nothing = fit_of(torch.empty(0, dtype=torch.float64), 5)
    assert (nothing.kept, nothing.median, nothing.low, nothing.high, nothing.linear) == (0, None, None, None, None)
    assert nothing.to_json()["kept_fraction"] == 0.0


def test_histogram() -> None:
    counts = histogram(torch.tensor([0.0, 0.049, 0.05, 0.5, 0.999, 1.0], dtype=torch.float64))
    assert len(counts) == HISTOGRAM_BINS == 20
    assert {place: count for place, count in enumerate(counts) if count} == {0: 2, 1: 1, 10: 1, 19: 2}
    assert histogram(torch.empty(0, dtype=torch.float64)) == [0] * HISTOGRAM_BINS


def test_examples_lie_at_the_quantiles() -> None:
    r2 = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.7], dtype=torch.float64)
    assert nearest_to_quantiles(r2, (0.0, 0.5, 1.0)) == [1, 2, 0]
    assert nearest_to_quantiles(r2[:1], (0.0, 0.5, 1.0)) == [0]
    assert nearest_to_quantiles(r2[:0], (0.5,)) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_cosines_are_the_reference(dtype: torch.dtype) -> None:
    values = drawn(7, 30, dtype)
    found = cosines(window_products(values))
    expected = linearity.window_cosines(columns(values))
    assert found.flatten().tolist() == pytest.approx([each for row in expected for each in row], rel=1e-12)


def test_products_of_parts_add_up() -> None:
    values = drawn(8, 30)
    parts = sum((window_products(part) for part in values.split(7, dim=1)), torch.zeros(5, 5, dtype=torch.float64))
    assert torch.allclose(parts, window_products(values), rtol=1e-12)


def test_directions_of_windows() -> None:
    times = torch.tensor(STEPS, dtype=torch.float64).unsqueeze(1)
    line = 2.0 + times * torch.tensor([1.0, -3.0, 0.5], dtype=torch.float64)
    assert torch.allclose(cosines(window_products(line)), torch.ones(5, 5, dtype=torch.float64), rtol=1e-12)
    corners = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 3.0], [2.0, 3.0], [1.0, 3.0]])  # right, up, nowhere, left
    nan = math.nan
    expected = [[1, 0, nan, -1], [0, 1, nan, 0], [nan] * 4, [-1, 0, nan, 1]]
    assert torch.equal(cosines(window_products(corners)).nan_to_num(9.0), torch.tensor(expected).double().nan_to_num(9))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_effective_rank_of_a_move_of_low_rank(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    left = torch.randn(9, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, 6, generator=generator, dtype=torch.float64)
    delta = left @ right
    values = [value for value, _, _ in extrapolation.singular_triples(delta.tolist())]
    found = matrix_rank(delta)
    assert found is not None
    # Without rounding the rest of the values are 0.
    assert found == extrapolation.effective_rank(sorted(values)[-rank:])
    assert 1 <= found <= rank
    assert matrix_rank(100.0 * delta.T) == found


def test_effective_rank_of_what_stands_still_or_goes_everywhere() -> None:
    assert matrix_rank(torch.zeros(4, 3, dtype=torch.float64)) is None
    noise = torch.randn(200, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = matrix_rank(noise)
    assert found is not None
    assert 36 <= found <= 40
