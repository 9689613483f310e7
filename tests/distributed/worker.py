"""Trains one step per preset and with regularisers on fixed rollouts, saves gradients: worker.py FOLDER PROCESSES."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from rewards._scorer import TokenScorer
from rlvr.config import PRESETS
from rlvr.config.regularizers import RegularizersConfig
from rlvr.config.schema import AlgorithmConfig, RewardsConfig
from rlvr.extrapolation.periodic import PeriodicJumps
from rlvr.objectives.group_filter import StdFilter
from rlvr.objectives.regularizers import build_regularizers
from rlvr.trainer import RLVRTrainer
from rlvr.types import Rollouts
from rlvr.verification import RewardFunction
from rlvr.watching.watch import Watch
from tests.conftest import WORDS, letter_dataset, sharp, tiny_model, tiny_tokenizer, trainer_arguments

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


def policy_reward(
    completion_ids: list[list[int]], score: list[float], scorer: TokenScorer, **_: Any
) -> list[float | None]:
    """Where the score is 1, the policy's mean log-probability of the completion: the first of two ranks has none."""
    words = [" ".join(WORDS[token] for token in ids) for ids in completion_ids]
    chosen = [i for i, value in enumerate(score) if value == 1.0]
    found = scorer.score_tokens([scorer.render("a b") for _ in chosen], [words[i] for i in chosen])
    means = {i: sum(values) / len(values) for i, values in zip(chosen, found, strict=True)}
    return [means.get(i, value) for i, value in enumerate(score)]


class GradientSaver(TrainerCallback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        if state.is_world_process_zero:
            grads = {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}
            torch.save(grads, self.path)


def one_step_trainer(
    folder: Path,
    preset: str,
    processes: int,
    model: PreTrainedModel,
    regularizers: Mapping[str, Any] | None = None,
    reward: Callable[..., Any] = score_reward,
    jumps: PeriodicJumps | None = None,
    watch: Watch | None = None,
    **changes: Any,
) -> RLVRTrainer:
    """A trainer on the fixed rollouts, for one optimiser step of all of them unless `changes` says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"max_steps": 1, "per_device_train_batch_size": NUM_ROWS // 2 // processes, "max_grad_norm": 0.0}
    trainer = FixedRolloutTrainer(
        model,
        trainer_arguments(folder, **(sizes | changes)),
        algorithm=AlgorithmConfig(preset=preset).resolved(),
        reward_functions=[RewardFunction("score", 1.0, reward)],
        rewards=RewardsConfig.model_validate({"functions": [{"use": "exact", "name": "score"}]}),
        regularizers=build_regularizers(RegularizersConfig.model_validate(regularizers or {})),
        jumps=jumps,
        watch=watch,
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


# The policy is made confident, so that filters and nuclei leave tokens out.
REGULARIZERS: dict[str, Any] = {
    "entropy": {"coef": 0.01},
    "top_entropy_mask": {"share": 0.5},
    "clip_cov": {"share": 0.1, "low": 0.01},
    "kl_cov": {"share": 0.1},
    "lp_reg": {"share": 0.5, "threshold": 0.3},
    "siren": {"coef": 0.5, "peak_quantile": 0.5},
    "mastered_mask": {"min_prob": 0.05, "max_entropy": 5.0},
}
# name: (preset, regularisers)
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    **{preset: (preset, {}) for preset in PRESETS},
    "regularised": ("dapo", REGULARIZERS),
    "exact_vocab": ("dapo", {"lp_reg": {"share": 1.0, "threshold": 0.3, "kl": "exact_vocab"}}),
    "policy_scorer": ("dapo", {}),
    "group_filter": ("dapo", {}),
}


def train_one_step(folder: Path, name: str, processes: int) -> None:
    preset, regularizers = RUNS[name]
    model = sharp(tiny_model()) if regularizers else tiny_model()
    reward = policy_reward if name == "policy_scorer" else score_reward
    trainer = one_step_trainer(folder, preset, processes, model, regularizers, reward)
    if name == "group_filter":
        trainer.group_filter = StdFilter(step=20, ema=0.5)  # late enough to drop some groups
    for regularizer in trainer.regularizers:
        # As if the run had gone on for a while, or the anchor would be where the entropy is.
        regularizer.load_state_dict({"anchor": 2.0, "coef": 0.01, "last_entropy": 0.0})
        regularizer.start = lambda rollouts: None  # type: ignore[method-assign]
    trainer.add_callback(GradientSaver(folder / "gradient.pt"))
    trainer.train()
    save_metrics(trainer, folder / "metrics.pt")


if __name__ == "__main__":
    for each in RUNS:
        train_one_step(Path(sys.argv[1]) / each, each, int(sys.argv[2]))
