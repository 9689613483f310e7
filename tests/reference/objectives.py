"""Scalar reference of the objective: advantages, token losses, aggregation, token statistics, numerical gradients.

Plain floats and loops on purpose: every function can be checked by reading it next to the formula in its docstring.
"""

import math
from collections.abc import Callable

Vector = list[float]
Matrix = list[list[float]]
Mask = list[list[bool]]


def scorable_of_group(rewards: Vector, group_ids: list[int], group: int) -> Vector:
    """The rewards of one group that are not NaN."""
    members = []
    for reward, group_id in zip(rewards, group_ids, strict=True):
        if group_id == group and not math.isnan(reward):
            members.append(reward)
    return members


def mean(values: Vector) -> float:
    """sum(values) / n."""
    return math.fsum(values) / len(values)


def standard_deviation(values: Vector, ddof: int) -> float:
    """sqrt(sum((x - mean)^2) / (n - ddof))."""
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - ddof))


def has_signal(members: Vector) -> bool:
    """Whether a group's scorable rewards can rank its members: at least two of them, not all equal."""
    return len(members) >= 2 and max(members) > min(members)


def centered_advantage(rewards: Vector, group_ids: list[int]) -> Vector:
    """R - mean_g over the scorable members; 0 for an unscorable member and in a group without signal."""
    advantages = []
    for reward, group in zip(rewards, group_ids, strict=True):
        members = scorable_of_group(rewards, group_ids, group)
        if math.isnan(reward) or not has_signal(members):
            advantages.append(0.0)
        else:
            advantages.append(reward - mean(members))
    return advantages


def group_advantage(rewards: Vector, group_ids: list[int], ddof: int, eps: float) -> Vector:
    """(R - mean_g) / (std_g + eps) over the scorable members; 0 where `centered_advantage` is 0 by rule."""
    advantages = []
    for reward, group in zip(rewards, group_ids, strict=True):
        members = scorable_of_group(rewards, group_ids, group)
        if math.isnan(reward) or not has_signal(members):
            advantages.append(0.0)
        else:
            advantages.append((reward - mean(members)) / (standard_deviation(members, ddof) + eps))
    return advantages


def clipped_token_loss(
    logprob: float, old_logprob: float, advantage: float, clip_low: float, clip_high: float
) -> float:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = exp(logprob - old_logprob), by cases.

    For A > 0 the smaller product is the one with the smaller ratio, so only the upper bound can bind; for A < 0 the
    product with the larger ratio is the smaller one, so only the lower bound can.
    """
    ratio = math.exp(logprob - old_logprob)
    if advantage > 0 and ratio > 1 + clip_high:
        return -(1 + clip_high) * advantage
    if advantage < 0 and ratio < 1 - clip_low:
        return -(1 - clip_low) * advantage
    return -ratio * advantage


def clipped_policy_loss(
    logprobs: Matrix, old_logprobs: Matrix, advantages: Matrix, clip_low: float, clip_high: float
) -> Matrix:
    """`clipped_token_loss` at every position."""
    return [
        [
            clipped_token_loss(logprobs[b][t], old_logprobs[b][t], advantages[b][t], clip_low, clip_high)
            for t in range(len(logprobs[b]))
        ]
        for b in range(len(logprobs))
    ]


def k3_token_penalty(logprob: float, ref_logprob: float) -> float:
    """pi_ref / pi - log(pi_ref / pi) - 1."""
    return math.exp(ref_logprob) / math.exp(logprob) - (ref_logprob - logprob) - 1.0


def k3_penalty(logprobs: Matrix, ref_logprobs: Matrix) -> Matrix:
    """`k3_token_penalty` at every position."""
    return [
        [k3_token_penalty(logprobs[b][t], ref_logprobs[b][t]) for t in range(len(logprobs[b]))]
        for b in range(len(logprobs))
    ]


def kept(values: Vector, mask: list[bool]) -> Vector:
    """The values of one row at the positions where the mask is True."""
    return [value for value, keep in zip(values, mask, strict=True) if keep]


def token_mean(values: Matrix, mask: Mask, num_loss_tokens: float) -> float:
    """Sum of the kept values / the step's number of loss tokens."""
    total = 0.0
    for row, keep in zip(values, mask, strict=True):
        total += math.fsum(kept(row, keep))
    return total / num_loss_tokens


