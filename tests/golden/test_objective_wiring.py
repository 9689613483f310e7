"""Every switch of a recipe reaches the loss: each value gives the loss of its own parts, and no two the same."""

from dataclasses import fields, replace
from typing import Any, get_args

import pytest
import torch

from rlvr.config import PRESETS
from rlvr.config.presets import AdvantageRule, Aggregation, KLEstimator, Mismatch, PolicyLoss, RatioLevel
from rlvr.config.schema import AlgorithmConfig
from rlvr.objectives.advantage import ADVANTAGES
from rlvr.objectives.aggregation import AGGREGATIONS, Denominator, aggregate
from rlvr.objectives.kl import KL_ESTIMATORS
from rlvr.objectives.mismatch import MISMATCH, MismatchSettings, finish_mismatch_metrics, mismatch_metrics
from rlvr.objectives.objective import finish_metrics, objective
from rlvr.objectives.policy_loss import POLICY_LOSSES, PolicySettings
from rlvr.objectives.ratio import RATIO_LEVELS
from rlvr.ops.token_stats import TokenStats
from rlvr.types import Microbatch

ROWS, COLUMNS = 5, 4
REGISTRIES: dict[str, tuple[Any, Any]] = {
    "advantage": (AdvantageRule, ADVANTAGES),
    "ratio_level": (RatioLevel, RATIO_LEVELS),
    "policy_loss": (PolicyLoss, POLICY_LOSSES),
    "aggregation": (Aggregation, AGGREGATIONS),
    "kl_estimator": (KLEstimator, KL_ESTIMATORS),
    "mismatch": (Mismatch, MISMATCH),
}


def step() -> tuple[TokenStats, Microbatch]:
    """Ratios on both sides of every bound, both signs of the advantage, a ragged mask."""
    generator = torch.Generator().manual_seed(4)

    def normal(scale: float) -> torch.Tensor:
        return scale * torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64)

    logprobs = normal(0.5) - 2.0
    mask = torch.arange(COLUMNS) < torch.tensor([4, 1, 3, 2, 4]).unsqueeze(1)
    nothing = torch.zeros(ROWS, COLUMNS, dtype=torch.long)
    batch = Microbatch(
        input_ids=nothing,
        attention_mask=nothing,
        completion_ids=nothing,
        completion_mask=mask,
        predictor_index=nothing,
        loss_mask=mask,
        advantages=torch.tensor([1.5, -0.7, 0.4, -2.0, 0.9], dtype=torch.float64).unsqueeze(1).expand(-1, COLUMNS),
        row_ids=torch.arange(ROWS),
        old_logprobs=logprobs + normal(1.5),
        ref_logprobs=logprobs + normal(0.5),
        sampling_logprobs=None,
        denominator=Denominator(float(mask.sum()), float(ROWS), float(ROWS), 9),
    )
    return TokenStats(logprobs, torch.ones_like(logprobs)), batch


def loss_of(**switches: Any) -> float:
    stats, batch = step()
    algorithm = AlgorithmConfig(**({"preset": "grpo", "kl_coef": 0.3} | switches)).resolved()
    return objective(stats, batch, algorithm).loss.item()


def parts_of(**switches: Any) -> float:
    stats, batch = step()
    algorithm = AlgorithmConfig(**({"preset": "grpo", "kl_coef": 0.3} | switches)).resolved()
    mask = batch.loss_mask
    logprobs, old, ref = (
        torch.where(mask, t, 0.0) for t in (stats.logprobs, batch.old_logprobs, batch.ref_logprobs) if t is not None
    )
    log_ratio = RATIO_LEVELS[algorithm.ratio_level](logprobs, old, mask)
    settings = PolicySettings(**{f.name: getattr(algorithm, f.name) for f in fields(PolicySettings)})
    policy = POLICY_LOSSES[algorithm.policy_loss](logprobs, log_ratio, batch.advantages, settings)
    penalty = KL_ESTIMATORS[algorithm.kl_estimator](logprobs, ref, RATIO_LEVELS["token"](logprobs, old, mask))
    total = policy + (algorithm.kl_coef if algorithm.kl_placement == "loss" else 0.0) * penalty
    return aggregate(total, mask, batch.denominator, algorithm.aggregation).item()


@pytest.mark.parametrize("switch", REGISTRIES)
def test_recipes_and_registries_name_the_same_values(switch: str) -> None:
    literal, registry = REGISTRIES[switch]
    assert set(get_args(literal)) == set(registry)


