"""Token losses, the KL penalty and aggregation: values and gradients against the scalar reference."""

import math

import pytest
import torch

from rlvr.objectives.aggregation import Denominator, aggregate
from rlvr.objectives.kl import KL_ESTIMATORS
from rlvr.objectives.policy_loss import POLICY_LOSSES, PolicySettings, clip_masks
from rlvr.objectives.ratio import RATIO_LEVELS
from tests.golden.cases import (
    CLIP_HIGH,
    CLIP_LOW,
    COLUMNS,
    MAX_COMPLETION_LENGTH,
    ROWS,
    RULES,
    PolicyCase,
    close,
    close_gradient,
    policy_case,
    tensor,
)
from tests.reference import objectives as reference

SEEDS = [0, 1, 2, 3]


def step_of(mask: torch.Tensor, max_completion_length: int = MAX_COMPLETION_LENGTH) -> Denominator:
    """The denominators of a step that consists of this batch."""
    return Denominator(
        num_loss_tokens=float(mask.sum()),
        num_sequences=float(mask.any(dim=1).sum()),
        num_rows=float(mask.shape[0]),
        max_completion_length=max_completion_length,
    )


def log_ratio_of(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    return RATIO_LEVELS["token"](logprobs, old_logprobs, torch.ones_like(logprobs, dtype=torch.bool))


def clipped_policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, *, clip_low: float, clip_high: float
) -> torch.Tensor:
    log_ratio = log_ratio_of(logprobs, old_logprobs)
    return POLICY_LOSSES["clip"](logprobs, log_ratio, advantages, PolicySettings(clip_low, clip_high))


def k3_penalty(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    return KL_ESTIMATORS["k3"](logprobs, ref_logprobs, torch.zeros_like(logprobs))


def random_values(seed: int) -> list[list[float]]:
    case = policy_case(seed)
    return reference.k3_penalty(case.old_logprobs, case.ref_logprobs)


@pytest.mark.parametrize("seed", SEEDS)
def test_cases_cover_both_bounds_with_both_signs(seed: int) -> None:
    case, kinds = policy_case(seed), set()
    for b in range(ROWS):
        for t in range(COLUMNS):
            ratio = math.exp(case.logprobs[b][t] - case.old_logprobs[b][t])
            side = (ratio > 1 - CLIP_LOW) + (ratio > 1 + CLIP_HIGH)
            if case.mask[b][t]:
                kinds.add((side, case.advantages[b][t] > 0))
    assert len(kinds) == 6
    assert not any(case.mask[3])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("clip_low", "clip_high"), [(0.2, 0.28), (0.2, 0.2), (0.1, 0.45), (0.35, 0.05)])
