"""Whether a run's validation scores stand still, and what happens then."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console

from rlvr.checkpointing.retention import score_of, validation_scores
from rlvr.config.schema import EarlyStopConfig


@dataclass(frozen=True)
class Standing:
    """The best score of a run so far, its step, and how many evaluations have come after it."""

    best: float
    step: int
    num_since: int


def standing(scores: Mapping[int, float], min_gain: float) -> Standing:
    """From scores by step, in their order; better is what lies more than `min_gain` above the best before it."""
    found: Standing | None = None
    for step, score in sorted(scores.items()):
        if found is None or score > found.best + min_gain:
            found = Standing(score, step, 0)
        else:
            found = Standing(found.best, found.step, found.num_since + 1)
    if found is None:
        raise ValueError("no score, no standing")
    return found


class EarlyStop:
    """Ends a run on a plateau of the scores in its `evaluations` folder, which the main process reads.

    They count from the one before training on, so that a run that only loses ends as well.
    """

    def __init__(self, config: EarlyStopConfig, folder: Path, console: Console) -> None:
        self.config, self.folder, self.console = config, folder, console
        self.has_come = False

    def look(self, step: int) -> bool:
        """Whether the run ends at this step, on all processes alike; says so when it does."""
        found = [self._standing(step) if PartialState().is_main_process else None]
        now = broadcast_object_list(found)[0]
        self.has_come = now is not None and now.num_since >= self.config.patience
        if self.has_come:
            self.console.print(
                f"Stopping after step {step}: {self.config.by} on the validation sets has not risen in"
                f" {now.num_since} evaluations; its best was {now.best:.3f} at step {now.step}.",
                soft_wrap=True,
            )
        return self.has_come

    def _standing(self, step: int) -> Standing | None:
        """None before anything was evaluated. Later steps are of an attempt that was interrupted."""
        scores = {
            0: score_of(self.folder / "before.json", self.config.by),
            **validation_scores(self.folder, self.config.by),
        }
        kept = {at: score for at, score in scores.items() if score is not None and at <= step}
        return standing(kept, self.config.min_gain) if kept else None
