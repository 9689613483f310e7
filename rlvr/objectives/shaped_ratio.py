"""Losses of tokens that the policy did not sample under the context of the loss: shaped ratios instead of clipped ones.

Guide-GRPO (arXiv 2506.13923) samples with a hint and trains without it; AMPO (arXiv 2510.02227) borrows a teacher's
completion. Either way r = pi(o_t | q, o_<t) / mu(o_t | ...) with mu the sampler under its own context is far from 1,
so that clipping would drop nearly every token.
"""

import torch
from torch import Tensor

from rlvr.objectives.ratio import TOKEN_LIMIT
from rlvr.objectives.regularizers.base import linear_quantile

MIN_GAMMA = 1e-4


def shaped_loss(log_ratio: Tensor, advantages: Tensor, gammas: Tensor) -> Tensor:
    """-A f(r) with f(r) = r / (r + g); log_ratio and advantages [b, T], gammas [b, 1] without gradient.

    The gradient of a token is -A g r / (r + g)^2 of that of its log-probability: largest, A / 4, at r = g, and small
    both for tokens that only the hint made likely (r << g) and for those that need no push (r >> g). Assumes that g
    belongs to the bulk of the ratios.
    """
    return -advantages.detach() * torch.sigmoid(log_ratio - gammas.detach().log())


def shaping_gamma(log_ratios: Tensor, quantile: float) -> float:
    """g: the `quantile` of the ratios exp(log_ratios [n]), n >= 1, of real tokens alone, and at least 1e-4.

    Log-ratios count within [-20, 20], as in the loss.
    """
    ratios = log_ratios.clamp(-TOKEN_LIMIT, TOKEN_LIMIT).exp()
    return max(float(linear_quantile(ratios, quantile)), MIN_GAMMA)
