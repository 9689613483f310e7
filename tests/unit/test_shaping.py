"""Which passes over hinted completions the shaped ratio takes."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlvr.guidance.shaping import with_shaped_ratios
from rlvr.types import OffPolicy, Rollouts, TrainRow

PLAIN, HINTED = [1], [1, 2]  # contexts
COUNT = 4


def rollouts() -> Rollouts:
    """Rows 1 and 3 were sampled with a hint and are trained without it."""
    contexts = [HINTED if index % 2 else PLAIN for index in range(COUNT)]
    off_policy: list[OffPolicy | None] = [OffPolicy() if index % 2 else None for index in range(COUNT)]
    return Rollouts(
        group_ids=[0] * COUNT,
        prompts=["p"] * COUNT,
        completions=["c"] * COUNT,
        prompt_ids=[PLAIN] * COUNT,
        context_ids=contexts,
        completion_ids=[[7 + index, 0] for index in range(COUNT)],
        generated_masks=[[True, True]] * COUNT,
        sampling_logprobs=None,
        truncated=[False] * COUNT,
        columns={},
        loss_context_ids=[PLAIN] * COUNT,
        off_policy=off_policy,
    )


def logprobs_of(row: TrainRow) -> Tensor:
    """Made up: they tell the contexts and the completions apart."""
    return torch.tensor([-1.0, -0.5]) * len(row.context_ids) / row.completion_ids[0]


@pytest.mark.parametrize("has_old", [False, True])
def test_a_pass_is_spared_where_old_logprobs_are_known(has_old: bool) -> None:
    asked: list[tuple[list[int], int]] = []

    def logprobs(rows: Sequence[TrainRow]) -> list[Tensor]:
        asked.extend((row.context_ids, row.completion_ids[0]) for row in rows)
        return [logprobs_of(row) for row in rows]

    batch = rollouts()
    rows = [TrainRow(PLAIN, ids, [True, True], 1.0, row_id=i) for i, ids in enumerate(batch.completion_ids)]
    if has_old:
        rows = [replace(row, old_logprobs=logprobs_of(row)) for row in rows]
    shaped = with_shaped_ratios(rows, batch, logprobs, lambda values: values, quantile=0.5, device=torch.device("cpu"))
    sampled, trained = [(HINTED, 8), (HINTED, 10)], [(PLAIN, 8), (PLAIN, 10)]
    assert asked == (sampled if has_old else sampled + trained)
    # log-ratios of the tokens: 1/8, 0.5/8, 1/10, 0.5/10
    ratios = torch.tensor([1 / 8, 0.5 / 8, 1 / 10, 0.5 / 10]).exp()
    assert shaped.metrics["guidance/gamma"] == pytest.approx(ratios.quantile(0.5).item())
    for index, row in enumerate(shaped.rows):
        assert (row.gamma is None) == (index % 2 == 0)
        if row.behaviour_logprobs is not None:
            assert torch.equal(row.behaviour_logprobs, torch.tensor([-2.0, -1.0]) / (7 + index))
    assert [row.behaviour_logprobs is not None for row in shaped.rows] == [False, True, False, True]
