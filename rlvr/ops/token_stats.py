"""Per-token statistics of the full-vocabulary distribution, one tile of tokens at a time.

Legend: N tokens, H hidden size, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TILE_BYTES = 2**28  # float32 logits of one tile


@dataclass(frozen=True)
class TokenStats:
    logprobs: Tensor  # [N] log-probability of the target
    entropy: Tensor  # [N] entropy of the full distribution, nats


def default_tile_tokens(vocab_size: int) -> int:
    return max(1, TILE_BYTES // (4 * vocab_size))


def token_stats(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, temperature: float, tile_tokens: int
) -> TokenStats:
    """Log-probability of `targets` and full-vocabulary entropy under softmax((hidden weight^T + bias) / temperature).

    hidden [N, H], weight [V, H], bias [V] or None, targets [N] int64. At most `tile_tokens` rows of logits exist at a
    time: with more than one tile, each is computed again in the backward pass. Statistics are float32 (float64 for
    float64 input) whatever the dtype of the weights.
    """
    if hidden.shape[0] <= tile_tokens:
        return TokenStats(*_tile(hidden, weight, bias, targets, temperature))
    tiles = [
        checkpoint(_tile, h, weight, bias, t, temperature, use_reentrant=False, preserve_rng_state=False)
        for h, t in zip(hidden.split(tile_tokens), targets.split(tile_tokens), strict=True)
    ]
    logprobs, entropy = zip(*tiles, strict=True)
    return TokenStats(torch.cat(logprobs), torch.cat(entropy))


def _tile(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    # Rounding log-probabilities to bfloat16 biases the ratio, so everything after the product is at least float32.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    log_probs = torch.log_softmax(logits, dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    return log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy
