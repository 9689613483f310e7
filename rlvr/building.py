"""The parts of a run, from its recipe."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers import ProgressCallback as HFProgressCallback
from trl import GRPOConfig

from rlvr.adapters import keep_small_steps, name_base, peft_settings
from rlvr.config import LoadedRecipe
from rlvr.config.schema import DataSource
from rlvr.data import build_dataset, load_rows
from rlvr.data.self_check import self_checked
from rlvr.engines import check_engine
from rlvr.errors import RecipeError
from rlvr.extrapolation.periodic import PeriodicJumps
from rlvr.guidance.build import Record, guidance_of
from rlvr.guidance.tools import Guide
from rlvr.model import load_policy, load_tokenizer
from rlvr.model_paths import is_adapter
from rlvr.objectives.regularizers import build_regularizers
from rlvr.sampling.dynamic import DynamicSampling
from rlvr.tools import Tools
from rlvr.trainer import RLVRTrainer
from rlvr.verification import RewardFunction, load_reward
from rlvr.watching.watch import Watch


@dataclass(frozen=True)
class Parts:
    """What can be wrong with a recipe's data and rewards shows while these are loaded, before any weights are."""

    tokenizer: PreTrainedTokenizerBase
    functions: list[RewardFunction]
    train_data: Dataset
    num_rows: int  # of the training source, those that were dropped too


@dataclass(frozen=True)
class HintRecord:
    """Appends every hint that was looked at, and what became of it, to a .jsonl file."""

    path: Path
    writes: bool  # on one process of the run

    def __call__(self, hint: dict[str, Any]) -> None:
        if self.writes:
            with self.path.open("a") as file:
                file.write(json.dumps(hint) + "\n")


def load_parts(loaded: LoadedRecipe, console: Console) -> Parts:
    """Raises UserError for data, rewards or references that are not in order, and for a policy that is an adapter."""
    source = loaded.recipe.data.train
    if is_adapter(path := loaded.recipe.model.path):
        raise RecipeError(
            f"model.path: {path!r} is an adapter, from which no run can start; merge it by `rlvr extrapolate weights"
            f" --base BASE --tuned {path} --alpha 1 --out MERGED` and give MERGED."
        )
    tokenizer = load_tokenizer(loaded.recipe.model)
    rows = load_rows(source, loaded.base_dir, "data.train")
    data = build_dataset(rows, loaded.recipe.data, tokenizer, f"data.train: {source.dataset}")
    num_rows = len(rows) if source.limit is None else sys.maxsize  # how many there are beyond the limit is not known
    functions = load_functions(loaded)
    return Parts(tokenizer, functions, self_checked(data, functions, loaded.recipe, console), num_rows)


def load_functions(loaded: LoadedRecipe) -> list[RewardFunction]:
    """The recipe's reward functions. Raises UserError for one that cannot be loaded."""
    return [
        RewardFunction(config.label, config.weight, load_reward(config.use, config.args, loaded.base_dir), config.clip)
        for config in loaded.recipe.rewards.functions
    ]


def build_trainer(
    loaded: LoadedRecipe,
    parts: Parts,
    callbacks: list[TrainerCallback],
    record: Record,
    jumps: PeriodicJumps | None = None,
) -> RLVRTrainer:
    """The trainer with the policy's weights; `record` is told of hints."""
    config = loaded.recipe.model
    # First, as DeepSpeed's settings have to be known for ZeRO-3 to shard weights while they are loaded.
    arguments = GRPOConfig(**trainer_arguments(loaded))
    check_engine(arguments, config.quantization)
    policy = load_policy(config)
    trainer = RLVRTrainer(
        policy,
        arguments,
        peft_config=None if config.lora is None else peft_settings(config, config.lora, policy),
        algorithm=loaded.algorithm,
        reward_functions=parts.functions,
        rewards=loaded.recipe.rewards,
        regularizers=build_regularizers(loaded.regularizers),
        guidance=_guidance(loaded, parts, record),
        dynamic=_dynamic(loaded, parts),
        jumps=jumps,
        watch=Watch(loaded.recipe.watch),
        train_dataset=parts.train_data,
        processing_class=parts.tokenizer,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(HFProgressCallback)
    if config.lora is not None:
        name_base(trainer.model, config)
        if config.quantization is not None:
            keep_small_steps(trainer.model)
    return trainer


def read_dataset(loaded: LoadedRecipe, source: DataSource, tokenizer: PreTrainedTokenizerBase, where: str) -> Dataset:
    """The prompts of a data source; `where` opens every message."""
    rows = load_rows(source, loaded.base_dir, where)
    return build_dataset(rows, loaded.recipe.data, tokenizer, f"{where}: {source.dataset}")


def trainer_arguments(loaded: LoadedRecipe) -> dict[str, Any]:
    """The recipe's trainer section plus the fields that other sections own."""
    model = loaded.recipe.model
    return {
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "use_cpu": not torch.accelerator.is_available(),  # or else accelerate runs each process for itself
        **loaded.trainer,
        "output_dir": str(loaded.output_dir),
        "beta": loaded.algorithm.kl_coef,  # makes TRL load the reference model
        "report_to": list(loaded.recipe.report.to),
        "trust_remote_code": model.trust_remote_code,
        # TRL loads the reference model of the KL penalty by itself: it must be the revision the policy starts from.
        "model_init_kwargs": {"revision": model.revision} if loaded.algorithm.kl_coef > 0 else None,
        "eval_strategy": "no",
    }


def _guidance(loaded: LoadedRecipe, parts: Parts, record: Record) -> Callable[[Tools], Guide] | None:
    """The guide stage of the recipe, given the trainer's tools; None where it has none."""
    if loaded.recipe.guidance is None:
        return None
    return guidance_of(
        loaded.recipe.guidance,
        parts.train_data,
        parts.functions,
        loaded.recipe.rewards,
        base_dir=loaded.base_dir,
        num_rows=parts.num_rows,
        max_prompt_length=loaded.recipe.data.max_prompt_length,
        seed=loaded.trainer["seed"],
        record=record,
    )


def _dynamic(loaded: LoadedRecipe, parts: Parts) -> Callable[[Tools], DynamicSampling] | None:
    """Dynamic sampling of the recipe, given the trainer's tools; None where it has none."""
    config, guidance = loaded.recipe.sampler.dynamic, loaded.recipe.guidance
    if config is None:
        return None
    threshold = None if guidance is None else guidance.threshold
    return lambda tools: DynamicSampling(
        config, parts.train_data, tools, left_to_guidance=threshold, seed=loaded.trainer["seed"]
    )
