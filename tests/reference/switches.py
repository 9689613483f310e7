"""Scalar reference of the objective's switches: advantages, ratios, policy losses, KL estimators, mismatch corrections.

What an implementation detaches is an argument of its own here (`frozen_...`), so that a finite difference in the live
argument alone is the gradient of the rule.
"""

import math
from dataclasses import dataclass

from tests.reference.objectives import (
    Mask,
    Matrix,
    Vector,
    centered_advantage,
    has_signal,
    kept,
    mean,
    scorable_of_group,
)

# Advantages. NaN = unscorable.


def scorable_of_batch(rewards: Vector) -> Vector:
    """The rewards that are not NaN."""
    return [reward for reward in rewards if not math.isnan(reward)]


def batch_std_advantage(rewards: Vector, group_ids: list[int], ddof: int, eps: float) -> Vector:
    """(R - mean_g) / (std of every scorable reward of the batch + eps); 0 where `centered_advantage` is."""
    everything = scorable_of_batch(rewards)
    advantages = []
    for centered in centered_advantage(rewards, group_ids):
        if centered == 0.0:
            advantages.append(0.0)
            continue
        centre = mean(everything)
        variance = math.fsum((value - centre) ** 2 for value in everything) / (len(everything) - ddof)
        advantages.append(centered / (math.sqrt(variance) + eps))
    return advantages


def rloo_advantage(rewards: Vector, group_ids: list[int]) -> Vector:
    """R - mean of the other scorable members of the group; 0 for unscorable members and groups without signal."""
    advantages = []
    for i in range(len(rewards)):
        others = []
        for j in range(len(rewards)):
            if j != i and group_ids[j] == group_ids[i] and not math.isnan(rewards[j]):
                others.append(rewards[j])
        members = scorable_of_group(rewards, group_ids, group_ids[i])
        if math.isnan(rewards[i]) or not has_signal(members):
            advantages.append(0.0)
        else:
            advantages.append(rewards[i] - mean(others))
    return advantages


def whitened_over_tokens(values: Vector, lengths: Vector, ddof: int, eps: float) -> Vector:
    """(x - m) / (s + eps), m and s those of the list in which every value stands once per token."""
    tokens: Vector = []
    for value, length in zip(values, lengths, strict=True):
        tokens.extend([value] * int(length))
    centre = mean(tokens)
    deviation = math.sqrt(math.fsum((token - centre) ** 2 for token in tokens) / (len(tokens) - ddof))
    return [(value - centre) / (deviation + eps) for value in values]


def reinforce_pp_advantage(rewards: Vector, lengths: Vector, ddof: int, eps: float) -> Vector:
    """The reward whitened over all tokens of the scorable rows; 0 when these are all equal and where unscorable."""
    taking_part = [i for i in range(len(rewards)) if not math.isnan(rewards[i])]
    return whitened_rows(rewards, taking_part, lengths, ddof, eps)


def reinforce_pp_baseline_advantage(
    rewards: Vector, group_ids: list[int], lengths: Vector, ddof: int, eps: float
) -> Vector:
    """R - mean_g whitened over all tokens of the scorable members of groups with signal; 0 for everyone else."""
    centered = centered_advantage(rewards, group_ids)
    taking_part = []
    for i in range(len(rewards)):
        if not math.isnan(rewards[i]) and has_signal(scorable_of_group(rewards, group_ids, group_ids[i])):
            taking_part.append(i)
    return whitened_rows(centered, taking_part, lengths, ddof, eps)


def whitened_rows(values: Vector, taking_part: list[int], lengths: Vector, ddof: int, eps: float) -> Vector:
    """`whitened_over_tokens` among the rows that take part, 0 in the others; all 0 when the values do not differ."""
    advantages = [0.0] * len(values)
    chosen = [values[i] for i in taking_part]
    if not chosen or max(chosen) == min(chosen):
        return advantages
    whitened = whitened_over_tokens(chosen, [lengths[i] for i in taking_part], ddof, eps)
    for i, value in zip(taking_part, whitened, strict=True):
        advantages[i] = value
    return advantages


def raw_advantage(rewards: Vector) -> Vector:
    """R, 0 where unscorable."""
    return [0.0 if math.isnan(reward) else reward for reward in rewards]


# Ratios, one row at a time. Positions without a loss token hold 0 and are compared by nobody but the token rule.


def clamped(value: float, lowest: float, highest: float) -> float:
    """The nearest number in [lowest, highest]."""
    return max(lowest, min(highest, value))


