"""What the loss takes from weights that do not move: passes over rows of a generation batch, without gradient."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rlvr.batching import collate, group_by_length
from rlvr.objectives.aggregation import Denominator
from rlvr.objectives.regularizers.base import Needs
from rlvr.ops.support import Support
from rlvr.ops.token_stats import LOGPROBS, StatsRequest, TokenStats
from rlvr.policy import completion_stats, read_completions
from rlvr.types import Microbatch, TrainRow

UNUSED = Denominator(1.0, 1.0, 1.0, 1)


class Processes(Protocol):
    """What a pass needs of `accelerate.Accelerator`."""

    @property
    def device(self) -> torch.device: ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The run's mixed precision."""
        ...

    def gather(self, tensor: Any) -> Any:
        """The tensors of all processes, one after the other."""
        ...

    def unwrap_model(self, model: Any) -> Any:
        """The model itself, out of the wrapper that shards it."""
        ...


@dataclass(frozen=True)
class FrozenPass:
    """Reads completions `batch_size` at a time, under the settings that a run samples and trains with."""

    accelerator: Processes
    batch_size: int
    pad_token_id: int
    temperature: float

    @torch.no_grad()
    def __call__(
        self, model: torch.nn.Module, rows: Sequence[TrainRow], request: StatsRequest, with_support: bool = False
    ) -> list[tuple[TokenStats, Support | None]]:
        """Statistics [T] of every row, and with `with_support` the tokens that the request's filter keeps.

        The latter only at loss tokens of failed completions: only those can be held at what was kept. The number of
        rows is a multiple of the batch size.
        """
        found: dict[int, tuple[TokenStats, Support | None]] = {}
        for chunk in group_by_length([row.length for row in rows], len(rows) // self.batch_size):
            batch = collate([rows[i] for i in chunk], UNUSED, self.pad_token_id, self.accelerator.device)
            asked = batch.loss_mask & (batch.advantages < 0) if with_support else None
            with self.accelerator.autocast():
                read = read_completions(model, batch, self.temperature, request, support_of=asked)
            lengths = [len(rows[i].completion_ids) for i in chunk]
            supports = read.support.split(lengths) if read.support else [None] * len(chunk)
            for place, (i, length) in enumerate(zip(chunk, lengths, strict=True)):
                found[i] = (read.stats.mapped(lambda values, p=place, n=length: values[p, :n]), supports[place])  # type: ignore[misc]
        return [found[i] for i in range(len(rows))]

    def logprobs(self, model: torch.nn.Module, rows: Sequence[TrainRow]) -> list[Tensor]:
        """[T] of every row; ranks may have different numbers of rows.

        All ranks make equally many passes, as each may gather weights that are sharded over them.
        """
        counts = self.accelerator.gather(torch.tensor([len(rows)], device=self.accelerator.device))
        passes = -(-int(counts.max()) // self.batch_size)
        padded = [*rows, *[SPARE] * (passes * self.batch_size - len(rows))]
        return [stats.logprobs for stats, _ in self(model, padded, LOGPROBS)][: len(rows)] if passes else []

    def with_sampled(
        self, model: torch.nn.Module, rows: Sequence[TrainRow], needs: Needs, *, keep_old: bool
    ) -> list[TrainRow]:
        """The rows with what regularisers need under the policy that sampled, and with `keep_old` its log-probs."""
        # Serves the first optimiser step on these rollouts as well, as the weights are the same then.
        request = needs.sampled if needs.step is None else needs.sampled.merged(needs.step)
        found = self(model, rows, request, needs.support)
        return [
            replace(
                row,
                old_logprobs=stats.logprobs if keep_old else None,
                sampled=None if needs.step is None else stats,
                support=support,
            )
            for row, (stats, support) in zip(rows, found, strict=True)
        ]

    @torch.no_grad()
    def of_batch(self, model: torch.nn.Module, batch: Microbatch, request: StatsRequest) -> TokenStats:
        """[b, T] of a micro-batch."""
        with self.accelerator.autocast():
            return completion_stats(model, batch, self.temperature, request)


SPARE = TrainRow([0], [0], [False], 0.0)  # fills a batch; what comes of it is not looked at
