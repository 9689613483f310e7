"""The loss of a micro-batch: policy loss, corrections, penalties and aggregation of the recipe, a metric per term."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rlvr.config import Algorithm
from rlvr.objectives.aggregation import aggregate
from rlvr.objectives.kl import KL_ESTIMATORS
from rlvr.objectives.mismatch import MISMATCH, MismatchSettings, finish_mismatch_metrics, mismatch_metrics
from rlvr.objectives.policy_loss import POLICY_LOSSES, PolicySettings, clip_masks
from rlvr.objectives.ratio import RATIO_LEVELS
from rlvr.ops.token_stats import TokenStats
from rlvr.types import Microbatch

MISMATCH_SUMS = "mismatch sum: "  # marks metrics that `finish_metrics` turns into others


@dataclass(frozen=True)
class StepLoss:
    """Shares of the optimiser step: summed over its micro-batches and ranks they give the step's loss and metrics."""

    loss: Tensor  # scalar
    metrics: dict[str, Tensor]  # scalars, detached


def objective(stats: TokenStats, batch: Microbatch, algorithm: Algorithm) -> StepLoss:
    """The recipe's loss on this micro-batch; stats [b, T] carry the gradient."""
    assert stats.entropy is not None  # asked for in every forward pass, for its metric
    mask, denominator = batch.loss_mask, batch.denominator
    logprobs = torch.where(mask, stats.logprobs, 0.0)
    old_logprobs = logprobs.detach() if batch.old_logprobs is None else torch.where(mask, batch.old_logprobs, 0.0)
    log_ratio = RATIO_LEVELS[algorithm.ratio_level](logprobs, old_logprobs, mask)
    settings = PolicySettings(**{field.name: getattr(algorithm, field.name) for field in fields(PolicySettings)})

    def token_share(values: Tensor) -> Tensor:
        return aggregate(values.detach().to(logprobs.dtype), mask, denominator, "token_mean")

    losses = POLICY_LOSSES[algorithm.policy_loss](logprobs, log_ratio, batch.advantages, settings)
    weights, metrics = _mismatch(old_logprobs, batch, algorithm)
    policy_loss = aggregate(losses if weights is None else losses * weights, mask, denominator, algorithm.aggregation)
    low_mask, high_mask = clip_masks(
        log_ratio, batch.advantages, clip_low=settings.clip_low, clip_high=settings.clip_high
    )
    metrics |= {
        "loss/policy": policy_loss.detach(),
        "entropy/mean_token": token_share(stats.entropy),
        "clip/low_frac": token_share(low_mask),
        "clip/high_frac": token_share(high_mask),
        "ratio/mean": token_share(log_ratio.exp()),
        "kl/k1_old": token_share(old_logprobs - logprobs),
    }
    if batch.ref_logprobs is None:
        return StepLoss(policy_loss, metrics)
    # The ratio of k3_ratio is of tokens whatever the level of the policy loss: each token's penalty is reweighted.
    token_log_ratio = RATIO_LEVELS["token"](logprobs, old_logprobs, mask)
    penalty = KL_ESTIMATORS[algorithm.kl_estimator](
        logprobs, torch.where(mask, batch.ref_logprobs, 0.0), token_log_ratio
    )
    kl_loss = algorithm.kl_coef * aggregate(penalty, mask, denominator, algorithm.aggregation)
    metrics |= {"loss/kl": kl_loss.detach(), f"kl/{algorithm.kl_estimator}_ref": token_share(penalty)}
    return StepLoss(policy_loss + kl_loss, metrics)


def _mismatch(old_logprobs: Tensor, batch: Microbatch, algorithm: Algorithm) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Weights [b, T] for the policy loss and the sums of the mismatch metrics; nothing without an engine's report."""
    if batch.sampling_logprobs is None:
        return None, {}
    bounds = MismatchSettings(algorithm.mismatch_low, algorithm.mismatch_high)
    correction = MISMATCH[algorithm.mismatch](old_logprobs, batch.sampling_logprobs, batch.loss_mask, bounds)
    sums = mismatch_metrics(old_logprobs, batch.sampling_logprobs, batch.loss_mask, correction)
    return correction.weights, {MISMATCH_SUMS + name: value for name, value in sums.items()}


def finish_metrics(totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The metrics of a step from the totals over its micro-batches and ranks."""
    sums = {name.removeprefix(MISMATCH_SUMS): value for name, value in totals.items() if name.startswith(MISMATCH_SUMS)}
    plain = {name: value for name, value in totals.items() if not name.startswith(MISMATCH_SUMS)}
    return plain | finish_mismatch_metrics(sums) if sums else plain
