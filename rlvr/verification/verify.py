"""What every reward function says about every completion, and what follows from it."""

import asyncio
import inspect
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

from rlvr.config.schema import RewardsConfig
from rlvr.errors import RewardError, RunAborted


@dataclass(frozen=True)
class RewardFunction:
    """A reward function with its label and its weight in the total."""

    name: str
    weight: float
    function: Callable[..., Any]


@dataclass(frozen=True)
class Verdicts:
    """Scores of B completions by R reward functions; None stands for no verdict."""

    names: tuple[str, ...]  # [R]
    components: list[list[float | None]]  # [B][R]
    rewards: list[float | None]  # [B] weighted total
    outcomes: list[float | None]  # [B] 1.0 right, 0.0 wrong


def verify(
    functions: Sequence[RewardFunction],
    verifier: str,
    correct_at: float,
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
    **extra: Any,
) -> Verdicts:
    """Calls every function once on all B completions; asynchronous ones run concurrently, after the others.

    A completion is right when the component of the function labelled `verifier` is at least `correct_at`. Where that
    component is None the completion is unscorable: no reward, no outcome. Other components that are None count as 0.
    A function gets what its signature takes of the columns, the batch and `extra`; arguments bound to it win over
    columns. Raises RewardError when a function breaks its contract; what it raises itself is raised unchanged.
    """
    names = tuple(each.name for each in functions)
    judge = names.index(verifier)
    offered = {**columns, "prompts": prompts, "completions": completions, "completion_ids": completion_ids, **extra}
    returned = _call_all(functions, offered)
    per_function = [
        _checked(each.name, values, len(completions)) for each, values in zip(functions, returned, strict=True)
    ]
    components = [list(row) for row in zip(*per_function, strict=True)]
    weights = [each.weight for each in functions]
    return Verdicts(
        names=names,
        components=components,
        rewards=[None if row[judge] is None else _total(row, weights) for row in components],
        outcomes=[_outcome(row[judge], correct_at) for row in components],
    )


def _total(components: Sequence[float | None], weights: Sequence[float]) -> float:
    return sum(weight * (value or 0.0) for weight, value in zip(weights, components, strict=True))


def _outcome(value: float | None, correct_at: float) -> float | None:
    return None if value is None else float(value >= correct_at)


def _call_all(functions: Sequence[RewardFunction], offered: Mapping[str, Any]) -> list[Any]:
    """What each function returns, in their order."""
    returned = {}
    pending = {}
    for index, each in enumerate(functions):
        arguments = _arguments(each, offered)
        if _is_async(each.function):
            pending[index] = each.function(**arguments)
        else:
            returned[index] = each.function(**arguments)
    if pending:
        returned |= dict(zip(pending, _run_concurrently(list(pending.values())), strict=True))
    return [returned[index] for index in range(len(functions))]


def _arguments(function: RewardFunction, offered: Mapping[str, Any]) -> dict[str, Any]:
    bound = function.function.keywords if isinstance(function.function, partial) else {}
    parameters = inspect.signature(function.function).parameters.values()
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    for each in named:
        if each.default is each.empty and each.name not in offered:
            has = ", ".join(offered)
            raise RewardError(
                f"reward {function.name!r} needs {each.name!r}, which no column provides; there are {has}"
            )
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    accepted = offered if takes_any else {each.name for each in named}
    return {name: value for name, value in offered.items() if name in accepted and name not in bound}


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _run_concurrently(coroutines: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    async def gather() -> list[Any]:
        return await asyncio.gather(*coroutines)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(gather())
    # A thread that runs a loop, such as a notebook's, cannot wait for a second one.
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(asyncio.run, gather()).result()


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


def check_unscorable(share: float, config: RewardsConfig) -> None:
    """Raises RunAborted when the verifier gave no verdict on more than the allowed share of a step's completions."""
    if share > config.max_unscorable:
        raise RunAborted(
            f"The verifier {config.verifier_name!r} gave no verdict on {share:.0%} of this step's completions, over"
            f" rewards.max_unscorable={config.max_unscorable:.0%}; check it with its reference answers, or raise the"
            " limit."
        )
