"""A bonus on the entropy of the policy, with a fixed, a scheduled or an adapting coefficient."""

import math
from collections.abc import Mapping

from rlvr.config.regularizers import EntropyConfig
from rlvr.objectives.aggregation import aggregate
from rlvr.objectives.regularizers.base import Contribution, LiveTokens, Needs, Regularizer
from rlvr.ops.token_stats import StatsRequest
from rlvr.schedule import value_at


def adapted_coef(coef: float, entropy: float, target: float, delta: float, low: float, high: float) -> float:
    """coef + delta where entropy <= target, else coef - delta, within [low, high]: Skywork-OR1, arXiv 2505.22312."""
    return min(coef + delta, high) if entropy <= target else max(coef - delta, low)


class Entropy(Regularizer):
    """-coef mean_t H_t, the mean over the loss tokens of the step whatever the aggregation of the policy loss.

    With a target, the coefficient acts in the step after one whose entropy was at most the target, and moves by
    `coef_delta` after every step (Skywork-OR1, arXiv 2505.22312, which gates by the entropy of the same step: that
    would cost a pass before each). Assumes that more entropy is more exploration; a bonus on all tokens is known to
    flatten noise first.
    """

    name = "entropy"
    needs = Needs(live=StatsRequest(entropy=True))

    def __init__(self, config: EntropyConfig) -> None:
        self.config = config
        self.coef = config.coef if isinstance(config.coef, float) else 0.0
        self.last_entropy = math.inf  # no bonus before anything was measured

    def coef_at(self, step: int) -> float:
        if self.config.target is None:
            return value_at(self.config.coef, step)
        return self.coef if self.last_entropy <= self.config.target else 0.0

    def contribute(self, live: LiveTokens) -> Contribution:
        assert live.stats.entropy is not None
        mean = aggregate(live.stats.entropy, live.mask, live.denominator, "token_mean")
        return Contribution(loss=-live.coef * mean)

    def finish(self, metrics: Mapping[str, float]) -> None:
        self.last_entropy = metrics["entropy/mean_token"]
        c = self.config
        if c.target is not None:
            self.coef = adapted_coef(self.coef, self.last_entropy, c.target, c.coef_delta, c.coef_min, c.coef_max)

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef, "last_entropy": self.last_entropy}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.coef, self.last_entropy = state["coef"], state["last_entropy"]
