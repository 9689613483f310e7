"""The loss of a micro-batch: policy loss, corrections, penalties and aggregation of the recipe, a metric per term."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rlvr.config import Algorithm
from rlvr.objectives.aggregation import aggregate
from rlvr.objectives.kl import KL_ESTIMATORS
from rlvr.objectives.mismatch import (
    MISMATCH,
    MismatchSettings,
    finish_mismatch_extremes,
    finish_mismatch_metrics,
    mismatch_extremes,
    mismatch_metrics,
)
from rlvr.objectives.policy_loss import POLICY_LOSSES, PolicySettings, clip_masks
from rlvr.objectives.ratio import RATIO_LEVELS
from rlvr.objectives.regularizers.base import LiveTokens, Prepared, Regularizer
from rlvr.objectives.shaped_ratio import shaped_loss
from rlvr.ops.support import SupportLogprobs
from rlvr.ops.token_stats import TokenStats
from rlvr.types import Microbatch

# Marks of metrics that `finish_metrics` turns into others; those of the second are combined by the maximum.
MISMATCH_SUMS, MISMATCH_MAXIMA = "mismatch sum: ", "mismatch max: "


@dataclass(frozen=True)
class StepLoss:
    """Shares of the optimiser step: summed over its micro-batches and ranks they give the step's loss and metrics.

    Metrics marked as maxima are combined by the maximum instead.
    """

    loss: Tensor  # scalar
    metrics: dict[str, Tensor]  # scalars, detached


def objective(
    stats: TokenStats,
    batch: Microbatch,
    algorithm: Algorithm,
    regularizers: Sequence[Regularizer] = (),
    *,
    step: int = 0,
    support: SupportLogprobs | None = None,
) -> StepLoss:
    """The recipe's loss on this micro-batch; stats [b, T] and support carry the gradient.

    `step` counts the optimiser steps before this one and decides scheduled coefficients.
    """
    assert stats.entropy is not None  # asked for in every forward pass, for its metric
    mask, denominator = batch.loss_mask, batch.denominator
    logprobs = torch.where(mask, stats.logprobs, 0.0)
    old_logprobs = logprobs.detach() if batch.old_logprobs is None else torch.where(mask, batch.old_logprobs, 0.0)
    log_ratio = RATIO_LEVELS[algorithm.ratio_level](logprobs, old_logprobs, mask)
    settings = PolicySettings(**{field.name: getattr(algorithm, field.name) for field in fields(PolicySettings)})

    def token_share(values: Tensor) -> Tensor:
        return aggregate(values.detach().to(logprobs.dtype), mask, denominator, "token_mean")

    losses = POLICY_LOSSES[algorithm.policy_loss](logprobs, log_ratio, batch.advantages, settings)
    losses, is_shaped, sampler_logprobs = _with_shaped(losses, logprobs, old_logprobs, batch)
    weights, metrics = _mismatch(sampler_logprobs, batch, algorithm)
    live = replace(stats, logprobs=logprobs)
    terms = {
        each.name: each.contribute(_live_tokens(each, live, old_logprobs, batch, algorithm, step, support))
        for each in regularizers
    }
    for term in terms.values():
        if term.policy_mask is not None:
            losses = torch.where(term.policy_mask, losses, 0.0)
    policy_loss = aggregate(losses if weights is None else losses * weights, mask, denominator, algorithm.aggregation)
    low_mask, high_mask = clip_masks(
        log_ratio, batch.advantages, clip_low=settings.clip_low, clip_high=settings.clip_high
    )
    metrics |= {
        "loss/policy": policy_loss.detach(),
        "tokens/num_loss": mask.sum().to(logprobs.dtype),
        "entropy/mean_token": token_share(stats.entropy),
        "clip/low_frac": token_share(low_mask & ~is_shaped),
        "clip/high_frac": token_share(high_mask & ~is_shaped),
        "ratio/mean": token_share(log_ratio.exp()),
        "kl/k1_old": token_share(old_logprobs - logprobs),
    }
    loss = policy_loss
    for name, term in terms.items():
        metrics |= term.metrics
        if term.loss is not None:
            loss = loss + term.loss
            metrics[f"loss/{name}"] = term.loss.detach()
    if batch.ref_logprobs is None or algorithm.kl_placement == "reward":
        return StepLoss(loss, metrics)
    kl_loss, kl_metrics = _kl(logprobs, old_logprobs, batch.ref_logprobs, batch, algorithm)
    return StepLoss(loss + kl_loss, metrics | kl_metrics)


def _with_shaped(
    losses: Tensor, logprobs: Tensor, old_logprobs: Tensor, batch: Microbatch
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses with those of shaped ratios in their places, which places [b, T] these are, and the log-probs [b, T]
    under the context that each token was sampled in.
    """
    mask = batch.loss_mask
    if batch.gammas is None or batch.behaviour_logprobs is None:
        return losses, torch.zeros_like(mask), old_logprobs
    is_shaped = ~batch.gammas.isnan().unsqueeze(1).expand_as(mask)
    sampler_logprobs = torch.where(mask & is_shaped, batch.behaviour_logprobs, old_logprobs)
    log_ratio = RATIO_LEVELS["token"](logprobs, sampler_logprobs, mask)
    shaped = shaped_loss(log_ratio, batch.advantages, batch.gammas.nan_to_num(1.0).unsqueeze(1))
    return torch.where(is_shaped, shaped, losses), is_shaped, sampler_logprobs


