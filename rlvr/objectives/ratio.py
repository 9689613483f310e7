"""Log-ratios between the current policy and the one before the first update, per token or per completion.

log r_t = logprobs_t - old_logprobs_t; the old policy is frozen. What stands at masked positions, even NaN, changes
neither value nor gradient. All tensors [B, T], `mask` bool with True = loss token.
"""

from collections.abc import Callable

import torch
from torch import Tensor

TOKEN_LIMIT, SEQUENCE_LIMIT = 20.0, 10.0  # bounds on log-ratios, so that exp cannot overflow


def _difference(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, logprobs - old_logprobs.detach(), 0.0)


def _mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """[B, 1]: mean over the loss tokens of each row; 0 for a row without any. `values` are 0 at masked positions."""
    return values.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def token_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log r_t within [-20, 20], 0 at masked positions: the ratio of PPO (arXiv 1707.06347) and GRPO (2402.03300).

    Assumes that the states are those of the old policy: a product of ratios is replaced by the token's own factor,
    right to first order while the policies are close. Outside the bounds the gradient is 0.
    """
    return _difference(logprobs, old_logprobs, mask).clamp(-TOKEN_LIMIT, TOKEN_LIMIT)


def sequence_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """(1 / |o|) sum_t log r_t within [-10, 10], the same at every position of a row: GSPO, arXiv 2507.18071.

    Assumes that the reward, and so the advantage, is of the whole completion; the length-normalised ratio is a
    geometric mean, not the importance weight of the completion. The gradient flows through the mean: each token gets
    1 / |o| of it. Outside the bounds it is 0.
    """
    mean = _mean_over_tokens(_difference(logprobs, old_logprobs, mask), mask).clamp(-SEQUENCE_LIMIT, SEQUENCE_LIMIT)
    # A masked position has the value but not the gradient, or a NaN advantage there would reach the whole row.
    return torch.where(mask, mean, mean.detach())


def sequence_token_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """sg((1 / |o|) sum_t log r_t) + logprobs_t - sg(logprobs_t) within [-10, 10]: GSPO-token, arXiv 2507.18071.

    The value of `sequence_log_ratio`, with each token's gradient its own, so that advantages may differ within a
    completion. Assumes a loss that is averaged over tokens: with one advantage per completion and the sequence mean,
    the gradient is the one of `sequence_log_ratio`.
    """
    mean = _mean_over_tokens(_difference(logprobs, old_logprobs, mask), mask).detach()
    kept = torch.where(mask, logprobs, 0.0)
    return (mean + (kept - kept.detach())).clamp(-SEQUENCE_LIMIT, SEQUENCE_LIMIT)


RATIO_LEVELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "token": token_log_ratio,
    "sequence": sequence_log_ratio,
    "sequence_token": sequence_token_log_ratio,
}
