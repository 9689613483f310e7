"""A policy, a tokenizer and trainers small enough for every test, built in memory."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig

from rlvr.config.presets import PRESETS
from rlvr.config.regularizers import RegularizersConfig
from rlvr.config.schema import AlgorithmConfig, RewardsConfig
from rlvr.extrapolation.periodic import PeriodicJumps
from rlvr.guidance.tools import Guide
from rlvr.objectives.regularizers import build_regularizers
from rlvr.sampling.dynamic import DynamicSampling
from rlvr.tools import Tools
from rlvr.trainer import RLVRTrainer
from rlvr.verification import RewardFunction
from rlvr.watching.watch import Watch

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefghijklm"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def tiny_model(seed: int = 0, hidden_size: int = 16) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(WORDS),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def sharp(model: Qwen3ForCausalLM) -> Qwen3ForCausalLM:
    """The model with a confident next-token distribution."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6.0)
    return model


def letter_dataset(num_rows: int = 32) -> Dataset:
    """Prompts of 2 to 5 letters; the answer is the first one."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(num_rows):
        length = 2 + index % 4
        letters = [WORDS[3 + int(i)] for i in torch.randint(0, 13, (length,), generator=generator)]
        rows.append({"prompt": " ".join(letters), "prompt_id": index, "answer": letters[0]})
    return Dataset.from_list(rows)


def first_letter_reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 when the completion's first word is the answer."""
    return [float(c.split()[:1] == [a]) for c, a in zip(completions, answer, strict=True)]


def vowel_reward(completions: list[str], **_: Any) -> list[float]:
    """Share of vowels: varies within nearly every group, even of an untrained policy."""
    return [sum(word in "aei" for word in c.split()) / max(len(c.split()), 1) for c in completions]


def trainer_arguments(output_dir: Path, **changes: Any) -> GRPOConfig:
    values: dict[str, Any] = {
        "output_dir": str(output_dir),
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 6,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "bf16": False,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 7,
    }
    return GRPOConfig(**(values | changes))


@pytest.fixture
def frozen_heap() -> Iterator[None]:
    """Continuous batching collects garbage twice a call: 0.2 s each, all imported modules included."""
    gc.freeze()
    yield
    gc.unfreeze()


MakeTrainer = Callable[..., RLVRTrainer]


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    def make(
        preset: str = "dapo",
        reward: Callable[..., Any] = vowel_reward,
        model: Qwen3ForCausalLM | None = None,
        dataset: Dataset | None = None,
        algorithm: dict[str, Any] | None = None,
        regularizers: dict[str, Any] | None = None,
        guidance: Callable[[Tools], Guide] | None = None,
        dynamic: Callable[[Tools], DynamicSampling] | None = None,
        jumps: PeriodicJumps | None = None,
        watch: Watch | None = None,
        **changes: Any,
    ) -> RLVRTrainer:
        assert preset in PRESETS
        trainer = RLVRTrainer(
            model or tiny_model(),
            trainer_arguments(tmp_path, **changes),
            algorithm=AlgorithmConfig(preset=preset, **(algorithm or {})).resolved(),
            reward_functions=[RewardFunction("reward", 1.0, reward)],
            rewards=RewardsConfig.model_validate({"functions": [{"use": "exact", "name": "reward"}]}),
            regularizers=build_regularizers(RegularizersConfig.model_validate(regularizers or {})),
            guidance=guidance,
            dynamic=dynamic,
            jumps=jumps,
            watch=watch,
            train_dataset=dataset or letter_dataset(),
            processing_class=tiny_tokenizer(),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make
