"""The divergence in the reward: by hand, and against the statement of REINFORCE++ written out over tokens."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM

from rlvr.objectives.reward_kl import baselined_rewards, reward_penalties, token_returns, whitened_tokens
from rlvr.trainer import RLVRTrainer
from rlvr.types import Rollouts, ScoredRollouts
from rlvr.verification import Verdicts
from tests.conftest import MakeTrainer, tiny_model

F64 = torch.float64
LENGTHS = [2, 3, 1, 4]


def test_penalties_by_hand() -> None:
    old, ref = torch.tensor([-1.0, -2.0, -3.0], dtype=F64), torch.tensor([-1.5, -1.0, -3.0], dtype=F64)
    mask = torch.tensor([True, True, False])
    (k1,) = reward_penalties([old], [ref], [mask], estimator="k1", coef=0.1)
    assert k1.tolist() == pytest.approx([0.05, -0.1, 0.0])
    (k2,) = reward_penalties([old], [ref], [mask], estimator="k2", coef=0.1)
    assert k2.tolist() == pytest.approx([0.0125, 0.05, 0.0])
    (k3,) = reward_penalties([old], [ref], [mask], estimator="k3", coef=0.1)
    assert k3.tolist() == pytest.approx([0.1 * (math.exp(-0.5) - 0.5), 0.1 * (math.e - 2.0), 0.0])


def test_a_token_answers_for_its_own_penalty_and_later_ones() -> None:
    (returns,) = token_returns(torch.tensor([1.0], dtype=F64), [torch.tensor([0.1, 0.2, 0.4], dtype=F64)])
    assert returns.tolist() == pytest.approx([0.3, 0.4, 0.6])


def test_whitening_counts_every_token_once_and_leaves_unscorable_ones_out() -> None:
    values = torch.tensor([1.0, 2.0, math.nan], dtype=F64)
    everyones = torch.tensor([1.0, 2.0, math.nan, 6.0], dtype=F64)
    found = whitened_tokens(values, everyones, ddof=1, eps=0.5)
    std = math.sqrt((4 + 1 + 9) / 2)
    assert found.tolist() == pytest.approx([-2 / (std + 0.5), -1 / (std + 0.5), 0.0])
    assert whitened_tokens(values, torch.full((3,), 0.1, dtype=F64), ddof=1, eps=1e-6).tolist() == [0.0] * 3


def test_baselined_rewards_keep_unscorable_ones_apart() -> None:
    rewards, groups = torch.tensor([1.0, 3.0, math.nan, 5.0], dtype=F64), torch.tensor([0, 0, 0, 1])
    plain = baselined_rewards("reinforce_pp", rewards, groups)
    assert plain[:2].tolist() == [1.0, 3.0]
    centered = baselined_rewards("reinforce_pp_baseline", rewards, groups)
    assert centered[[0, 1, 3]].tolist() == [-1.0, 1.0, 0.0]
    assert torch.isnan(plain[2])
    assert torch.isnan(centered[2])


# ---- in the trainer -------------------------------------------------------------------------------------------------


def scored(rewards: list[float | None]) -> ScoredRollouts:
    """Four completions of two prompts with 2, 3, 1 and 4 tokens; the third token of the second is not the policy's."""
    completions = [[3 + (i + t) % 9 for t in range(length)] for i, length in enumerate(LENGTHS)]
    masks = [[not (i == 1 and t == 2) for t in range(length)] for i, length in enumerate(LENGTHS)]
    rollouts = Rollouts(
        group_ids=[0, 0, 1, 1],
        prompts=["a"] * 4,
        completions=["b"] * 4,
        prompt_ids=[[3, 4]] * 4,
        context_ids=[[3, 4]] * 4,
        completion_ids=completions,
        generated_masks=masks,
        sampling_logprobs=None,
        truncated=[False] * 4,
        columns={},
    )
    return ScoredRollouts(rollouts, Verdicts(("reward",), [[r] for r in rewards], rewards, rewards))


def trainer_with_reference(make_trainer: MakeTrainer, tmp_path: Path, preset: str) -> RLVRTrainer:
    """TRL loads the reference from the folder that the policy came from."""
    tiny_model().save_pretrained(tmp_path / "model")
    model = Qwen3ForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    return make_trainer(preset, model=model, algorithm={"kl_coef": 0.1, "kl_placement": "reward"}, beta=0.1)


