"""Completions cut off by the length limit leave the loss and its denominators, and stay in their group's baseline."""

from dataclasses import replace

import pytest

from tests.conftest import MakeTrainer, letter_dataset


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_truncated_completions_leave_the_denominators(make_trainer: MakeTrainer, aggregation: str) -> None:
    trainer = make_trainer(algorithm={"overlong_filter": True, "aggregation": aggregation})
    rollouts = trainer.rollout([row for row in letter_dataset(4) for _ in range(4)])
    truncated = [index % 3 == 0 for index in range(16)]
    batches = trainer.microbatches(replace(rollouts, truncated=truncated), [1.0] * 16)
    kept = [len(ids) for ids, cut in zip(rollouts.completion_ids, truncated, strict=True) if not cut]
    assert sum(int(batch.loss_mask.sum()) for batch in batches) == sum(kept)
    assert {batch.denominator.num_loss_tokens for batch in batches} == {float(sum(kept))}
    assert {batch.denominator.num_sequences for batch in batches} == {float(len(kept))}


def test_without_the_filter_they_stay(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    rollouts = trainer.rollout([row for row in letter_dataset(4) for _ in range(4)])
    batches = trainer.microbatches(replace(rollouts, truncated=[True] * 16), [1.0] * 16)
    assert sum(int(batch.loss_mask.sum()) for batch in batches) == sum(map(len, rollouts.completion_ids))
