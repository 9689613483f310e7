"""Time per token of extrapolated logits relative to decoding with one model.

    python scripts/bench_extrapolated_decoding.py [--rounds 5] [--starter] [--processor-time] [--output FILE.json]

A random Qwen3 of 6 layers of hidden size 512 and 8,192 tokens, or with `--starter` the built-in one of 0.9 million
parameters. Four contestants decode the same number of tokens, greedily and without an end: one model; two models; one
model with its LoRA adapter on all linear layers; and that with and without the adapter. They alternate, and a ratio is
between two that ran in the same round. Only decoding is timed, the prompt included; the first round does not count.
With `--processor-time` what other programs do on the same CPUs does not count either.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from rlvr.extrapolation.logits import ExtrapolatedLM
from rlvr.model_paths import resolve_model_path
from rlvr.progress_bars import progress_columns

LAYERS, HIDDEN, VOCABULARY, RANK = 6, 512, 8192, 16
PROMPT_TOKENS, NEW_TOKENS, BATCHES = 32, 64, (1, 8)
ALPHA, AIM = 1.5, 2.2
ONE, TWO, ADAPTER, WITH_AND_WITHOUT = "one model", "two models", "one with its adapter", "with and without adapter"
RELATIVE_TO = {TWO: ONE, WITH_AND_WITHOUT: ADAPTER}


def random_model(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 3 * HIDDEN, "num_hidden_layers": LAYERS, "head_dim": 64}
    config = Qwen3Config(vocab_size=VOCABULARY, num_attention_heads=HIDDEN // 64, num_key_value_heads=4, **sizes)
    return Qwen3ForCausalLM(config)


def contestants(uses_starter: bool, device: torch.device) -> dict[str, torch.nn.Module]:
    def model(seed: int) -> PreTrainedModel:
        if uses_starter:
            return AutoModelForCausalLM.from_pretrained(resolve_model_path("builtin://starter"))
        return random_model(seed)

    one, other = model(0), model(1)
    adapted = get_peft_model(model(0), LoraConfig(r=RANK, target_modules="all-linear"))
    found = {
        ONE: one,
        TWO: ExtrapolatedLM(other, one, ALPHA),
        ADAPTER: adapted,
        WITH_AND_WITHOUT: ExtrapolatedLM(None, adapted, ALPHA),
    }
    for each in found.values():
        each.to(device).eval().generation_config.eos_token_id = None
    return found


def milliseconds_per_token(model: torch.nn.Module, prompts: torch.Tensor, clock: Callable[[], float]) -> float:
    started = clock()
    tokens = model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    ).cpu()
    seconds = clock() - started
    assert tokens.shape[1] == PROMPT_TOKENS + NEW_TOKENS
    return 1000.0 * seconds / NEW_TOKENS


def measured(
    models: dict[str, torch.nn.Module], rounds: int, device: torch.device, clock: Callable[[], float]
) -> dict[int, dict[str, list[float]]]:
    """By batch size and contestant, the milliseconds per token of each round after the first."""
    times: dict[int, dict[str, list[float]]] = {batch: {name: [] for name in models} for batch in BATCHES}
    with Progress(*progress_columns(), transient=True) as progress:
        bar = progress.add_task("decode", total=len(BATCHES) * (rounds + 1) * len(models), note="")
        for batch in BATCHES:
            size = models[ONE].config.vocab_size
            prompts = torch.randint(3, size, (batch, PROMPT_TOKENS), device=device)
            for number in range(rounds + 1):
                for name in models if number % 2 == 0 else reversed(models):
                    taken = milliseconds_per_token(models[name], prompts, clock)
                    if number > 0:
                        times[batch][name].append(taken)
                    progress.advance(bar)
    return times


def table_of(times: dict[int, dict[str, list[float]]], title: str) -> Table:
    table = Table("", "batch", "ms per token", "ratio", title=title, caption=f"aim: ratios up to {AIM}")
    for batch, by_name in times.items():
        for name, values in by_name.items():
            spread = f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"
            ratio = ""
            if name in RELATIVE_TO:
                ratios = [own / other for own, other in zip(values, by_name[RELATIVE_TO[name]], strict=True)]
                ratio = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            table.add_row(name, str(batch), spread, ratio)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starter", action="store_true", help="the built-in model instead of a larger random one")
    parser.add_argument("--processor-time", action="store_true", help="not for models on an accelerator")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    disable_progress_bar()
    models = contestants(options.starter, device)
    clock = time.process_time if options.processor_time else time.perf_counter
    times = measured(models, options.rounds, device, clock)
    parameters = sum(each.numel() for each in models[ONE].parameters())
    where = f"{device.type}, {platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} CPUs"
    kind = "processor time" if options.processor_time else "wall clock"
    Console(width=100).print(table_of(times, f"{parameters / 1e6:.1f} million parameters, {where}, {kind}"))
    if options.output:
        facts = {"parameters": parameters, "alpha": ALPHA, "new_tokens": NEW_TOKENS, "machine": where, "clock": kind}
        options.output.write_text(json.dumps({**facts, "milliseconds_per_token": times}, indent=2) + "\n")


if __name__ == "__main__":
    main()
