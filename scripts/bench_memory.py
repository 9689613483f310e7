"""Peak GPU memory of real RLVRTrainer steps, stage by stage, against the estimate of `rlvr doctor --model-size`.

    python scripts/bench_memory.py [--shapes 0.15B 0.6B 1.7B 4B] [--output docs/benchmarks/memory.json]
    python scripts/bench_memory.py --hidden 1024 --layers 28 --heads 16 --kv-heads 8 --intermediate 3072
    python scripts/bench_memory.py --tiny          # runs the steps of a toy on any machine

Every shape is a Qwen3 with random bfloat16 weights on one GPU, trained whole with and without gradient checkpointing
and by adapters (LoRA) with it, for three optimiser steps: two on the first rollouts, so that log-probs of the weights
that sampled are scored too, and one on rollouts that are sampled when the optimiser already has its states. No
completion may end before its full length. Measured is what PyTorch's allocator handed out (reserved: what it holds,
which is more by fragmentation); the CUDA context of about half a GiB is in neither. The figures to read are the ratios
estimate / measured.
"""

import argparse
import gc
import json
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import accelerate
import peft
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, PrinterCallback, Qwen3Config, TrainerCallback
from trl import GRPOConfig

from rlvr.config.schema import AlgorithmConfig, ModelConfig, RewardsConfig
from rlvr.model import load_tokenizer
from rlvr.scaling.architecture import KNOWN, Architecture, of_config, parameters
from rlvr.scaling.estimate import STAGES, Estimate, estimate
from rlvr.scaling.workload import GIB, Workload
from rlvr.trainer import RLVRTrainer
from rlvr.types import Microbatch, Rollouts
from rlvr.verification import RewardFunction

SMALL = Architecture("0.15B", 512, 16, 8, 4, 128, 1536, 151_936, True, True)
TOY = Architecture("toy", 32, 2, 2, 1, 16, 64, 2000, True, True)
SHAPES = {"0.15B": SMALL, "toy": TOY} | {name: KNOWN[f"Qwen3-{name}"] for name in ("0.6B", "1.7B", "4B", "8B")}
CASES: dict[str, dict[str, Any]] = {
    "full, checkpointed": {"checkpointing": True},
    "full": {"checkpointing": False},
    "LoRA, checkpointed": {"checkpointing": True, "lora_rank": 16},
    "LoRA": {"checkpointing": False, "lora_rank": 16},
}
DEFAULT_CASES = ("full, checkpointed", "full", "LoRA, checkpointed")
STEPS, STEPS_PER_GENERATION = 3, 2


