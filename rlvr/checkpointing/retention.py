"""Which checkpoints of a run stay on the disk."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlvr.checkpointing.folders import discard, name_of, steps_of
from rlvr.config.checkpoints import CheckpointsConfig

EVALUATION = re.compile(r"step-(\d+)\.json")


@dataclass(frozen=True)
class Retention:
    """Applies the recipe's `checkpoints` section after each save, on the main process."""

    config: CheckpointsConfig
    run_dir: Path

    def __call__(self) -> None:
        """Removes the checkpoints that the section does not keep."""
        scores = validation_scores(self.run_dir / "evaluations", self.config.best_by)
        for step in surplus(steps_of(self.run_dir), scores, self.config.keep_last, self.config.keep_best):
            discard(self.run_dir / name_of(step))


def surplus(
    steps: Sequence[int], scores: Mapping[int, float], keep_last: int | None, keep_best: int | None
) -> list[int]:
    """The steps to remove: neither among the last nor among the best. The newest always stays.

    With `keep_best` alone only the best and the newest stay; with neither, all. Of equal scores the earlier is better,
    as it is closer to the base model.
    """
    if keep_last is None and keep_best is None:
        return []
    ordered = sorted(steps)
    kept = set(ordered[-(keep_last or 1) :])
    best = sorted((step for step in ordered if step in scores), key=lambda step: (-scores[step], step))
    kept |= set(best[: keep_best or 0])
    return [step for step in ordered if step not in kept]


def validation_scores(folder: Path, metric: str) -> dict[int, float]:
    """By step, the mean of the metric over the validation sets of `evaluations/step-*.json`."""
    scores = {}
    for path in folder.glob("step-*.json"):
        match, score = EVALUATION.fullmatch(path.name), score_of(path, metric)
        if match and score is not None:
            scores[int(match[1])] = score
    return scores


def score_of(path: Path, metric: str) -> float | None:
    """The mean of the metric over the validation sets of one evaluation.

    None where there is no such set, and where one has no estimate, as no prompt of it got all of its verdicts.
    """
    results = json.loads(path.read_text()) if path.exists() else []
    estimates = [each["estimates"] for each in results if each["role"] == "validation"]
    if not estimates or not all(metric in each for each in estimates):
        return None
    return float(sum(each[metric]["value"] for each in estimates) / len(estimates))
