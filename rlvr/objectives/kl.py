"""Estimators of the divergence between policy and reference, per token.

Every rule takes logprobs, ref_logprobs and log_ratio (token level), all [B, T], and returns [B, T]. With
d = ref_logprobs - logprobs, the reference frozen, k1, k2 and k3 are Schulman's ("Approximating KL divergence", 2020).
What they estimate as values, and what their gradients are as losses, differs (arXiv 2506.09477); both hold on samples
of the policy itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LOG_LIMIT = 20.0  # bound on d inside an exponential


def _difference(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return ref_logprobs.detach() - logprobs


def k1(logprobs: Tensor, ref_logprobs: Tensor, log_ratio: Tensor) -> Tensor:
    """-d, Schulman's k1: unbiased for KL(policy || reference), of either sign and with a large variance.

    Assumes that it is used as a value: as a loss on samples of the policy its expected gradient is 0. `log_ratio` has
    no effect.
    """
    return -_difference(logprobs, ref_logprobs)


def k2(logprobs: Tensor, ref_logprobs: Tensor, log_ratio: Tensor) -> Tensor:
    """d^2 / 2, Schulman's k2: never negative; biased as a value, by little while the policies are close.

    Assumes samples of the current policy: then its gradient as a loss is the one of KL(policy || reference) (arXiv
    2506.09477). `log_ratio` has no effect.
    """
    return 0.5 * _difference(logprobs, ref_logprobs).square()


def k3(logprobs: Tensor, ref_logprobs: Tensor, log_ratio: Tensor) -> Tensor:
    """exp(d) - d - 1 with d within [-20, 20], Schulman's k3; GRPO's penalty, arXiv 2402.03300.

    Assumes samples of the current policy: then it is unbiased for KL(policy || reference) as a value, and never
    negative; as a loss it has the gradient of KL(reference || policy). `log_ratio` has no effect.
    """
    difference = _difference(logprobs, ref_logprobs).clamp(-LOG_LIMIT, LOG_LIMIT)
    return torch.exp(difference) - difference - 1.0


def k3_ratio(logprobs: Tensor, ref_logprobs: Tensor, log_ratio: Tensor) -> Tensor:
    """k3 exp(log_ratio), with gradient through both factors: DeepSeek-V3.2, arXiv 2512.02556.

    Assumes samples of the old policy: the ratio reweights them to the current one, so that value and gradient are
    unbiased for KL(policy || reference), also off-policy.
    """
    return k3(logprobs, ref_logprobs, log_ratio) * torch.exp(log_ratio)


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3_ratio": k3_ratio,
}