@dataclass
class Peaks:
    """The most that was allocated during each stage, over the steps; bytes."""

    allocated: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    reserved: float = 0.0

    def begin(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def end(self, stage: str) -> None:
        """Counts what was allocated since the last beginning to the stage, and begins anew."""
        if torch.cuda.is_available():
            self.allocated[stage] = max(self.allocated[stage], torch.cuda.max_memory_allocated())
            self.reserved = max(self.reserved, torch.cuda.max_memory_reserved())
        self.begin()


class MeasuredTrainer(RLVRTrainer):
    """The trainer with a mark at the end of every stage."""

    peaks: Peaks

    def rollout(self, rows: Sequence[Mapping[str, Any]]) -> Rollouts:
        self.peaks.begin()
        rollouts = super().rollout(rows)
        self.peaks.end("rollout")
        return rollouts

    def microbatches(self, rollouts: Rollouts, advantages: Any) -> list[Microbatch]:
        self.peaks.begin()
        batches = super().microbatches(rollouts, advantages)
        self.peaks.end("scoring")
        return batches


class StepMarks(TrainerCallback):
    """Forward and backward passes end where the optimiser begins, and the next begin where it ends."""

    def __init__(self, peaks: Peaks) -> None:
        self.peaks = peaks

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.peaks.end("loss")

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.peaks.end("optimiser")


def build_policy(sizes: Architecture, work: Workload, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
    config = Qwen3Config(
        vocab_size=sizes.vocab,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        max_position_embeddings=2 * work.length,
        tie_word_embeddings=sizes.tied,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    assert replace(of_config(config.to_dict(), sizes.name), name=sizes.name) == sizes
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    assert sum(each.numel() for each in model.parameters()) == parameters(sizes)
    if work.lora_rank is None:
        return model
    return get_peft_model(model, LoraConfig(r=work.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"))


def prompts_of(tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> Dataset:
    """Sums of `length` tokens and of three quarters in turn: like real prompts, they need a mask."""

    def text_of(num_tokens: int) -> str:
        text = "solve 1"
        while len(tokenizer(text + " + 1")["input_ids"]) <= num_tokens:
            text += " + 1"
        return text

    texts = [text_of(length), text_of(length * 3 // 4)]
    return Dataset.from_list([{"prompt": texts[i % 2], "prompt_id": i} for i in range(count)])


def every_other(completions: list[str], **_: Any) -> list[float]:
    """1 for every other completion, so that every group has an advantage."""
    return [float(index % 2) for index in range(len(completions))]


def arguments(folder: str, work: Workload) -> GRPOConfig:
    on_gpu = torch.cuda.is_available()
    return GRPOConfig(
        output_dir=folder,
        num_generations=work.group,
        per_device_train_batch_size=work.batch,
        gradient_accumulation_steps=work.accumulation,
        steps_per_generation=work.steps_per_generation,
        max_completion_length=work.completion_length,
        generation_kwargs={"min_new_tokens": work.completion_length},
        max_steps=STEPS,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        beta=0.0,
        bf16=on_gpu,
        gradient_checkpointing=work.checkpointing,
        top_k=0,
        shuffle_dataset=False,  # so that every generation has a long and a short prompt
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
    )


def measure(sizes: Architecture, work: Workload, tokenizer: PreTrainedTokenizerBase) -> Peaks:
    """Runs the steps; memory that was there before is not counted."""
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    with tempfile.TemporaryDirectory() as folder:
        trainer = MeasuredTrainer(
            build_policy(sizes, work, tokenizer),
            arguments(folder, work),
            algorithm=AlgorithmConfig(preset="dapo").resolved(),
            reward_functions=[RewardFunction("every_other", 1.0, every_other)],
            rewards=RewardsConfig.model_validate({"functions": ["every_other"], "workers": 0}),
            train_dataset=prompts_of(tokenizer, work.prompt_length, 4 * work.rollout_rows),
            processing_class=tokenizer,
        )
        trainer.peaks = Peaks()
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(StepMarks(trainer.peaks))
        trainer.train()
        assert set(trainer.latest_completions["num_tokens"]) == {work.completion_length}
    peaks = trainer.peaks
    return Peaks({stage: most - before for stage, most in peaks.allocated.items()}, peaks.reserved)


def released() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def facts_of(expected: Estimate, peaks: Peaks | None, seconds: float) -> dict[str, Any]:
    """GiB of the estimate and of the measurement, and their ratio; not measured where memory was too small."""
    stages = {
        stage: {
            "estimate_gib": round(expected.stages[stage].total / GIB, 3),
            "measured_gib": None if peaks is None else round(peaks.allocated[stage] / GIB, 3),
            "estimate / measured": (
                round(expected.stages[stage].total / peaks.allocated[stage], 3)
                if peaks is not None and peaks.allocated[stage]
                else None
            ),
        }
        for stage in STAGES
    }
    most = 0.0 if peaks is None else max(peaks.allocated.values())
    peak = {
        "estimate_gib": round(expected.peak / GIB, 3),
        "measured_gib": round(most / GIB, 3) if most else None,
        "estimate / measured": round(expected.peak / most, 3) if most else None,
        "reserved / measured": round(peaks.reserved / most, 3) if peaks is not None and most else None,
    }
    parts = {name: round(expected.largest(name) / GIB, 3) for name in vars(expected.stages["loss"])}
    return {"peak": peak, "stages": stages, "estimated_parts_gib": parts, "seconds": round(seconds, 1)}


def table_of(results: Sequence[Mapping[str, Any]], title: str) -> Table:
    table = Table("shape", "case", *STAGES, "peak", "reserved", title=f"{title}: measured GiB (estimate / measured)")
    for result in results:
        cells = [
            f"{each['measured_gib']:.2f} ({each['estimate / measured']:.2f})" if each["estimate / measured"] else "-"
            for each in (*(result["stages"][stage] for stage in STAGES), result["peak"])
        ]
        reserved = result["peak"]["reserved / measured"]
        table.add_row(result["shape"], result["case"], *cells, f"x {reserved:.2f}" if reserved else "-")
    return table


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=["0.15B", "0.6B", "1.7B", "4B"])
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), help="default: all but the last, all of the toy")
    for name, help_text in (
        ("hidden", "sizes of one shape of your own, in place of --shapes"),
        ("layers", ""),
        ("heads", ""),
        ("kv-heads", ""),
        ("intermediate", ""),
    ):
        parser.add_argument(f"--{name}", type=int, help=help_text or None)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--batch", type=int, default=8, help="completions of a micro-batch")
    parser.add_argument("--prompt-length", type=int, default=448, help="tokens")
    parser.add_argument("--completion-length", type=int, default=64, help="tokens")
    parser.add_argument(
        "--tiny", action="store_true", help="a toy, to see that the steps run; the defaults of the rest"
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.cases = options.cases or (CASES if options.tiny else DEFAULT_CASES)
    own = [options.hidden, options.layers, options.heads, options.kv_heads, options.intermediate]
    if any(own) and not all(own):
        parser.error("a shape of your own needs --hidden, --layers, --heads, --kv-heads and --intermediate")
    return options


def shapes_of(options: argparse.Namespace) -> list[Architecture]:
    if options.tiny:
        return [TOY]
    if options.hidden:
        sizes = (options.hidden, options.layers, options.heads, options.kv_heads, options.head_dim)
        return [Architecture("own", *sizes, options.intermediate, options.vocab, True, True)]
    return [SHAPES[name] for name in options.shapes]


def main() -> None:
    options = parsed()
    lengths = (16, 6) if options.tiny else (options.prompt_length, options.completion_length)
    work = Workload(options.batch, 8, 1, STEPS_PER_GENERATION, *lengths)
    transformers.logging.set_verbosity_error()
    tokenizer = load_tokenizer(ModelConfig(path="builtin://starter"))
    results = []
    runs = [(sizes, case) for sizes in shapes_of(options) for case in options.cases]
    for sizes, case in track(runs, description="shapes"):
        asked = replace(work, **CASES[case])
        started, peaks = time.perf_counter(), None
        try:
            peaks = measure(sizes, asked, tokenizer)
        except torch.OutOfMemoryError:
            pass  # reported as not measured; the estimate says by how much it was too large
        released()
        facts = facts_of(estimate(sizes, asked, 1, "single"), peaks, time.perf_counter() - started)
        results.append({"shape": sizes.name, "case": case, "parameters": parameters(sizes), **facts})

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    libraries = (torch, transformers, accelerate, trl, peft)
    facts = {
        "machine": f"{platform.machine()}, {device}",
        "versions": {each.__name__: each.__version__ for each in libraries},
        "workload": asdict(work),
        "steps": STEPS,
        "results": results,
    }
    console = Console(width=140)
    console.print(table_of(results, facts["machine"]))
    if not torch.cuda.is_available():
        console.print("There is no GPU, so nothing was measured; the steps ran.")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