def log_ratio_row(level: str, logprobs: Vector, frozen_logprobs: Vector, old: Vector, keep: list[bool]) -> Vector:
    """Log-ratios of one row: per token; the row's mean; or the frozen mean plus (live - frozen) of the token."""
    row = [0.0] * len(logprobs)
    if not any(keep):
        return row
    for t in range(len(row)):
        if not keep[t]:
            continue
        if level == "token":
            row[t] = clamped(logprobs[t] - old[t], -20.0, 20.0)
        elif level == "sequence":
            row[t] = clamped(mean(kept(logprobs, keep)) - mean(kept(old, keep)), -10.0, 10.0)
        elif level == "sequence_token":
            frozen_mean = clamped(mean(kept(frozen_logprobs, keep)) - mean(kept(old, keep)), -10.0, 10.0)
            row[t] = frozen_mean + logprobs[t] - frozen_logprobs[t]
        else:
            raise ValueError(level)
    return row


# Policy losses of one token.


@dataclass(frozen=True)
class Bounds:
    """The constants of the policy losses."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = None
    delta: float | None = None
    cispo_cap: float = 5.0
    sapo_tau_pos: float = 1.0
    sapo_tau_neg: float = 1.05


def token_loss(
    rule: str, logprob: float, log_ratio: float, frozen_log_ratio: float, advantage: float, bounds: Bounds
) -> float:
    """The loss of one token; cispo's weight and gppo's denominator use the frozen log-ratio."""
    ratio, frozen_ratio = math.exp(log_ratio), math.exp(frozen_log_ratio)
    if rule == "clip":
        return clip_loss(ratio, advantage, bounds)
    if rule == "cispo":
        return -min(frozen_ratio, bounds.cispo_cap) * advantage * logprob
    if rule == "sapo":
        tau = bounds.sapo_tau_pos if advantage > 0 else bounds.sapo_tau_neg
        return -(4.0 / tau) / (1.0 + math.exp(-tau * (ratio - 1.0))) * advantage
    if rule == "gppo":
        return -gppo_ratio(ratio, frozen_ratio, advantage, bounds) * advantage
    if rule == "reinforce":
        return -advantage * logprob
    raise ValueError(rule)


def clip_loss(ratio: float, advantage: float, bounds: Bounds) -> float:
    """-min(min(r, delta) A, clip(r, 1 - low, 1 + high) A), for A < 0 at most dual_clip |A|."""
    unclipped = ratio if bounds.delta is None else min(ratio, bounds.delta)
    inside = clamped(ratio, 1.0 - bounds.clip_low, 1.0 + bounds.clip_high)
    loss = max(-unclipped * advantage, -inside * advantage)
    if bounds.dual_clip is not None and advantage < 0:
        loss = min(loss, bounds.dual_clip * abs(advantage))
    return loss


def gppo_ratio(ratio: float, frozen_ratio: float, advantage: float, bounds: Bounds) -> float:
    """r, or bound / sg(r) * r on the side where the clipped loss has no gradient."""
    low, high = 1.0 - bounds.clip_low, 1.0 + bounds.clip_high
    if advantage > 0 and frozen_ratio > high:
        return high / frozen_ratio * ratio
    if advantage < 0 and frozen_ratio < low:
        return low / frozen_ratio * ratio
    return ratio


def effective_weight(rule: str, ratio: float, advantage: float, bounds: Bounds) -> float:
    """w in d loss / d log pi = -w A for a token-level ratio."""
    low, high = 1.0 - bounds.clip_low, 1.0 + bounds.clip_high
    if rule == "reinforce":
        return 1.0
    if rule == "cispo":
        return min(ratio, bounds.cispo_cap)
    if rule == "sapo":
        tau = bounds.sapo_tau_pos if advantage > 0 else bounds.sapo_tau_neg
        decay = math.exp(-tau * (ratio - 1.0))
        return 4.0 * ratio * decay / (1.0 + decay) ** 2
    if rule == "gppo":
        return gppo_ratio(ratio, ratio, advantage, bounds)
    if rule != "clip":
        raise ValueError(rule)
    if advantage > 0 and (ratio > high or (bounds.delta is not None and ratio > bounds.delta)):
        return 0.0
    if advantage < 0:
        caps = [cap for cap in (bounds.delta, bounds.dual_clip) if cap is not None]
        if ratio < low or any(ratio > cap for cap in caps):
            return 0.0
    return ratio


def row_loss(
    rule: str,
    level: str,
    logprobs: Vector,
    frozen_logprobs: Vector,
    old: Vector,
    advantages: Vector,
    keep: list[bool],
    bounds: Bounds,
) -> Vector:
    """`token_loss` at the loss tokens of one row, 0 elsewhere."""
    live = log_ratio_row(level, logprobs, frozen_logprobs, old, keep)
    frozen = log_ratio_row(level, frozen_logprobs, frozen_logprobs, old, keep)
    return [
        token_loss(rule, logprobs[t], live[t], frozen[t], advantages[t], bounds) if keep[t] else 0.0
        for t in range(len(logprobs))
    ]


# KL estimators of one token.


def kl_token(name: str, logprob: float, ref_logprob: float, log_ratio: float) -> float:
    """k1, k2, k3 with d = log ref - log pi, and k3 times the ratio; d of the exponentials within +-20."""
    difference = ref_logprob - logprob
    if name == "k1":
        return -difference
    if name == "k2":
        return difference * difference / 2.0
    limited = clamped(difference, -20.0, 20.0)
    k3 = math.exp(limited) - limited - 1.0
    if name == "k3":
        return k3
    if name == "k3_ratio":
        return k3 * math.exp(log_ratio)
    raise ValueError(name)


def softmax(logits: Vector) -> Vector:
    """exp(z_i) / sum_j exp(z_j)."""
    exponentials = [math.exp(logit) for logit in logits]
    total = math.fsum(exponentials)
    return [value / total for value in exponentials]


def kl_divergence(first: Vector, second: Vector) -> float:
    """sum_v p(v) log(p(v) / q(v))."""
    return math.fsum(p * math.log(p / q) for p, q in zip(first, second, strict=True))


# Correction of the mismatch between the sampler and the trainer.


def log_rho(old: float, sampling: float) -> float:
    """log pi_old - log mu, 0 where the sampler reported nothing."""
    return 0.0 if math.isnan(sampling) else old - sampling


def correction_row(
    rule: str, old: Vector, sampling: Vector, keep: list[bool], low: float, high: float
) -> tuple[Vector, list[bool]]:
    """(weight, kept) at every position of one row; weight 1 and kept False outside the mask."""
    logs = [log_rho(old[t], sampling[t]) if keep[t] else 0.0 for t in range(len(old))]
    total = clamped(math.fsum(logs), -20.0, 20.0)
    average = math.fsum(logs) / max(sum(keep), 1)
    weights, kept_tokens = [], []
    for t in range(len(old)):
        weight, keeps = correction_token(rule, math.exp(logs[t]), math.exp(total), math.exp(average), low, high)
        weights.append(weight if keep[t] else 1.0)
        kept_tokens.append(keep[t] and keeps)
    return weights, kept_tokens


def correction_token(
    rule: str, rho: float, product: float, geometric: float, low: float, high: float
) -> tuple[float, bool]:
    """(weight, kept) of a token from its rho, and its sequence's product and geometric mean."""
    if rule == "none":
        return 1.0, True
    if rule == "token_tis":
        return clamped(rho, low, high), True
    if rule == "sequence_tis":
        return min(product, high), True
    if rule == "icepop":
        return (rho, True) if low <= rho <= high else (0.0, False)
    if rule == "sequence_mask":
        return (product, True) if low <= product <= high else (0.0, False)
    if rule == "geometric":
        return (1.0, True) if low <= geometric <= high else (0.0, False)
    raise ValueError(rule)


def mismatch_metrics(old: Matrix, sampling: Matrix, mask: Mask, kept_tokens: Mask) -> dict[str, float]:
    """Over the loss tokens: share dropped, (sum rho)^2 / (n sum rho^2), means of rho - 1 - log rho,
    rho, rho^2 - 1 and |log rho|.
    """
    rhos, dropped = [], 0
    for b in range(len(old)):
        for t in range(len(old[b])):
            if mask[b][t]:
                rhos.append(math.exp(log_rho(old[b][t], sampling[b][t])))
                dropped += not kept_tokens[b][t]
    return {
        "sampler/masked_frac": dropped / len(rhos),
        "sampler/ess": math.fsum(rhos) ** 2 / (len(rhos) * math.fsum(rho * rho for rho in rhos)),
        "sampler/mismatch_kl": mean([rho - 1.0 - math.log(rho) for rho in rhos]),
        "sampler/rho_mean": mean(rhos),
        "sampler/chi2": mean([rho * rho for rho in rhos]) - 1.0,
        "sampler/logprob_diff_mean": mean([abs(math.log(rho)) for rho in rhos]),
    }
