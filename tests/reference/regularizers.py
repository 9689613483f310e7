"""Scalar reference of the regularisers, written from their definitions.

A place is (row, position); `mask` says which are loss tokens. What a regulariser takes from before the step or detaches
is an argument of its own (`current`, `frozen_...`), so that a finite difference in the live argument alone is the
gradient of the rule. What stands off the mask is never read.
"""

import math
from itertools import pairwise

from tests.reference import objectives
from tests.reference.objectives import Mask, Matrix, Vector, mean
from tests.reference.switches import clamped

Place = tuple[int, int]


def places(mask: Mask) -> list[Place]:
    """The loss tokens, row by row."""
    return [(b, t) for b in range(len(mask)) for t in range(len(mask[b])) if mask[b][t]]


def at(values: Matrix, chosen: list[Place]) -> Vector:
    """The values at some places."""
    return [values[b][t] for b, t in chosen]


def everywhere_false(mask: Mask) -> Mask:
    """No place at all."""
    return [[False] * len(row) for row in mask]


def marked(mask: Mask, chosen: list[Place]) -> Mask:
    """True at some places only."""
    result = everywhere_false(mask)
    for b, t in chosen:
        result[b][t] = True
    return result


def quantile(values: Vector, q: float) -> float:
    """Linear interpolation of the sorted values at rank q (n - 1), counted from 0."""
    ordered = sorted(values)
    rank = q * (len(ordered) - 1)
    below = math.floor(rank)
    if below == len(ordered) - 1:
        return ordered[below]
    return ordered[below] + (rank - below) * (ordered[below + 1] - ordered[below])


def count_of(share: float, total: int) -> int:
    """max(1, floor(share n))."""
    return max(1, math.floor(share * total))


def aggregate(values: Matrix, mask: Mask, rule: str, max_completion_length: int) -> float:
    """The rule's value for the whole step; 0 for a step without a loss token. Adds `token_sum`: sum / rows."""
    if not places(mask):
        return 0.0
    if rule == "token_sum":
        return math.fsum(at(values, places(mask))) / len(mask)
    return objectives.aggregate(values, mask, rule, max_completion_length)


# Schedules and the entropy bonus.


def coefficient(schedule: float | dict[int, float], step: int) -> float:
    """A constant, or straight lines between {step: value}, constant before the first and after the last."""
    if not isinstance(schedule, dict):
        return schedule
    knots = sorted(schedule.items())
    if step <= knots[0][0]:
        return knots[0][1]
    if step >= knots[-1][0]:
        return knots[-1][1]
    for (x0, y0), (x1, y1) in pairwise(knots):
        if x0 <= step <= x1:
            return y0 * (x1 - step) / (x1 - x0) + y1 * (step - x0) / (x1 - x0)
    raise ValueError(step)


def entropy_loss(entropies: Matrix, mask: Mask, coef: float) -> float:
    """-coef x mean of H over the loss tokens of the step."""
    chosen = places(mask)
    return -coef * math.fsum(at(entropies, chosen)) / len(chosen) if chosen else 0.0


def adaptive_coefficients(
    measured: Vector, start: float, target: float, delta: float, lowest: float, highest: float
) -> Vector:
    """The coefficient that acts in step 0, 1, ..., len(measured), given the entropy that each step reported.

    Up by delta after an entropy at or under the target, else down, within bounds; it acts only in a step that follows
    such an entropy. Nothing was measured before step 0.
    """
    acting, coef = [0.0], start
    for entropy in measured:
        if entropy <= target:
            coef = min(coef + delta, highest)
            acting.append(coef)
        else:
            coef = max(coef - delta, lowest)
            acting.append(0.0)
    return acting


# Choices of tokens.


def top_entropy_stays(current_entropies: Matrix, mask: Mask, share: float) -> Mask:
    """H >= its (1 - share)-quantile over all loss tokens."""
    chosen = places(mask)
    bound = quantile(at(current_entropies, chosen), 1.0 - share) if chosen else 0.0
    return marked(mask, [(b, t) for b, t in chosen if current_entropies[b][t] >= bound])


