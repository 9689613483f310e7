"""Scalar reference of guidance: completions that the policy, given the context of the loss, did not sample.

The policy is a table of logits, policy[context][previous token][token], the last "previous token" being the start of a
completion. Its log-probabilities have a known derivative, d log pi(v | s) / d logit[s][u] = 1[u = v] - pi(u | s), so
the gradient of every loss below is a formula and not a finite difference.
"""

import math
from dataclasses import dataclass

from tests.reference.objectives import (
    Mask,
    Matrix,
    Vector,
    aggregate,
    centered_advantage,
    group_advantage,
    mean,
)
from tests.reference.switches import (
    Bounds,
    correction_row,
    effective_weight,
    log_ratio_row,
    rloo_advantage,
    row_loss,
    softmax,
)

Policy = dict[str, Matrix]

KEEP, DROP_WITH_RATIO, DROP_PLAIN = "keep", "drop_with_ratio", "drop_plain"
SMALLEST_GAMMA = 1e-4
TEACHER_GAMMA = 0.1


# The shaped ratio.


def shaped(ratio: float, gamma: float) -> float:
    """f(r) = r / (r + g)."""
    return ratio / (ratio + gamma)


def shaped_slope(ratio: float, gamma: float) -> float:
    """df/dr = g / (r + g)^2."""
    return gamma / (ratio + gamma) ** 2


def shaped_token_loss(logprob: float, behaviour: float, advantage: float, gamma: float) -> float:
    """-A f(r) with r = pi(o) / behaviour(o)."""
    return -advantage * shaped(math.exp(logprob - behaviour), gamma)


def shaped_token_slope(logprob: float, behaviour: float, advantage: float, gamma: float) -> float:
    """d loss / d log pi = -A r df/dr = -A g r / (r + g)^2."""
    ratio = math.exp(logprob - behaviour)
    return -advantage * ratio * shaped_slope(ratio, gamma)


def quantile(values: Vector, level: float) -> float:
    """The value at rank level (n - 1) of the sorted ones, counted from 0; between two ranks, on the line."""
    ordered = sorted(values)
    rank = level * (len(ordered) - 1)
    below = math.floor(rank)
    if below + 1 >= len(ordered):
        return ordered[-1]
    return ordered[below] + (rank - below) * (ordered[below + 1] - ordered[below])


def gamma_of(log_ratios: Vector, level: float) -> float:
    """The quantile of the ratios, at least 1e-4."""
    return max(quantile([math.exp(value) for value in log_ratios], level), SMALLEST_GAMMA)


# The tabular policy.


def token_logprobs(policy: Policy, context: str, tokens: list[int]) -> Vector:
    """log pi(o_t | context, o_{t-1}) of every token."""
    logprobs = []
    previous = len(policy[context]) - 1
    for token in tokens:
        logprobs.append(math.log(softmax(policy[context][previous])[token]))
        previous = token
    return logprobs


def zero_gradient(policy: Policy) -> Policy:
    """A table of zeros."""
    return {context: [[0.0] * len(row) for row in table] for context, table in policy.items()}


def add_logprob_gradient(gradient: Policy, policy: Policy, context: str, tokens: list[int], slopes: Vector) -> None:
    """Adds sum_t slope_t d log pi(o_t | context, o_{t-1}) / d policy to the gradient."""
    previous = len(policy[context]) - 1
    for token, slope in zip(tokens, slopes, strict=True):
        probabilities = softmax(policy[context][previous])
        for other in range(len(probabilities)):
            gradient[context][previous][other] += slope * ((other == token) - probabilities[other])
        previous = token


# From what was sampled to what the loss sees.


@dataclass(frozen=True)
class Completion:
    """One completion; `context` is what its sampler saw, `prompt` the same without help."""

    tokens: list[int]
    keep: list[bool]  # which tokens are in the loss
    reward: float
    group: int
    prompt: str
    context: str
    by_teacher: bool = False


@dataclass(frozen=True)
class LossRow:
    """One completion as the loss sees it; `gamma` only where the ratio is shaped."""

    context: str
    tokens: list[int]
    keep: list[bool]
    advantage: float
    old: Vector  # what an ordinary ratio divides by
    behaviour: Vector | None = None  # what a shaped ratio divides by
    gamma: float | None = None


