"""The few tokens that a filter keeps at a position, and the policy's log-probabilities of just those.

Legend: N positions, H hidden size, V vocabulary, S kept tokens of all positions together, C most at one position.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from rlvr.ops.head_rows import LogitRule, StatsRequest, inside_filter


@dataclass(frozen=True)
class Support:
    """The kept tokens of N positions, one position after the other, with their share of the kept mass."""

    counts: Tensor  # [N] int64; 0 where nobody asked
    ids: Tensor  # [S] int64
    logprobs: Tensor  # [S] of the renormalised kept tokens

    def split(self, sizes: Sequence[int]) -> "list[Support]":
        """One record for each of the runs of `sizes` positions."""
        counts = self.counts.split(list(sizes))
        kept = [int(each.sum()) for each in counts]
        return [Support(*each) for each in zip(counts, self.ids.split(kept), self.logprobs.split(kept), strict=True)]

    def at(self, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(ids, logprobs) of each position of `mask` [N] bool."""
        ends, counts = self.counts.cumsum(0)[mask].tolist(), self.counts[mask].tolist()
        slices = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        return [(self.ids[each], self.logprobs[each]) for each in slices]


@dataclass(frozen=True)
class SupportLogprobs:
    """Log-probabilities [m, C] of the kept tokens of m positions; padded with -inf in `proxy`, 0 in `policy`."""

    policy: Tensor  # current policy, with gradient
    proxy: Tensor  # of the renormalised kept tokens of the policy that sampled


def pad_kept(kept: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(ids [m, C] padded with token 0, logprobs [m, C] padded with -inf) of m positions."""
    ids = pad_sequence([each[0] for each in kept], batch_first=True, padding_value=0)
    return ids, pad_sequence([each[1] for each in kept], batch_first=True, padding_value=-math.inf)


@torch.no_grad()
def kept_support(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    asked: Tensor,
    *,
    rule: LogitRule,
    request: StatsRequest,
    tile_tokens: int,
) -> Support:
    """The tokens that the request's filter keeps at the positions `asked` [N] bool of hidden [N, H], head [V, H]."""
    counts = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    ids, logprobs = [counts.new_empty(0)], [hidden.new_empty(0, dtype=torch.promote_types(hidden.dtype, torch.float32))]
    for places in asked.nonzero().squeeze(1).split(tile_tokens):
        scores = _log_softmax(hidden[places], weight, bias, rule)
        kept = inside_filter(scores, request)
        counts[places] = kept.sum(dim=-1)
        log_mass = torch.where(kept, scores, -math.inf).logsumexp(dim=-1, keepdim=True)
        ids.append(kept.nonzero()[:, 1])
        logprobs.append((scores - log_mass)[kept])
    return Support(counts, torch.cat(ids), torch.cat(logprobs))


def support_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, *, rule: LogitRule, tile_tokens: int
) -> Tensor:
    """Log-probabilities [m, C] of the tokens `ids` [m, C] at hidden [m, H], with gradient; tile by tile, recomputed in
    the backward pass. Meant for a small share of the positions.
    """

    def of_tile(rows: Tensor, weight: Tensor, tile_ids: Tensor) -> Tensor:
        return _log_softmax(rows, weight, bias, rule).gather(-1, tile_ids)

    tiles = zip(hidden.split(tile_tokens), ids.split(tile_tokens), strict=True)
    pieces = [checkpoint(of_tile, rows, weight, tile_ids, use_reentrant=False) for rows, tile_ids in tiles]
    return torch.cat(pieces)


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, rule: LogitRule) -> Tensor:
    """log softmax(cap(logit_scale logits) / temperature) [rows, V] of at least float32."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * rule.logit_scale
    if rule.softcap is not None:
        logits = rule.softcap * torch.tanh(logits / rule.softcap)
    return torch.log_softmax(logits / rule.temperature, dim=-1)
