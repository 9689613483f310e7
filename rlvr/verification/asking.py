"""One reward asked about completions outside of a run, with the reason of each verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards._item import ItemReward, Judgement, Status
from rewards._text import text_of
from rlvr.verification.asynchronous import AsyncLimits
from rlvr.verification.calling import RewardFunction, call_all
from rlvr.verification.judging import Judge, Judged
from rlvr.verification.tasks import Item, Limits

CORRECT_AT = 1.0  # as `rewards.correct_at` of a recipe by default


@dataclass(frozen=True)
class Answer:
    """What a reward says about one completion. `reason` is empty where it gives none."""

    value: float | None
    status: Status
    reason: str = ""


class Recorded(Judge):
    """A judge that remembers the judgements of its last call."""

    def __init__(self, workers: int, limits: Limits) -> None:
        super().__init__(workers, limits)
        self.latest: list[Judgement] = []

    def judge(self, reward: ItemReward, options: Mapping[str, Any], items: Sequence[Item]) -> list[Judged]:
        """As `Judge` does."""
        judged = super().judge(reward, options, items)
        self.latest = [each.judgement for each in judged]
        return judged


class Afresh(Recorded):
    """Judges equal questions anew, and lets a failure be a failure, whatever becomes of the reference."""

    def judge(self, reward: ItemReward, options: Mapping[str, Any], items: Sequence[Item]) -> list[Judged]:
        """One judgement per item; None with the reason where judging timed out, raised or killed the worker."""
        self.latest = [
            each if isinstance(each, Judgement) else Judgement(None, each.status, each.reason)
            for each in self._ask(reward, options, items)
        ]
        return [Judged(each, False) for each in self.latest]


def offer(completions: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a reward may take: the columns of the rows, their prompts, and stand-ins for what only a run has.

    Without a column `completion_ids` a token is a word.
    """
    names = dict.fromkeys(name for row in rows for name in row if name != "completion")
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names}
    words = [[0] * len(text_of(each).split()) for each in completions]
    stand_ins = {"prompts": columns.get("prompt", [""] * len(rows)), "completion_ids": words, "trainer_state": None}
    return {**stand_ins, **columns, "completions": completions}


def ask(
    function: RewardFunction, completions: Sequence[Any], rows: Sequence[Mapping[str, Any]], judge: Recorded
) -> list[Answer]:
    """One answer per completion. Raises RewardError when a column is missing or the reward breaks its contract.

    What a plain function raises is raised unchanged.
    """
    judge.latest = []
    limits = AsyncLimits(concurrency=64, timeout_s=60.0)
    (column,) = call_all([function], offer(completions, rows), judge, limits)
    reasons = [each.reason for each in judge.latest] or [""] * len(completions)
    return [
        Answer(value, status or _status(value), reason)
        for value, status, reason in zip(column.values, column.statuses, reasons, strict=True)
    ]


def told(answer: Answer | Judgement) -> str:
    """The value, or that there is none, and the reason in brackets."""
    if answer.value is None:
        return f"no verdict ({answer.reason})" if answer.reason else "no verdict"
    return f"{answer.value:g}" + (f" ({answer.reason})" if answer.reason else "")


def _status(value: float | None) -> Status:
    if value is None:
        return Status.ERROR
    return Status.CORRECT if value >= CORRECT_AT else Status.WRONG
