"""Judgements of completions: each question asked once, under a deadline, and the answer to whose fault a failure is."""

import atexit
import functools
import hashlib
import logging
import pickle
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from rewards._item import ItemReward, Judgement, Status
from rlvr.config.schema import RewardsConfig
from rlvr.errors import RewardError
from rlvr.verification.pool import Pool
from rlvr.verification.tasks import Breach, Failure, Item, Limits, Outcome, judge_here

logger = logging.getLogger(__name__)

REFERENCE = "answer"  # the column that holds it
CACHE_SIZE = 65_536  # judgements and references that are remembered
MAX_WARNINGS = 20  # kinds of failure that a run is told about


Value = TypeVar("Value")


@runtime_checkable
class StatesGold(Protocol):
    """A reward that says how its reference looks as a completion."""

    def gold_text(self, answer: str, options: Mapping[str, Any]) -> str:
        """A completion that deserves the best score. `options` are those that the recipe sets."""


@dataclass(frozen=True)
class Judged:
    """A judgement, and whether it was known already."""

    judgement: Judgement
    cached: bool


class Judge:
    """Judges completions in `workers` processes; with 0 in this one, which `tasks.judge_here` says what to expect of.

    The same question (reward, options, text, columns) is asked once, within one call and, of the last `CACHE_SIZE`
    questions, over calls; rewards must be functions of those. Judgements without a value are not remembered.
    """

    def __init__(self, workers: int, limits: Limits) -> None:
        self.limits = limits
        self.pool = Pool(workers, limits) if workers else None
        self._known: _Recent[Judgement] = _Recent(CACHE_SIZE)
        self._sound: _Recent[bool] = _Recent(CACHE_SIZE)
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def judge(self, reward: ItemReward, options: Mapping[str, Any], items: Sequence[Item]) -> list[Judged]:
        """One judgement per item.

        Where judging times out, raises or kills the worker, the reference is judged as if it were the completion. If
        that works the completion is at fault and scores 0; if not, or without a reference, it has no value. Raises
        RewardError when the reward breaks its contract.
        """
        with self._lock:
            reward_key = _reward_key(reward, options)
            keys = [(reward_key, _digest((text, *sorted(row.items())))) for text, row in items]
            found = {key: self._known[key] for key in keys if key in self._known}
            cached = [key in found for key in keys]
            fresh = {key: item for key, item in zip(keys, items, strict=True) if key not in found}
            outcomes = dict(zip(fresh, self._ask(reward, options, list(fresh.values())), strict=True))
            failed = [key for key, outcome in outcomes.items() if isinstance(outcome, Failure)]
            works = self._references(reward, options, reward_key, [fresh[key] for key in failed])
            sound = dict(zip(failed, works, strict=True))
            for key, outcome in outcomes.items():
                if isinstance(outcome, Failure):
                    outcome = Judgement(0.0 if sound[key] else None, outcome.status, outcome.reason)
                    self._warn(reward, outcome)
                assert isinstance(outcome, Judgement)
                found[key] = outcome
                if outcome.value is not None:
                    self._known[key] = outcome
            seen: set[Hashable] = set()
            result = []
            for key, known in zip(keys, cached, strict=True):
                result.append(Judged(found[key], known or key in seen))
                seen.add(key)
            return result

    def judge_references(
        self, reward: ItemReward, options: Mapping[str, Any], items: Sequence[Item]
    ) -> list[Judgement]:
        """One judgement per item, whose text is its own reference: a failure has no value, and nobody else to blame.

        Whether the verifier copes with each is remembered, the judgements are not. Raises RewardError as `judge` does.
        """
        with self._lock:
            reward_key = _reward_key(reward, options)
            judgements = [
                Judgement(None, outcome.status, outcome.reason) if isinstance(outcome, Failure) else outcome
                for outcome in self._ask(reward, options, items)
            ]
            for (_, row), judgement in zip(items, judgements, strict=True):
                self._sound[(reward_key, _row_key(row))] = judgement.value is not None
            return judgements

    def forget(self) -> None:
        """Drops every judgement that is remembered, so that the next ones are made anew; the workers stay."""
        with self._lock:
            self._known = _Recent(CACHE_SIZE)
            self._sound = _Recent(CACHE_SIZE)

    def state_dict(self) -> dict[str, list[list[Any]]]:
        """What is remembered, the oldest first, as plain values."""
        with self._lock:
            known = [[key, each.value, str(each.status), each.reason] for key, each in self._known.entries.items()]
            return {"known": known, "sound": [[key, each] for key, each in self._sound.entries.items()]}

    def load_state_dict(self, state: Mapping[str, list[list[Any]]]) -> None:
        """Remembers what `state_dict` gave, and nothing else."""
        self.forget()
        with self._lock:
            for key, value, status, reason in state["known"]:
                self._known[key] = Judgement(value, Status(status), reason)
            for key, is_sound in state["sound"]:
                self._sound[key] = is_sound

    def close(self) -> None:
        """Ends the workers; a later judgement starts them again."""
        if self.pool is not None:
            self.pool.close()

    def _ask(self, reward: ItemReward, options: Mapping[str, Any], items: Sequence[Item]) -> list[Judgement | Failure]:
        if not items:
            return []
        outcomes: list[Outcome]
        if self.pool is None:
            outcomes = judge_here(reward, options, items, self.limits)
        else:
            outcomes = self.pool.judge(reward, options, items)
        found = []
        for outcome in outcomes:
            if isinstance(outcome, Breach):
                raise RewardError(outcome.text)
            found.append(outcome)
        return found

    def _references(
        self, reward: ItemReward, options: Mapping[str, Any], reward_key: Hashable, items: Sequence[Item]
    ) -> list[bool]:
        """For each item whether the verifier copes with its reference, each of which is judged once."""
        keys = [(reward_key, _row_key(row)) for _, row in items]
        works = {key: self._sound[key] for key in keys if key in self._sound}
        unknown = {}
        for key, (_, row) in zip(keys, items, strict=True):
            text = gold_text(reward, options, row)
            if key not in works and text is not None:
                unknown[key] = (text, row)
        for key, outcome in zip(unknown, self._ask(reward, options, list(unknown.values())), strict=True):
            works[key] = self._sound[key] = isinstance(outcome, Judgement) and outcome.value is not None
        return [works.get(key, False) for key in keys]

    def _warn(self, reward: ItemReward, judgement: Judgement) -> None:
        text = f"reward {reward.judge.__name__!r} could not judge a completion: {judgement.reason}"
        if judgement.value is None and text not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(text)
            logger.warning("%s; nor its reference answer, so it has no verdict", text)


