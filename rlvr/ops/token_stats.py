"""Per-token statistics of the full-vocabulary distribution, one tile of tokens at a time.

Legend: N tokens, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlvr.ops.head_rows import LogitRule, StatsRequest, row_gradient, row_stats

__all__ = ["StatsRequest", "TokenStats", "default_tile_tokens", "token_stats"]

TILE_BYTES = 2**28  # float32 logits of one tile
# Within a tile, rows are worked on in blocks: of cache size on the CPU, large enough to fill the device elsewhere.
CPU_BLOCK_BYTES, DEVICE_BLOCK_BYTES = 2**21, 2**27

LOGPROBS = StatsRequest(entropy=False)
LOGPROBS_AND_ENTROPY = StatsRequest()

OUTPUTS = ("logprobs", "entropy", "nucleus_entropy", "log_kept_mass", "kept", "max_prob")
DIFFERENTIABLE = ("logprobs", "entropy", "nucleus_entropy")
FOR_BACKWARD = ("highest", "log_total", "entropy", "nucleus_entropy", "nucleus_mass", "cut", "tie_bound")


@dataclass(frozen=True)
class TokenStats:
    """Statistics of softmax(logits / temperature); None where not asked for."""

    logprobs: Tensor  # [N] log-probability of the target
    entropy: Tensor | None = None  # [N] entropy of the full distribution, nats
    nucleus_entropy: Tensor | None = None  # [N] entropy of the renormalised nucleus, nats; its membership is constant
    log_kept_mass: Tensor | None = None  # [N] log of the mass of the kept tokens, -inf if there are none; no gradient
    kept: Tensor | None = None  # [N] bool, whether the target is kept
    max_prob: Tensor | None = None  # [N] largest probability (with min_p only); no gradient

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "TokenStats":
        """Every statistic that is there, changed."""
        return TokenStats.joined([self], lambda values: change(values[0]))

    @staticmethod
    def joined(parts: "Sequence[TokenStats]", join: Callable[[list[Tensor]], Tensor]) -> "TokenStats":
        """Every statistic that all parts have, joined."""

        def of(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if any(value is None for value in values) else join(values)

        return TokenStats(*(of(name) for name in OUTPUTS))


def default_tile_tokens(vocab_size: int) -> int:
    return max(1, TILE_BYTES // (4 * vocab_size))


def token_stats(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float,
    tile_tokens: int,
    request: StatsRequest = LOGPROBS_AND_ENTROPY,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> TokenStats:
    """Log-probability of `targets` and the requested statistics of softmax(cap(logit_scale logits) / temperature).

    hidden [N, H], weight [V, H], bias [V] or None, targets [N] int64; logits = hidden W^T + b and
    cap(y) = softcap tanh(y / softcap). The nucleus and the kept tokens are those of the distribution after the division
    by the temperature. Rules of the nucleus: "standard", the fewest most likely tokens whose mass reaches p;
    "paper_code", those ranked before the first at which it does, which may be none (entropy 0, no gradient). Equal
    logits rank by index.

    At most `tile_tokens` rows of logits exist at a time; the backward pass computes each tile again. The matrix product
    runs in the dtype of the weights (or autocast's), everything after it in float32 (float64 for float64 input), the
    gradient of the weights is summed over the tiles in the latter. Differentiable once.
    """
    rule = LogitRule(temperature, logit_scale, softcap)
    return TokenStats(*_HeadStats.apply(hidden, weight, bias, targets, rule, request, tile_tokens))


class _HeadStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rule: LogitRule,
        request: StatsRequest,
        tile_tokens: int,
    ) -> tuple[Tensor | None, ...]:
        dtype = _product_dtype(weight)
        # Written in place: small results kept between large temporaries would fragment the heap to many times a tile.
        stats: dict[str, Tensor] = {}
        with torch.autocast(hidden.device.type, enabled=False):
            for start, tile in _tiles(hidden, weight, bias, dtype, tile_tokens):
                for block, rows in _blocks(start, tile):
                    for name, values in row_stats(block, targets[rows], rule, request).items():
                        stats.setdefault(name, values.new_empty(len(hidden)))[rows] = values
        ctx.saved_names = [name for name in FOR_BACKWARD if name in stats]
        ctx.save_for_backward(hidden, weight, bias, targets, *(stats[name] for name in ctx.saved_names))
        ctx.rule, ctx.tile_tokens, ctx.dtype = rule, tile_tokens, dtype
        # A statistic that does not enter the loss must not cost a pass over the tile.
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(stats[name] for name in OUTPUTS if name in stats and name not in DIFFERENTIABLE))
        return tuple(stats.get(name) for name in OUTPUTS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, *values = ctx.saved_tensors
        saved = dict(zip(ctx.saved_names, values, strict=True))
        wide = torch.promote_types(ctx.dtype, torch.float32)
        upstream = {name: grad.to(wide) for name, grad in zip(OUTPUTS, grads, strict=True) if grad is not None}
        for_hidden, for_weight, for_bias = (
            torch.zeros_like(value, dtype=wide) if needed else None
            for value, needed in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        )
        with torch.autocast(hidden.device.type, enabled=False):
            narrow_weight = weight.to(ctx.dtype)
            for start, tile in _tiles(hidden, weight, bias, ctx.dtype, ctx.tile_tokens):
                for block, rows in _blocks(start, tile):
                    row_gradient(block, targets[rows], ctx.rule, _at(saved, rows), _at(upstream, rows))
                rows = slice(start, start + len(tile))
                if for_hidden is not None:
                    for_hidden[rows] = tile @ narrow_weight
                if for_weight is not None:
                    _add_product(for_weight, tile.t(), hidden[rows].to(ctx.dtype))
                if for_bias is not None:
                    for_bias += tile.sum(dim=0, dtype=wide)
        return (
            None if for_hidden is None else for_hidden.to(hidden.dtype),
            None if for_weight is None else for_weight.to(weight.dtype),
            None if for_bias is None else for_bias.to(bias.dtype),
            *(None,) * 4,
        )


def _product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of the matrix product: autocast's where it is on (it leaves float64 alone), else the weights' own."""
    if torch.is_autocast_enabled(weight.device.type) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


def _tiles(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, tile_tokens: int
) -> Iterator[tuple[int, Tensor]]:
    """(first token, hidden W^T + b of its tile), each tile in the same memory; one empty tile if there is no token."""
    transposed = weight.to(dtype).t()
    bias = None if bias is None else bias.to(dtype)
    memory = hidden.new_empty((min(len(hidden), tile_tokens), len(weight)), dtype=dtype)
    for start in range(0, max(len(hidden), 1), tile_tokens):
        rows = hidden[start : start + tile_tokens].to(dtype)
        tile = memory[: len(rows)]
        if bias is None:
            torch.mm(rows, transposed, out=tile)
        else:
            torch.addmm(bias, rows, transposed, out=tile)
        yield start, tile


def _blocks(start: int, tile: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Blocks of the tile's rows with the tokens they belong to."""
    num_bytes = CPU_BLOCK_BYTES if tile.device.type == "cpu" else DEVICE_BLOCK_BYTES
    size = max(1, num_bytes // (4 * tile.shape[1]))
    for first in range(0, max(len(tile), 1), size):
        block = tile[first : first + size]
        yield block, slice(start + first, start + first + len(block))


def _at(values: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in values.items()}


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without rounding the product to the factors' dtype first."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.device.type == "cuda":
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
