"""The loss of a micro-batch: policy loss, aggregation and penalties of the recipe, with one metric per term."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlvr.config import Algorithm
from rlvr.objectives.aggregation import aggregate
from rlvr.objectives.kl import k3_penalty
from rlvr.objectives.policy_loss import clip_masks, clipped_policy_loss
from rlvr.ops.token_stats import TokenStats
from rlvr.types import Microbatch


@dataclass(frozen=True)
class StepLoss:
    """Shares of the optimiser step: summed over its micro-batches and ranks they give the step's loss and metrics."""

    loss: Tensor  # scalar
    metrics: dict[str, Tensor]  # scalars, detached


def objective(stats: TokenStats, batch: Microbatch, algorithm: Algorithm) -> StepLoss:
    """The recipe's loss on this micro-batch; stats [b, T] carry the gradient."""
    mask, denominator = batch.loss_mask, batch.denominator
    logprobs = torch.where(mask, stats.logprobs, 0.0)
    old_logprobs = logprobs.detach() if batch.old_logprobs is None else torch.where(mask, batch.old_logprobs, 0.0)
    clip = {"clip_low": algorithm.clip_low, "clip_high": algorithm.clip_high}

    def token_share(values: Tensor) -> Tensor:
        return aggregate(values.detach().to(logprobs.dtype), mask, denominator, "token_mean")

    policy_loss = aggregate(
        clipped_policy_loss(logprobs, old_logprobs, batch.advantages, **clip), mask, denominator, algorithm.aggregation
    )
    low_mask, high_mask = clip_masks(logprobs, old_logprobs, batch.advantages, **clip)
    metrics = {
        "loss/policy": policy_loss.detach(),
        "entropy/mean_token": token_share(stats.entropy),
        "clip/low_frac": token_share(low_mask),
        "clip/high_frac": token_share(high_mask),
        "kl/k1_old": token_share(old_logprobs - logprobs),
    }
    if batch.ref_logprobs is None:
        return StepLoss(policy_loss, metrics)
    penalty = k3_penalty(logprobs, torch.where(mask, batch.ref_logprobs, 0.0))
    kl_loss = algorithm.kl_coef * aggregate(penalty, mask, denominator, algorithm.aggregation)
    metrics |= {"loss/kl": kl_loss.detach(), "kl/k3_ref": token_share(penalty)}
    return StepLoss(policy_loss + kl_loss, metrics)
