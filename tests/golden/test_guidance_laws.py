"""Laws of the shaped ratio: its values, its quantile, and what must not change the loss of a batch with such rows."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvr.objectives.objective import StepLoss, objective
from rlvr.objectives.shaped_ratio import shaped_loss, shaping_gamma
from rlvr.ops.token_stats import TokenStats
from rlvr.types import Microbatch
from tests.golden.cases import close, tensor
from tests.golden.guidance_cases import (
    ALGORITHMS,
    SHAPED,
    GuidanceCase,
    algorithm_of,
    batch_of,
    denominator_of,
    guidance_case,
    logits_of,
    rule_of,
    stats_of,
    table_of,
)
from tests.reference import guidance as reference
from tests.reference.guidance import DROP_WITH_RATIO, Completion, LossRow

EVERY_SHAPED = pytest.mark.parametrize(("scenario", "mode"), SHAPED)
EVERY_ALGORITHM = pytest.mark.parametrize("name", ALGORITHMS)
RATIOS = (1e-6, 0.05, 0.5, 1.0, 1.3, 3.0, 20.0)
ADVANTAGES = (1.7, -0.6, 0.0)
GAMMAS = (1e-4, 0.1, 1.0, 2.5)


def shaped_rows(scenario: str, mode: str, name: str, seed: int = 1) -> tuple[GuidanceCase, list[LossRow]]:
    case = guidance_case(scenario, seed)
    return case, case.rows(algorithm_of(name), mode)


def loss_and_gradient(case: GuidanceCase, batch: Microbatch, name: str, **changes: Any) -> tuple[StepLoss, Tensor]:
    logits = logits_of(case.policy)
    step = objective(stats_of(batch, logits), batch, algorithm_of(name, **changes))
    step.loss.backward()
    assert logits.grad is not None
    return step, logits.grad


def only_row(ratio: float, advantage: float, gamma: float) -> Microbatch:
    """One token of log-prob -1 as the policy has it, in one shaped row."""
    row = LossRow("q", [0], [True], advantage, [-0.3], [-1.0 - math.log(ratio)], gamma)
    return batch_of([row], denominator_of([row]))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_shaped_loss_and_gradient_equal_reference(advantage: float, gamma: float) -> None:
    log_ratio = tensor([[math.log(ratio) for ratio in RATIOS]], requires_grad=True)
    gammas = tensor([[gamma]], requires_grad=True)
    advantages = tensor([[advantage] * len(RATIOS)], requires_grad=True)
    losses = shaped_loss(log_ratio, advantages, gammas)
    close(losses.detach(), [[reference.shaped_token_loss(math.log(r), 0.0, advantage, gamma) for r in RATIOS]])
    losses.sum().backward()
    slopes = [reference.shaped_token_slope(math.log(r), 0.0, advantage, gamma) for r in RATIOS]
    close(log_ratio.grad, [slopes], rtol=1e-9, atol=1e-13)
    for constant in (gammas, advantages):
        assert constant.grad is None or not constant.grad.any()


def test_each_row_has_its_own_gamma() -> None:
    losses = shaped_loss(
        tensor([[0.0, math.log(3)], [0.0, math.log(2)]]), tensor([[1.0, -4.0]] * 2), tensor([[1.0], [2.0]])
    )
    close(losses, [[-1 / 2, 3.0], [-1 / 3, 2.0]])


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_gradient_is_largest_at_gamma_and_a_quarter(advantage: float, gamma: float) -> None:
    log_ratio = tensor([[math.log(gamma) + shift for shift in (-0.5, -0.01, 0.0, 0.01, 0.5)]], requires_grad=True)
    shaped_loss(log_ratio, torch.full_like(log_ratio, advantage).detach(), tensor([[gamma]])).sum().backward()
    sizes = log_ratio.grad[0].abs()
    assert sizes[2].item() == pytest.approx(abs(advantage) / 4, rel=1e-12)
    assert (sizes <= sizes[2]).all()


@pytest.mark.parametrize(
    ("ratios", "level", "expected"),
    [
        ([4.0, 1.0, 3.0, 2.0], 0.9, 3.7),  # rank 2.7
        ([4.0, 1.0, 3.0, 2.0], 0.5, 2.5),  # rank 1.5
        ([1.0, 10.0, 100.0], 0.75, 55.0),  # rank 1.5, between ratios and not between their logarithms
        ([5.0, 1.0, 9.0], 0.5, 5.0),
        ([4.0, 1.0, 3.0], 0.0, 1.0),
        ([4.0, 1.0, 3.0], 1.0, 4.0),
        ([0.3], 0.9, 0.3),
        ([2.0, 2.0, 2.0], 0.9, 2.0),
        ([1e-7, 1e-6, 1e-5], 0.9, 1e-4),
        ([1e-9], 0.9, 1e-4),
        ([1e-9, 2e-4], 1.0, 2e-4),
    ],
)
def test_gamma_by_hand(ratios: list[float], level: float, expected: float) -> None:
    log_ratios = [math.log(ratio) for ratio in ratios]
    actual = shaping_gamma(tensor(log_ratios), level)
    assert isinstance(actual, float)
    assert actual == pytest.approx(expected, rel=1e-9)
    assert reference.gamma_of(log_ratios, level) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 10, 11, 200])
def test_gamma_equals_reference_in_any_order(level: float, count: int) -> None:
    rng = random.Random(f"{level} {count}")
    log_ratios = [rng.gauss(-0.5, 1.5) for _ in range(count)]
    expected = pytest.approx(reference.gamma_of(log_ratios, level), rel=1e-9)
    assert shaping_gamma(tensor(log_ratios), level) == expected
    rng.shuffle(log_ratios)
    assert shaping_gamma(tensor(log_ratios), level) == expected


def test_gamma_of_a_case_is_that_of_its_loss_tokens() -> None:
    case, rows = shaped_rows("guide", DROP_WITH_RATIO, "dapo")
    batch = batch_of(rows, denominator_of(rows))
    shaped = ~batch.gammas.isnan()
    log_ratio = stats_of(batch, logits_of(case.policy)).logprobs.detach() - batch.behaviour_logprobs
    gamma = shaping_gamma(log_ratio[batch.loss_mask & shaped.unsqueeze(1)], 0.9)
    close(batch.gammas[shaped], [gamma] * 4)


@pytest.mark.parametrize("advantage", [1.5, -0.7])
@pytest.mark.parametrize("gamma", [None, 0.1])
@EVERY_ALGORITHM
def test_hint_that_changes_nothing_gives_ratio_one(name: str, gamma: float | None, advantage: float) -> None:
    case = guidance_case("guide", seed=3, on_policy=True)
    case.policy["q+h"] = case.policy["q"]
    hinted = [Completion([2, 1, 3], [True] * 3, 1.0, 0, "q", "q+h"), Completion([0], [True], 0.0, 0, "q", "q+h")]
    own_gamma = reference.hint_gamma(hinted, case.policy, case.policy, 0.9)
    assert own_gamma == pytest.approx(1.0, rel=1e-12)
    g = gamma or own_gamma
    rows = [reference.loss_row(each, advantage, case.policy, DROP_WITH_RATIO, g) for each in hinted]
    batch = batch_of(rows, denominator_of(rows), with_old=False)
    logits = logits_of(case.policy)
    stats = stats_of(batch, logits)
    leaf = stats.logprobs.detach().requires_grad_()
    step = objective(TokenStats(leaf, stats.entropy), batch, algorithm_of(name, aggregation="token_sum"))
    close(step.loss.detach(), -advantage * 4 / (1 + g) / 2)
    step.loss.backward()
    slope = -advantage * g / (1 + g) ** 2 / 2
    close(leaf.grad, [[slope] * 3, [slope, 0.0, 0.0]])


@pytest.mark.parametrize("ratio", [1e-3, 0.4, 20.0])
@pytest.mark.parametrize("advantage", [1.5, -0.7])
@EVERY_ALGORITHM
def test_no_clip_on_a_shaped_row(name: str, advantage: float, ratio: float) -> None:
    gamma = 3.0
    leaf = tensor([[-1.0]], requires_grad=True)
    step = objective(
        TokenStats(leaf, tensor([[1.0]])),
        only_row(ratio, advantage, gamma),
        algorithm_of(name, aggregation="token_mean"),
    )
    close(step.loss.detach(), -advantage * ratio / (ratio + gamma))
    step.loss.backward()
    close(leaf.grad, [[-advantage * gamma * ratio / (ratio + gamma) ** 2]])
    for metric in ("clip/low_frac", "clip/high_frac"):
        assert metric not in step.metrics or step.metrics[metric].item() == 0


def widened(values: Tensor, garbage: float) -> Tensor:
    return torch.nn.functional.pad(values, (0, 3), value=garbage)


def spoiled(batch: Microbatch, garbage: float) -> Microbatch:
    """Wider by three columns, with garbage wherever there is no loss token."""
    changes: dict[str, Any] = {name: widened(getattr(batch, name), False) for name in ("completion_mask", "loss_mask")}
    for name in ("completion_ids", "predictor_index"):
        changes[name] = widened(getattr(batch, name), 0)
    for name in ("advantages", "behaviour_logprobs", "old_logprobs"):
        changes[name] = torch.where(changes["loss_mask"], widened(getattr(batch, name), garbage), garbage)
    return replace(batch, **changes)


@EVERY_SHAPED
@EVERY_ALGORITHM
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 500.0])
def test_padding_and_masked_positions_change_nothing(scenario: str, mode: str, name: str, garbage: float) -> None:
    case, rows = shaped_rows(scenario, mode, name)
    batch, algorithm = batch_of(rows, denominator_of(rows)), algorithm_of(name)
    clean, clean_gradient = loss_and_gradient(case, batch, name)
    wide, logits = spoiled(batch, garbage), logits_of(case.policy)
    stats = stats_of(wide, logits).mapped(lambda values: torch.where(wide.loss_mask, values, garbage))
    step = objective(stats, wide, algorithm)
    close(step.loss.detach(), clean.loss.item())
    step.loss.backward()
    close(logits.grad, clean_gradient.tolist())
    assert set(step.metrics) == set(clean.metrics)
    for metric, value in step.metrics.items():
        assert value.item() == pytest.approx(clean.metrics[metric].item(), rel=1e-9, abs=1e-12), metric


@EVERY_SHAPED
@EVERY_ALGORITHM
@pytest.mark.parametrize("parts", [2, 3, 9])
def test_shares_of_micro_batches_add_up(scenario: str, mode: str, name: str, parts: int) -> None:
    case, rows = shaped_rows(scenario, mode, name)
    step, logits = denominator_of(rows), logits_of(case.policy)
    whole, _ = loss_and_gradient(case, batch_of(rows, step), name)
    total, sums = 0.0, dict.fromkeys(whole.metrics, 0.0)
    for chunk in (rows[first::parts] for first in range(min(parts, len(rows)))):
        batch = batch_of(chunk, step)
        assert (batch.gammas is None) == all(row.gamma is None for row in chunk)
        share = objective(stats_of(batch, logits), batch, algorithm_of(name))
        share.loss.backward()
        total += share.loss.item()
        for metric, value in share.metrics.items():
            sums[metric] += value.item()
    rule = rule_of(algorithm_of(name))
    assert total == pytest.approx(reference.batch_loss(rows, case.policy, case.policy, rule), rel=1e-9)
    close(logits.grad, table_of(reference.batch_gradient(rows, case.policy, rule)))  # type: ignore[arg-type]
    for metric, value in whole.metrics.items():
        assert sums[metric] == pytest.approx(value.item(), rel=1e-9, abs=1e-12), metric


@EVERY_SHAPED
@EVERY_ALGORITHM
def test_order_of_rows_does_not_matter(scenario: str, mode: str, name: str) -> None:
    case, rows = shaped_rows(scenario, mode, name)
    step, gradient = loss_and_gradient(case, batch_of(rows, denominator_of(rows)), name)
    shuffled = list(rows)
    random.Random(5).shuffle(shuffled)
    other, other_gradient = loss_and_gradient(case, batch_of(shuffled, denominator_of(rows)), name)
    close(other.loss.detach(), step.loss.item())
    close(other_gradient, gradient.tolist())


@EVERY_SHAPED
@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "gspo", "narrow", "ampo"])
def test_shaped_rows_do_not_change_the_clip_metrics(scenario: str, mode: str, name: str) -> None:
    case, rows = shaped_rows(scenario, mode, name)
    step = denominator_of(rows)
    ordinary = [row for row in rows if row.gamma is None]
    assert 0 < len(ordinary) < len(rows)
    both, _ = loss_and_gradient(case, batch_of(rows, step), name)
    without, _ = loss_and_gradient(case, batch_of(ordinary, step), name)
    for metric in ("clip/low_frac", "clip/high_frac"):
        assert both.metrics[metric].item() == pytest.approx(without.metrics[metric].item(), rel=1e-12)


@EVERY_SHAPED
@EVERY_ALGORITHM
def test_each_kind_of_row_ignores_the_denominator_of_the_other(scenario: str, mode: str, name: str) -> None:
    case, rows = shaped_rows(scenario, mode, name)
    batch = batch_of(rows, denominator_of(rows))
    step, gradient = loss_and_gradient(case, batch, name)
    shaped = ~batch.gammas.isnan().unsqueeze(1)
    moved = replace(
        batch,
        old_logprobs=torch.where(shaped, batch.old_logprobs - 1.7, batch.old_logprobs),
        behaviour_logprobs=torch.where(shaped, batch.behaviour_logprobs, -0.9),
    )
    other, other_gradient = loss_and_gradient(case, moved, name)
    close(other.loss.detach(), step.loss.item())
    close(other_gradient, gradient.tolist())


@EVERY_ALGORITHM
def test_batch_whose_gammas_are_all_nan_is_an_ordinary_one(name: str) -> None:
    case = guidance_case("nurl", seed=1)
    rows = case.rows(algorithm_of(name), "keep")
    batch = batch_of(rows, denominator_of(rows))
    assert batch.gammas is None
    step, gradient = loss_and_gradient(case, batch, name)
    nothing = replace(
        batch,
        gammas=torch.full((len(rows),), math.nan, dtype=torch.float64),
        behaviour_logprobs=torch.zeros_like(batch.advantages),
    )
    other, other_gradient = loss_and_gradient(case, nothing, name)
    close(other.loss.detach(), step.loss.item())
    close(other_gradient, gradient.tolist())


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@EVERY_SHAPED
def test_penalty_of_a_shaped_row_is_an_ordinary_one(scenario: str, mode: str, estimator: str) -> None:
    case, rows = shaped_rows(scenario, mode, "dapo")
    batch = batch_of(rows, denominator_of(rows))
    batch = replace(batch, ref_logprobs=stats_of(batch, logits_of(case.old_policy)).logprobs.detach())
    ordinary = replace(batch, gammas=None, behaviour_logprobs=None)
    with_penalty, gradient = loss_and_gradient(case, batch, "dapo", kl_coef=0.3, kl_estimator=estimator)
    without, own = loss_and_gradient(case, batch, "dapo")
    plain_penalty, plain_gradient = loss_and_gradient(case, ordinary, "dapo", kl_coef=0.3, kl_estimator=estimator)
    plain, plain_own = loss_and_gradient(case, ordinary, "dapo")
    close((with_penalty.loss - without.loss).detach(), (plain_penalty.loss - plain.loss).item())
    close(gradient - own, (plain_gradient - plain_own).tolist())


@pytest.mark.parametrize("log_ratio", [-300.0, 300.0])
@pytest.mark.parametrize("advantage", [1.5, -0.7])
@pytest.mark.parametrize("gamma", [1e-4, 0.1, 3.0])
def test_extreme_ratios_stay_finite_in_float32(gamma: float, advantage: float, log_ratio: float) -> None:
    leaf = torch.tensor([[-1.0]], requires_grad=True)
    batch = only_row(1.0, advantage, gamma)
    batch = replace(
        batch,
        advantages=batch.advantages.float(),
        gammas=batch.gammas.float(),
        old_logprobs=torch.tensor([[-1.0]]),
        behaviour_logprobs=torch.tensor([[-1.0 - log_ratio]]),
    )
    step = objective(TokenStats(leaf, torch.ones(1, 1)), batch, algorithm_of("dapo"))
    assert step.loss.item() == pytest.approx(-advantage * (log_ratio > 0), abs=1e-4)
    step.loss.backward()
    assert leaf.grad.item() == pytest.approx(0.0, abs=1e-4)


def test_gamma_of_huge_ratios_is_finite_in_float32() -> None:
    """A tenth of the tokens may be such that only the hint made unlikely; the interpolation would give NaN."""
    log_ratios = torch.tensor([0.0, 1.0, 200.0, 300.0])
    assert shaping_gamma(log_ratios, 0.9) == pytest.approx(math.exp(20.0))
