"""Choices of tokens for the policy loss by how certain the policy is of them."""

import torch
from torch import Tensor

from rlvr.config.regularizers import MasteredMaskConfig, TopEntropyMaskConfig
from rlvr.objectives.regularizers.base import (
    Contribution,
    LiveTokens,
    Needs,
    Prepared,
    Regularizer,
    StepTokens,
    linear_quantile,
)
from rlvr.ops.token_stats import StatsRequest


class TopEntropyMask(Regularizer):
    """Keeps tokens with H_t >= the (1 - share)-quantile of H over the step's loss tokens: "80/20", arXiv 2506.01939.

    The entropies are of the weights that the step starts from. Denominators still count every token, as in the paper,
    so the loss is smaller by about the share. Assumes that tokens of high entropy are the forks that decide an answer.
    """

    name = "top_entropy_mask"
    needs = Needs(step=StatsRequest(entropy=True))

    def __init__(self, config: TopEntropyMaskConfig) -> None:
        self.share = config.share

    def prepare(self, tokens: StepTokens) -> Prepared:
        assert tokens.current.entropy is not None
        entropies = tokens.everywhere(tokens.current.entropy)
        if not len(entropies):
            return Prepared({"kept": tokens.mask})
        threshold = linear_quantile(entropies, 1.0 - self.share)
        return Prepared(
            tokens={"kept": tokens.mask & (tokens.current.entropy >= threshold)},
            metrics={
                "top_entropy_mask/threshold": threshold.item(),
                "top_entropy_mask/kept_frac": (entropies >= threshold).double().mean().item(),
            },
        )

    def contribute(self, live: LiveTokens) -> Contribution:
        return Contribution(policy_mask=live.tokens["kept"])


def mastered(probs: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, config: MasteredMaskConfig) -> Tensor:
    """Loss tokens [b, T] with A > 0, p >= min_prob and a mean entropy of their completion below max_entropy."""
    total = torch.where(mask, entropy, 0.0).sum(dim=1, keepdim=True)
    mean_entropy = total / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return mask & (advantages > 0) & (probs >= config.min_prob) & (mean_entropy < config.max_entropy)


class MasteredMask(Regularizer):
    """Takes mastered tokens of right completions out of the policy loss: DMMPT of UloRL, arXiv 2507.19766.

    "Right" is A > 0, which is reward 1 in the paper's setting of rewards 0 and 1. Assumes that pushing a token that is
    already certain only lowers the entropy of the rest. Denominators still count every token.
    """

    name = "mastered_mask"
    needs = Needs(live=StatsRequest(entropy=True))

    def __init__(self, config: MasteredMaskConfig) -> None:
        self.config = config

    def contribute(self, live: LiveTokens) -> Contribution:
        assert live.stats.entropy is not None
        dropped = mastered(
            live.stats.logprobs.detach().exp(), live.stats.entropy.detach(), live.advantages, live.mask, self.config
        )
        share = dropped.sum() / max(live.denominator.num_loss_tokens, 1.0)
        return Contribution(policy_mask=~dropped, metrics={"mastered_mask/dropped_frac": share})