def sequence_mean(values: Matrix, mask: Mask, num_sequences: float) -> float:
    """Sum over the rows with a loss token of the row's mean / the step's number of such rows."""
    total = 0.0
    for row, keep in zip(values, mask, strict=True):
        if any(keep):
            total += mean(kept(row, keep))
    return total / num_sequences


def constant(values: Matrix, mask: Mask, num_rows: float, max_completion_length: int) -> float:
    """Sum of the kept values / (the step's number of rows, masked or not, x the length limit)."""
    total = 0.0
    for row, keep in zip(values, mask, strict=True):
        total += math.fsum(kept(row, keep))
    return total / (num_rows * max_completion_length)


def aggregate(values: Matrix, mask: Mask, rule: str, max_completion_length: int) -> float:
    """The rule's value for a batch that is the whole step, so that the batch itself gives the denominators."""
    if rule == "token_mean":
        return token_mean(values, mask, sum(sum(row) for row in mask))
    if rule == "sequence_mean":
        return sequence_mean(values, mask, sum(any(row) for row in mask))
    if rule == "constant":
        return constant(values, mask, len(mask), max_completion_length)
    raise ValueError(rule)


def objective(
    logprobs: Matrix,
    old_logprobs: Matrix,
    ref_logprobs: Matrix,
    advantages: Matrix,
    mask: Mask,
    *,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    rule: str,
    max_completion_length: int,
) -> float:
    """The step's loss: aggregate(clipped loss + kl_coef * k3)."""
    policy = clipped_policy_loss(logprobs, old_logprobs, advantages, clip_low, clip_high)
    penalty = k3_penalty(logprobs, ref_logprobs)
    values = [[policy[b][t] + kl_coef * penalty[b][t] for t in range(len(policy[b]))] for b in range(len(policy))]
    return aggregate(values, mask, rule, max_completion_length)


def logits_of(hidden: Vector, weight: Matrix, bias: Vector | None, temperature: float) -> Vector:
    """(W h + b) / temperature for one position."""
    logits = []
    for v in range(len(weight)):
        logit = math.fsum(weight[v][i] * hidden[i] for i in range(len(hidden)))
        if bias is not None:
            logit += bias[v]
        logits.append(logit / temperature)
    return logits


def token_stats(
    hidden: Matrix, weight: Matrix, bias: Vector | None, targets: list[int], temperature: float
) -> tuple[Vector, Vector]:
    """log p(target) and -sum_v p_v log p_v (nats) of softmax(logits) at every position."""
    logprobs, entropies = [], []
    for row, target in zip(hidden, targets, strict=True):
        logits = logits_of(row, weight, bias, temperature)
        highest = max(logits)
        log_normaliser = highest + math.log(math.fsum(math.exp(logit - highest) for logit in logits))
        logprobs.append(logits[target] - log_normaliser)
        entropies.append(-math.fsum(math.exp(logit - log_normaliser) * (logit - log_normaliser) for logit in logits))
    return logprobs, entropies


def numerical_gradient(function: Callable[[Vector], float], point: Vector, step: float = 1e-5) -> Vector:
    """Central differences (f(x + h e_i) - f(x - h e_i)) / 2h for every coordinate i."""
    gradient = []
    for i in range(len(point)):
        above, below = list(point), list(point)
        above[i] += step
        below[i] -= step
        gradient.append((function(above) - function(below)) / (2 * step))
    return gradient


def flatten(matrix: Matrix) -> Vector:
    """Rows one after the other."""
    return [value for row in matrix for value in row]


def reshape(values: Vector, columns: int) -> Matrix:
    """The inverse of `flatten` for rows of one length."""
    return [values[start : start + columns] for start in range(0, len(values), columns)]
