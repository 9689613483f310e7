"""Operations on checkpoints against the scalar reference, and the laws that they keep."""

import math

import pytest
import torch
from torch import Tensor

from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.operations import (
    OPERATIONS,
    average,
    effective_rank,
    extrapolate,
    line_fit,
    line_sums,
    r_squared,
    timber,
)
from tests.reference import extrapolation as reference

SEEDS = [0, 1]
ALPHAS = [-0.5, 0.25, 0.5, 0.75, 1.5, 3.0]
STEPS = [100, 200, 350, 600]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])


def drawn(shape: tuple[int, ...], count: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Tensors that differ from the first one by little, as checkpoints do."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(shape, generator=generator, dtype=torch.float64)
    moved = [first + 0.05 * number * torch.randn(shape, generator=generator) for number in range(count)]
    return [each.to(dtype) for each in moved]


def flat(tensor: Tensor) -> list[float]:
    return [float(each) for each in tensor.flatten()]


def same_bits(first: Tensor, second: Tensor) -> bool:
    if first.dtype != second.dtype:
        return False
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


@DTYPES
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_extrapolate_is_the_reference(seed: int, alpha: float, dtype: torch.dtype) -> None:
    base, tuned = drawn((3, 5), 2, seed, dtype)
    expected = reference.extrapolate(flat(base), flat(tuned), alpha)
    result = extrapolate(base, tuned, alpha)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = 1e-14 if dtype == torch.float64 else 1e-6
    assert flat(result) == pytest.approx(expected, rel=exact, abs=exact)


@DTYPES
def test_extrapolate_is_exact_at_both_ends(dtype: torch.dtype) -> None:
    base, tuned = drawn((1000, 1000), 2, 0, dtype)
    base[0, 0], tuned[0, 0], base[0, 1] = -0.0, 0.0, -0.0
    assert same_bits(extrapolate(base, tuned, 0.0), base)
    assert same_bits(extrapolate(base, tuned, 1.0), tuned)


def test_extrapolate_reaches_the_ends_without_their_being_special() -> None:
    """What is next to an end rounds to it: the arithmetic is in float32 and the cast comes last."""
    base, tuned = drawn((1000, 1000), 2, 0, torch.bfloat16)
    assert torch.equal(extrapolate(base, tuned, 1e-9).bfloat16(), base)
    assert torch.equal(extrapolate(base, tuned, 1.0 + 1e-9).bfloat16(), tuned)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_what_did_not_move_stays(alpha: float) -> None:
    (tensor,) = drawn((100, 100), 1, 0)
    assert torch.equal(extrapolate(tensor, tensor.clone(), alpha), tensor)
    assert torch.equal(average([tensor] * 3, [0.2, 0.3, 0.5]), tensor)
    assert torch.equal(timber(tensor, tensor.clone(), 0.3), tensor)
    prediction, fit = line_fit([tensor] * 3, [1, 2, 5], at=alpha)
    assert torch.equal(prediction, tensor.double())
    assert fit == 1.0


@pytest.mark.parametrize("alpha", [*ALPHAS, 0.4999, 1e-3, 100.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_cast_once(dtype: torch.dtype, alpha: float) -> None:
    base, tuned = drawn((1000, 1000), 2, 0, dtype)
    direct = extrapolate(base, tuned, alpha, stored=dtype)
    assert same_bits(direct, extrapolate(base.float(), tuned.float(), alpha).to(dtype))
    assert extrapolate(base, tuned, alpha, stored=torch.float32).dtype == torch.float32
    assert extrapolate(base.float(), tuned, alpha, stored=dtype).dtype == torch.float32


def test_extrapolate_is_linear_in_alpha() -> None:
    base, tuned = drawn((7, 11), 2, 3, torch.float64)
    low, middle, high = (extrapolate(base, tuned, alpha) for alpha in (-1.0, 0.75, 2.5))
    assert torch.allclose(2 * middle, low + high, rtol=0, atol=1e-13)


@pytest.mark.parametrize("seed", SEEDS)
def test_average_is_the_reference(seed: int) -> None:
    tensors = drawn((4, 3), 3, seed)
    weights = [0.7, 0.5, -0.2]
    expected = reference.average([flat(each) for each in tensors], weights)
    assert flat(average(tensors, weights)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_average_with_all_the_weight_on_one_is_that_one() -> None:
    tensors = drawn((50, 50), 3, 0)
    assert same_bits(average(tensors, [0.0, 1.0, 0.0]), tensors[1])


@pytest.mark.parametrize(("weights", "words"), [([0.5, 0.6], "sum to 1.1"), ([1.0], "2 checkpoints have 1 weights")])
def test_average_refuses_weights(weights: list[float], words: str) -> None:
    with pytest.raises(ExtrapolationError, match=words):
        average(drawn((2,), 2, 0), weights)


def test_average_refuses_nan() -> None:
    with pytest.raises(ExtrapolationError, match="sum to nan"):
        average(drawn((2,), 2, 0), [math.nan, 1.0])


@DTYPES
@pytest.mark.parametrize("seed", SEEDS)
def test_line_fit_is_the_reference(seed: int, dtype: torch.dtype) -> None:
    tensors = drawn((3, 4), len(STEPS), seed, dtype)
    expected, expected_fit = reference.line_fit([flat(each) for each in tensors], STEPS, at=900.0)
    prediction, fit = line_fit(tensors, STEPS, at=900.0)
    assert flat(prediction) == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert 0.05 < fit < 0.95
    assert fit == pytest.approx(expected_fit, rel=1e-9)


def test_line_through_a_line_is_exact() -> None:
    start, slope = (torch.randint(-100, 100, (6, 7), generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    tensors = [(start + step * slope).float() for step in STEPS]
    prediction, fit = line_fit(tensors, STEPS, at=1000)
    assert torch.equal(prediction.float(), (start + 1000 * slope).float())
    assert fit == pytest.approx(1.0, abs=1e-14)


def test_sums_of_rows_add_up() -> None:
    tensors = drawn((10, 4), len(STEPS), 0)
    parts = [line_sums([each[rows] for each in tensors], STEPS) for rows in (slice(0, 3), slice(3, 10))]
    residual, total = (sum(each) for each in zip(*parts, strict=True))
    assert r_squared(residual, total) == pytest.approx(line_fit(tensors, STEPS, at=0)[1], rel=1e-12)


@pytest.mark.parametrize("steps", [[1, 2], [1, 2, 2]])
def test_line_needs_three_steps(steps: list[int]) -> None:
    with pytest.raises(ExtrapolationError, match="3 checkpoints of different steps or more"):
        line_fit(drawn((2,), len(steps), 0), steps, at=5)


@pytest.mark.parametrize("shape", [(5, 4), (4, 6)])
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("seed", SEEDS)
def test_timber_is_the_reference(seed: int, keep: float, shape: tuple[int, int]) -> None:
    base, tuned = drawn(shape, 2, seed)
    tuned[0] += 1.0  # one strong direction, so that there is a tail
    expected = reference.timber(base.tolist(), tuned.tolist(), keep)
    assert flat(timber(base, tuned, keep)) == pytest.approx([each for row in expected for each in row], abs=1e-6)


def test_timber_keeps_a_change_of_exact_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 3, generator=generator, dtype=torch.float64))[0] for n in (9, 7))
    base = torch.randn(9, 7, generator=generator, dtype=torch.float64)
    tuned = base + 0.5 * left @ right.T
    assert torch.allclose(timber(base, tuned, 0.0), tuned, rtol=0, atol=1e-14)
    assert torch.allclose(timber(base.float(), tuned.float(), 0.0), tuned.float(), rtol=0, atol=1e-6)


def test_timber_shrinks_noise_and_keeps_the_signal() -> None:
    """Rank 4 with 5% noise, 32 x 48: effective rank 5.23, so 6 directions stay and 0.04% of the energy goes."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(32, 4, generator=generator) @ torch.randn(4, 48, generator=generator)
    noise = torch.randn(32, 48, generator=generator)
    tuned = signal + 0.05 * signal.norm() / noise.norm() * noise
    dropped = tuned - timber(torch.zeros(32, 48), tuned, 0.0)
    assert effective_rank(torch.linalg.svdvals(tuned.double())) in (6, 7, 8)
    assert 0 < float(dropped.square().sum() / tuned.square().sum()) < 0.005


def test_timber_ends() -> None:
    base, tuned = drawn((5, 6), 2, 0)
    assert same_bits(timber(base, tuned, 1.0), tuned)
    assert same_bits(timber(base[0], tuned[0], 0.0), tuned[0])


def test_effective_rank_divides_by_the_sum() -> None:
    assert effective_rank(torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)) == 2  # exp(0.562) = 1.755
    assert effective_rank(torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64)) == 3  # 2.38; of squares 1.5, so 2


def test_registry_calls_the_functions() -> None:
    base, middle, tuned = drawn((4, 5), 3, 0)
    calls = {
        "extrapolate": ([base, tuned], {"alpha": 1.5}, extrapolate(base, tuned, 1.5)),
        "average": ([base, tuned], {"weights": [0.25, 0.75]}, average([base, tuned], [0.25, 0.75])),
        "line_fit": (
            [base, middle, tuned],
            {"steps": [1, 2, 4], "at": 9},
            line_fit([base, middle, tuned], [1, 2, 4], 9)[0],
        ),
        "timber": ([base, tuned], {"keep": 0.1}, timber(base, tuned, 0.1)),
    }
    assert calls.keys() == OPERATIONS.keys()
    for name, (tensors, settings, expected) in calls.items():
        assert torch.equal(OPERATIONS[name].apply(tensors, settings, torch.bfloat16), expected)
