"""Rows to micro-batches: layout, grouping by length, windows of a generation batch, counts."""

import random

import pytest
import torch

from rlvr.batching import collate, count_rows, group_by_length, step_windows
from rlvr.objectives.aggregation import Denominator
from rlvr.types import TrainRow

STEP = Denominator(3.0, 2.0, 2.0, 8)
CPU = torch.device("cpu")


def row(context: list[int], completion: list[int], advantage: float = 1.0, **changes: object) -> TrainRow:
    return TrainRow(context, completion, changes.pop("mask", [True] * len(completion)), advantage, **changes)  # type: ignore[arg-type]


def test_collate_layout_of_the_docstring() -> None:
    batch = collate([row([1, 2, 3], [5, 6], 0.5), row([4], [7], -1.5)], STEP, 0, CPU)
    assert batch.input_ids.tolist() == [[1, 2, 3, 5, 6], [4, 7, 0, 0, 0]]
    assert batch.completion_ids.tolist() == [[5, 6], [7, 0]]
    assert batch.predictor_index.tolist() == [[2, 3], [0, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.completion_mask.tolist() == [[True, True], [True, False]]
    assert batch.loss_mask.tolist() == [[True, True], [True, False]]
    assert batch.advantages.tolist() == [[0.5, 0.5], [-1.5, -1.5]]
    assert batch.completion_mask.dtype == batch.loss_mask.dtype == torch.bool
    assert batch.old_logprobs is None
    assert batch.ref_logprobs is None
    assert batch.denominator is STEP


def test_collate_pads_with_the_given_token() -> None:
    # 9 is the padding and, as often with <eos>, also a real token.
    batch = collate([row([9], [9]), row([1], [2, 3, 9])], STEP, 9, CPU)
    assert batch.input_ids.tolist() == [[9, 9, 9, 9], [1, 2, 3, 9]]
    assert batch.completion_ids.tolist() == [[9, 9, 9], [2, 3, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.loss_mask.tolist() == [[True, False, False], [True, True, True]]


def test_collate_keeps_tokens_of_others_out_of_the_loss_but_in_the_completion() -> None:
    batch = collate([row([1], [2, 3, 4], mask=[True, False, True]), row([1], [2])], STEP, 0, CPU)
    assert batch.loss_mask.tolist() == [[True, False, True], [True, False, False]]
    assert batch.completion_mask.tolist() == [[True, True, True], [True, False, False]]


def test_collate_aligns_old_and_reference_logprobs_with_the_tokens() -> None:
    rows = [
        row([1, 1], [2], old_logprobs=torch.tensor([-1.0]), ref_logprobs=torch.tensor([-4.0])),
        row([1], [2, 3], old_logprobs=torch.tensor([-2.0, -3.0]), ref_logprobs=torch.tensor([-5.0, -6.0])),
    ]
    batch = collate(rows, STEP, 0, CPU)
    assert batch.old_logprobs is not None
    assert batch.old_logprobs.tolist() == [[-1.0, 0.0], [-2.0, -3.0]]
    assert batch.ref_logprobs is not None
    assert batch.ref_logprobs.tolist() == [[-4.0, 0.0], [-5.0, -6.0]]


@pytest.mark.parametrize("seed", range(5))
def test_predictor_index_points_one_before_each_completion_token(seed: int) -> None:
    rng = random.Random(seed)
    rows = [
        row([rng.randint(1, 99) for _ in range(rng.randint(1, 6))], [rng.randint(1, 99) for _ in range(n)])
        for n in (1, 7, 3, 5)
    ]
    batch = collate(rows, STEP, 0, CPU)
    for index, each in enumerate(rows):
        length = len(each.completion_ids)
        where = batch.predictor_index[index, :length]
        assert where[0] == len(each.context_ids) - 1
        assert batch.input_ids[index, where + 1].tolist() == each.completion_ids
    assert batch.predictor_index.max() < batch.input_ids.shape[1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_microbatches", [1, 2, 4, 8])
def test_group_by_length_covers_every_row_once_in_equal_parts(seed: int, num_microbatches: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 50) for _ in range(16)]
    groups = group_by_length(lengths, num_microbatches)
    assert [len(group) for group in groups] == [16 // num_microbatches] * num_microbatches
    assert sorted(index for group in groups for index in group) == list(range(16))


@pytest.mark.parametrize("seed", range(5))
def test_group_by_length_pads_less_than_input_order(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 50) for _ in range(32)]

    def padded(groups: list[list[int]]) -> int:
        return sum(len(group) * max(lengths[i] for i in group) for group in groups)

    in_order = [list(range(first, first + 8)) for first in range(0, 32, 8)]
    assert padded(group_by_length(lengths, 4)) < padded(in_order)


def test_group_by_length_by_hand() -> None:
    assert group_by_length([9, 1, 5, 1], 2) == [[1, 3], [2, 0]]


def test_step_windows_partition_the_rows_by_the_seed_alone() -> None:
    windows = step_windows(24, 3, seed=5)
    assert [len(window) for window in windows] == [8, 8, 8]
    assert sorted(index for window in windows for index in window) == list(range(24))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert step_windows(24, 3, seed=5) == windows
    assert torch.equal(torch.get_rng_state(), state)
    assert step_windows(24, 3, seed=6) != windows
    assert windows[0] != list(range(8))  # not the order of the data, in which members of a group are neighbours


def test_count_rows_counts_tokens_rows_with_a_token_and_rows() -> None:
    rows = [
        row([1], [2, 3, 4], mask=[True, False, True]),
        row([1], [2, 3], mask=[False, False]),
        row([1], [2]),
        row([1], [2], mask=[False]),
    ]
    assert count_rows(rows) == [3.0, 2.0, 4.0]
    assert count_rows(rows[1:2]) == [0.0, 0.0, 1.0]


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows do not divide into 2"):
        group_by_length([1, 2, 3], 2)
