"""Where the nucleus of each row ends, without sorting the vocabulary.

Legend: R rows, V vocabulary, C candidates for the crossing token. A row is described by `shifted` (logit minus the
row's largest logit, <= 0) and `weights` = exp(shifted), in [0, 1]: probabilities up to the row's normaliser.
"""

import math

import torch
from torch import Tensor

SORTED_VOCABULARY = 4096  # rows up to this long are sorted whole: their histogram would be longer than they are
NUM_BINS = 2**14
# The leading bits of a positive float grow with it. These keep 7 (float32) or 4 (float64) bits of the mantissa, so that
# a bin is a few percent wide at most and every weight in [0, 1] has a bin below NUM_BINS.
LEADING_BITS = {torch.float32: (torch.int32, 16), torch.float64: (torch.int64, 48)}


def nucleus_cut(shifted: Tensor, weights: Tensor, p: float, with_crossing: bool) -> tuple[Tensor, Tensor]:
    """(cut [R], tie_bound [R]): the nucleus is shifted > cut, or shifted == cut at a column below tie_bound.

    Tokens are ranked by a stable descending sort, so equal logits rank by column. The first rank at which the
    cumulative mass reaches `p` is the crossing token, which is in the nucleus or not as `with_crossing` says.
    """
    # The likeliest token has weight 1. Above one half it can only reach p when no other is as likely, so there is no
    # tie to split; in a trained policy that is most rows.
    sure = (p * weights.sum(dim=-1, dtype=torch.float64) <= 1.0) & (p > 0.5)
    unsure = (~sure).nonzero().squeeze(-1)
    if len(unsure) == len(shifted):
        return _searched_cut(shifted, weights, p, with_crossing)
    alone = torch.zeros_like(shifted[:, 0])
    cut = torch.nextafter(alone, torch.full_like(alone, -math.inf)) if with_crossing else alone
    tie_bound = torch.zeros(len(shifted), dtype=torch.int64, device=shifted.device)
    if len(unsure):
        cut[unsure], tie_bound[unsure] = _searched_cut(shifted[unsure], weights[unsure], p, with_crossing)
    return cut, tie_bound


def _searched_cut(shifted: Tensor, weights: Tensor, p: float, with_crossing: bool) -> tuple[Tensor, Tensor]:
    """`nucleus_cut` of rows of any shape."""
    narrow = _whole_rows if shifted.shape[-1] <= SORTED_VOCABULARY else _crossing_bins
    target, above, candidates, columns = narrow(shifted, weights, p)
    candidates, order = candidates.sort(dim=-1, descending=True, stable=True)
    columns = columns.gather(-1, order)
    reached = above + candidates.exp().double().cumsum(dim=-1) >= target
    # Rounding may leave the last candidate just short of the target: it is the crossing token all the same.
    last = (candidates > -math.inf).sum(dim=-1, keepdim=True) - 1
    crossing = torch.minimum((~reached).sum(dim=-1, keepdim=True), last)
    value = candidates.gather(-1, crossing)
    tied = candidates == value
    num_inside = crossing + int(with_crossing)
    tied_inside = tied & (torch.arange(candidates.shape[-1], device=candidates.device) < num_inside)
    all_inside = (tied_inside == tied).all(dim=-1, keepdim=True)
    # One comparison tells members from others unless a tie is split.
    cut = torch.where(all_inside, torch.nextafter(value, torch.full_like(value, -math.inf)), value)
    split = ~all_inside & tied_inside.any(dim=-1, keepdim=True)
    tie_bound = torch.where(split, columns.gather(-1, crossing) + int(with_crossing), 0)
    return cut.squeeze(-1), tie_bound.squeeze(-1)


def nucleus_mask(shifted: Tensor, cut: Tensor, tie_bound: Tensor) -> Tensor:
    """1.0 at members and 0.0 elsewhere [R, V], in the dtype of `shifted`: several times faster than bool on the CPU."""
    inside = torch.gt(shifted, cut.unsqueeze(-1), out=torch.empty_like(shifted))
    if tie_bound.any():
        columns = torch.arange(shifted.shape[-1], device=shifted.device)
        inside += (shifted == cut.unsqueeze(-1)) & (columns < tie_bound.unsqueeze(-1))
    return inside


def _whole_rows(shifted: Tensor, weights: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(target mass [R, 1], mass above the candidates [R, 1], candidates [R, C], their columns [R, C]) with C = V."""
    total = weights.sum(dim=-1, keepdim=True, dtype=torch.float64)
    columns = torch.arange(shifted.shape[-1], device=shifted.device).expand_as(shifted)
    return p * total, torch.zeros_like(total), shifted, columns


def _crossing_bins(shifted: Tensor, weights: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Like `_whole_rows`, with only the candidates of the bin in which the mass crosses `p`, padded with -inf."""
    integer, shift = LEADING_BITS[weights.dtype]
    keys = weights.view(integer) >> shift
    masses = weights.new_zeros(weights.shape[0], NUM_BINS).scatter_add_(-1, keys.long(), weights)
    cumulative = masses.double().flip(-1).cumsum(dim=-1)  # from the most likely bin down
    target = p * cumulative[:, -1:]
    rank = (cumulative < target).sum(dim=-1, keepdim=True)
    above = torch.where(rank > 0, cumulative.gather(-1, (rank - 1).clamp(min=0)), 0.0)
    rows, found = (keys == (NUM_BINS - 1 - rank).to(keys.dtype)).nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(shifted))
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    size = (len(shifted), int(counts.max()) if len(counts) else 0)
    candidates = shifted.new_full(size, -math.inf)
    candidates[rows, place] = shifted[rows, found]
    columns = found.new_zeros(size)
    columns[rows, place] = found
    return target, above, candidates, columns
