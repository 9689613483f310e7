"""What the loss takes from weights that do not move: one pass over the rows of a generation batch, without gradient."""

from collections.abc import Sequence

import torch

from rlvr.batching import collate, group_by_length
from rlvr.objectives.aggregation import Denominator
from rlvr.ops.support import Support
from rlvr.ops.token_stats import StatsRequest, TokenStats
from rlvr.policy import read_completions
from rlvr.types import TrainRow

UNUSED = Denominator(1.0, 1.0, 1.0, 1)


@torch.no_grad()
def frozen_statistics(
    model: torch.nn.Module,
    rows: Sequence[TrainRow],
    *,
    num_batches: int,
    pad_token_id: int,
    device: torch.device,
    temperature: float,
    request: StatsRequest,
    with_support: bool,
) -> list[tuple[TokenStats, Support | None]]:
    """Statistics [T] of every row, and with `with_support` the tokens that the request's filter keeps.

    The latter only at loss tokens of failed completions: only those can be held at what was kept.
    """
    found: dict[int, tuple[TokenStats, Support | None]] = {}
    for chunk in group_by_length([row.length for row in rows], num_batches):
        batch = collate([rows[i] for i in chunk], UNUSED, pad_token_id, device)
        asked = batch.loss_mask & (batch.advantages < 0) if with_support else None
        read = read_completions(model, batch, temperature, request, support_of=asked)
        lengths = [len(rows[i].completion_ids) for i in chunk]
        supports = read.support.split(lengths) if read.support else [None] * len(chunk)
        for place, (i, length) in enumerate(zip(chunk, lengths, strict=True)):
            found[i] = (read.stats.mapped(lambda values, p=place, n=length: values[p, :n]), supports[place])  # type: ignore[misc]
    return [found[i] for i in range(len(rows))]