def mastered_leaves(
    logprobs: Matrix, entropies: Matrix, advantages: Matrix, mask: Mask, min_prob: float, max_entropy: float
) -> Mask:
    """A > 0, p >= min_prob, and the mean entropy of the completion's loss tokens < max_entropy."""
    leaving = []
    for b, t in places(mask):
        own = [entropies[b][s] for s in range(len(mask[b])) if mask[b][s]]
        if advantages[b][t] > 0 and math.exp(logprobs[b][t]) >= min_prob and mean(own) < max_entropy:
            leaving.append((b, t))
    return marked(mask, leaving)


def covariances(current: Matrix, advantages: Matrix, mask: Mask) -> dict[Place, float]:
    """(lp - mean lp) (A - mean A), means over all loss tokens."""
    chosen = places(mask)
    if not chosen:
        return {}
    logprob_mean, advantage_mean = mean(at(current, chosen)), mean(at(advantages, chosen))
    return {(b, t): (current[b][t] - logprob_mean) * (advantages[b][t] - advantage_mean) for b, t in chosen}


def clip_cov_candidates(
    current: Matrix, advantages: Matrix, clipped: Mask, mask: Mask, low: float, high: float
) -> list[Place]:
    """low < C < high and no clip bound binds."""
    values = covariances(current, advantages, mask)
    return [(b, t) for (b, t), value in values.items() if low < value < high and not clipped[b][t]]


def clip_cov_count(num_candidates: int, num_tokens: int, share: float) -> int:
    """How many candidates are drawn."""
    return min(num_candidates, count_of(share, num_tokens))


def kl_cov_selected(current: Matrix, advantages: Matrix, mask: Mask, share: float) -> list[Place]:
    """The max(1, floor(share n)) loss tokens of largest C."""
    values = covariances(current, advantages, mask)
    ranked = sorted(values, key=lambda place: values[place], reverse=True)
    return ranked[: count_of(share, len(values))]


def kl_cov_values(live: Matrix, old: Matrix, selected: list[Place], mask: Mask) -> Matrix:
    """|lp - lp_old| on the selected tokens, 0 elsewhere."""
    values = [[0.0] * len(row) for row in mask]
    for b, t in selected:
        values[b][t] = abs(live[b][t] - old[b][t])
    return values


# Lp-Reg.


def kept_tokens(probs: Vector, proxy: str, threshold: float) -> list[bool]:
    """min_p: p >= threshold max p; fixed: p > threshold."""
    if proxy == "min_p":
        return [p >= threshold * max(probs) for p in probs]
    if proxy == "fixed":
        return [p > threshold for p in probs]
    raise ValueError(proxy)


def kept_mass(probs: Vector, proxy: str, threshold: float) -> float:
    """Z, the probability of the kept tokens."""
    keeps = kept_tokens(probs, proxy, threshold)
    return math.fsum(p for p, keep in zip(probs, keeps, strict=True) if keep)


def lp_reg_bounds(
    current: Matrix, advantages: Matrix, mask: Mask, microbatch_ids: list[int], share: float, scope: str
) -> Vector:
    """By row, the log-prob up to which a token is among the lowest; -inf where nothing is."""
    chosen = places(mask)
    if scope == "batch_all":
        ordered = sorted(at(current, chosen))
        return [ordered[count_of(share, len(ordered)) - 1] if ordered else -math.inf] * len(mask)
    if scope != "microbatch_neg":
        raise ValueError(scope)
    bounds = []
    for b in range(len(mask)):
        own = [(i, t) for i, t in chosen if microbatch_ids[i] == microbatch_ids[b] and advantages[i][t] < 0]
        k = math.floor(share * len(own))
        bounds.append(sorted(at(current, own))[k - 1] if k >= 2 else -math.inf)
    return bounds