def is_shaped(completion: Completion, mode: str) -> bool:
    """Whether the loss's context did not sample it and the ratio says so."""
    return completion.by_teacher or (mode == DROP_WITH_RATIO and completion.context != completion.prompt)


def loss_row(completion: Completion, advantage: float, old_policy: Policy, mode: str, gamma: float) -> LossRow:
    """What each mode does with a hint: keep it in both log-probs; divide by the hinted ones; forget it in both.

    A teacher's completion is one without a hint whose sampler is taken to have had no choice, so that r = pi.
    """
    tokens, keep = completion.tokens, completion.keep
    context = completion.context if mode == KEEP and not completion.by_teacher else completion.prompt
    old = token_logprobs(old_policy, context, tokens)
    if completion.by_teacher:
        return LossRow(context, tokens, keep, advantage, old, [0.0] * len(tokens), TEACHER_GAMMA)
    if is_shaped(completion, mode):
        behaviour = token_logprobs(old_policy, completion.context, tokens)
        return LossRow(context, tokens, keep, advantage, old, behaviour, gamma)
    return LossRow(context, tokens, keep, advantage, old)


def hint_gamma(completions: list[Completion], policy: Policy, old_policy: Policy, level: float) -> float:
    """g of the hinted completions: the quantile of pi(o | q) / pi_old(o | q, h) over their loss tokens."""
    log_ratios = []
    for each in completions:
        if each.by_teacher or each.context == each.prompt:
            continue
        plain = token_logprobs(policy, each.prompt, each.tokens)
        hinted = token_logprobs(old_policy, each.context, each.tokens)
        for t in range(len(each.tokens)):
            if each.keep[t]:
                log_ratios.append(plain[t] - hinted[t])
    return gamma_of(log_ratios, level)


def advantages_of(completions: list[Completion], rule: str, ddof: int, eps: float) -> Vector:
    """The advantage of every completion within its group, hinted or not."""
    rewards = [each.reward for each in completions]
    groups = [each.group for each in completions]
    if rule == "group":
        return group_advantage(rewards, groups, ddof, eps)
    if rule == "centered":
        return centered_advantage(rewards, groups)
    if rule == "rloo":
        return rloo_advantage(rewards, groups)
    raise ValueError(rule)


# The loss of a batch that is the whole step.


@dataclass(frozen=True)
class Rule:
    """The switches of the loss."""

    policy_loss: str
    ratio_level: str
    bounds: Bounds
    aggregation: str
    max_completion_length: int


def token_losses(row: LossRow, policy: Policy, frozen_policy: Policy, rule: Rule) -> Vector:
    """Shaped where the row has a gamma, else the ordinary policy loss; 0 off the mask."""
    live = token_logprobs(policy, row.context, row.tokens)
    if row.gamma is None or row.behaviour is None:
        frozen = token_logprobs(frozen_policy, row.context, row.tokens)
        advantages = [row.advantage] * len(live)
        return row_loss(rule.policy_loss, rule.ratio_level, live, frozen, row.old, advantages, row.keep, rule.bounds)
    losses = []
    for t in range(len(live)):
        loss = shaped_token_loss(live[t], row.behaviour[t], row.advantage, row.gamma)
        losses.append(loss if row.keep[t] else 0.0)
    return losses


def token_slopes(row: LossRow, policy: Policy, rule: Rule, weights: Vector) -> Vector:
    """d (sum of weight x token loss over the row) / d log pi of every token; 0 off the mask."""
    live = token_logprobs(policy, row.context, row.tokens)
    slopes = [0.0] * len(live)
    counted = [t for t in range(len(live)) if row.keep[t]]
    log_ratios = log_ratio_row(rule.ratio_level, live, live, row.old, row.keep)
    for t in counted:
        if row.gamma is not None and row.behaviour is not None:
            slopes[t] = weights[t] * shaped_token_slope(live[t], row.behaviour[t], row.advantage, row.gamma)
        else:
            weight = effective_weight(rule.policy_loss, math.exp(log_ratios[t]), row.advantage, rule.bounds)
            slopes[t] = -weights[t] * row.advantage * weight
    frozen_ratio = rule.policy_loss in ("cispo", "reinforce")  # their gradient is that of log pi alone
    if row.gamma is None and rule.ratio_level == "sequence" and counted and not frozen_ratio:
        # The one ratio is a mean over the tokens: each loss moves with every token, by 1 / n.
        average = mean([slopes[t] for t in counted])
        for t in counted:
            slopes[t] = average
    return slopes


