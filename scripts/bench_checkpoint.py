"""What saving costs: the share of a run that saves every 50 steps, and what is in it beyond transformers' own saving.

    python scripts/bench_checkpoint.py [--model MODEL] [--steps 12] [--rows 64] [--output FILE]

A run trains with the settings of the quickstart and saves after every step, so that there are many saves to time. The
figure to read is median save / (50 median steps).
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
from bench_step import SOURCE, arguments
from rich.console import Console
from rich.progress import track
from transformers import PrinterCallback

from rlvr.checkpointing import progress
from rlvr.config.regularizers import RegularizersConfig
from rlvr.config.schema import AlgorithmConfig, DataConfig, DataSource, ModelConfig, RewardsConfig
from rlvr.data import build_dataset, load_rows
from rlvr.model import load_policy, load_tokenizer
from rlvr.objectives.regularizers import build_regularizers
from rlvr.trainer import RLVRTrainer
from rlvr.verification import RewardFunction, load_reward

SAVE_EVERY = 50


class TimedTrainer(RLVRTrainer):
    """Notes how long steps, saves and the sidecar of each take."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.steps: list[float] = []
        self.saves: list[float] = []
        self.sidecars: list[float] = []
        self.bytes = 0

    def training_step(self, *positional: Any, **named: Any) -> torch.Tensor:
        started = time.perf_counter()
        loss: torch.Tensor = super().training_step(*positional, **named)
        self.steps.append(time.perf_counter() - started)
        return loss

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        started = time.perf_counter()
        super()._save_checkpoint(model, trial)
        self.saves.append(time.perf_counter() - started)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            progress.save_progress(self._progress(), Path(folder), 0)
            self.sidecars.append(time.perf_counter() - started)
            self.bytes = (Path(folder) / progress.FILE.format(0)).stat().st_size


def measured(options: argparse.Namespace, folder: str) -> TimedTrainer:
    """A run of so many steps, with two optimiser steps to a generation, so that each other save holds completions."""
    data_config = DataConfig(train=DataSource(dataset=SOURCE), template="solve {metadata[expression]} =")
    rows = load_rows(data_config.train, Path.cwd(), "bench")
    model_config = ModelConfig(path=options.model)
    config = arguments(folder, options.steps, options)
    config.steps_per_generation = 2 * options.accumulation
    config.generation_batch_size = config.steps_per_generation * options.rows
    config.save_strategy, config.save_steps = "steps", 1
    trainer = TimedTrainer(
        load_policy(model_config),
        config,
        algorithm=AlgorithmConfig(preset="dapo").resolved(),
        regularizers=build_regularizers(RegularizersConfig.model_validate({"lp_reg": {}, "siren": {}})),
        reward_functions=[RewardFunction("reasoning_gym", 1.0, load_reward("reasoning_gym", {}, Path.cwd()))],
        rewards=RewardsConfig.model_validate({"functions": ["reasoning_gym"]}),
        train_dataset=build_dataset(rows, data_config, load_tokenizer(model_config), "bench"),
        processing_class=load_tokenizer(model_config),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin://starter")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows", type=int, default=64, help="completions per micro-batch")
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.set_defaults(float32=True)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        for _ in track([0], description="training"):
            trainer = measured(options, folder)
    micro = trainer.steps[2 * options.accumulation :]  # the first generation warms caches up
    step = statistics.mean(micro) * options.accumulation  # generating is in the first micro-batch of every second step
    save, sidecar = statistics.median(trainer.saves[1:]), statistics.median(trainer.sidecars[1:])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    facts = {
        "machine": f"{platform.machine()}, {device}",
        "versions": {"torch": torch.__version__, "trl": trl.__version__, "transformers": transformers.__version__},
        "model": options.model,
        "completions_per_step": options.rows * options.accumulation,
        "seconds": {"step": round(step, 4), "save": round(save, 4), "of it sidecar": round(sidecar, 4)},
        "sidecar_bytes": trainer.bytes,
        f"save / {SAVE_EVERY} steps": round(save / (SAVE_EVERY * step), 4),
    }
    Console().print(facts)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
