"""The micro-batches of one optimiser step as one table of tokens, and back.

Legend: R rows of the step on this rank, b_i rows and T_i tokens of its i-th micro-batch, T the largest T_i.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from rlvr.config import Algorithm
from rlvr.objectives.policy_loss import clip_masks
from rlvr.objectives.ratio import RATIO_LEVELS
from rlvr.objectives.regularizers.base import Gather, Prepared, Regularizer, StepTokens
from rlvr.ops.token_stats import TokenStats
from rlvr.types import Microbatch


def joined(parts: Sequence[Tensor], width: int) -> Tensor:
    """[R, width] of parts [b_i, T_i], padded with 0."""
    return torch.cat([functional.pad(part, (0, width - part.shape[1])) for part in parts])


def step_tokens(
    batches: Sequence[Microbatch],
    currents: Sequence[TokenStats],
    *,
    algorithm: Algorithm,
    step: int,
    seed: int,
    gather: Gather,
) -> StepTokens:
    """What `Regularizer.prepare` sees, given each micro-batch's statistics under the current weights."""
    width = max(batch.loss_mask.shape[1] for batch in batches)
    mask = joined([batch.loss_mask for batch in batches], width)
    advantages = joined([batch.advantages for batch in batches], width)
    current = TokenStats.joined(currents, lambda parts: joined(parts, width))
    sampled = TokenStats.joined(
        [b.sampled for b in batches if b.sampled is not None], lambda parts: joined(parts, width)
    )
    on_policy = batches[0].old_logprobs is None
    old = (
        current.logprobs
        if on_policy
        else joined([b.old_logprobs for b in batches if b.old_logprobs is not None], width)
    )
    log_ratio = RATIO_LEVELS[algorithm.ratio_level](current.logprobs, old, mask)
    low, high = clip_masks(log_ratio, advantages, clip_low=algorithm.clip_low, clip_high=algorithm.clip_high)
    ordinary = torch.cat([_is_ordinary(batch) for batch in batches])
    numbers = [torch.full_like(batch.row_ids, number) for number, batch in enumerate(batches)]
    return StepTokens(
        mask=mask,
        advantages=advantages,
        current=current,
        old_logprobs=old,
        sampled=sampled,
        clipped=(low | high) & ordinary.unsqueeze(1),
        row_ids=torch.cat([batch.row_ids for batch in batches]),
        microbatch_ids=torch.cat(numbers),
        step=step,
        seed=seed,
        gather=gather,
    )


def _is_ordinary(batch: Microbatch) -> Tensor:
    """[b] bool: rows whose ratio can be clipped, as it is not shaped."""
    return torch.ones_like(batch.row_ids, dtype=torch.bool) if batch.gammas is None else batch.gammas.isnan()


def prepare_step(
    batches: Sequence[Microbatch], regularizers: Sequence[Regularizer], tokens: StepTokens
) -> tuple[list[Microbatch], dict[str, float]]:
    """The micro-batches with what each regulariser fixed for this step, and the metrics of that."""
    prepared = {each.name: each.prepare(tokens) for each in regularizers if each.needs.step is not None}
    cut, first = [], 0
    for batch in batches:
        rows = slice(first, first + len(batch.row_ids))
        pieces = {name: _cut(value, rows, batch.loss_mask.shape[1]) for name, value in prepared.items()}
        cut.append(replace(batch, prepared=pieces))
        first = rows.stop
    return cut, {name: value for each in prepared.values() for name, value in each.metrics.items()}


def _cut(prepared: Prepared, rows: slice, width: int) -> Prepared:
    mask = prepared.support_mask
    return replace(
        prepared,
        tokens={name: value[rows, :width] for name, value in prepared.tokens.items()},
        support_mask=None if mask is None else mask[rows, :width],
    )
