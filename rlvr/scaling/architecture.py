"""The sizes of a decoder-only transformer, and how many parameters they make.

Legend: H hidden size, L layers, I intermediate size, V vocabulary, Q = heads x head size, K = key-value heads x head
size. A layer is attention (H x Q, twice H x K, Q x H) and a gated MLP (three of H x I) with a norm before each.
"""

import json
import math
import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlvr.config.problems import nearest
from rlvr.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """Sizes of a dense decoder with a gated MLP."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool  # the head is the embedding
    head_norms: bool = False  # queries and keys are normalised per head

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        return self.kv_heads * self.head_dim


def linear_shapes(sizes: Architecture) -> list[tuple[int, int]]:
    """(in, out) of the linear maps of one layer: query, key, value, output, gate, up, down."""
    h, q, k, i = sizes.hidden, sizes.query, sizes.key, sizes.intermediate
    return [(h, q), (h, k), (h, k), (q, h), (h, i), (h, i), (i, h)]


def linear_parameters(sizes: Architecture) -> int:
    """Weights of the linear maps of all layers: L (2 H Q + 2 H K + 3 H I)."""
    return sizes.layers * sum(n * m for n, m in linear_shapes(sizes))


def embedding_parameters(sizes: Architecture) -> int:
    """H V, the same number for the head."""
    return sizes.hidden * sizes.vocab


def parameters(sizes: Architecture) -> int:
    """All weights: the linear maps, the norms, the embedding and, unless it is the same, the head. Without biases."""
    norms = 2 * sizes.hidden + (2 * sizes.head_dim if sizes.head_norms else 0)
    ends = embedding_parameters(sizes) * (1 if sizes.tied else 2) + sizes.hidden
    return linear_parameters(sizes) + sizes.layers * norms + ends


def adapter_parameters(sizes: Architecture, rank: int) -> int:
    """LoRA (arXiv 2106.09685) on every linear map of every layer: rank (in + out) for each."""
    return sizes.layers * sum(rank * (n + m) for n, m in linear_shapes(sizes))


# As published in the config.json of each.
KNOWN: dict[str, Architecture] = {
    each.name: each
    for each in (
        Architecture("Qwen3-0.6B", 1024, 28, 16, 8, 128, 3072, 151_936, True, True),
        Architecture("Qwen3-1.7B", 2048, 28, 16, 8, 128, 6144, 151_936, True, True),
        Architecture("Qwen3-4B", 2560, 36, 32, 8, 128, 9728, 151_936, True, True),
        Architecture("Qwen3-8B", 4096, 36, 32, 8, 128, 12288, 151_936, False, True),
        Architecture("Qwen3-14B", 5120, 40, 40, 8, 128, 17408, 151_936, False, True),
        Architecture("Qwen3-32B", 5120, 64, 64, 8, 128, 25600, 151_936, False, True),
        Architecture("Qwen2.5-0.5B", 896, 24, 14, 2, 64, 4864, 151_936, True),
        Architecture("Qwen2.5-1.5B", 1536, 28, 12, 2, 128, 8960, 151_936, True),
        Architecture("Qwen2.5-3B", 2048, 36, 16, 2, 128, 11_008, 151_936, True),
        Architecture("Qwen2.5-7B", 3584, 28, 28, 4, 128, 18_944, 152_064, False),
        Architecture("Qwen2.5-14B", 5120, 48, 40, 8, 128, 13_824, 152_064, False),
        Architecture("Qwen2.5-32B", 5120, 64, 40, 8, 128, 27_648, 152_064, False),
        Architecture("Qwen2.5-72B", 8192, 80, 64, 8, 128, 29_568, 152_064, False),
        Architecture("Llama-3.2-1B", 2048, 16, 32, 8, 64, 8192, 128_256, True),
        Architecture("Llama-3.2-3B", 3072, 28, 24, 8, 128, 8192, 128_256, True),
        Architecture("Llama-3.1-8B", 4096, 32, 32, 8, 128, 14_336, 128_256, False),
        Architecture("Llama-3.1-70B", 8192, 80, 64, 8, 128, 28_672, 128_256, False),
    )
}

# Between which a size without an architecture is placed: one family, continued by the next larger public model.
LADDER = [KNOWN[f"Qwen3-{size}"] for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B")] + [KNOWN["Qwen2.5-72B"]]
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([BM])", re.IGNORECASE)
UNITS = {"B": 1e9, "M": 1e6}
STEP = 128  # hidden sizes are multiples of it
CLOSE = 0.02  # relative difference at which a size means a model of the ladder


def parse_size(text: str) -> float:
    """Parameters of a size such as 7B, 0.6B or 350M. Raises UserError for anything else."""
    found = SIZE.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise UserError(f"--model-size {text!r} is no size; give a number and B or M, such as 7B or 0.6B.")
    return float(found[1]) * UNITS[found[2].upper()]


def of_size(text: str) -> Architecture:
    """A plausible architecture of so many parameters: a model of the ladder, or one interpolated between two of them.

    Between neighbours hidden size, layers and heads are interpolated geometrically in the number of parameters, the
    rest is the nearer one's, and the intermediate size takes up what is left. Raises UserError for a size outside the
    ladder.
    """
    wanted = parse_size(text)
    for each in LADDER:
        if wanted == parse_size(each.name.rpartition("-")[2]) or abs(parameters(each) / wanted - 1) < CLOSE:
            return each
    totals = [parameters(each) for each in LADDER]
    place = bisect_left(totals, wanted)
    if place in (0, len(LADDER)):
        bounds = f"{totals[0] / 1e9:.1f}B and {totals[-1] / 1e9:.1f}B"
        raise UserError(f"--model-size {text} is not between {bounds}; give --model a folder with a config.json.")
    below, above = LADDER[place - 1], LADDER[place]
    share = math.log(wanted / totals[place - 1]) / math.log(totals[place] / totals[place - 1])

    def between(low: int, high: int, step: int) -> int:
        return max(step, round(math.exp((1 - share) * math.log(low) + share * math.log(high)) / step) * step)

    rough = replace(
        below if share < 0.5 else above,
        name=f"{text.strip()}, interpolated between {below.name} and {above.name}",
        hidden=between(below.hidden, above.hidden, STEP),
        layers=between(below.layers, above.layers, 1),
        heads=between(below.heads, above.heads, below.kv_heads),
        intermediate=0,
    )
    left = (wanted - parameters(rough)) / (3 * rough.hidden * rough.layers)
    return replace(rough, intermediate=max(STEP, round(left / STEP) * STEP))


HEAD_NORMS = ("qwen3", "gemma3_text")
TIED_UNLESS_SAID = ("gemma", "gemma2", "gemma3_text")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def of_config(config: Mapping[str, Any], name: str) -> Architecture:
    """The architecture of a config.json. Raises UserError for one that is no dense decoder."""
    text: Mapping[str, Any] = config.get("text_config", config)
    family = text.get("model_type", "")
    if any(text.get(key) for key in EXPERTS):
        raise UserError(f"{name} is a mixture of experts, whose memory is not estimated; give a dense model.")
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    for key in needed:
        if not isinstance(text.get(key), int) or text[key] < 1:
            raise UserError(
                f"{name} has no usable {key}, which the estimate needs; give a dense decoder's config.json."
            )
    heads = text["num_attention_heads"]
    return Architecture(
        name=name,
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or text["hidden_size"] // heads,
        intermediate=text["intermediate_size"],
        vocab=text["vocab_size"],
        tied=text.get("tie_word_embeddings", family in TIED_UNLESS_SAID),
        head_norms=family in HEAD_NORMS,
    )


def of_model(model: str) -> Architecture:
    """The architecture of a local folder or config.json, or of a known Hub id. Raises UserError for anything else."""
    path = Path(model).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if file.is_file():
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"--model: {file} is no JSON file ({error}); give a saved model's folder.") from error
        if not isinstance(config, dict):
            raise UserError(f"--model: {file} holds no mapping; give a saved model's folder.")
        return of_config(config, str(file))
    name = path.name
    if name not in KNOWN:
        advice = nearest(name, KNOWN, f"known without one are {', '.join(KNOWN)}.")
        raise UserError(f"--model: {model!r} is no folder with a config.json and no known model; {advice}")
    return KNOWN[name]