def row_weights(mask: Mask, aggregation: str, max_completion_length: int) -> Vector:
    """What multiplies every loss token of a row in the step's scalar."""
    num_tokens = sum(sum(keep) for keep in mask)
    num_sequences = sum(any(keep) for keep in mask)
    weights = []
    for keep in mask:
        if aggregation == "token_mean":
            weights.append(1.0 / num_tokens)
        elif aggregation == "sequence_mean":
            weights.append(1.0 / (num_sequences * sum(keep)) if any(keep) else 0.0)
        elif aggregation == "constant":
            weights.append(1.0 / (len(mask) * max_completion_length))
        elif aggregation == "token_sum":
            weights.append(1.0 / len(mask))
        else:
            raise ValueError(aggregation)
    return weights


def corrections_of(rows: list[LossRow], sampling: Matrix, name: str, low: float, high: float) -> tuple[Matrix, Mask]:
    """(weights, kept) by the mismatch rule: the trainer's probability over the engine's, both of the sampler's context.

    That is the divisor of a shaped ratio where there is one. An engine that reported nothing (NaN) is not corrected.
    """
    weights, kept_tokens = [], []
    for row, reported in zip(rows, sampling, strict=True):
        sampler = row.old if row.behaviour is None else row.behaviour
        of_row, kept_of_row = correction_row(name, sampler, reported, row.keep, low, high)
        weights.append(of_row)
        kept_tokens.append(kept_of_row)
    return weights, kept_tokens


def batch_loss(
    rows: list[LossRow], policy: Policy, frozen_policy: Policy, rule: Rule, corrections: Matrix | None = None
) -> float:
    """The step's scalar. What the rules detach is taken from the frozen policy."""
    losses = [token_losses(row, policy, frozen_policy, rule) for row in rows]
    if corrections is not None:
        losses = [[losses[b][t] * corrections[b][t] for t in range(len(losses[b]))] for b in range(len(losses))]
    if rule.aggregation == "token_sum":
        return math.fsum(math.fsum(row) for row in losses) / len(rows)
    return aggregate(losses, [row.keep for row in rows], rule.aggregation, rule.max_completion_length)


def batch_gradient(rows: list[LossRow], policy: Policy, rule: Rule, corrections: Matrix | None = None) -> Policy:
    """d loss / d policy, by formula."""
    gradient = zero_gradient(policy)
    weights = row_weights([row.keep for row in rows], rule.aggregation, rule.max_completion_length)
    for b, row in enumerate(rows):
        factors = [1.0] * len(row.tokens) if corrections is None else corrections[b]
        slopes = token_slopes(row, policy, rule, [weights[b] * factor for factor in factors])
        add_logprob_gradient(gradient, policy, row.context, row.tokens, slopes)
    return gradient


def clip_fractions(rows: list[LossRow], policy: Policy, rule: Rule) -> tuple[float, float]:
    """(low, high): tokens that a bound of the clip binds, over all loss tokens; none of a shaped row."""
    low = high = total = 0
    for row in rows:
        live = token_logprobs(policy, row.context, row.tokens)
        log_ratios = log_ratio_row(rule.ratio_level, live, live, row.old, row.keep)
        for t in range(len(live)):
            total += row.keep[t]
            if row.keep[t] and row.gamma is None:
                ratio = math.exp(log_ratios[t])
                low += row.advantage < 0 and ratio < 1.0 - rule.bounds.clip_low
                high += row.advantage > 0 and ratio > 1.0 + rule.bounds.clip_high
    return low / total, high / total
