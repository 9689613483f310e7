"""Optimiser steps as lists of floats for the tests of the regularisers, and how a regulariser is run on one.

Rows R, columns T, kept tokens C. NaN stands at every masked position of everything that has one.
"""

import math
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from rlvr.config.regularizers import RegularizersConfig
from rlvr.objectives.aggregation import Denominator
from rlvr.objectives.regularizers import build_regularizers
from rlvr.objectives.regularizers.base import Contribution, Gather, LiveTokens, Prepared, Regularizer, StepTokens
from rlvr.ops.support import SupportLogprobs
from rlvr.ops.token_stats import TokenStats
from tests.golden.cases import tensor
from tests.reference.objectives import Mask, Matrix, Vector
from tests.reference.regularizers import everywhere_false, places

RATIOS = (0.5, 0.9, 1.0, 1.2, 1.5, 20.0)
COLUMNS, MAX_COMPLETION_LENGTH, SUPPORT = 6, 8, 4
# Ragged, with a hole, without a loss token, with one.
PATTERNS = ("xxxxxx", "xx.xx.", "xxxx..", "......", "x.....", "xxxxx.", ".xxxxx", "xxx...", "xxxxxx")
MICROBATCHES = (4, 1, 4)
STEP, SEED = 4, 11
Cube = list[list[Vector]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Live:
    """What carries the gradient."""

    logprobs: Matrix
    entropy: Matrix
    nucleus: Matrix
    support: Cube  # [R, T, <= C] log-probs of the kept tokens


@dataclass(frozen=True)
class StepCase:
    """The rows of one optimiser step on one rank."""

    mask: Mask
    advantages: Matrix
    current: Live  # under the weights before the step; its support is not used
    old: Matrix
    log_kept_mass: Matrix
    kept: Mask
    clipped: Mask
    proxy: Cube  # log-probs of the proxy at the kept tokens
    row_ids: list[int]
    microbatch_ids: list[int]
    live: Live


def step_case(seed: int, moved: bool = True) -> StepCase:
    """Every ratio of RATIOS between live and old; with `moved` the live values are not those before the step."""
    rng = random.Random(seed)
    mask = [[mark == "x" for mark in pattern] for pattern in PATTERNS]
    chosen = places(mask)

    def drawn(draw: Callable[[int, int], float]) -> Matrix:
        return [[draw(b, t) if keep else math.nan for t, keep in enumerate(row)] for b, row in enumerate(mask)]

    def shifted(values: Matrix) -> Matrix:
        return drawn(lambda b, t: values[b][t] + (rng.uniform(-0.15, 0.15) if moved else 0.0))

    order = {place: index for index, place in enumerate(chosen)}
    logprobs = drawn(lambda b, t: -rng.uniform(0.75, 3.0))
    old = drawn(lambda b, t: logprobs[b][t] - math.log(RATIOS[order[b, t] % len(RATIOS)]))
    entropy = drawn(lambda b, t: rng.uniform(0.05, 0.6 + 0.3 * b))
    nucleus = drawn(lambda b, t: rng.uniform(0.05, 0.4 + 0.2 * b))
    nucleus[2] = [0.3 if keep else math.nan for keep in mask[2]]  # no token above any quantile
    current = Live(shifted(logprobs), shifted(entropy), shifted(nucleus), [])
    sizes = [[rng.randint(1, SUPPORT) for _ in row] for row in mask]
    kept = [[keep and rng.random() < 0.85 for keep in row] for row in mask]
    masses = drawn(lambda b, t: rng.choice([0.0, -0.1, -0.4, -1.2]) if kept[b][t] else rng.choice([-0.3, -math.inf]))
    return StepCase(
        mask=mask,
        advantages=drawn(lambda b, t: rng.choice([-1.0, -1.0, 1.0]) * rng.uniform(0.3, 2.0)),
        current=current,
        old=old,
        log_kept_mass=masses,
        kept=kept,
        clipped=[[not keep or rng.random() < 0.15 for keep in row] for row in mask],
        proxy=[[log_distribution(rng, size, 1.0) for size in row] for row in sizes],
        row_ids=rng.sample(range(1000), len(mask)),
        microbatch_ids=[number for number, size in enumerate(MICROBATCHES) for _ in range(size)],
        live=Live(logprobs, entropy, nucleus, [[log_distribution(rng, size, 0.7) for size in row] for row in sizes]),
    )


def log_distribution(rng: random.Random, size: int, mass: float) -> Vector:
    """Logs of random probabilities that add up to `mass`."""
    weights = [rng.uniform(0.1, 1.0) for _ in range(size)]
    return [math.log(mass * weight / math.fsum(weights)) for weight in weights]


def rows_of(case: StepCase, rows: Sequence[int]) -> StepCase:
    """Some rows of a step, in the given order."""

    def picked(value: Any) -> Any:
        if isinstance(value, Live):
            return Live(*(picked(field) for field in vars(value).values()))
        return [value[row] for row in rows] if value else value

    return StepCase(**{name: picked(value) for name, value in vars(case).items()})


def hand_case(
    *,
    logprobs: Matrix,
    advantages: Matrix,
    mask: Mask | None = None,
    live: Matrix | None = None,
    old: Matrix | None = None,
    entropy: Matrix | None = None,
    live_entropy: Matrix | None = None,
    nucleus: Matrix | None = None,
    live_nucleus: Matrix | None = None,
    log_kept_mass: Matrix | None = None,
    kept: Mask | None = None,
    clipped: Mask | None = None,
    row_ids: list[int] | None = None,
    microbatch_ids: list[int] | None = None,
) -> StepCase:
    """A step written out; what is left out is on-policy, unfiltered, not clipped, one micro-batch."""

    def filled(value: Any) -> Any:
        return [[value] * len(row) for row in logprobs]

    rows = range(len(logprobs))
    current = Live(logprobs, entropy or filled(1.0), nucleus or filled(1.0), [])
    return StepCase(
        mask=mask or filled(True),
        advantages=advantages,
        current=current,
        old=old or logprobs,
        log_kept_mass=log_kept_mass or filled(0.0),
        kept=kept or filled(True),
        clipped=clipped or filled(False),
        proxy=filled([0.0]),
        row_ids=row_ids or list(rows),
        microbatch_ids=microbatch_ids or [0 for _ in rows],
        live=Live(live or logprobs, live_entropy or current.entropy, live_nucleus or current.nucleus, filled([0.0])),
    )


def one_of(settings: dict[str, Any]) -> Regularizer:
    """The regulariser of settings that name one."""
    (regularizer,) = build_regularizers(RegularizersConfig.model_validate(settings))
    return regularizer


def own_gather(values: torch.Tensor) -> torch.Tensor:
    """That of a single rank."""
    return values


def step_tokens_of(case: StepCase, *, gather: Gather = own_gather, step: int = STEP, seed: int = SEED) -> StepTokens:
    """The case as `prepare` sees it."""
    mask, old = torch.tensor(case.mask), tensor(case.old)
    current = TokenStats(*(tensor(v) for v in (case.current.logprobs, case.current.entropy, case.current.nucleus)))
    sampled = TokenStats(old, log_kept_mass=tensor(case.log_kept_mass), kept=torch.tensor(case.kept))
    return StepTokens(
        mask=mask,
        advantages=tensor(case.advantages),
        current=current,
        old_logprobs=old,
        sampled=sampled,
        clipped=torch.tensor(case.clipped),
        row_ids=torch.tensor(case.row_ids),
        microbatch_ids=torch.tensor(case.microbatch_ids),
        step=step,
        seed=seed,
        gather=gather,
    )


def denominator_of(mask: Mask) -> Denominator:
    """The counts of a step with these rows on all ranks."""
    rows_with_tokens = sum(any(row) for row in mask)
    return Denominator(float(len(places(mask))), float(rows_with_tokens), float(len(mask)), MAX_COMPLETION_LENGTH)


def padded_cube(values: Cube, fill: float, requires_grad: bool = False) -> torch.Tensor:
    """[R, T, C]"""
    return tensor([[entry + [fill] * (SUPPORT - len(entry)) for entry in row] for row in values], requires_grad)


@dataclass(frozen=True)
class Leaves:
    """The live values as tensors with gradient."""

    logprobs: torch.Tensor
    entropy: torch.Tensor
    nucleus: torch.Tensor
    support: torch.Tensor  # [R, T, C], NaN at padding

    def gradient(self, name: str) -> torch.Tensor:
        """The gradient that reached a leaf, 0 where none did."""
        leaf: torch.Tensor = getattr(self, name)
        return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def leaves_of(live: Live, padding: float = math.nan) -> Leaves:
    """Fresh leaves, with garbage where the support is padded."""
    matrices = (tensor(values, requires_grad=True) for values in (live.logprobs, live.entropy, live.nucleus))
    return Leaves(*matrices, padded_cube(live.support, padding, requires_grad=True))


@dataclass(frozen=True)
class Outcome:
    """What a regulariser did to a step, with the gradients in `leaves` and the rows' policy masks joined."""

    loss: float
    parts: list[Contribution]
    stays: Mask | None  # at loss tokens; False elsewhere
    leaves: Leaves
    prepared: Prepared


def contribution_of(
    regularizer: Regularizer,
    case: StepCase,
    leaves: Leaves,
    prepared: Prepared,
    rows: list[int],
    denominator: Denominator,
    rule: str,
    coef: float,
) -> Contribution:
    """That of a micro-batch of some rows."""
    mask = torch.tensor(case.mask)
    support = None
    if prepared.support_mask is not None:
        marked = prepared.support_mask[rows]
        proxy = padded_cube(case.proxy, -math.inf)
        support = SupportLogprobs(policy=leaves.support[rows][marked], proxy=proxy[rows][marked])
    live = LiveTokens(
        mask=mask[rows],
        advantages=tensor(case.advantages)[rows],
        stats=TokenStats(torch.where(mask, leaves.logprobs, 0.0)[rows], leaves.entropy[rows], leaves.nucleus[rows]),
        old_logprobs=torch.where(mask, tensor(case.old), 0.0)[rows],
        denominator=denominator,
        aggregation=rule,
        tokens={name: value[rows] for name, value in prepared.tokens.items()},
        scalars=prepared.scalars,
        support=support,
        coef=coef,
    )
    return regularizer.contribute(live)


def apply(
    regularizer: Regularizer,
    case: StepCase,
    *,
    rule: str = "token_mean",
    step: int = STEP,
    seed: int = SEED,
    gather: Gather = own_gather,
    denominator: Denominator | None = None,
) -> Outcome:
    """Prepares the step, runs its micro-batches forward and backward, and sums up."""
    leaves = leaves_of(case.live)
    prepared = Prepared()
    if regularizer.needs.step is not None:
        prepared = regularizer.prepare(step_tokens_of(case, gather=gather, step=step, seed=seed))
    parts, stays, loss = [], everywhere_false(case.mask), 0.0
    for number in sorted(set(case.microbatch_ids)):
        rows = [row for row, own in enumerate(case.microbatch_ids) if own == number]
        given = (rows, denominator or denominator_of(case.mask), rule, regularizer.coef_at(step))
        part = contribution_of(regularizer, case, leaves, prepared, *given)
        parts.append(part)
        if part.loss is not None:
            loss += part.loss.item()
            if part.loss.requires_grad:
                part.loss.backward()
        if part.policy_mask is not None:
            assert part.policy_mask.dtype == torch.bool
            for row, stay in zip(rows, (part.policy_mask & torch.tensor(case.mask)[rows]).tolist(), strict=True):
                stays[row] = stay
    return Outcome(loss, parts, None if parts[0].policy_mask is None else stays, leaves, prepared)


class Ranks:
    """Threads that exchange tensors as ranks do."""

    def __init__(self, count: int) -> None:
        self.slots: list[torch.Tensor | None] = [None] * count
        self.barrier = threading.Barrier(count, timeout=20.0)

    def gather_of(self, rank: int) -> Gather:
        def gather(values: torch.Tensor) -> torch.Tensor:
            assert values.dim() == 1
            self.slots[rank] = values
            self.barrier.wait()
            everything = torch.cat([values for values in self.slots if values is not None])
            self.barrier.wait()
            return everything

        return gather


def on_ranks(cases: Sequence[StepCase], work: Callable[[StepCase, Gather], Result]) -> list[Result]:
    """`work` on every rank's rows at once, in the order of ranks; what a rank raises is raised here."""
    ranks = Ranks(len(cases))

    def run(rank: int) -> Result:
        done = False
        try:
            result = work(cases[rank], ranks.gather_of(rank))
            done = True
        finally:
            if not done:
                ranks.barrier.abort()
        return result

    with ThreadPoolExecutor(len(cases)) as pool:
        futures = [pool.submit(run, rank) for rank in range(len(cases))]
    failures = [error for error in (future.exception() for future in futures) if error is not None]
    for error in sorted(failures, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]


def on_two_ranks(
    make: Callable[[], Regularizer], case: StepCase, first: Sequence[int], rule: str = "token_mean", step: int = STEP
) -> tuple[Outcome, Outcome]:
    """The step with the rows `first` on one rank and the others on another."""
    others = [row for row in range(len(case.mask)) if row not in first]
    counts = denominator_of(case.mask)

    def work(own: StepCase, gather: Gather) -> Outcome:
        return apply(make(), own, rule=rule, step=step, gather=gather, denominator=counts)

    one, other = on_ranks([rows_of(case, first), rows_of(case, others)], work)
    return one, other


def with_live(case: StepCase, **changes: Any) -> StepCase:
    """The case at other live values."""
    return replace(case, live=replace(case.live, **changes))
