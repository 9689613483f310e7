"""Calls every reward function once on a batch, each in the way that its kind needs."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

from rewards._item import ItemReward, Judgement, Status
from rewards._text import text_of
from rlvr.errors import RewardError
from rlvr.schedule import Schedule
from rlvr.verification.asynchronous import AsyncLimits, run_attempts
from rlvr.verification.judging import Judge
from rlvr.verification.tasks import Breach, Failure, checked

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class RewardFunction:
    """A reward function with its label and how its value enters the total."""

    name: str
    weight: Schedule
    function: Callable[..., Any]
    clip: tuple[float, float] | None = None


@dataclass(frozen=True)
class Column:
    """What one function says about B completions."""

    values: list[float | None]
    statuses: list[Status | None]  # None where the function does not say
    cached: list[bool]  # known from an equal question


def call_all(
    functions: Sequence[RewardFunction], offered: Mapping[str, Any], judge: Judge, limits: AsyncLimits
) -> list[Column]:
    """One column per function, in their order; asynchronous ones run concurrently, after the others."""
    texts = [text_of(completion) for completion in offered["completions"]]
    columns: dict[int, Column] = {}
    later: dict[int, list[Callable[[], Any]]] = {}
    for index, each in enumerate(functions):
        reward, _ = unbound(each.function)
        if not isinstance(reward, ItemReward):
            arguments = _arguments(each, offered)
            if is_async(reward):
                later[index] = [partial(each.function, **arguments)]
            else:
                columns[index] = _plain(each.name, each.function(**arguments), len(texts))
            continue
        options, rows = options_and_rows(each, offered)
        if is_async(reward.judge):
            later[index] = [
                partial(reward.judge, text, **row, **options) for text, row in zip(texts, rows, strict=True)
            ]
        else:
            judged = judge.judge(reward, options, list(zip(texts, rows, strict=True)))
            columns[index] = _of_judgements([j.judgement for j in judged], [j.cached for j in judged])
    if later:
        results = iter(run_attempts([attempt for attempts in later.values() for attempt in attempts], limits))
        for index, attempts in later.items():
            of_function = [next(results) for _ in attempts]
            columns[index] = _of_async(functions[index], of_function, len(texts))
    return [columns[index] for index in range(len(functions))]


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a parameter of that name is left to be given; `**columns` names none."""
    return _parameter(function, name) is not None


def requires(function: Callable[..., Any], name: str) -> bool:
    """Whether the function cannot be called without an argument of that name."""
    parameter = _parameter(function, name)
    return parameter is not None and parameter.default is parameter.empty


def _parameter(function: Callable[..., Any], name: str) -> inspect.Parameter | None:
    if name in unbound(function)[1]:
        return None
    parameter = inspect.signature(function).parameters.get(name)
    return parameter if parameter is not None and parameter.kind in NAMED else None


def options_and_rows(
    function: RewardFunction, offered: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the `ItemReward` of `function` is asked with: the options bound to it, and the columns of each completion.

    Raises RewardError when a column is missing.
    """
    reward, bound = unbound(function.function)
    assert isinstance(reward, ItemReward)
    options = {name: bound[name] for name in reward.options if name in bound}
    return options, reward.rows(len(offered["completions"]), {**_arguments(function, offered), **bound})


def _of_async(function: RewardFunction, results: list[Any], count: int) -> Column:
    if not isinstance(unbound(function.function)[0], ItemReward):
        (result,) = results  # of the whole batch
        if isinstance(result, Failure):
            return Column([None] * count, [result.status] * count, [False] * count)
        return _plain(function.name, result, count)
    judgements = []
    for result in results:
        outcome = (
            Judgement(None, result.status, result.reason)
            if isinstance(result, Failure)
            else checked(function.name, result)
        )
        if isinstance(outcome, Breach):
            raise RewardError(outcome.text)
        judgements.append(outcome)
    return _of_judgements(judgements, [False] * count)


def _of_judgements(judgements: Sequence[Judgement], cached: list[bool]) -> Column:
    return Column([each.value for each in judgements], [each.status for each in judgements], cached)


def _plain(name: str, values: Any, count: int) -> Column:
    return Column(_checked(name, values, count), [None] * count, [False] * count)


def unbound(function: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function below any `partial`, and the keyword arguments bound on the way."""
    bound: dict[str, Any] = {}
    while isinstance(function, partial):
        bound = {**function.keywords, **bound}
        function = function.func
    return function, bound


def _arguments(function: RewardFunction, offered: Mapping[str, Any]) -> dict[str, Any]:
    bound = function.function.keywords if isinstance(function.function, partial) else {}
    parameters = inspect.signature(function.function).parameters.values()
    named = [each for each in parameters if each.kind in NAMED]
    for each in named:
        if each.default is each.empty and each.name not in offered:
            has = ", ".join(offered)
            raise RewardError(
                f"reward {function.name!r} needs {each.name!r}, which no column provides; there are {has}"
            )
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    accepted = offered if takes_any else {each.name for each in named}
    return {name: value for name, value in offered.items() if name in accepted and name not in bound}


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives something to await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _checked(name: str, values: Any, num_completions: int) -> list[float | None]:
    """One value per completion; NaN is no verdict."""
    if not isinstance(values, Iterable) or isinstance(values, str | Mapping):
        kind = type(values).__name__
        raise RewardError(f"reward {name!r} returned {kind}; it must return a list with one number per completion")
    checked = [_number(name, value) for value in values]
    if len(checked) != num_completions:
        raise RewardError(
            f"reward {name!r} returned {len(checked)} values for {num_completions} completions; return one for each"
        )
    return checked


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, Real):
        raise RewardError(
            f"reward {name!r} returned {value!r} for a completion; return a number, or None for no verdict"
        )
    number = float(value)
    if math.isinf(number):
        raise RewardError(f"reward {name!r} returned {number} for a completion; return a finite number")
    return None if math.isnan(number) else number
