"""The recipe's whole loss and each of its metrics against the scalar reference, for every preset."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlvr.config.presets import Algorithm
from rlvr.config.schema import AlgorithmConfig
from rlvr.objectives.aggregation import Denominator
from rlvr.objectives.objective import StepLoss, objective
from rlvr.ops.token_stats import TokenStats
from rlvr.types import Microbatch
from tests.golden.cases import (
    COLUMNS,
    MAX_COMPLETION_LENGTH,
    ROWS,
    PolicyCase,
    close,
    close_gradient,
    policy_case,
    tensor,
)
from tests.reference import objectives as reference

SEEDS = [0, 1, 2]
KL_COEF = 0.3
# Those that are the clipped loss of token ratios, which is what the objective computes.
CLIPPED_PRESETS = ("grpo", "dapo", "dr_grpo")
EVERY_PRESET = pytest.mark.parametrize("preset", CLIPPED_PRESETS)


def algorithm_of(preset: str, kl_coef: float = 0.0) -> Algorithm:
    return AlgorithmConfig(preset=preset, kl_coef=kl_coef).resolved()


def entropies(case: PolicyCase) -> list[list[float]]:
    """Any positive numbers, different at every token."""
    return [[0.1 + b + 0.3 * t + abs(case.logprobs[b][t]) for t in range(COLUMNS)] for b in range(ROWS)]


def whole_step(case: PolicyCase, with_old: bool, with_ref: bool) -> Microbatch:
    """The case as a micro-batch that is the whole optimiser step; the objective reads no token ids."""
    mask = torch.tensor(case.mask)
    unread = torch.zeros(ROWS, COLUMNS, dtype=torch.int64)
    return Microbatch(
        input_ids=unread,
        attention_mask=unread,
        completion_ids=unread,
        completion_mask=torch.ones(ROWS, COLUMNS, dtype=torch.bool),
        predictor_index=unread,
        loss_mask=mask,
        advantages=tensor(case.advantages),
        row_ids=torch.arange(ROWS),
        old_logprobs=tensor(case.old_logprobs) if with_old else None,
        ref_logprobs=tensor(case.ref_logprobs) if with_ref else None,
        sampling_logprobs=None,
        denominator=Denominator(
            num_loss_tokens=float(mask.sum()),
            num_sequences=float(mask.any(dim=1).sum()),
            num_rows=float(ROWS),
            max_completion_length=MAX_COMPLETION_LENGTH,
        ),
    )


def stats_of(case: PolicyCase) -> TokenStats:
    return TokenStats(tensor(case.logprobs, requires_grad=True), tensor(entropies(case), requires_grad=True))


def scalar_loss(case: PolicyCase, algorithm: Algorithm, flat: list[float], with_old: bool, with_ref: bool) -> float:
    """The reference's loss at other log-probs; without old ones the sampler is the policy at the case's own."""
    return reference.objective(
        reference.reshape(flat, COLUMNS),
        case.old_logprobs if with_old else case.logprobs,
        case.ref_logprobs,
        case.advantages,
        case.mask,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        kl_coef=algorithm.kl_coef if with_ref else 0.0,
        rule=algorithm.aggregation,
        max_completion_length=MAX_COMPLETION_LENGTH,
    )


@pytest.mark.parametrize("seed", SEEDS)
@EVERY_PRESET
@pytest.mark.parametrize("with_old", [False, True])
@pytest.mark.parametrize("with_ref", [False, True])
def test_loss_and_gradient_equal_reference(seed: int, preset: str, with_old: bool, with_ref: bool) -> None:
    case, algorithm = policy_case(seed), algorithm_of(preset, KL_COEF)
    stats = stats_of(case)
    step = objective(stats, whole_step(case, with_old, with_ref), algorithm)

    def total(flat: list[float]) -> float:
        return scalar_loss(case, algorithm, flat, with_old, with_ref)

    point = reference.flatten(case.logprobs)
    close(step.loss, total(point))
    step.loss.backward()
    close_gradient(stats.logprobs.grad, reference.numerical_gradient(total, point))
    assert stats.entropy.grad is None or not stats.entropy.grad.any()


@pytest.mark.parametrize("seed", SEEDS)
@EVERY_PRESET
def test_presets_give_different_losses(seed: int, preset: str) -> None:
    # Or the comparison above could not tell one preset from another. grpo and dapo differ in rule and upper bound.
    case = policy_case(seed)
    losses = {
        name: objective(stats_of(case), whole_step(case, True, False), algorithm_of(name)).loss.item()
        for name in CLIPPED_PRESETS
    }
    others = [value for name, value in losses.items() if name != preset]
    assert all(abs(losses[preset] - other) > 1e-3 for other in others)


def mean_over_loss_tokens(case: PolicyCase, values: list[list[float]]) -> float:
    return reference.mean([v for row, keep in zip(values, case.mask, strict=True) for v in reference.kept(row, keep)])


def scalar_metrics(case: PolicyCase, algorithm: Algorithm, with_old: bool, with_ref: bool) -> dict[str, float]:
    """Each metric by its definition."""
    old = case.old_logprobs if with_old else case.logprobs
    places = [[(b, t) for t in range(COLUMNS)] for b in range(ROWS)]
    ratio = [[math.exp(case.logprobs[b][t] - old[b][t]) for b, t in row] for row in places]
    low = [[float(ratio[b][t] < 1 - algorithm.clip_low and case.advantages[b][t] < 0) for b, t in r] for r in places]
    high = [[float(ratio[b][t] > 1 + algorithm.clip_high and case.advantages[b][t] > 0) for b, t in r] for r in places]
    losses = reference.clipped_policy_loss(case.logprobs, old, case.advantages, algorithm.clip_low, algorithm.clip_high)
    metrics = {
        "loss/policy": reference.aggregate(losses, case.mask, algorithm.aggregation, MAX_COMPLETION_LENGTH),
        "entropy/mean_token": mean_over_loss_tokens(case, entropies(case)),
        "clip/low_frac": mean_over_loss_tokens(case, low),
        "clip/high_frac": mean_over_loss_tokens(case, high),
        "ratio/mean": mean_over_loss_tokens(case, ratio),
        "tokens/num_loss": float(sum(map(sum, case.mask))),
        "kl/k1_old": mean_over_loss_tokens(case, [[old[b][t] - case.logprobs[b][t] for b, t in r] for r in places]),
    }
    if with_ref:
        penalty = reference.k3_penalty(case.logprobs, case.ref_logprobs)
        rule = algorithm.aggregation
        metrics["loss/kl"] = algorithm.kl_coef * reference.aggregate(penalty, case.mask, rule, MAX_COMPLETION_LENGTH)
        metrics["kl/k3_ref"] = mean_over_loss_tokens(case, penalty)
    return metrics


def compare_metrics(actual: dict[str, torch.Tensor], expected: dict[str, float]) -> None:
    assert set(actual) == set(expected)
    for name, value in actual.items():
        assert not value.requires_grad, name
        assert value.item() == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("seed", SEEDS)
@EVERY_PRESET
@pytest.mark.parametrize("with_old", [False, True])
@pytest.mark.parametrize("with_ref", [False, True])
def test_metrics_equal_their_definitions(seed: int, preset: str, with_old: bool, with_ref: bool) -> None:
    case, algorithm = policy_case(seed), algorithm_of(preset, KL_COEF)
    step = objective(stats_of(case), whole_step(case, with_old, with_ref), algorithm)
    expected = scalar_metrics(case, algorithm, with_old, with_ref)
    compare_metrics(step.metrics, expected)
    assert (expected["clip/low_frac"] > 0) == with_old
    assert (expected["clip/high_frac"] > 0) == with_old


def test_metrics_by_hand() -> None:
    # Two loss tokens of three: ratio 2 with A = 1 is over the upper bound, ratio 1/2 with A = -1 under the lower one.
    # Policy losses -(1.28 x 1) and -(0.8 x -1), mean -0.24. k3 with d = log 2 and d = 0: 1 - log 2 and 0.
    half, one = math.log(0.5), 0.0
    case = PolicyCase(
        [[one, half, 9.0]], [[half, one, 0.0]], [[math.log(2), half, 0.0]], [[1.0, -1.0, 5.0]], [[True, True, False]]
    )
    batch = replace(
        whole_step(policy_case(0), False, False),
        loss_mask=torch.tensor(case.mask),
        advantages=tensor(case.advantages),
        old_logprobs=tensor(case.old_logprobs),
        ref_logprobs=tensor(case.ref_logprobs),
        denominator=Denominator(2.0, 1.0, 1.0, 3),
    )
    stats = TokenStats(tensor(case.logprobs), tensor([[0.5, 1.5, 100.0]]))
    step = objective(stats, batch, algorithm_of("dapo", 0.1))
    k3 = (1 - math.log(2)) / 2
    close(step.loss, -0.24 + 0.1 * k3)
    compare_metrics(
        step.metrics,
        {
            "loss/policy": -0.24,
            "entropy/mean_token": 1.0,
            "clip/low_frac": 0.5,
            "clip/high_frac": 0.5,
            "ratio/mean": 1.25,
            "tokens/num_loss": 2.0,
            "kl/k1_old": 0.0,
            "loss/kl": 0.1 * k3,
            "kl/k3_ref": k3,
        },
    )


def rows_of(batch: Microbatch, rows: list[int]) -> Microbatch:
    tensors = {name: value[rows] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return replace(batch, **tensors)


@EVERY_PRESET
@pytest.mark.parametrize("split", [[[0, 1], [2, 3, 4]], [[3], [4, 0], [2], [1]], [[0], [1], [2], [3], [4]]])
def test_shares_of_micro_batches_add_up(preset: str, split: list[list[int]]) -> None:
    case, algorithm = policy_case(1), algorithm_of(preset, KL_COEF)
    stats, batch = stats_of(case), whole_step(case, True, True)
    parts: list[StepLoss] = []
    for rows in split:
        part = objective(TokenStats(stats.logprobs[rows], stats.entropy[rows]), rows_of(batch, rows), algorithm)
        part.loss.backward()
        parts.append(part)
    expected = scalar_metrics(case, algorithm, True, True)
    compare_metrics({name: sum(part.metrics[name] for part in parts) for name in parts[0].metrics}, expected)
    point = reference.flatten(case.logprobs)
    assert sum(part.loss.item() for part in parts) == pytest.approx(scalar_loss(case, algorithm, point, True, True))
    gradient = reference.numerical_gradient(lambda flat: scalar_loss(case, algorithm, flat, True, True), point)
    close_gradient(stats.logprobs.grad, gradient)


@EVERY_PRESET
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("with_old", [False, True])
def test_masked_garbage_leaks_nowhere(preset: str, garbage: float, with_old: bool) -> None:
    case, algorithm = policy_case(2), algorithm_of(preset, KL_COEF)
    batch, masked = whole_step(case, with_old, True), ~torch.tensor(case.mask)

    def spoiled(values: torch.Tensor) -> torch.Tensor:
        return values.detach().masked_fill(masked, garbage)

    changes: dict[str, Any] = {"ref_logprobs": spoiled(batch.ref_logprobs), "advantages": spoiled(batch.advantages)}
    if with_old:
        changes["old_logprobs"] = spoiled(batch.old_logprobs)
    clean = stats_of(case)
    stats = TokenStats(spoiled(clean.logprobs).requires_grad_(), spoiled(clean.entropy))
    step = objective(stats, replace(batch, **changes), algorithm)
    close(step.loss, scalar_loss(case, algorithm, reference.flatten(case.logprobs), with_old, True))
    compare_metrics(step.metrics, scalar_metrics(case, algorithm, with_old, True))
    step.loss.backward()
    objective(clean, batch, algorithm).loss.backward()
    close(stats.logprobs.grad, clean.logprobs.grad.tolist())
    assert not stats.logprobs.grad[masked].any()


@EVERY_PRESET
def test_micro_batch_without_a_loss_token_contributes_nothing(preset: str) -> None:
    case, algorithm = policy_case(0), algorithm_of(preset, KL_COEF)
    stats = stats_of(case)
    batch = replace(whole_step(case, True, True), loss_mask=torch.zeros(ROWS, COLUMNS, dtype=torch.bool))
    step = objective(stats, batch, algorithm)
    step.loss.backward()
    assert step.loss.item() == 0
    assert not any(value.item() for value in step.metrics.values())
    assert not stats.logprobs.grad.any()
