"""Step time of RLVRTrainer against plain trl.GRPOTrainer, and what Lp-Reg and SIREN add: alternating in one run.

    python scripts/bench_step.py [--model MODEL] [--rounds 8] [--steps 3] [--output docs/benchmarks/step.json]

Each round trains all three (TRL, ours, ours with Lp-Reg and SIREN) for the same number of steps from the same weights
with the same batch and reward; the order alternates from round to round. The figures to read are the ratios per round:
TRL / ours (above 1: ours is faster) and regularised / ours (what the two regularisers cost). The learning rate is so
small that completions keep their lengths.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from rlvr.config.regularizers import RegularizersConfig
from rlvr.config.schema import AlgorithmConfig, DataConfig, DataSource, ModelConfig, RewardsConfig
from rlvr.data import build_dataset, load_rows
from rlvr.model import load_policy, load_tokenizer
from rlvr.objectives.regularizers import build_regularizers
from rlvr.trainer import RLVRTrainer
from rlvr.verification import RewardFunction, load_reward

REGULARISED = "rlvr + lp_reg + siren"
KINDS = ("trl", "rlvr", REGULARISED)
REGULARIZERS = {"lp_reg": {}, "siren": {}}
SOURCE = "reasoning_gym://chain_sum?min_terms=2&max_terms=8&max_digits=1&seed=1&size=2000"


def arguments(folder: str, steps: int, options: argparse.Namespace) -> GRPOConfig:
    return GRPOConfig(
        output_dir=folder,
        num_generations=8,
        per_device_train_batch_size=options.rows,
        gradient_accumulation_steps=options.accumulation,
        max_completion_length=96,
        max_steps=steps,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.28,
        beta=0.0,
        bf16=torch.cuda.is_available() and not options.float32,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )


def build(kind: str, folder: str, steps: int, options: argparse.Namespace, data: Dataset, reward: Any) -> GRPOTrainer:
    model_config = ModelConfig(path=options.model)
    model, tokenizer = load_policy(model_config), load_tokenizer(model_config)
    if kind == "trl":
        return GRPOTrainer(
            model=model,
            reward_funcs=[reward],
            args=arguments(folder, steps, options),
            train_dataset=data,
            processing_class=tokenizer,
        )
    return RLVRTrainer(
        model,
        arguments(folder, steps, options),
        algorithm=AlgorithmConfig(preset="dapo").resolved(),
        regularizers=build_regularizers(RegularizersConfig.model_validate(REGULARIZERS if kind == REGULARISED else {})),
        reward_functions=[RewardFunction("reasoning_gym", 1.0, reward)],
        rewards=RewardsConfig.model_validate({"functions": ["reasoning_gym"]}),
        train_dataset=data,
        processing_class=tokenizer,
    )


def seconds_per_step(trainer: GRPOTrainer, steps: int) -> float:
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    return (time.perf_counter() - started) / steps


def spread(numerators: list[float], denominators: list[float]) -> dict[str, float]:
    """Median, minimum and maximum of the ratios within each round."""
    ratios = [n / d for n, d in zip(numerators, denominators, strict=True)]
    return {"median": round(statistics.median(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin://starter")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64, help="completions per micro-batch")
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--float32", action="store_true", help="on a GPU too, where it is else bf16")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    transformers.logging.set_verbosity_error()
    data_config = DataConfig(train=DataSource(dataset=SOURCE), template="solve {metadata[expression]} =")
    rows = load_rows(data_config.train, Path.cwd(), "bench")
    data = build_dataset(rows, data_config, load_tokenizer(ModelConfig(path=options.model)), "bench")
    reward = load_reward("reasoning_gym", {}, Path.cwd())
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for number in track(range(options.rounds + 1), description="rounds"):
            for kind in KINDS if number % 2 else reversed(KINDS):
                trainer = build(kind, folder, options.steps, options, data, reward)
                seconds = seconds_per_step(trainer, options.steps)
                if number:  # the first round warms caches up
                    times[kind].append(seconds)

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    facts = {
        "machine": f"{platform.machine()}, {device}",
        "versions": {"torch": torch.__version__, "trl": trl.__version__, "transformers": transformers.__version__},
        "model": options.model,
        "precision": "bf16" if torch.cuda.is_available() and not options.float32 else "float32",
        "completions_per_step": options.rows * options.accumulation,
        "rounds": options.rounds,
        "steps_per_round": options.steps,
        "seconds_per_step": {kind: round(statistics.median(values), 4) for kind, values in times.items()},
        "trl / rlvr": spread(times["trl"], times["rlvr"]),
        "regularised / rlvr": spread(times[REGULARISED], times["rlvr"]),
    }
    table = Table("trainer", "median seconds per step", title=facts["machine"])
    for kind, seconds in facts["seconds_per_step"].items():
        table.add_row(kind, f"{seconds:.3f}")
    console = Console()
    console.print(table)
    for name in ("trl / rlvr", "regularised / rlvr"):
        console.print(f"{name} per round: median {facts[name]['median']}, {facts[name]['min']} to {facts[name]['max']}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
