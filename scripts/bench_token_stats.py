"""Time and peak memory of `token_stats`, forward and backward, beside TRL's fused head and full logits.

    python scripts/bench_token_stats.py [--tokens 4096] [--rounds 1] [--skip-full] [--output FILE]

Ours computes log-probability, entropy, nucleus entropy (0.8) and min-p statistics (0.02); TRL's fused head (through
`add_fused_lm_head`) and the full logits only log-probability and entropy. Every measurement is a process of its own, so
that its peak memory is its own: on the CPU the growth of the largest resident size over the one before the call, on
CUDA the largest allocation over the one before. The cases alternate; the figures to read are the ratios.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
import trl
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from trl.trainer.utils import add_fused_lm_head

from rlvr.ops.token_stats import StatsRequest, default_tile_tokens, token_stats

VOCAB_SIZE, HIDDEN_SIZE = 151_936, 1_024
REQUEST = StatsRequest(entropy=True, nucleus_p=0.8, min_p=0.02)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class HeadOnly(nn.Module):
    """As much of a causal language model as TRL's patch needs: a backbone that returns given hidden states."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(model_type="head_only"))
        self.base_model = nn.Identity()
        self.base_model.forward = lambda hidden, use_cache: SimpleNamespace(last_hidden_state=hidden)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


def ours(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    tile_tokens = default_tile_tokens(len(head.weight))
    stats = token_stats(hidden, head.weight, None, targets, temperature=1.0, tile_tokens=tile_tokens, request=REQUEST)
    return stats.logprobs.sum() + 0.1 * stats.entropy.sum() + 0.1 * stats.nucleus_entropy.sum()


def trl_fused(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    model = HeadOnly(head)
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    output = model(hidden[None], fused_lm_head=True, shift_labels=targets[None])
    return output.log_probs.sum() + 0.1 * output.entropy.sum()


def full_logits(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    log_probs = torch.log_softmax(head(hidden), dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    return log_probs.gather(-1, targets[:, None]).sum() + 0.1 * entropy.sum()


CASES: dict[str, Callable[[Tensor, nn.Linear, Tensor], Tensor]] = {
    "ours": ours,
    "trl": trl_fused,
    "full": full_logits,
}


def measure(case: str, tokens: int, logit_std: float) -> dict[str, float]:
    """Seconds and peak bytes of one forward and backward pass in this process."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    head = nn.Linear(HIDDEN_SIZE, VOCAB_SIZE, bias=False, device=DEVICE)
    nn.init.normal_(head.weight, std=logit_std / HIDDEN_SIZE**0.5, generator=generator)
    hidden = torch.randn(tokens, HIDDEN_SIZE, device=DEVICE, generator=generator).requires_grad_()
    targets = torch.randint(VOCAB_SIZE, (tokens,), device=DEVICE, generator=generator)
    if DEVICE == "cuda":
        CASES[case](hidden, head, targets).backward()  # kernels compile and load on first use
        hidden.grad = head.weight.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start, end = (
            torch.cuda.memory_allocated(),
            torch.cuda.Event(enable_timing=True),
            torch.cuda.Event(enable_timing=True),
        )
        start.record()
        CASES[case](hidden, head, targets).backward()
        end.record()
        torch.cuda.synchronize()
        return {
            "seconds": start.elapsed_time(end) / 1e3,
            "peak_bytes": torch.cuda.max_memory_allocated() - before,
        }
    # The first product sets up its threads and buffers, which belong to no case.
    (hidden[:1].detach() @ head.weight.detach()[:64].t()).exp()
    before = peak_resident_bytes()
    started = time.perf_counter()
    CASES[case](hidden, head, targets).backward()
    return {"seconds": time.perf_counter() - started, "peak_bytes": peak_resident_bytes() - before}


def peak_resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def in_own_process(case: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", case, "--tokens", str(options.tokens)]
    command += ["--logit-std", str(options.logit_std)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def facts_of(results: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    medians = {
        case: {name: statistics.median(run[name] for run in runs) for name in ("seconds", "peak_bytes")}
        for case, runs in results.items()
    }
    return {
        "machine": f"{platform.machine()}, {device}",
        "versions": {"torch": torch.__version__, "trl": trl.__version__, "transformers": transformers.__version__},
        "shape": {"tokens": options.tokens, "vocabulary": VOCAB_SIZE, "hidden": HIDDEN_SIZE, "dtype": "float32"},
        "logit_std": options.logit_std,
        "rounds": options.rounds,
        "median": medians,
        "runs": results,
        "ours_over": {
            case: {name: round(medians["ours"][name] / values[name], 3) for name in values}
            for case, values in medians.items()
            if case != "ours"
        },
    }


def show(facts: dict[str, Any]) -> None:
    console = Console()
    table = Table("case", "seconds", "peak MiB", "ours / it: time", "ours / it: memory", title=facts["machine"])
    for case, values in facts["median"].items():
        ratios = facts["ours_over"].get(case, {"seconds": 1.0, "peak_bytes": 1.0})
        table.add_row(
            case,
            f"{values['seconds']:.2f}",
            f"{values['peak_bytes'] / 2**20:.0f}",
            f"{ratios['seconds']:.3f}",
            f"{ratios['peak_bytes']:.3f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--logit-std", type=float, default=1.0, help="1: flat, as when initialised; 5: as when trained")
    parser.add_argument("--skip-full", action="store_true", help="no full logits: 10 GiB at 4,096 tokens")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.tokens, options.logit_std)))
        return
    cases = [case for case in CASES if case != "full" or not options.skip_full]
    results: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    for number in track(range(options.rounds), description="rounds"):
        for case in cases if number % 2 == 0 else reversed(cases):
            results[case].append(in_own_process(case, options))
    facts = facts_of(results, options)
    show(facts)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