@pytest.mark.parametrize("switch", ["ratio_level", "policy_loss", "aggregation", "kl_estimator"])
def test_each_value_gives_the_loss_of_its_parts(switch: str) -> None:
    values = get_args(REGISTRIES[switch][0])
    losses = {value: loss_of(**{switch: value}) for value in values}
    for value, loss in losses.items():
        assert loss == pytest.approx(parts_of(**{switch: value}), rel=1e-12), value
    # The two sequence ratios differ in gradient only.
    distinct = len(values) - (switch == "ratio_level")
    if switch == "policy_loss":  # gppo has the value of the clip
        distinct -= 1
    assert len({round(loss, 9) for loss in losses.values()}) == distinct


@pytest.mark.parametrize(
    ("setting", "values", "rule"),
    [
        ("clip_low", (0.1, 0.3), "clip"),
        ("clip_high", (0.1, 0.3), "clip"),
        ("dual_clip", (1.1, 2.0), "clip"),
        ("delta", (1.3, 2.0), "clip"),
        ("cispo_cap", (1.0, 3.0), "cispo"),
        ("sapo_tau_pos", (1.0, 2.0), "sapo"),
        ("sapo_tau_neg", (1.0, 2.0), "sapo"),
    ],
)
def test_each_constant_reaches_its_rule(setting: str, values: tuple[float, float], rule: str) -> None:
    first, second = (loss_of(policy_loss=rule, **{setting: value}) for value in values)
    assert abs(first - second) > 1e-6


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_gives_the_loss_of_its_parts(preset: str) -> None:
    assert loss_of(preset=preset) == pytest.approx(parts_of(preset=preset), rel=1e-12)


@pytest.mark.parametrize("rule", get_args(Mismatch))
def test_mismatch_weighs_the_policy_loss_but_not_the_penalty(rule: str) -> None:
    stats, batch = step()
    assert batch.old_logprobs is not None
    generator = torch.Generator().manual_seed(8)
    noise = 0.6 * torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    batch = replace(batch, sampling_logprobs=batch.old_logprobs + noise)
    algorithm = AlgorithmConfig(preset="grpo", kl_coef=0.3, mismatch=rule).resolved()
    result = objective(stats, batch, algorithm)
    mask = batch.loss_mask
    old = torch.where(mask, batch.old_logprobs, 0.0)
    correction = MISMATCH[rule](old, batch.sampling_logprobs, mask, MismatchSettings(0.5, 2.0))
    log_ratio = RATIO_LEVELS["token"](torch.where(mask, stats.logprobs, 0.0), old, mask)
    losses = POLICY_LOSSES["clip"](stats.logprobs, log_ratio, batch.advantages, PolicySettings(0.2, 0.2))
    policy = aggregate(losses * correction.weights, mask, batch.denominator, "sequence_mean")
    assert result.metrics["loss/policy"].item() == pytest.approx(policy.item(), rel=1e-12)
    without = objective(stats, replace(batch, sampling_logprobs=None), algorithm)
    assert result.metrics["loss/kl"].item() == pytest.approx(without.metrics["loss/kl"].item(), rel=1e-12)
    finished = finish_metrics(result.metrics)
    sums = mismatch_metrics(old, batch.sampling_logprobs, mask, correction)
    for name, value in finish_mismatch_metrics(sums).items():
        assert finished[name] == pytest.approx(value.item(), rel=1e-12), name
    assert not any(name.startswith("mismatch sum") for name in finished)


def test_penalty_is_reweighted_by_token_ratios_at_every_level() -> None:
    switches = {"ratio_level": "sequence", "kl_estimator": "k3_ratio"}
    assert loss_of(**switches) == pytest.approx(parts_of(**switches), rel=1e-12)


@pytest.mark.parametrize("rule", get_args(PolicyLoss))
@pytest.mark.parametrize("estimator", get_args(KLEstimator))
def test_garbage_at_masked_positions_reaches_no_gradient(rule: str, estimator: str) -> None:
    stats, batch = step()
    dirty = torch.where(batch.loss_mask, stats.logprobs, torch.nan).requires_grad_()
    algorithm = AlgorithmConfig(preset="grpo", policy_loss=rule, kl_estimator=estimator, kl_coef=0.3).resolved()
    result = objective(TokenStats(dirty, stats.entropy), batch, algorithm)
    assert result.loss.item() == pytest.approx(loss_of(policy_loss=rule, kl_estimator=estimator), rel=1e-12)
    result.loss.backward()
    assert dirty.grad is not None
    assert torch.isfinite(dirty.grad).all()
    assert not dirty.grad[~batch.loss_mask].any()
