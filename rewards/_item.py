"""Rewards that judge one completion at a time, so that a runtime can isolate, time and cache each judgement."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rewards._text import Completion, text_of


class Status(StrEnum):
    """How a judgement came about."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"  # the completion holds nothing to judge
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True)
class Judgement:
    """The verdict on one completion. A wrong answer scores 0; None says that the verifier itself could not judge."""

    value: float | None
    status: Status
    reason: str = ""  # for people


def graded(value: float) -> Judgement:
    """CORRECT at 1 or above, WRONG below."""
    return Judgement(value, Status.CORRECT if value >= 1.0 else Status.WRONG)


def no_answer(reason: str = "") -> Judgement:
    """There is nothing to judge, which is the completion's fault: 0."""
    return Judgement(0.0, Status.NO_ANSWER, reason)


def unscorable(reason: str) -> Judgement:
    """The verifier cannot judge, which is not the completion's fault: no value."""
    return Judgement(None, Status.ERROR, reason)


class ItemReward:
    """A reward made of `judge(text, <columns>, *, <options>) -> Judgement`.

    Called like any reward function, with lists, it judges one completion after the other in this process:
    `reward(completions, answer=[...], tag=None) -> list[float | None]`. Positional parameters of `judge` after the text
    are columns of the data set (one with a default may be missing), keyword-only ones are options.
    """

    # Whether a reference put as a completion (in the `tag`, or as the reward's own `gold_text`) must be right, so that
    # a row where it is not is a bad row.
    reference_is_right = True

    def __init__(self, judge: Callable[..., Judgement]) -> None:
        functools.update_wrapper(self, judge)
        self.judge = judge
        text, *parameters = inspect.signature(judge).parameters.values()
        assert text.name == "text"
        self.columns = tuple(each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD)
        self.options = tuple(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)
        as_list = [each.replace(kind=each.KEYWORD_ONLY) for each in (*self.columns, *parameters[len(self.columns) :])]
        completions = inspect.Parameter("completions", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        rest = inspect.Parameter("_", inspect.Parameter.VAR_KEYWORD)
        self.__signature__ = inspect.Signature([completions, *as_list, rest])

    def __call__(self, completions: Sequence[Completion], **columns_and_options: Any) -> list[float | None]:
        """One value per completion, judged here and now."""
        options = {name: columns_and_options[name] for name in self.options if name in columns_and_options}
        rows = self.rows(len(completions), columns_and_options)
        return [
            self.judge(text_of(completion), **row, **options).value
            for completion, row in zip(completions, rows, strict=True)
        ]

    def rows(self, count: int, columns: dict[str, Any]) -> list[dict[str, Any]]:
        """The column values of each of `count` completions, as `judge` takes them."""
        names = [each.name for each in self.columns if each.default is each.empty or each.name in columns]
        return [{name: columns[name][i] for name in names} for i in range(count)]

    def __reduce__(self) -> tuple[Any, ...]:
        return _find, (self.judge.__module__, self.judge.__qualname__)


def _find(module: str, name: str) -> ItemReward:
    """The reward of that name, for unpickling in another process."""
    found = getattr(__import__(module, fromlist=[name]), name)
    assert isinstance(found, ItemReward)
    return found


def item_reward(judge: Callable[..., Judgement]) -> ItemReward:
    """Decorator: turns `judge(text, <columns>, *, <options>)` into a reward."""
    return ItemReward(judge)
