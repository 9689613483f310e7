"""What every reward function says about every completion, and what follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards._item import Status
from rlvr.config.schema import RewardsConfig
from rlvr.errors import RewardError, RunAborted
from rlvr.schedule import value_at
from rlvr.verification.asynchronous import AsyncLimits
from rlvr.verification.calling import Column, RewardFunction, call_all, requires, takes
from rlvr.verification.judging import limits_of, shared_judge


@dataclass(frozen=True)
class Verdicts:
    """Scores of B completions by R reward functions; None stands for no verdict."""

    names: tuple[str, ...]  # [R]
    components: list[list[float | None]]  # [B][R] as the functions return them
    rewards: list[float | None]  # [B] weighted total
    outcomes: list[float | None]  # [B] 1.0 right, 0.0 wrong
    statuses: list[Status] = field(default_factory=list)  # [B] the verifier's; by default what the outcomes say
    cached: list[bool] = field(default_factory=list)  # [B] whether the verifier knew it from an equal question

    def __post_init__(self) -> None:
        if not self.statuses:
            object.__setattr__(self, "statuses", [_status(outcome) for outcome in self.outcomes])
        if not self.cached:
            object.__setattr__(self, "cached", [False] * len(self.outcomes))

    def shares(self) -> dict[str, list[float]]:
        """[B] zeros and ones by metric, whose mean over all ranks is to be logged."""
        flags = {
            f"verify/{status.value}_frac": [float(each is status) for each in self.statuses]
            for status in (Status.TIMEOUT, Status.ERROR, Status.NO_ANSWER)
        }
        return flags | {"verify/cache_hit_frac": [float(each) for each in self.cached]}


def verify(
    functions: Sequence[RewardFunction],
    config: RewardsConfig,
    *,
    step: int = 0,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
    prompt_ids: Sequence[int] | None = None,
    **extra: Any,
) -> Verdicts:
    """Calls every function on all B completions, B >= 0; `prompt_ids` [B] reach them as the column `prompt_id`.

    An `ItemReward` is judged by the workers of `config` (see `rlvr.verification.judging`), a plain function is called
    once here, asynchronous ones run concurrently (see `rlvr.verification.asynchronous`), after the others.

    A completion is right when the component of the function labelled `config.verifier_name` is at least
    `config.correct_at`. Where that component is None the completion is unscorable: no reward, no outcome. Other
    components that are None count as 0. The total is the sum of weight at `step` x clipped component, 0 where the
    component of `config.gate` is None or below `config.gate_at`.

    A function gets what its signature takes of the columns, the batch and `extra`; arguments bound to it win over
    columns. One that names `outcomes` is called after the others, with the outcomes [B] of the verifier; a column of
    that name reaches no function. Raises RewardError when a function breaks its contract or the verifier cannot do
    without outcomes; what a plain function raises is raised unchanged.
    """
    names = tuple(each.name for each in functions)
    if not completions:
        _join(functions, extra)
        return Verdicts(names, [], [], [])
    verifier = names.index(config.verifier_name)
    gate = None if config.gate is None else names.index(config.gate)
    offered = {name: column for name, column in columns.items() if name != "outcomes"}
    offered |= {} if prompt_ids is None else {"prompt_id": prompt_ids}
    offered |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **extra}
    called = _called(functions, verifier, offered, config)
    components = [list(row) for row in zip(*(column.values for column in called), strict=True)]
    weights = [value_at(each.weight, step) for each in functions]
    rewards: list[float | None] = []
    for row in components:
        if row[verifier] is None:
            rewards.append(None)
        elif gate is not None and _below(row[gate], config.gate_at):
            rewards.append(0.0)
        else:
            rewards.append(_total(row, weights, functions))
    outcomes = [_outcome(row[verifier], config.correct_at) for row in components]
    return Verdicts(
        names, components, rewards, outcomes, _statuses(called[verifier], outcomes), called[verifier].cached
    )


def _join(functions: Sequence[RewardFunction], extra: Mapping[str, Any]) -> None:
    """Without completions no function is called, but other ranks may be waiting for this one in a common scorer."""
    for each in functions:
        if "scorer" in extra and takes(each.function, "scorer"):
            extra["scorer"].score_tokens([], [])


def _called(
    functions: Sequence[RewardFunction], verifier: int, offered: Mapping[str, Any], config: RewardsConfig
) -> list[Column]:
    """One column per function, in their order; those that take outcomes are called once the verifier's are known."""
    if requires(functions[verifier].function, "outcomes"):
        raise RewardError(
            f"reward {functions[verifier].name!r} is the verifier and needs 'outcomes', which are its own verdicts;"
            " name another function in rewards.verifier, or give the parameter a default"
        )
    judge = shared_judge(config.workers, limits_of(config))
    limits = AsyncLimits(config.async_concurrency, config.async_timeout_s)
    later = [i for i, each in enumerate(functions) if i != verifier and takes(each.function, "outcomes")]
    first = [i for i in range(len(functions)) if i not in later]
    columns = dict(zip(first, call_all([functions[i] for i in first], offered, judge, limits), strict=True))
    if later:
        outcomes = [_outcome(value, config.correct_at) for value in columns[verifier].values]
        knowing = call_all([functions[i] for i in later], {**offered, "outcomes": outcomes}, judge, limits)
        columns |= zip(later, knowing, strict=True)
    return [columns[i] for i in range(len(functions))]


def _below(value: float | None, threshold: float) -> bool:
    return value is None or value < threshold


def _total(components: Sequence[float | None], weights: Sequence[float], functions: Sequence[RewardFunction]) -> float:
    total = 0.0
    for value, weight, function in zip(components, weights, functions, strict=True):
        low, high = function.clip or (float("-inf"), float("inf"))
        total += weight * min(max(value, low), high) if value is not None else 0.0
    return total


def _outcome(value: float | None, correct_at: float) -> float | None:
    return None if value is None else float(value >= correct_at)


def _statuses(column: Column, outcomes: Sequence[float | None]) -> list[Status]:
    return [given or _status(outcome) for given, outcome in zip(column.statuses, outcomes, strict=True)]


def _status(outcome: float | None) -> Status:
    if outcome is None:
        return Status.ERROR
    return Status.CORRECT if outcome == 1.0 else Status.WRONG


def check_unscorable(share: float, config: RewardsConfig) -> None:
    """Raises RunAborted when the verifier gave no verdict on more than the allowed share of a step's completions."""
    if share > config.max_unscorable:
        raise RunAborted(
            f"The verifier {config.verifier_name!r} gave no verdict on {share:.0%} of this step's completions, over"
            f" rewards.max_unscorable={config.max_unscorable:.0%}; check it with its reference answers, or raise the"
            " limit."
        )
