"""Tokens by the covariance of log-probability and advantage, which drives the entropy: arXiv 2505.22617.

C_t = (log pi_t - mean log pi) (A_t - mean A), means over all loss tokens of the optimiser step: the share of a token in
the covariance whose sign and size give the change of the entropy in a step of policy gradient. The log-probabilities
are of the weights that the step starts from.
"""

import hashlib

import torch
from torch import Tensor

from rlvr.config.regularizers import ClipCovConfig, KlCovConfig
from rlvr.objectives.aggregation import aggregate
from rlvr.objectives.regularizers.base import Contribution, LiveTokens, Needs, Prepared, Regularizer, StepTokens
from rlvr.ops.token_stats import LOGPROBS
from rlvr.schedule import value_at


def covariance(tokens: StepTokens) -> Tensor:
    """C_t [R, T]; what stands at masked positions has no meaning."""
    mean_logprob = tokens.everywhere(tokens.current.logprobs).double().mean()
    mean_advantage = tokens.everywhere(tokens.advantages).double().mean()
    return (tokens.current.logprobs.double() - mean_logprob) * (tokens.advantages.double() - mean_advantage)


def num_selected(share: float, num_tokens: int) -> int:
    """floor(share num_tokens), at least 1."""
    return max(1, int(share * num_tokens))


def lots(row_ids: Tensor, width: int, seed: str) -> Tensor:
    """Uniform numbers [R, width] of which each row's depend on `seed` and its id only, not on rank or micro-batch."""

    def of_row(row_id: int) -> Tensor:
        key = int.from_bytes(hashlib.sha256(f"{seed}/{row_id}".encode()).digest()[:7], "big")
        return torch.rand(width, generator=torch.Generator().manual_seed(key), dtype=torch.float64)

    return torch.stack([of_row(row_id) for row_id in row_ids.tolist()]).to(row_ids.device)


def lowest_lots(tokens: StepTokens, candidates: Tensor, count: int, name: str) -> Tensor:
    """[R, T] bool: `count` of the candidates of all ranks, drawn by lot; there must be more than that."""
    drawn = lots(tokens.row_ids, tokens.mask.shape[1], f"{tokens.seed}/{name}/{tokens.step}")
    return candidates & (drawn <= tokens.gather(drawn[candidates]).sort().values[count - 1])


class ClipCov(Regularizer):
    """Takes max(1, share n) of the tokens with low < C_t < high, drawn by lot, out of the policy loss: Clip-Cov.

    Tokens on which a bound of the clipped ratio binds have no gradient to lose and are not drawn. Assumes that few
    tokens of outsized covariance drain the entropy. Denominators still count every token.
    """

    name = "clip_cov"
    needs = Needs(step=LOGPROBS)

    def __init__(self, config: ClipCovConfig) -> None:
        self.config = config

    def prepare(self, tokens: StepTokens) -> Prepared:
        cov = covariance(tokens)
        candidates = tokens.mask & (cov > self.config.low) & (cov < self.config.high) & ~tokens.clipped
        num_candidates = len(tokens.gather(cov[candidates]))
        count = num_selected(self.config.share, len(tokens.everywhere(tokens.advantages)))
        if num_candidates > count:
            candidates = lowest_lots(tokens, candidates, count, self.name)
        return Prepared(
            tokens={"dropped": candidates},
            metrics={
                "clip_cov/candidates": float(num_candidates),
                "clip_cov/dropped": float(min(count, num_candidates)),
            },
        )

    def contribute(self, live: LiveTokens) -> Contribution:
        return Contribution(policy_mask=~live.tokens["dropped"])


class KlCov(Regularizer):
    """coef |log r_t| on the max(1, share n) tokens of largest C_t, aggregated like the policy loss: KL-Cov.

    |log r_t| stands for the divergence from the old policy, as in the authors' code; its gradient pulls the ratio back
    to 1 with a constant force, and is 0 at ratio 1: without effect on-policy. The authors' loss has no clip besides;
    here the recipe's own policy loss applies.
    """

    name = "kl_cov"
    needs = Needs(step=LOGPROBS)

    def __init__(self, config: KlCovConfig) -> None:
        self.config = config

    def coef_at(self, step: int) -> float:
        return value_at(self.config.coef, step)

    def prepare(self, tokens: StepTokens) -> Prepared:
        cov = covariance(tokens)
        everyones = tokens.everywhere(cov)
        if not len(everyones):
            return Prepared({"held": tokens.mask})
        count = num_selected(self.config.share, len(everyones))
        threshold = everyones.sort(descending=True).values[count - 1]
        tied = tokens.mask & (cov == threshold)
        num_above = int((everyones > threshold).sum())
        if int((everyones == threshold).sum()) > count - num_above:  # as when all advantages are equal
            tied = lowest_lots(tokens, tied, count - num_above, self.name)
        return Prepared(
            tokens={"held": (tokens.mask & (cov > threshold)) | tied},
            metrics={"kl_cov/threshold": threshold.item()},
        )

    def contribute(self, live: LiveTokens) -> Contribution:
        held = live.mask & live.tokens["held"]
        distance = torch.where(held, live.stats.logprobs - live.old_logprobs, 0.0).abs()
        return Contribution(loss=live.coef * aggregate(distance, live.mask, live.denominator, live.aggregation))
