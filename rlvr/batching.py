"""From ragged rows to micro-batches: which rows share one, and how they are padded."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from rlvr.objectives.aggregation import Denominator
from rlvr.ops.support import pad_kept
from rlvr.ops.token_stats import TokenStats
from rlvr.types import Microbatch, Rollouts, TrainRow


def loss_masks_of(rollouts: Rollouts, overlong_filter: bool) -> list[list[bool]]:
    """The tokens that the policy wrote; with `overlong_filter` (DAPO, arXiv 2503.14476) none of a truncated completion.

    A filtered completion leaves the denominators too: it is as if it had not been sampled, except for its group's
    baseline.
    """
    dropped = [overlong_filter and truncated for truncated in rollouts.truncated]
    return [[flag and not drop for flag in mask] for mask, drop in zip(rollouts.generated_masks, dropped, strict=True)]


def sampling_logprobs_of(rollouts: Rollouts) -> Sequence[Tensor | None]:
    """What the engine reported per completion; a token it could not score is NaN."""
    if rollouts.sampling_logprobs is None:
        return [None] * len(rollouts.group_ids)
    return [torch.tensor(values, dtype=torch.float32) for values in rollouts.sampling_logprobs]


def train_rows(
    rollouts: Rollouts, advantages: Sequence[float | Tensor], first: int, *, overlong_filter: bool
) -> list[TrainRow]:
    """The completions as the loss sees them, numbered from `first`."""
    columns = zip(
        rollouts.loss_context_ids,
        rollouts.completion_ids,
        loss_masks_of(rollouts, overlong_filter),
        advantages,
        sampling_logprobs_of(rollouts),
        strict=True,
    )
    return [
        TrainRow(context, completion, mask, advantage, row_id, sampling_logprobs=sampling)
        for row_id, (context, completion, mask, advantage, sampling) in enumerate(columns, start=first)
    ]


def group_by_length(lengths: Sequence[int], num_microbatches: int) -> list[list[int]]:
    """Row indices of each micro-batch: equally many rows, neighbours in length, so that little is padding.

    Raises ValueError when they do not divide: a dropped row would still be counted in the denominators.
    """
    rows_each, rest = divmod(len(lengths), num_microbatches)
    if rest:
        raise ValueError(f"{len(lengths)} rows do not divide into {num_microbatches} micro-batches of equal size")
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    return [order[first : first + rows_each] for first in range(0, rows_each * num_microbatches, rows_each)]


def step_windows(num_rows: int, num_windows: int, seed: int) -> list[list[int]]:
    """Which rows of a generation batch each optimiser step trains on: a random partition, decided by `seed` alone."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed)).tolist()
    rows_each = num_rows // num_windows
    return [order[first : first + rows_each] for first in range(0, num_rows, rows_each)]


def count_rows(rows: Sequence[TrainRow]) -> list[float]:
    """[loss tokens, rows with a loss token, rows]: what a denominator sums over ranks."""
    tokens = [sum(row.loss_mask) for row in rows]
    return [float(sum(tokens)), float(sum(t > 0 for t in tokens)), float(len(rows))]


def collate(rows: Sequence[TrainRow], denominator: Denominator, pad_token_id: int, device: torch.device) -> Microbatch:
    """Pads the rows to their own longest one.

    For contexts [1 2 3], [4] and completions [5 6], [7]:
        input_ids        [[1 2 3 5 6], [4 7 0 0 0]]
        completion_ids   [[5 6], [7 0]]
        predictor_index  [[2 3], [0 1]]
    """

    def padded(values: list[Tensor], fill: float) -> Tensor:
        return pad_sequence(values, batch_first=True, padding_value=fill).to(device)

    def stacked(values: list[Tensor | None]) -> Tensor | None:
        present = [value for value in values if value is not None]
        return padded(present, 0.0) if present else None

    def right_padded(values: list[Tensor]) -> Tensor:
        return torch.stack([functional.pad(value, (0, width - len(value))) for value in values])

    def per_token(advantage: float | Tensor) -> Tensor:
        if isinstance(advantage, float):
            return torch.full((width,), advantage)
        return functional.pad(advantage.to("cpu", torch.get_default_dtype()), (0, width - len(advantage)))

    gammas, behaviours = _shaping(rows)
    sampled = [row.sampled for row in rows if row.sampled is not None]
    completion_ids = [torch.tensor(row.completion_ids) for row in rows]
    sequences = [torch.tensor(row.context_ids + row.completion_ids) for row in rows]
    width = max(len(ids) for ids in completion_ids)
    context_lengths = torch.tensor([len(row.context_ids) for row in rows])
    input_ids = padded(sequences, pad_token_id)
    index = context_lengths.unsqueeze(1) - 1 + torch.arange(width).unsqueeze(0)
    return Microbatch(
        input_ids=input_ids,
        attention_mask=padded([torch.ones_like(ids) for ids in sequences], 0),
        completion_ids=padded(completion_ids, pad_token_id),
        completion_mask=padded([torch.ones_like(ids, dtype=torch.bool) for ids in completion_ids], False),
        predictor_index=index.clamp(max=input_ids.shape[1] - 1).to(device),
        loss_mask=padded([torch.tensor(row.loss_mask, dtype=torch.bool) for row in rows], False),
        advantages=torch.stack([per_token(row.advantage) for row in rows]).to(device),
        row_ids=torch.tensor([row.row_id for row in rows], device=device),
        old_logprobs=stacked([row.old_logprobs for row in rows]),
        ref_logprobs=stacked([row.ref_logprobs for row in rows]),
        sampling_logprobs=stacked([row.sampling_logprobs for row in rows]),
        denominator=denominator,
        sampled=TokenStats.joined(sampled, right_padded) if len(sampled) == len(rows) else None,
        supports=[row.support for row in rows if row.support is not None] or None,
        gammas=None if gammas is None else gammas.to(device),
        behaviour_logprobs=None if gammas is None else right_padded(behaviours).to(device),
    )


def _shaping(rows: Sequence[TrainRow]) -> tuple[Tensor | None, list[Tensor]]:
    """(gammas [b], NaN on rows with an ordinary ratio; sampler log-probs [T] per row); None where no row has one."""
    if all(row.gamma is None for row in rows):
        return None, []
    behaviours = [
        torch.zeros(len(row.completion_ids)) if row.behaviour_logprobs is None else row.behaviour_logprobs.cpu()
        for row in rows
    ]
    return torch.tensor([float("nan") if row.gamma is None else row.gamma for row in rows]), behaviours


def support_query(batch: Microbatch) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(mask [b, T], ids [m, C], proxy log-probs [m, C]) of the tokens whose kept tokens a regulariser wants scored.

    All None where none does, or where it selected nothing.
    """
    masks = [each.support_mask for each in batch.prepared.values() if each.support_mask is not None]
    if not masks or not masks[0].any():
        return None, None, None
    (mask,) = masks
    assert batch.supports is not None
    rows = zip(batch.supports, mask, strict=True)
    kept = [piece for support, wanted in rows for piece in support.at(wanted[: len(support.counts)])]
    return mask, *pad_kept(kept)
