"""Solved prompts that are like another one, by the words that they share."""

import math
import re
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_PROMPTS = 10_000


def similarity(a: str, b: str) -> float:
    """The cosine between the word counts of two texts, 0 to 1; case does not matter, and without words it is 0."""
    counts_a, counts_b = _words(a), _words(b)
    dot = sum(count * counts_b[word] for word, count in counts_a.items())
    return dot / (_norm(counts_a) * _norm(counts_b)) if dot else 0.0


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold()))


def _norm(counts: Counter[str]) -> float:
    return math.sqrt(sum(count * count for count in counts.values()))


@dataclass(frozen=True)
class _Entry:
    slot: int
    prompt: str
    completion: str


@dataclass(frozen=True)
class _Postings:
    """The slots whose prompts have a word, in any order, and how often."""

    slots: "array[int]" = field(default_factory=lambda: array("q"))
    counts: "array[int]" = field(default_factory=lambda: array("q"))

    def remove(self, slot: int) -> None:
        place = int(np.flatnonzero(_view(self.slots) == slot)[0])
        for values in (self.slots, self.counts):
            last = values.pop()
            if place < len(values):
                values[place] = last


def _view(values: "array[int]") -> npt.NDArray[np.int64]:
    """Not to be kept: the values cannot grow as long as it lives."""
    return np.frombuffer(values, dtype=np.int64)


class Solved:
    """Verified successes, the newest of each prompt; beyond `capacity` prompts the one added longest ago is dropped."""

    def __init__(self, capacity: int = MAX_PROMPTS) -> None:
        self.capacity = capacity
        self._clear()

    def _clear(self) -> None:
        self._entries: dict[int, _Entry] = {}  # by prompt_id, oldest first; they fill the slots from 0 without a gap
        self._postings: dict[str, _Postings] = {}  # by word
        self._added = 0
        self._owners = np.zeros(self.capacity, dtype=np.int64)  # by slot, the prompt_id
        self._ages = np.zeros(self.capacity, dtype=np.int64)  # when its entry was added
        self._norms = np.ones(self.capacity)  # of its word counts

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, prompt_id: int, prompt_text: str, completion_text: str) -> None:
        """Takes up a success in place of an older one of its prompt; it is the newest now."""
        old = self._entries.pop(prompt_id, None)
        if old is None and len(self._entries) == self.capacity:
            old = self._entries.pop(next(iter(self._entries)))
        slot = len(self._entries)
        if old is not None:
            slot = old.slot
            self._forget(old)
        words = _words(prompt_text)
        for word, count in words.items():
            postings = self._postings.setdefault(word, _Postings())
            postings.slots.append(slot)
            postings.counts.append(count)
        self._owners[slot], self._ages[slot], self._norms[slot] = prompt_id, self._added, _norm(words) or 1.0
        self._entries[prompt_id] = _Entry(slot, prompt_text, completion_text)
        self._added += 1

    def _forget(self, entry: _Entry) -> None:
        for word in _words(entry.prompt):
            self._postings[word].remove(entry.slot)
            if not self._postings[word].slots:
                del self._postings[word]

    def nearest(self, prompt_id: int, text: str, count: int) -> list[tuple[str, str]]:
        """Prompt and completion of the `count` successes whose prompts are most similar to `text`, the best first.

        Fewer where there are fewer. Never those of `prompt_id`; of equally similar ones the newest come first.
        """
        dots = np.zeros(len(self._entries), dtype=np.int64)
        for word, times in _words(text).items():
            postings = self._postings.get(word)
            if postings is not None:
                dots[_view(postings.slots)] += times * _view(postings.counts)
        scores = dots / self._norms[: len(dots)]
        own = self._entries.get(prompt_id)
        if own is not None:
            scores[own.slot] = -1.0
        count = min(count, len(scores) - (own is not None))
        if count <= 0:
            return []
        least = np.partition(scores, -count)[-count]
        slots = np.flatnonzero(scores >= least)
        best = slots[np.lexsort((-self._ages[slots], -scores[slots]))[:count]]
        entries = [self._entries[owner] for owner in self._owners[best].tolist()]
        return [(entry.prompt, entry.completion) for entry in entries]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes, as JSON can hold it."""
        return {"solved": [[key, entry.prompt, entry.completion] for key, entry in self._entries.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Holds just what the store held whose `state_dict` this is, at most the newest `capacity`."""
        self._clear()
        for prompt_id, prompt_text, completion_text in state["solved"]:
            self.add(prompt_id, prompt_text, completion_text)
