"""How far the probabilities that an engine sampled by are from those that the trainer computes of the same tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvr.objectives.mismatch import LOG_LIMIT


@dataclass(frozen=True)
class Agreement:
    """Of rho = exp(trainer's log-prob - engine's) over tokens; deviation means |rho - 1|."""

    num_tokens: int  # with a log-prob from the engine
    ratio_mean: float
    dev_mean: float
    dev_q50: float
    dev_q99: float
    dev_max: float

    def metrics(self) -> dict[str, float]:
        """By the names under which a run reports them."""
        return {
            "engine/ratio_mean": self.ratio_mean,
            "engine/ratio_dev_mean": self.dev_mean,
            "engine/ratio_dev_q50": self.dev_q50,
            "engine/ratio_dev_q99": self.dev_q99,
            "engine/ratio_dev_max": self.dev_max,
        }


def agreement(trainer_logprobs: Tensor, engine_logprobs: Tensor) -> Agreement:
    """The statistics of tokens [N]; those that the engine could not score (NaN) are left out.

    What is to be judged is the mean of |rho - 1|. The mean of rho itself says little: over samples of the engine it is
    1 in expectation whatever the trainer's probabilities are. NaN throughout where nothing was scored; log rho enters
    within [-20, 20].
    """
    is_scored = ~engine_logprobs.isnan()
    log_rho = (trainer_logprobs.double() - engine_logprobs.double())[is_scored].clamp(-LOG_LIMIT, LOG_LIMIT)
    if not len(log_rho):
        return Agreement(0, *[float("nan")] * 5)
    # expm1, because rho - 1 of a small log rho would be rounding.
    deviations = torch.expm1(log_rho).abs()
    quantiles = torch.quantile(deviations, torch.tensor([0.5, 0.99], dtype=deviations.dtype, device=deviations.device))
    return Agreement(
        num_tokens=len(log_rho),
        ratio_mean=log_rho.exp().mean().item(),
        dev_mean=deviations.mean().item(),
        dev_q50=quantiles[0].item(),
        dev_q99=quantiles[1].item(),
        dev_max=deviations.max().item(),
    )


def joined(per_completion: Sequence[Sequence[float]]) -> Tensor:
    """The values of ragged completions one after the other, [N]."""
    return torch.tensor([value for values in per_completion for value in values], dtype=torch.float32)
