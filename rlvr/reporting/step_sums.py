"""Metrics of an optimiser step, put together from the shares of its micro-batches and ranks."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from rlvr.objectives.objective import MISMATCH_MAXIMA


class StepSums:
    """Adds shares up, or takes their maximum where the name says so, until the step is complete."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    def add(self, shares: Mapping[str, Tensor]) -> None:
        """The scalars of one micro-batch."""
        for name, value in shares.items():
            if name.startswith(MISMATCH_MAXIMA):
                self._maxima[name] = torch.maximum(self._maxima.get(name, value), value)
            else:
                self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value

    def flush(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """The totals of all ranks, and begins anew. The names are the same on every rank."""
        names = sorted(self._sums)
        totals = accelerator.reduce(torch.stack([self._sums[name] for name in names]), reduction="sum")
        flushed = dict(zip(names, totals, strict=True))
        if self._maxima:
            names = sorted(self._maxima)
            everyones = accelerator.gather(torch.stack([self._maxima[name] for name in names]).unsqueeze(0))
            flushed |= dict(zip(names, everyones.amax(dim=0), strict=True))
        self._sums, self._maxima = {}, {}
        return flushed