def lp_reg_selected(
    current: Matrix,
    old: Matrix,
    log_kept_mass: Matrix,
    keeps: Mask,
    advantages: Matrix,
    mask: Mask,
    microbatch_ids: list[int],
    *,
    share: float,
    scope: str,
) -> list[Place]:
    """A < 0, kept, under the proxy's log-prob, and among the lowest of the scope."""
    bounds = lp_reg_bounds(current, advantages, mask, microbatch_ids, share, scope)
    selected = []
    for b, t in places(mask):
        if not (advantages[b][t] < 0 and keeps[b][t]):
            continue
        proxy = old[b][t] - log_kept_mass[b][t]
        if current[b][t] < proxy and current[b][t] <= bounds[b]:
            selected.append((b, t))
    return selected


def lp_reg_token_loss(direction: str, logprob: float, proxy_logprob: float) -> float:
    """With d = log proxy - log pi, within +-20: forward exp(d) - d - 1, reverse d^2 / 2."""
    difference = clamped(proxy_logprob - logprob, -20.0, 20.0)
    if direction == "forward":
        return math.exp(difference) - difference - 1.0
    if direction == "reverse":
        return difference * difference / 2.0
    raise ValueError(direction)


def lp_reg_exact_loss(direction: str, logprobs: Vector, proxy_logprobs: Vector) -> float:
    """Over the kept tokens: forward sum q (log q - log p); reverse sum p (log p - log q) - p + q."""
    terms = []
    for logprob, log_q in zip(logprobs, proxy_logprobs, strict=True):
        p, q = math.exp(logprob), math.exp(log_q)
        if direction == "forward":
            terms.append(q * (log_q - logprob))
        elif direction == "reverse":
            terms.append(p * (logprob - log_q) - p + q)
        else:
            raise ValueError(direction)
    return math.fsum(terms)


def lp_reg_values(
    direction: str, live: Matrix, old: Matrix, log_kept_mass: Matrix, selected: list[Place], mask: Mask
) -> Matrix:
    """`lp_reg_token_loss` on the selected tokens, 0 elsewhere."""
    values = [[0.0] * len(row) for row in mask]
    for b, t in selected:
        values[b][t] = lp_reg_token_loss(direction, live[b][t], old[b][t] - log_kept_mass[b][t])
    return values


# SIREN.


def nucleus_entropy(probs: Vector, p: float, rule: str) -> float:
    """Of the fewest likeliest tokens whose mass reaches p, renormalised; paper_code: without the last of them."""
    ordered, inside, mass = sorted(probs, reverse=True), [], 0.0
    for value in ordered:
        crossing = mass + value >= p
        if crossing and rule == "paper_code":
            break
        inside.append(value)
        mass += value
        if crossing:
            break
    return -math.fsum(value / mass * math.log(value / mass) for value in inside)


def siren_peaks(current_entropies: Matrix, mask: Mask, peak_quantile: float) -> list[list[int]]:
    """By row, the positions of the loss tokens above the quantile of the row's own loss tokens."""
    peaks = []
    for row, keep in zip(current_entropies, mask, strict=True):
        own = [t for t in range(len(row)) if keep[t]]
        bound = quantile([row[t] for t in own], peak_quantile) if own else math.inf
        peaks.append([t for t in own if row[t] > bound])
    return peaks


def peak_mean(entropies: Matrix, peaks: list[list[int]]) -> float | None:
    """Mean over the rows with a peak of the mean over its peaks; None without any."""
    rows = [mean([row[t] for t in own]) for row, own in zip(entropies, peaks, strict=True) if own]
    return mean(rows) if rows else None


def siren_loss(entropies: Matrix, frozen_peaks: list[list[int]], anchor: float, coef: float) -> float:
    """coef (peak mean - anchor)^2, 0 without a peak."""
    value = peak_mean(entropies, frozen_peaks)
    return 0.0 if value is None else coef * (value - anchor) ** 2