def trainer_with_moved_policy(make_trainer: MakeTrainer, tmp_path: Path, preset: str) -> RLVRTrainer:
    """A reference that is not the policy: the policy moves after the trainer has made its reference."""
    trainer = trainer_with_reference(make_trainer, tmp_path, preset)
    trainer.model.load_state_dict(tiny_model(seed=9).state_dict())
    return trainer


def expected_penalties(trainer: RLVRTrainer, rollouts: Rollouts) -> list[list[float]]:
    """0.1 (log pi_old - log pi_ref), from full logits."""
    found = []
    for context, completion, mask in zip(
        rollouts.context_ids, rollouts.completion_ids, rollouts.generated_masks, strict=True
    ):
        ids = torch.tensor([context + completion])
        scores = [m(ids).logits.log_softmax(-1)[0] for m in (trainer.model, trainer.ref_model)]
        row = []
        for t, token in enumerate(completion):
            old, ref = (each[len(context) + t - 1, token].item() for each in scores)
            row.append(0.1 * (old - ref) if mask[t] else 0.0)
        found.append(row)
    return found


def test_rloo_takes_the_sum_off_the_reward_of_the_completion(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = trainer_with_moved_policy(make_trainer, tmp_path, "rloo")
    batch = scored([1.0, 0.0, 0.5, 0.5])
    penalties = trainer.reward_penalties(batch.rollouts)
    expected = expected_penalties(trainer, batch.rollouts)
    for found, row in zip(penalties, expected, strict=True):
        assert found.tolist() == pytest.approx(row, abs=1e-6)
    adjusted = [r - sum(row) for r, row in zip([1.0, 0.0, 0.5, 0.5], expected, strict=True)]
    differences = [adjusted[0] - adjusted[1], adjusted[2] - adjusted[3]]
    advantages = trainer.advantages(batch, penalties)
    assert advantages == pytest.approx([differences[0], -differences[0], differences[1], -differences[1]], abs=1e-5)
    assert abs(differences[1]) > 1e-3  # equal rewards, unequal divergence
    assert trainer._metrics["train"]["reward/mean"] == [0.5]  # the reward itself is reported without the penalty
    total = sum(sum(row) for row in expected) / 4
    assert trainer._metrics["train"]["reward/kl_penalty"] == [pytest.approx(total, abs=1e-6)]


def test_reinforce_pp_whitens_returns_of_tokens(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = trainer_with_moved_policy(make_trainer, tmp_path, "reinforce_pp")
    rewards = [1.0, 0.0, 0.5, None]
    batch = scored(rewards)
    expected = expected_penalties(trainer, batch.rollouts)
    returns = [
        [reward - sum(row[t:]) for t in range(len(row))]
        for reward, row in zip(rewards, expected, strict=True)
        if reward is not None
    ]
    counted = [x for i, row in enumerate(returns) for t, x in enumerate(row) if not (i == 1 and t == 2)]
    mean = sum(counted) / len(counted)
    std = math.sqrt(sum((x - mean) ** 2 for x in counted) / (len(counted) - 1))
    advantages = trainer.advantages(batch, trainer.reward_penalties(batch.rollouts))
    for found, row in zip(advantages[:3], returns, strict=True):
        assert found.tolist() == pytest.approx([(x - mean) / (std + 1e-4) for x in row], abs=1e-4)
    assert advantages[3].tolist() == [0.0] * 4
    trainer.args.gradient_accumulation_steps = trainer.args.steps_per_generation = 1
    (batch_of_tokens,) = trainer.microbatches(batch.rollouts, advantages)
    lengths = batch_of_tokens.completion_mask.sum(dim=1).tolist()
    by_length = dict(zip(lengths, batch_of_tokens.advantages, strict=True))
    assert by_length[2][:2].tolist() == pytest.approx(advantages[0].tolist())
    assert batch_of_tokens.ref_logprobs is None  # nothing of the reference enters the loss


@pytest.mark.parametrize("preset", ["rloo", "reinforce_pp", "reinforce_pp_baseline", "grpo"])
def test_trains_with_the_penalty_in_the_reward(make_trainer: MakeTrainer, tmp_path: Path, preset: str) -> None:
    trainer = trainer_with_reference(make_trainer, tmp_path, preset.removesuffix("_baseline"))
    if preset.endswith("_baseline"):
        trainer.algorithm = replace(trainer.algorithm, advantage="reinforce_pp_baseline")
    trainer.train()
    logged = trainer.state.log_history
    assert logged[0]["reward/kl_penalty"] == pytest.approx(0.0, abs=1e-6)  # the policy is its reference at first
    assert abs(logged[1]["reward/kl_penalty"]) > 1e-6
    assert "loss/kl" not in logged[0]
