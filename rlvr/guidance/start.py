"""When guidance begins: at once, or once the policy has stopped to gain by itself (the two stages of NuRL)."""

from typing import Any


class Start:
    """`is_on` from the first step, or after `patience` steps without a gain.

    A gain is a mean unhinted pass rate of a step that exceeds the best so far by more than `min_gain`. Once on it stays
    on. Steps without any verdict do not count. NuRL (arXiv 2509.25666) is reported to wait for ten evaluations.
    """

    def __init__(self, after_plateau: bool, patience: int, min_gain: float) -> None:
        self.patience, self.min_gain = patience, min_gain
        self.is_on = not after_plateau
        self.best: float | None = None
        self.waited = 0

    def observe(self, pass_rate: float | None) -> None:
        """Sees the mean unhinted pass rate of a step, before the step asks whether guidance is on."""
        if pass_rate is None or self.is_on:
            return
        if self.best is None or pass_rate > self.best + self.min_gain:
            self.best, self.waited = pass_rate, 0
            return
        self.waited += 1
        self.is_on = self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"is_on": self.is_on, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self.is_on, self.best, self.waited = state["is_on"], state["best"], state["waited"]
