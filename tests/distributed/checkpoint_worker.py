"""Trains two steps and saves their checkpoint and the whole weights: checkpoint_worker.py FOLDER PROCESSES CASE...

By AdamW, so that the engine's checkpoint holds more than the weights. The checkpoint and `after` are of the same step.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen3ForCausalLM

from tests.conftest import tiny_model
from tests.distributed.sharded_worker import prepared_engine
from tests.distributed.worker import one_step_trainer

STEPS = 2
CASES = ("tied", "frozen")
ZERO_CASES = (*CASES, "buffer", "bf16")  # FSDP2 as accelerate prepares it takes no buffers


def model_for(case: str) -> PreTrainedModel:
    """A policy of which two ranks cannot share most tensors evenly; the same on every rank.

    With its head tied, or else with a first layer that is not trained, or a buffer that is saved; "bf16" has both.
    """
    model = tiny_model(hidden_size=15)
    if case == "tied":
        return model
    model.config.tie_word_embeddings = False
    torch.manual_seed(1)
    model = Qwen3ForCausalLM(model.config)
    if case in ("frozen", "bf16"):
        model.model.layers[0].requires_grad_(False)
    if case in ("buffer", "bf16"):
        model.model.register_buffer("counted", torch.arange(5))
    return model


def train(folder: Path, case: str, processes: int, options: Mapping[str, Any]) -> None:
    saving = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": STEPS, "learning_rate": 0.01}
    saving |= {"bf16": case == "bf16"}
    trainer = one_step_trainer(folder, "dapo", processes, model_for(case), **(saving | options))
    trainer.train()
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.accelerator.is_main_process:  # the trainer would save nothing where the engine writes shards
        model_for(case).save_pretrained(folder / "after", state_dict=weights)


if __name__ == "__main__":
    engine_options = prepared_engine()
    for each in sys.argv[3:]:
        train(Path(sys.argv[1]) / each, each, int(sys.argv[2]), engine_options)
