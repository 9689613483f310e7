"""Log-probability and entropy of single tokens, for the few completions whose tokens the report colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlvr.ops.token_stats import TokenStats
from rlvr.types import Microbatch

COLUMNS = ("token_text", "token_logprob", "token_entropy")


@dataclass(frozen=True)
class _Kept:
    ids: list[int]
    logprobs: list[float]
    entropies: list[float]


class TokenValues:
    """Keeps what the loss has read of the first `num_rows` completions of this process, the main one."""

    def __init__(self, num_rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
        self.num_rows, self.tokenizer = num_rows, tokenizer
        self._kept: dict[int, _Kept] = {}

    def add(self, batch: Microbatch, stats: TokenStats) -> None:
        """Statistics [b, T] of a micro-batch under the policy of its loss, at the sampler's temperature."""
        assert stats.entropy is not None
        for index in (batch.row_ids < self.num_rows).nonzero().flatten().tolist():
            mask = batch.completion_mask[index]
            self._kept[int(batch.row_ids[index])] = _Kept(
                batch.completion_ids[index][mask].tolist(),
                stats.logprobs[index][mask].detach().float().tolist(),
                stats.entropy[index][mask].detach().float().tolist(),
            )

    def with_values(self, table: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """The table of completions with three more columns, None in most rows; forgets what was kept."""
        rows = [self._kept.get(index) for index in range(len(table["prompt_id"]))]
        self._kept = {}
        values: list[list[Any]] = [
            [None if row is None else pieces_of(self.tokenizer, row.ids) for row in rows],
            [None if row is None else row.logprobs for row in rows],
            [None if row is None else row.entropies for row in rows],
        ]
        return {**table, **dict(zip(COLUMNS, values, strict=True))}


def pieces_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token as it stands after the one before it, spaces included."""
    pairs = tokenizer.batch_decode([list(ids[max(0, index - 1) : index + 1]) for index in range(len(ids))])
    singles = tokenizer.batch_decode([[each] for each in ids])
    pieces = []
    for index, pair in enumerate(pairs):
        before = singles[index - 1] if index else ""
        pieces.append(pair.removeprefix(before) if pair.startswith(before) else singles[index])
    return pieces
