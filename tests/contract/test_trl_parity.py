"""With a plain preset the loss, its gradient and the advantages are TRL's own on the same rollouts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from rlvr.ops.token_stats import TokenStats
from rlvr.types import Rollouts
from tests.conftest import MakeTrainer, letter_dataset, tiny_model, tiny_tokenizer, trainer_arguments, vowel_reward

TRL_SETTINGS: dict[str, dict[str, Any]] = {
    "dapo": {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "scale_rewards": "group"},
    "grpo": {"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.2, "scale_rewards": "group"},
    "dr_grpo": {"loss_type": "dr_grpo", "epsilon": 0.2, "epsilon_high": 0.2, "scale_rewards": "none"},
    "gspo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
        "scale_rewards": "group",
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0, "scale_rewards": "group"},
    "sapo": {"loss_type": "sapo", "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05, "scale_rewards": "group"},
    "lite_ppo": {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.2, "scale_rewards": "batch"},
}


def trl_trainer(folder: Path, settings: dict[str, Any]) -> GRPOTrainer:
    return GRPOTrainer(
        model=tiny_model(),
        reward_funcs=[vowel_reward],
        args=trainer_arguments(folder, **settings),
        train_dataset=letter_dataset(),
        processing_class=tiny_tokenizer(),
    )


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("preset", TRL_SETTINGS)
@pytest.mark.parametrize("kl_coef", [0.0, 0.05])
def test_loss_and_gradient_equal_trl_on_the_same_rollouts(
    tmp_path: Path, make_trainer: MakeTrainer, preset: str, kl_coef: float
) -> None:
    theirs = trl_trainer(tmp_path / "trl", TRL_SETTINGS[preset] | {"use_bias_correction_kl": False})
    check_equal(theirs, make_trainer(preset), kl_coef, num_microbatches=2)


# TRL's settings, our switches, our regularisers, the KL coefficient; beside preset dapo. One micro-batch, as TRL takes
# the quantile and the mean of entropies within each.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], float]] = {
    "delta": ({"delta": 1.3}, {"delta": 1.3}, {}, 0.0),
    "k3_ratio": ({"use_bias_correction_kl": True}, {"kl_estimator": "k3_ratio"}, {}, 0.05),
    "entropy": ({"entropy_coef": 0.1}, {}, {"entropy": {"coef": 0.1}}, 0.0),
    "top_entropy_mask": ({"top_entropy_quantile": 0.3}, {}, {"top_entropy_mask": {"share": 0.3}}, 0.0),
}
ONE_BATCH = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}


@pytest.mark.parametrize("variant", VARIANTS)
def test_switches_beside_a_preset_equal_trl(tmp_path: Path, make_trainer: MakeTrainer, variant: str) -> None:
    their_settings, algorithm, regularizers, kl_coef = VARIANTS[variant]
    theirs = trl_trainer(tmp_path / "trl", TRL_SETTINGS["dapo"] | their_settings | ONE_BATCH)
    ours = make_trainer("dapo", algorithm=algorithm, regularizers=regularizers, **ONE_BATCH)
    check_equal(theirs, ours, kl_coef, num_microbatches=1)


def check_equal(theirs: GRPOTrainer, ours: Any, kl_coef: float, num_microbatches: int) -> None:
    """Loss and gradient of both on rollouts of TRL's trainer.

    Old and reference log-probs of their own make the ratio and the penalty differ from their trivial values.
    """
    ours.model.load_state_dict(theirs.model.state_dict())

    rows = [row for row in letter_dataset(4) for _ in range(4)]
    torch.manual_seed(3)
    batch = theirs._generate_and_score_completions(rows)
    noise = torch.Generator().manual_seed(5)
    mask = batch["completion_mask"].bool()
    with torch.no_grad():
        logprobs, _, _ = theirs._get_per_token_logps_and_entropies(
            theirs.model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
            batch["completion_ids"].shape[1],
        )
    batch["old_per_token_logps"] = logprobs + 0.3 * torch.randn(logprobs.shape, generator=noise)
    theirs.beta = kl_coef  # set late: TRL would load the reference from a folder, and the tiny model lies in none
    if kl_coef:
        batch["ref_per_token_logps"] = logprobs + 0.3 * torch.randn(logprobs.shape, generator=noise)

    theirs.current_gradient_accumulation_steps = num_microbatches
    theirs.model.train()
    order = torch.tensor(sorted(range(16), key=lambda i: int(mask[i].sum()), reverse=True))
    their_loss = 0.0
    for rows_of_part in order.split(16 // num_microbatches):
        part = {key: value[rows_of_part] if value.dim() else value for key, value in batch.items()}
        loss = theirs._compute_loss(theirs.model, part)
        loss.backward()
        their_loss += loss.item()

    our_loss = our_step(ours, batch, kl_coef)
    assert our_loss == pytest.approx(their_loss, rel=2e-5, abs=1e-7)
    torch.testing.assert_close(gradient(ours.model), gradient(theirs.model), rtol=1e-4, atol=1e-7)
    assert gradient(ours.model).norm() > 1e-3


def our_step(trainer: Any, batch: dict[str, torch.Tensor], kl_coef: float) -> float:
    """The same rows through our batching, loss and accumulation."""
    prompt_lengths, lengths = batch["prompt_mask"].sum(1).tolist(), batch["completion_mask"].sum(1).tolist()
    prompt_ids = [ids[-n:].tolist() for ids, n in zip(batch["prompt_ids"], prompt_lengths, strict=True)]
    completion_ids = [ids[:n].tolist() for ids, n in zip(batch["completion_ids"], lengths, strict=True)]
    rollouts = Rollouts(
        group_ids=[i // 4 for i in range(16)],
        prompts=[""] * 16,
        completions=[""] * 16,
        prompt_ids=prompt_ids,
        context_ids=prompt_ids,
        completion_ids=completion_ids,
        generated_masks=[[True] * n for n in lengths],
        sampling_logprobs=None,
        truncated=[False] * 16,
        columns={},
    )
    old, ref = batch["old_per_token_logps"], batch.get("ref_per_token_logps")

    def with_logprobs(rows: list[Any]) -> list[Any]:
        return [
            replace(
                row,
                old_logprobs=old[i, :n],
                ref_logprobs=None if ref is None else ref[i, :n],
                sampled=TokenStats(old[i, :n]),
            )
            for i, (row, n) in enumerate(zip(rows, lengths, strict=True))
        ]

    trainer._with_frozen_statistics = with_logprobs
    trainer.algorithm = replace(trainer.algorithm, kl_coef=kl_coef)
    trainer.model.train()
    total = 0.0
    trainer._buffered_inputs = trainer.microbatches(rollouts, batch["advantages"].tolist())
    if trainer.needs.step is not None:
        trainer._prepare_step(0, weights_moved=True)
    for microbatch in trainer._buffered_inputs:
        loss = trainer._compute_loss(trainer.model, microbatch)
        loss.backward()
        total += loss.item()
    return total


@pytest.mark.parametrize("preset", ["dapo", "dr_grpo", "lite_ppo"])
def test_advantages_equal_trl_on_the_same_rollouts(tmp_path: Path, make_trainer: MakeTrainer, preset: str) -> None:
    theirs = trl_trainer(tmp_path / "trl", TRL_SETTINGS[preset])
    ours = make_trainer(preset)
    rows = [row for row in letter_dataset(4) for _ in range(4)]
    torch.manual_seed(3)
    batch = theirs._generate_and_score_completions(rows)
    torch.manual_seed(3)
    ours.model.load_state_dict(theirs.model.state_dict())
    rollouts = ours.rollout(rows)
    assert [len(ids) for ids in rollouts.completion_ids] == batch["completion_mask"].sum(1).tolist()
    advantages = torch.tensor(ours.advantages(ours.verify(rollouts)))
    torch.testing.assert_close(advantages, batch["advantages"], rtol=1e-5, atol=1e-6)
    assert advantages.abs().max() > 0.1
