"""The divergence from the reference as part of the reward, without gradient.

Legend: B completions, T_i tokens of the i-th; penalties c_t = kl_coef k(old_logprobs_t, ref_logprobs_t) of its tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlvr.objectives.advantage import centered_advantage
from rlvr.objectives.kl import KL_ESTIMATORS


def reward_penalties(
    old_logprobs: Sequence[Tensor],
    ref_logprobs: Sequence[Tensor],
    loss_masks: Sequence[Tensor],
    *,
    estimator: str,
    coef: float,
) -> list[Tensor]:
    """c_t [T_i] of every completion, 0 at tokens outside the loss.

    With k1, the one to use for values (unbiased, and its sum over a completion is the log-ratio of the two policies),
    this is the penalty of RLHF (arXiv 1909.08593), RLOO (2402.14740) and REINFORCE++ (2501.03262).
    """
    return [
        torch.where(mask, coef * KL_ESTIMATORS[estimator](old.detach(), ref.detach(), torch.zeros_like(old)), 0.0)
        for old, ref, mask in zip(old_logprobs, ref_logprobs, loss_masks, strict=True)
    ]


def token_returns(baselined: Tensor, penalties: Sequence[Tensor]) -> list[Tensor]:
    """R_i - sum_{s >= t} c_s [T_i]: the undiscounted return of every token, the reward coming at the end.

    A token answers for its own penalty and for those after it, not for earlier ones: REINFORCE++, arXiv 2501.03262.
    """
    return [reward - penalty.flip(0).cumsum(0).flip(0) for reward, penalty in zip(baselined, penalties, strict=True)]


def baselined_rewards(rule: str, rewards: Tensor, group_ids: Tensor) -> Tensor:
    """What the return of a token starts from [B], under the two rules that are of tokens: the reward itself, or minus
    the mean of its group (0 where the group has no signal). NaN where unscorable.
    """
    if rule == "reinforce_pp":
        return rewards
    centered = centered_advantage(rewards, group_ids, num_tokens=torch.ones_like(rewards), ddof=0, eps=0.0)
    return torch.where(torch.isnan(rewards), rewards, centered)


def whitened_tokens(values: Tensor, everyones: Tensor, *, ddof: int, eps: float) -> Tensor:
    """(x - m) / (s + eps) [n] with m and s of the loss tokens of all ranks [N]; 0 when those are all equal.

    NaN, the return of an unscorable completion, enters no statistic and becomes 0.
    """
    counted = everyones[~torch.isnan(everyones)]
    if not len(counted) or counted.min() == counted.max():
        return torch.zeros_like(values)
    spread = ((counted - counted.mean()).square().sum() / max(len(counted) - ddof, 1)).sqrt()
    return torch.where(torch.isnan(values), 0.0, (values - counted.mean()) / (spread + eps))
