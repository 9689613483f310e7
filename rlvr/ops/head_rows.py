"""Statistics of a few rows of logits, and their gradient with respect to what the output head computed.

Legend: R rows, V vocabulary, x [R, V] what the matrix product gave, z the logits after scale, cap and temperature,
d = z - max z, e = exp(d), s = sum e, p = e / s. Rows come in blocks small enough for the processor's cache.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlvr.ops.nucleus import nucleus_cut, nucleus_mask

NucleusRule = Literal["standard", "paper_code"]


@dataclass(frozen=True)
class StatsRequest:
    """Which statistics to compute beside the log-probability; log_kept_mass and kept need `min_p` or `fixed_p`."""

    entropy: bool = True
    nucleus_p: float | None = None
    nucleus_rule: NucleusRule = "standard"
    min_p: float | None = None  # kappa: tokens with p >= kappa * max p are kept
    fixed_p: float | None = None  # tau: tokens with p > tau are kept

    def merged(self, other: "StatsRequest") -> "StatsRequest":
        """What both ask for. Raises ValueError when they want one statistic with different settings."""

        def either(name: str, mine: Any, theirs: Any) -> Any:
            if mine is not None and theirs is not None and mine != theirs:
                raise ValueError(f"{name} is asked for with {mine} and with {theirs}, but one pass computes one")
            return theirs if mine is None else mine

        mine, theirs = ((r.nucleus_p, r.nucleus_rule) if r.nucleus_p is not None else None for r in (self, other))
        nucleus: tuple[float | None, NucleusRule] = either("the nucleus", mine, theirs) or (None, "standard")
        return StatsRequest(
            entropy=self.entropy or other.entropy,
            nucleus_p=nucleus[0],
            nucleus_rule=nucleus[1],
            min_p=either("min_p", self.min_p, other.min_p),
            fixed_p=either("fixed_p", self.fixed_p, other.fixed_p),
        )

    def __post_init__(self) -> None:
        if self.min_p is not None and self.fixed_p is not None:
            raise ValueError("min_p and fixed_p exclude each other")
        if self.nucleus_p is not None and not 0.0 < self.nucleus_p <= 1.0:
            raise ValueError(f"nucleus_p is {self.nucleus_p}, not in (0, 1]")
        for name, value in (("min_p", self.min_p), ("fixed_p", self.fixed_p)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {value}, not in [0, 1]")


@dataclass(frozen=True)
class LogitRule:
    """z = cap(logit_scale * x) / temperature with cap(y) = softcap * tanh(y / softcap), or y without a softcap."""

    temperature: float
    logit_scale: float
    softcap: float | None


def inside_filter(logprobs: Tensor, request: StatsRequest) -> Tensor:
    """Whether the filter of the request keeps each token of the log-probabilities [..., V]: bool."""
    if request.min_p is not None:
        return (logprobs - logprobs.amax(dim=-1, keepdim=True)).exp() >= request.min_p
    assert request.fixed_p is not None
    return logprobs.exp() > request.fixed_p


def row_stats(raw: Tensor, targets: Tensor, rule: LogitRule, request: StatsRequest) -> dict[str, Tensor]:
    """The requested statistics [R] and what `row_gradient` needs of them. Overwrites a `raw` of at least float32."""
    logits, _ = _logits(raw, rule, with_slope=False)
    highest = logits.amax(dim=-1)
    shifted = logits.sub_(highest.unsqueeze(-1))
    weights = shifted.exp()
    total = weights.sum(dim=-1)
    log_total = total.log()
    target = shifted.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    stats = {"logprobs": target - log_total, "highest": highest, "log_total": log_total}
    if request.entropy:
        stats["entropy"] = log_total - (weights * shifted).sum(dim=-1) / total
    if request.nucleus_p is not None:
        stats |= _nucleus(shifted, weights, request.nucleus_p, request.nucleus_rule)
    if request.min_p is not None:
        # The largest weight is 1, so p >= kappa * max p reads weight >= kappa.
        inside = torch.ge(weights, request.min_p, out=torch.empty_like(weights))
        stats["max_prob"] = 1.0 / total
    elif request.fixed_p is not None:
        inside = torch.gt(weights, request.fixed_p * total.unsqueeze(-1), out=torch.empty_like(weights))
    else:
        return stats
    stats["kept"] = inside.gather(-1, targets.unsqueeze(-1)).squeeze(-1) > 0
    stats["log_kept_mass"] = (inside.mul_(weights).sum(dim=-1) / total).log()
    return stats


def _nucleus(shifted: Tensor, weights: Tensor, p: float, rule: NucleusRule) -> dict[str, Tensor]:
    """Entropy of the renormalised nucleus, log s_n - sum_n e d / s_n, 0 where it is empty; its cut and mass s_n."""
    cut, tie_bound = nucleus_cut(shifted, weights, p, with_crossing=rule == "standard")
    inside = nucleus_mask(shifted, cut, tie_bound).mul_(weights)
    mass = inside.sum(dim=-1)
    entropy = torch.where(mass > 0, mass.log() - inside.mul_(shifted).sum(dim=-1) / mass, 0.0)
    return {"nucleus_entropy": entropy, "nucleus_mass": mass, "cut": cut, "tie_bound": tie_bound}


def row_gradient(
    raw: Tensor, targets: Tensor, rule: LogitRule, saved: dict[str, Tensor], upstream: dict[str, Tensor]
) -> None:
    """Overwrites x by the gradient with respect to it, given those with respect to the statistics [R].

    With g the upstream gradients, H and H_n the entropies and 1_n the nucleus (its membership is a constant),
      dz_j = g_logprob (1[j = target] - p_j) - g_entropy p_j (log p_j + H) - g_nucleus q_j (log q_j + H_n),
    with q_j = 1_n p_j / sum_n p:
    e_j times a function that is affine in d_j, one inside and one outside the nucleus.
    """
    logits, slope = _logits(raw, rule, with_slope=True)
    shifted = logits.sub_(saved["highest"].unsqueeze(-1))
    weights = shifted.exp()
    grads = {name: grad * (rule.logit_scale / rule.temperature) for name, grad in upstream.items()}
    log_total = saved["log_total"]
    gradient = torch.zeros_like(shifted)
    if "entropy" in grads:
        per_weight = -grads["entropy"] / log_total.exp()
        torch.mul(shifted, per_weight.unsqueeze(-1), out=gradient)
        gradient += (per_weight * (saved["entropy"] - log_total)).unsqueeze(-1)
    if "logprobs" in grads:
        gradient -= (grads["logprobs"] / log_total.exp()).unsqueeze(-1)
    if "nucleus_entropy" in grads:
        mass = saved["nucleus_mass"]
        per_weight = torch.where(mass > 0, -grads["nucleus_entropy"] / mass, 0.0)
        offset = torch.where(mass > 0, saved["nucleus_entropy"] - mass.log(), 0.0)
        inside = nucleus_mask(shifted, saved["cut"], saved["tie_bound"])
        gradient += shifted.add_(offset.unsqueeze(-1)).mul_(per_weight.unsqueeze(-1)).mul_(inside)
    gradient *= weights
    if "logprobs" in grads:
        gradient.scatter_add_(-1, targets.unsqueeze(-1), grads["logprobs"].unsqueeze(-1))
    if slope is not None:
        gradient *= slope
    raw.copy_(gradient)


def _logits(raw: Tensor, rule: LogitRule, with_slope: bool) -> tuple[Tensor, Tensor | None]:
    """z [R, V] of at least float32, in place where `raw` is, and d cap / d (logit_scale x) if there is a cap.

    Rounding log-probabilities to bfloat16 biases the ratio, so everything after the product is at least float32.
    """
    logits = raw.to(torch.promote_types(raw.dtype, torch.float32))
    if rule.softcap is None:
        factor = rule.logit_scale / rule.temperature
        return (logits if factor == 1.0 else logits.mul_(factor)), None
    logits.mul_(rule.logit_scale / rule.softcap).tanh_()
    slope = logits.square().neg_().add_(1.0) if with_slope else None
    return logits.mul_(rule.softcap / rule.temperature), slope
