"""Terms and token choices that can be switched on beside any policy loss, any number at a time."""

from collections.abc import Callable, Sequence
from typing import Any

from rlvr.config.regularizers import RegularizersConfig
from rlvr.objectives.regularizers.base import Needs, Regularizer
from rlvr.objectives.regularizers.covariance import ClipCov, KlCov
from rlvr.objectives.regularizers.entropy import Entropy
from rlvr.objectives.regularizers.lp_reg import LpReg
from rlvr.objectives.regularizers.masks import MasteredMask, TopEntropyMask
from rlvr.objectives.regularizers.siren import Siren
from rlvr.ops.token_stats import LOGPROBS, StatsRequest

__all__ = ["REGULARIZERS", "Needs", "Regularizer", "all_needs", "build_regularizers"]

REGULARIZERS: dict[str, Callable[[Any], Regularizer]] = {
    "entropy": Entropy,
    "top_entropy_mask": TopEntropyMask,
    "clip_cov": ClipCov,
    "kl_cov": KlCov,
    "lp_reg": LpReg,
    "siren": Siren,
    "mastered_mask": MasteredMask,
}


def build_regularizers(config: RegularizersConfig) -> list[Regularizer]:
    """The regularisers that a recipe switches on, in the order of the registry."""
    settings = {name: getattr(config, name) for name in REGULARIZERS}
    return [REGULARIZERS[name](value) for name, value in settings.items() if value is not None]


def all_needs(regularizers: Sequence[Regularizer]) -> Needs:
    """The statistics that any of them needs, by pass; the live pass always has the entropy, for its metric."""
    sampled, live = LOGPROBS, StatsRequest(entropy=True)
    step: StatsRequest | None = None
    for needs in (regularizer.needs for regularizer in regularizers):
        sampled, live = sampled.merged(needs.sampled), live.merged(needs.live)
        if needs.step is not None:
            step = needs.step if step is None else step.merged(needs.step)
    return Needs(sampled, step, live, support=any(regularizer.needs.support for regularizer in regularizers))
