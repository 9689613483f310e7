"""Bytes of what passes through the model, read off the operations of transformers' Llama and Qwen3 layers.

Legend: n tokens of the padded micro-batch, S tokens of a row, N completion tokens, H hidden size, Q and K sizes of all
query and of all key-value heads, I intermediate size, V vocabulary, e bytes of a weight (2 or 4). Under autocast the
products are bfloat16 (2 bytes), norms compute in float32 (4 bytes), and the residual stream has the weights' dtype (e).
Attention is `sdpa` with a mask, as prompts differ in length: keys and values are then repeated for every query head.
"""

from rlvr.ops.token_stats import DEVICE_BLOCK_BYTES, default_tile_tokens
from rlvr.scaling.architecture import (
    Architecture,
    adapter_parameters,
    embedding_parameters,
    linear_parameters,
    linear_shapes,
)
from rlvr.scaling.workload import Workload

HALF, FULL = 2, 4  # bytes of a bfloat16 and of a float32


def layer_saved(sizes: Architecture, work: Workload) -> float:
    """What one layer keeps for its backward pass. Per token, with everything trained:

        norms      2 (4 + e) H + 8            the input in float32, normalised before the norm's weight, its scale
        inputs     2 H + 2 H                  of query, key, value; of gate and up (of each of the five if e = 4)
        head norms 6 (Q + K) + 4 heads        where there are any, of query and key heads
        attention  8 Q + 4 query heads        query, key and value repeated to Q, output (the input of its map); sums
        MLP        8 I                        gate, its activation, up, their product (the input of down)
        mask       2 S                        of attention, added to the scores

    With LoRA the norms' weights are frozen, which leaves 4 H + 4 for each and 4 (Q + K) + 4 heads, and every adapted
    map keeps a copy of its input: 2 (3 H + Q + 2 H + I) in place of the shared inputs and of the product in the MLP;
    also 2 rank for each, and once per layer bfloat16 copies of the adapters.
    """
    h, q, k, i = sizes.hidden, sizes.query, sizes.key, sizes.intermediate
    attention = 4 * HALF * q + FULL * sizes.heads + HALF * work.length
    scales = FULL * (2 + (sizes.heads + sizes.kv_heads if sizes.head_norms else 0))
    heads = q + k if sizes.head_norms else 0
    if work.lora_rank is None:
        norms = 2 * (FULL + work.weight_bytes) * h + (FULL + HALF) * heads + scales
        inputs = HALF * h * (2 if work.weights == "bfloat16" else 5)
        return float(work.tokens * (norms + inputs + attention + 4 * HALF * i))
    shapes = linear_shapes(sizes)
    inputs = HALF * sum(n for n, _ in shapes) + HALF * work.lora_rank * len(shapes)
    norms = 2 * FULL * h + FULL * heads + scales
    copies = HALF * adapter_parameters(sizes, work.lora_rank) / sizes.layers
    return work.tokens * (norms + inputs + attention + 3 * HALF * i) + copies


def layer_input(sizes: Architecture, work: Workload) -> float:
    """All that a checkpointed layer keeps: e H per token."""
    return float(work.weight_bytes * work.tokens * sizes.hidden)


def activations(sizes: Architecture, work: Workload) -> float:
    """What the forward pass leaves for the backward pass: that of every layer, the final norm's, and the mask (S)."""
    h = sizes.hidden
    ends = work.tokens * ((FULL + 2 * work.weight_bytes) * h + work.length)
    one = layer_input(sizes, work) if work.checkpointing else layer_saved(sizes, work)
    return sizes.layers * one + ends


def forward_work(sizes: Architecture, tokens: int) -> float:
    """Temporaries of a layer in a pass without gradient: 8 H for the residual and the input, then the larger of the
    MLP's 6 I, a norm's 12 H and attention's 14 Q, per token."""
    return float(tokens * (8 * sizes.hidden + max(6 * sizes.intermediate, 12 * sizes.hidden, 14 * sizes.query)))


def layer_gradients(sizes: Architecture, work: Workload) -> float:
    """Gradients that are alive while they pass a layer: 12 H and the larger of 6 I and 14 Q, per token."""
    return float(work.tokens * (12 * sizes.hidden + max(6 * sizes.intermediate, 14 * sizes.query)))


def backward_work(sizes: Architecture, work: Workload) -> float:
    """All that is there of a checkpointed layer as the gradient passes it: what it saves, computed again, and these
    gradients."""
    return layer_saved(sizes, work) + layer_gradients(sizes, work)


def cast_weights(sizes: Architecture, work: Workload) -> float:
    """The bfloat16 copies that autocast makes of float32 weights and keeps during a pass: 2 bytes for each."""
    return float(HALF * linear_parameters(sizes)) if work.weights == "float32" else 0.0


def _tile(sizes: Architecture, work: Workload, buffers: int) -> float:
    """A tile of logits in bfloat16, and so many float32 blocks of its rows (`rlvr.ops.token_stats`)."""
    rows = min(work.batch * work.completion_length, default_tile_tokens(sizes.vocab))
    block = min(rows, max(1, DEVICE_BLOCK_BYTES // (FULL * sizes.vocab)))
    return float(HALF * rows * sizes.vocab + buffers * FULL * block * sizes.vocab)


def head_forward(sizes: Architecture, work: Workload) -> float:
    """The tiled head without gradient: the hidden states of N completion tokens, one tile and three blocks.

    Logits of all tokens would be N V; a tile has 2^28 / (4 V) rows, whatever N is.
    """
    cast = HALF * embedding_parameters(sizes) if work.weights == "float32" else 0
    return work.batch * work.completion_length * HALF * sizes.hidden + _tile(sizes, work, 3) + cast


def head_backward(sizes: Architecture, work: Workload) -> float:
    """The tiled head's backward pass: hidden states (2 N H), their gradient (4 N H, then 2 N H), a tile with four
    blocks, and where the head is trained the sum of its gradient (4 H V), given back in the weights' dtype (2 H V)."""
    states = work.batch * work.completion_length * sizes.hidden
    ends = embedding_parameters(sizes)
    cast = 2 * HALF * ends if work.weights == "float32" else 0
    if work.lora_rank is not None:
        return 8 * states + _tile(sizes, work, 4) + cast
    given_back = HALF * ends if work.weights == "bfloat16" else 0
    return 8 * states + FULL * ends + max(_tile(sizes, work, 4) + cast, given_back)


def kv_cache(sizes: Architecture, work: Workload) -> float:
    """Keys and values of all rollouts at full length, L 2 K of the weights' dtype per token; and those of one layer
    twice, as a step's keys and values are put behind the old ones in new memory."""
    return float((sizes.layers + 1) * 2 * sizes.key * work.weight_bytes * work.rollout_rows * work.length)


def generation(sizes: Architecture, work: Workload) -> float:
    """Temporaries of sampling: the pass over the prompts, or float32 logits of one token of every row three times
    (as computed, as a copy, as probabilities)."""
    prompts = forward_work(sizes, work.rollout_rows * work.prompt_length)
    return max(prompts, 3.0 * FULL * work.rollout_rows * sizes.vocab)
