"""SIREN (arXiv 2509.25133): the entropy of a completion's most uncertain tokens is held at its first value."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rlvr.config.regularizers import SirenConfig
from rlvr.objectives.regularizers.base import (
    Contribution,
    LiveTokens,
    Needs,
    Prepared,
    Regularizer,
    StepTokens,
    linear_quantile,
)
from rlvr.ops.token_stats import StatsRequest
from rlvr.schedule import value_at


def peak_mask(nucleus_entropy: Tensor, mask: Tensor, quantile: float) -> Tensor:
    """[R, T] bool: tokens whose entropy is above (strictly) the quantile of their own completion's loss tokens."""
    rows = [
        mask[i] & (nucleus_entropy[i] > linear_quantile(nucleus_entropy[i][mask[i]], quantile))
        if mask[i].any()
        else mask[i]
        for i in range(len(mask))
    ]
    return torch.stack(rows)


def peak_means(nucleus_entropy: Tensor, peaks: Tensor) -> Tensor:
    """[R] mean entropy over each completion's peaks, 0 for a completion without any."""
    total = torch.where(peaks, nucleus_entropy, 0.0).sum(dim=1)
    return total / peaks.sum(dim=1).clamp(min=1)


class Siren(Regularizer):
    """coef (Hbar - anchor)^2, Hbar = mean over completions of the mean nucleus entropy of their peak tokens.

    The nucleus holds the most likely tokens with mass `nucleus_p` and is renormalised; its entropy carries the
    gradient, its membership and the peaks do not. The anchor is Hbar of the first rollouts under the initial policy.
    Two-sided: entropy above the anchor is pulled down. A completion without a peak (all its entropies equal) does not
    count. Hbar is of the whole optimiser step on all ranks: with h the share of Hbar in a micro-batch, the loss is
    (Hbar - anchor)^2 with the gradient 2 (Hbar - anchor) grad h, which sums to that of the whole however it is split;
    the authors' code squares per micro-batch. Assumes that the entropy of the initial policy is worth keeping; `coef`
    was tuned beside the constant aggregation of Dr.GRPO, and another one changes its weight by orders of magnitude.
    """

    name = "siren"

    def __init__(self, config: SirenConfig) -> None:
        self.config = config
        self.anchor: float | None = None
        request = StatsRequest(entropy=False, nucleus_p=config.nucleus_p, nucleus_rule=config.nucleus)
        self.needs = Needs(step=request, live=request)

    def coef_at(self, step: int) -> float:
        return value_at(self.config.coef, step)

    def start(self, rollouts: StepTokens) -> None:
        _, total, count = self._peaks(rollouts)
        if count:
            self.anchor = (total / count).item()

    def prepare(self, tokens: StepTokens) -> Prepared:
        peaks, total, count = self._peaks(tokens)
        entropy = (total / max(count, 1)).item()
        if self.anchor is None and count:
            self.anchor = entropy  # no completion had a peak before
        gap = entropy - self.anchor if self.anchor is not None and count else 0.0
        return Prepared(
            tokens={"peaks": peaks},
            scalars={"gap": gap, "count": float(max(count, 1))},
            metrics={"siren/peak_entropy": entropy, "siren/anchor_gap": gap},
        )

    def contribute(self, live: LiveTokens) -> Contribution:
        assert live.stats.nucleus_entropy is not None
        peaks, gap, count = live.tokens["peaks"], live.scalars["gap"], live.scalars["count"]
        share = peak_means(live.stats.nucleus_entropy, peaks).sum() / count
        rows = peaks.any(dim=1).sum().to(share.dtype) / count
        return Contribution(loss=live.coef * (2.0 * gap * (share - share.detach()) + gap**2 * rows))

    def _peaks(self, tokens: StepTokens) -> tuple[Tensor, Tensor, int]:
        """(peaks [R, T], sum of the completions' means, completions with a peak), the last two of all ranks."""
        assert tokens.current.nucleus_entropy is not None
        peaks = peak_mask(tokens.current.nucleus_entropy, tokens.mask, self.config.peak_quantile)
        means = tokens.gather(peak_means(tokens.current.nucleus_entropy, peaks)[peaks.any(dim=1)])
        return peaks, means.double().sum(), len(means)

    def state_dict(self) -> dict[str, float]:
        return {} if self.anchor is None else {"anchor": self.anchor}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.anchor = state.get("anchor")