def _kl(
    logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, batch: Microbatch, algorithm: Algorithm
) -> tuple[Tensor, dict[str, Tensor]]:
    """The penalty on the divergence from the reference, coefficient included, and its metrics."""
    mask, denominator = batch.loss_mask, batch.denominator
    # The ratio of k3_ratio is of tokens whatever the level of the policy loss: each token's penalty is reweighted.
    log_ratio = RATIO_LEVELS["token"](logprobs, old_logprobs, mask)
    penalty = KL_ESTIMATORS[algorithm.kl_estimator](logprobs, torch.where(mask, ref_logprobs, 0.0), log_ratio)
    loss = algorithm.kl_coef * aggregate(penalty, mask, denominator, algorithm.aggregation)
    mean = aggregate(penalty.detach(), mask, denominator, "token_mean")
    return loss, {"loss/kl": loss.detach(), f"kl/{algorithm.kl_estimator}_ref": mean}


def _live_tokens(
    regularizer: Regularizer,
    stats: TokenStats,
    old_logprobs: Tensor,
    batch: Microbatch,
    algorithm: Algorithm,
    step: int,
    support: SupportLogprobs | None,
) -> LiveTokens:
    """What one regulariser sees of the micro-batch."""
    prepared = batch.prepared.get(regularizer.name, Prepared())
    return LiveTokens(
        mask=batch.loss_mask,
        advantages=batch.advantages,
        stats=stats,
        old_logprobs=old_logprobs,
        denominator=batch.denominator,
        aggregation=algorithm.aggregation,
        tokens=prepared.tokens,
        scalars=prepared.scalars,
        support=None if prepared.support_mask is None else support,
        coef=regularizer.coef_at(step),
    )


def _mismatch(old_logprobs: Tensor, batch: Microbatch, algorithm: Algorithm) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Weights [b, T] for the policy loss and the sums of the mismatch metrics; nothing without an engine's report."""
    if batch.sampling_logprobs is None:
        return None, {}
    bounds = MismatchSettings(algorithm.mismatch_low, algorithm.mismatch_high)
    correction = MISMATCH[algorithm.mismatch](old_logprobs, batch.sampling_logprobs, batch.loss_mask, bounds)
    seen = (old_logprobs, batch.sampling_logprobs, batch.loss_mask)
    sums = {MISMATCH_SUMS + name: value for name, value in mismatch_metrics(*seen, correction).items()}
    maxima = {MISMATCH_MAXIMA + name: value for name, value in mismatch_extremes(*seen).items()}
    return correction.weights, sums | maxima


def finish_metrics(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """The metrics of a step from the totals over its micro-batches and ranks."""

    def marked(mark: str) -> dict[str, Tensor]:
        return {name.removeprefix(mark): value for name, value in totals.items() if name.startswith(mark)}

    finished = {name: v for name, v in totals.items() if not name.startswith((MISMATCH_SUMS, MISMATCH_MAXIMA))}
    if sums := marked(MISMATCH_SUMS):
        finished |= finish_mismatch_metrics(sums) | finish_mismatch_extremes(marked(MISMATCH_MAXIMA))
    return {name: value.item() for name, value in finished.items()}