def test_policy_loss_equals_reference(seed: int, clip_low: float, clip_high: float) -> None:
    case = policy_case(seed)
    actual = clipped_policy_loss(
        tensor(case.logprobs),
        tensor(case.old_logprobs),
        tensor(case.advantages),
        clip_low=clip_low,
        clip_high=clip_high,
    )
    expected = reference.clipped_policy_loss(case.logprobs, case.old_logprobs, case.advantages, clip_low, clip_high)
    close(actual, expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (0.5, 2.0, -1.0, -1.0),
        (1.1, 2.0, -2.2, -2.2),
        (2.0, 2.0, -2.56, 0.0),
        (0.5, -2.0, 1.6, 0.0),
        (1.1, -2.0, 2.2, 2.2),
        (2.0, -2.0, 4.0, 4.0),
        (2.0, 0.0, 0.0, 0.0),
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    logprobs = tensor([[math.log(0.2)]], requires_grad=True)
    old_logprobs = tensor([[math.log(0.2 / ratio)]])
    actual = clipped_policy_loss(logprobs, old_logprobs, tensor([[advantage]]), clip_low=0.2, clip_high=0.28)
    close(actual, [[loss]])
    actual.sum().backward()
    close(logprobs.grad, [[slope]])


@pytest.mark.parametrize("seed", SEEDS)
def test_policy_loss_gradient_equals_finite_differences(seed: int) -> None:
    case = policy_case(seed)
    logprobs = tensor(case.logprobs, requires_grad=True)
    losses = clipped_policy_loss(
        logprobs, tensor(case.old_logprobs), tensor(case.advantages), clip_low=CLIP_LOW, clip_high=CLIP_HIGH
    )
    losses.sum().backward()

    def total(flat: list[float]) -> float:
        rows = reference.reshape(flat, COLUMNS)
        losses = reference.clipped_policy_loss(rows, case.old_logprobs, case.advantages, CLIP_LOW, CLIP_HIGH)
        return math.fsum(reference.flatten(losses))

    close_gradient(logprobs.grad, reference.numerical_gradient(total, reference.flatten(case.logprobs)))


def test_policy_loss_gradient_flows_only_through_logprobs() -> None:
    case = policy_case(0)
    logprobs, old_logprobs, advantages = (
        tensor(values, requires_grad=True) for values in (case.logprobs, case.old_logprobs, case.advantages)
    )
    clipped_policy_loss(logprobs, old_logprobs, advantages, clip_low=CLIP_LOW, clip_high=CLIP_HIGH).sum().backward()
    assert logprobs.grad.abs().sum() > 0
    for constant in (old_logprobs, advantages):
        assert constant.grad is None or not constant.grad.any()


def slope_of_token(logprob: float, old_logprob: float, advantage: float) -> float:
    def loss(point: list[float]) -> float:
        return reference.clipped_token_loss(point[0], old_logprob, advantage, CLIP_LOW, CLIP_HIGH)

    return reference.numerical_gradient(loss, [logprob])[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_clip_masks_mark_the_tokens_without_gradient_by_bound(seed: int) -> None:
    case = policy_case(seed)
    low, high = clip_masks(
        log_ratio_of(tensor(case.logprobs), tensor(case.old_logprobs)),
        tensor(case.advantages),
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
    )
    for b in range(ROWS):
        for t in range(COLUMNS):
            old_logprob, advantage = case.old_logprobs[b][t], case.advantages[b][t]
            slope = slope_of_token(case.logprobs[b][t], old_logprob, advantage)
            below = case.logprobs[b][t] < old_logprob
            assert low[b, t].item() == (slope == 0 and below)
            assert high[b, t].item() == (slope == 0 and not below)


@pytest.mark.parametrize("seed", SEEDS)
def test_k3_value_and_gradient_equal_reference(seed: int) -> None:
    case = policy_case(seed)
    logprobs = tensor(case.logprobs, requires_grad=True)
    penalty = k3_penalty(logprobs, tensor(case.ref_logprobs))
    close(penalty, reference.k3_penalty(case.logprobs, case.ref_logprobs))
    penalty.sum().backward()

    def total(flat: list[float]) -> float:
        rows = reference.reshape(flat, COLUMNS)
        return math.fsum(reference.flatten(reference.k3_penalty(rows, case.ref_logprobs)))

    close_gradient(logprobs.grad, reference.numerical_gradient(total, reference.flatten(case.logprobs)))


def test_k3_by_hand() -> None:
    # pi = 1/4, ref = 1/2: ratio 2, so 2 - log 2 - 1; the other way round 1/2 + log 2 - 1; equal policies 0.
    half, quarter = math.log(0.5), math.log(0.25)
    actual = k3_penalty(tensor([[quarter, half, half]]), tensor([[half, quarter, half]]))
    close(actual, [[1 - math.log(2), math.log(2) - 0.5, 0.0]])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rule", RULES)
def test_aggregate_value_and_gradient_equal_reference(seed: int, rule: str) -> None:
    case, values = policy_case(seed), random_values(seed)
    leaf, mask = tensor(values, requires_grad=True), torch.tensor(case.mask)
    actual = aggregate(leaf, mask, step_of(mask), rule)
    close(actual, reference.aggregate(values, case.mask, rule, MAX_COMPLETION_LENGTH))
    actual.backward()

    def total(flat: list[float]) -> float:
        return reference.aggregate(reference.reshape(flat, COLUMNS), case.mask, rule, MAX_COMPLETION_LENGTH)

    close_gradient(leaf.grad, reference.numerical_gradient(total, reference.flatten(values)))


@pytest.mark.parametrize(("rule", "expected"), [("token_mean", 37.0), ("sequence_mean", 25.0), ("constant", 18.5)])
def test_aggregate_of_lengths_one_and_nine_by_hand(rule: str, expected: float) -> None:
    # One token of 10 and nine of 40: token mean 370 / 10, sequence mean (10 + 40) / 2, constant 370 / (2 x 10).
    values = tensor([[10.0] + [999.0] * 8, [40.0] * 9])
    mask = torch.tensor([[True] + [False] * 8, [True] * 9])
    close(aggregate(values, mask, step_of(mask, max_completion_length=10), rule), expected)


def test_aggregate_uses_the_denominator_of_the_step() -> None:
    # Local sums: 1 + 2 + 3 = 6 over three tokens of two rows; the row means are 1.5 and 3.
    values, mask = tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[True, True], [True, False]])
    step = Denominator(num_loss_tokens=24.0, num_sequences=9.0, num_rows=5.0, max_completion_length=8)
    close(aggregate(values, mask, step, "token_mean"), 6 / 24)
    close(aggregate(values, mask, step, "sequence_mean"), 4.5 / 9)
    close(aggregate(values, mask, step, "constant"), 6 / 40)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_masked_garbage_reaches_neither_value_nor_gradient(rule: str, garbage: float) -> None:
    case, values = policy_case(1), random_values(1)
    mask = torch.tensor(case.mask)
    leaf = tensor(values).masked_fill(~mask, garbage).requires_grad_()
    actual = aggregate(leaf, mask, step_of(mask), rule)
    close(actual, reference.aggregate(values, case.mask, rule, MAX_COMPLETION_LENGTH))
    actual.backward()
    assert torch.isfinite(leaf.grad).all()
    assert not leaf.grad[~mask].any()


