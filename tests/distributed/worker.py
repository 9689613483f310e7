"""Trains one step per preset on fixed rollouts and saves the gradients: worker.py OUTPUT_DIR PROCESSES."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from rlvr.config import PRESETS
from rlvr.config.schema import AlgorithmConfig, RewardsConfig
from rlvr.trainer import RLVRTrainer
from rlvr.types import Rollouts
from rlvr.verification import RewardFunction
from tests.conftest import letter_dataset, tiny_model, tiny_tokenizer, trainer_arguments

NUM_ROWS = 16


def fixed_rollouts(rank: int, num_ranks: int) -> Rollouts:
    """This rank's share of 16 completions of uneven length; members of a group lie on different ranks."""
    generator = torch.Generator().manual_seed(11)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(3, 16, (length,), generator=generator).tolist()

    rows = [(index % 4, ids(2, 6), ids(1, 7)) for index in range(NUM_ROWS)]
    rewards = torch.rand(NUM_ROWS, generator=generator).round(decimals=1).tolist()
    mine = range(rank * NUM_ROWS // num_ranks, (rank + 1) * NUM_ROWS // num_ranks)
    contexts = [rows[i][1] for i in mine]
    completions = [rows[i][2] for i in mine]
    return Rollouts(
        group_ids=[rows[i][0] for i in mine],
        prompts=[""] * len(mine),
        completions=[""] * len(mine),
        prompt_ids=contexts,
        context_ids=contexts,
        completion_ids=completions,
        # One completion is masked out whole and one in part: the denominators must agree on both.
        generated_masks=[[i != 5 and not (i == 9 and t == 0) for t in range(len(rows[i][2]))] for i in mine],
        sampling_logprobs=None,
        truncated=[False] * len(mine),
        columns={"score": [rewards[i] for i in mine]},
    )


class FixedRolloutTrainer(RLVRTrainer):
    def rollout(self, rows: Sequence[Mapping[str, Any]]) -> Rollouts:
        return fixed_rollouts(self.accelerator.process_index, self.accelerator.num_processes)


def score_reward(completions: list[str], score: list[float], **_: Any) -> list[float]:
    return score


class GradientSaver(TrainerCallback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        if state.is_world_process_zero:
            grads = {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}
            torch.save(grads, self.path)


def one_step_trainer(folder: Path, preset: str, processes: int, model: PreTrainedModel, **changes: Any) -> RLVRTrainer:
    """A trainer on the fixed rollouts, for one optimiser step of all of them unless `changes` says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"max_steps": 1, "per_device_train_batch_size": NUM_ROWS // 2 // processes, "max_grad_norm": 0.0}
    trainer = FixedRolloutTrainer(
        model,
        trainer_arguments(folder, **(sizes | changes)),
        algorithm=AlgorithmConfig(preset=preset).resolved(),
        reward_functions=[RewardFunction("score", 1.0, score_reward)],
        rewards=RewardsConfig.model_validate({"functions": [{"use": "exact", "name": "score"}]}),
        train_dataset=letter_dataset(),
        processing_class=tiny_tokenizer(),
    )
    assert trainer.accelerator.num_processes == processes
    return trainer


def save_metrics(trainer: RLVRTrainer, path: Path) -> None:
    """The numbers logged at each step."""
    if trainer.accelerator.is_main_process:
        steps = [{k: v for k, v in log.items() if isinstance(v, float)} for log in trainer.state.log_history]
        torch.save(steps, path)


def train_one_step(folder: Path, preset: str, processes: int) -> None:
    trainer = one_step_trainer(folder, preset, processes, tiny_model())
    trainer.add_callback(GradientSaver(folder / "gradient.pt"))
    trainer.train()
    save_metrics(trainer, folder / "metrics.pt")


if __name__ == "__main__":
    for each in PRESETS:
        train_one_step(Path(sys.argv[1]) / each, each, int(sys.argv[2]))
