"""Log-probabilities that an engine reported travel from the rollouts to the loss and its metrics."""

from dataclasses import replace

import pytest
import torch

from rlvr.ops.token_stats import LOGPROBS
from rlvr.types import Rollouts, TrainRow
from tests.conftest import MakeTrainer, letter_dataset


@pytest.mark.parametrize("gap", [0.0, 0.5])
def test_reported_logprobs_reach_the_metrics_of_the_step(make_trainer: MakeTrainer, gap: float) -> None:
    """The engine here is the trainer's own model, off by a constant: rho = exp(gap) on every token."""
    trainer = make_trainer()
    rollouts = trainer.rollout([row for row in letter_dataset(4) for _ in range(4)])
    assert all(batch.sampling_logprobs is None for batch in trainer.microbatches(rollouts, [1.0] * 16))
    frozen = trainer._frozen(trainer.model, _rows_of(rollouts), LOGPROBS)
    own = [stats.logprobs - gap for stats, _ in frozen]
    reported = replace(rollouts, sampling_logprobs=[values.tolist() for values in own])
    for batch in trainer.microbatches(reported, [1.0] * 16):
        trainer.accelerator.gradient_state._set_sync_gradients(False)
        trainer._compute_loss(trainer.model, batch)
    trainer._finish_step()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert metrics["sampler/rho_mean"] == pytest.approx(torch.tensor(gap).exp().item(), rel=1e-4)
    assert metrics["sampler/ess"] == pytest.approx(1.0, rel=1e-4)
    assert metrics["sampler/masked_frac"] == 0.0


def _rows_of(rollouts: Rollouts) -> list[TrainRow]:
    return [
        TrainRow(context, completion, mask, 1.0)
        for context, completion, mask in zip(
            rollouts.context_ids, rollouts.completion_ids, rollouts.generated_masks, strict=True
        )
    ]