@pytest.mark.parametrize("rule", RULES)
def test_fully_masked_micro_batch_is_zero_with_zero_gradient(rule: str) -> None:
    leaf = torch.full((2, 3), math.nan, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    step = Denominator(num_loss_tokens=10.0, num_sequences=3.0, num_rows=5.0, max_completion_length=8)
    actual = aggregate(leaf, mask, step, rule)
    assert actual.item() == 0.0
    actual.backward()
    assert leaf.grad.tolist() == [[0.0] * 3] * 2


def torch_objective(case: PolicyCase, logprobs: torch.Tensor, kl_coef: float, rule: str) -> torch.Tensor:
    mask = torch.tensor(case.mask)
    losses = clipped_policy_loss(
        logprobs, tensor(case.old_logprobs), tensor(case.advantages), clip_low=CLIP_LOW, clip_high=CLIP_HIGH
    )
    losses = losses + kl_coef * k3_penalty(logprobs, tensor(case.ref_logprobs))
    return aggregate(losses, mask, step_of(mask), rule)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_whole_objective_equals_reference(seed: int, rule: str, kl_coef: float) -> None:
    case = policy_case(seed)
    logprobs = tensor(case.logprobs, requires_grad=True)
    actual = torch_objective(case, logprobs, kl_coef, rule)

    def total(flat: list[float]) -> float:
        return reference.objective(
            reference.reshape(flat, COLUMNS),
            case.old_logprobs,
            case.ref_logprobs,
            case.advantages,
            case.mask,
            clip_low=CLIP_LOW,
            clip_high=CLIP_HIGH,
            kl_coef=kl_coef,
            rule=rule,
            max_completion_length=MAX_COMPLETION_LENGTH,
        )

    point = reference.flatten(case.logprobs)
    close(actual, total(point))
    actual.backward()
    close_gradient(logprobs.grad, reference.numerical_gradient(total, point))