def gold_text(reward: ItemReward, options: Mapping[str, Any], row: Mapping[str, Any]) -> str | None:
    """The reference as a completion: as the reward states it, else in its `tag`, else bare; None where none is."""
    answer = row.get(REFERENCE)
    if not isinstance(answer, str):
        return None
    if isinstance(reward, StatesGold):
        return reward.gold_text(answer, options)
    if "tag" not in reward.options:
        return answer
    tag = options.get("tag", reward.__signature__.parameters["tag"].default)
    return answer if tag is None else f"<{tag}>{answer}</{tag}>"


def limits_of(rewards: RewardsConfig) -> Limits:
    """What the recipe says."""
    return Limits(rewards.timeout_s, rewards.cpu_s, rewards.memory_mb)


@functools.cache
def shared_judge(workers: int, limits: Limits) -> Judge:
    """The one judge of these limits in this process: training and evaluation share its workers and what it knows."""
    judge = Judge(workers, limits)
    atexit.register(judge.close)
    return judge


class _Recent(Generic[Value]):
    """A mapping that forgets what was used longest ago."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: OrderedDict[Hashable, Value] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self.entries

    def __getitem__(self, key: Hashable) -> Value:
        self.entries.move_to_end(key)
        return self.entries[key]

    def __setitem__(self, key: Hashable, value: Value) -> None:
        self.entries[key] = value
        if len(self.entries) > self.size:
            self.entries.popitem(last=False)


def _reward_key(reward: ItemReward, options: Mapping[str, Any]) -> Hashable:
    return (reward.__module__, reward.judge.__qualname__, _digest(sorted(options.items())))


def _row_key(row: Mapping[str, Any]) -> bytes:
    return _digest(sorted(row.items()))


def _digest(parts: Iterable[Any]) -> bytes:
    """Equal only for equal parts. Each is pickled on its own, as one pickle also tells which objects are the same."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(pickle.dumps(part))
    return digest.digest()
