"""Policy losses per token, before aggregation.

Every rule takes logprobs [B, T], log_ratio [B, T] (a rule of `RATIO_LEVELS` of the same logprobs) and advantages
[B, T], and returns [B, T]. With r = exp(log_ratio) and A the advantage, the gradient flows through `logprobs` or
`log_ratio`, never through A; sg() is stop-gradient. The rules know no mask: what they return at masked positions is
dropped by the aggregation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicySettings:
    """The constants of all rules; each reads its own."""

    clip_low: float
    clip_high: float
    dual_clip: float | None = None  # clip: cap on the loss of a negative advantage, in units of |A|
    delta: float | None = None  # clip: cap on the unclipped ratio
    cispo_cap: float = 5.0  # cispo: largest weight, itself and not 1 + it
    sapo_tau_pos: float = 1.0
    sapo_tau_neg: float = 1.05


def _ratio_and_clipped(log_ratio: Tensor, settings: PolicySettings) -> tuple[Tensor, Tensor]:
    """r and clip(r, 1 - clip_low, 1 + clip_high)."""
    ratio = torch.exp(log_ratio)
    return ratio, ratio.clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high)


def _pessimistic(ratio: Tensor, clipped: Tensor, advantages: Tensor) -> Tensor:
    """-min(ratio A, clipped A)."""
    advantages = advantages.detach()
    return -torch.minimum(ratio * advantages, clipped * advantages)


def clip_loss(logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, settings: PolicySettings) -> Tensor:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A): PPO's clipped surrogate, arXiv 1707.06347.

    clip_high > clip_low is DAPO's clip-higher (arXiv 2503.14476). `delta` replaces the first r by min(r, delta)
    (INTELLECT-2, arXiv 2505.07291); `dual_clip` c > 1 limits the loss of a negative advantage to c |A| (arXiv
    1912.09729). Both bound what a ratio that exploded under A < 0 can do, which the minimum leaves unbounded, and take
    its gradient. Assumes that the policies are close enough for a token beyond the bounds to be worth no update.
    """
    ratio, clipped = _ratio_and_clipped(log_ratio, settings)
    if settings.delta is not None:
        ratio = ratio.clamp(max=settings.delta)
    losses = _pessimistic(ratio, clipped, advantages)
    if settings.dual_clip is not None:
        ceiling = -settings.dual_clip * advantages.detach()
        losses = torch.where(advantages < 0, torch.minimum(losses, ceiling), losses)
    return losses


def cispo_loss(logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, settings: PolicySettings) -> Tensor:
    """-sg(min(r, cispo_cap)) A logprobs: CISPO, arXiv 2506.13585.

    REINFORCE with a frozen, capped importance weight, so that no token loses its gradient; there is no lower bound.
    Assumes that rare tokens with a large ratio carry signal that clipping would drop, and accepts the bias of the cap.
    """
    weight = torch.exp(log_ratio.detach()).clamp(max=settings.cispo_cap)
    return -weight * advantages.detach() * logprobs


def sapo_loss(logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, settings: PolicySettings) -> Tensor:
    """-(4 / tau) sigmoid(tau (r - 1)) A, tau = sapo_tau_pos where A > 0, else sapo_tau_neg: SAPO, arXiv 2511.20347.

    A smooth gate in place of the clip: the weight on A grad log pi is 4 r sigmoid (1 - sigmoid), which is 1 at r = 1
    and decays to both sides. Assumes that trust falls off smoothly, faster for negative advantages (tau_neg larger).
    The value at r = 1 is -2 A / tau, an offset without meaning.
    """
    tau = torch.full_like(log_ratio, settings.sapo_tau_neg).masked_fill(advantages > 0, settings.sapo_tau_pos)
    gate = torch.sigmoid(tau * torch.expm1(log_ratio))
    return -(4.0 / tau) * gate * advantages.detach()


def gppo_loss(logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, settings: PolicySettings) -> Tensor:
    """The value of the clipped loss, with the gradient of (bound / sg(r)) r where the clip binds: GPPO, 2508.07629.

    A clipped token's gradient is -bound A grad log pi instead of 0. Assumes that the direction of a clipped token is
    still right and only its size is not to be trusted. `delta` and `dual_clip`, which cut gradients, have no effect.
    """
    ratio, clipped = _ratio_and_clipped(log_ratio, settings)
    # 1 with the gradient of log r. As r / sg(r) it would round away from 1 and be 0 / 0 for a ratio that underflows.
    unit = torch.exp(log_ratio - log_ratio.detach())
    return _pessimistic(ratio, clipped.detach() * unit, advantages)


def reinforce_loss(logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, settings: PolicySettings) -> Tensor:
    """-A logprobs: REINFORCE, Williams 1992; RLOO, arXiv 2402.14740.

    Assumes that the completions were sampled from the current policy: the ratio is ignored.
    """
    return -advantages.detach() * logprobs


POLICY_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, PolicySettings], Tensor]] = {
    "clip": clip_loss,
    "cispo": cispo_loss,
    "sapo": sapo_loss,
    "gppo": gppo_loss,
    "reinforce": reinforce_loss,
}


def clip_masks(log_ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """Tokens [B, T] on which the lower and the upper bound of `clip_loss` bind: r < 1 - clip_low with A < 0, and
    r > 1 + clip_high with A > 0 (arXiv 1707.06347).

    Assumes the clipped surrogate: of the other rules it says only where the ratio lies. `delta` and `dual_clip` are
    not looked at.
    """
    ratio = torch.exp(log_ratio.detach())
    return (ratio < 1.0 - clip_low) & (advantages < 0), (ratio > 1.0 + clip_high) & (advantages > 0)
