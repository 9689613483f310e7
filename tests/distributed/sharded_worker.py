"""Trains with plain SGD on the fixed rollouts and saves the whole weights: sharded_worker.py FOLDER PROCESSES CASE...

Engines that shard gradients do not show them; the step of plain SGD, (weights before - weights after) / lr, does.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Qwen3ForCausalLM

from tests.conftest import tiny_model
from tests.distributed.worker import REGULARIZERS, one_step_trainer, policy_reward, save_metrics

SGD: dict[str, Any] = {"optim": "sgd", "weight_decay": 0.0, "learning_rate": 1.0}

# What each case changes. With two iterations per generation the old log-probs come from a forward pass without
# gradient, and the second step from weights that were sharded, updated and gathered again.
CASES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {},
    "policy_scorer": {"reward": policy_reward},
    "two_steps": {"max_steps": 2, "num_iterations": 2, "learning_rate": 0.1},
    "regularised": {"max_steps": 2, "num_iterations": 2, "learning_rate": 0.1, "regularizers": REGULARIZERS},
}


def model_of(case: str) -> PreTrainedModel:
    """The tiny policy, its head tied to the embeddings or not; the same on every rank."""
    model = tiny_model()
    if case == "tied":
        return model
    model.config.tie_word_embeddings = False
    torch.manual_seed(1)
    return Qwen3ForCausalLM(model.config)


def prepared_engine() -> dict[str, Any]:
    """Brings the engine to do on CPU ranks what it does on GPUs; the trainer's arguments that this needs."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed

        # It would first compile an all-reduce of its own, for minutes; gloo's serves.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if os.environ.get("ACCELERATE_USE_FSDP") != "true":
        return {}
    PartialState(cpu=True)
    # accelerate leaves FSDP out, without a word, on ranks that it takes for CPUs.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return {"accelerator_config": {"use_configured_state": True}}


def held_values(parameter: torch.Tensor) -> int:
    """How many of its values this rank holds outside of a forward pass; ZeRO-3 leaves an empty tensor."""
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()


def train(folder: Path, case: str, processes: int, options: Mapping[str, Any]) -> None:
    trainer = one_step_trainer(folder, "dapo", processes, model_of(case), **(SGD | CASES[case] | options))
    trainer.train()
    save_metrics(trainer, folder / "metrics.pt")
    if trainer.accelerator.is_main_process:
        held = {name: held_values(value) for name, value in trainer.model.named_parameters()}
        torch.save(held, folder / "held_values.pt")
    trainer.save_model(str(folder / "after"))


if __name__ == "__main__":
    engine_options = prepared_engine()
    for each in sys.argv[3:]:
        train(Path(sys.argv[1]) / each, each, int(sys.argv[2]), engine_options)
