"""What every sample of a set came to, kept with an evaluation so that others can be compared with it by prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from rlvr.evaluation.comparison import Comparison, compare
from rlvr.evaluation.estimators import pass_at_k
from rlvr.evaluation.reach import Reach, reach_of
from rlvr.evaluation.records import PromptRecord

RIGHT, WRONG, NO_VERDICT = "1", "0", "-"
GREEDY, PASS_AT = "greedy", "pass@"
CACHED = 256  # comparisons, as those of a report stand in several of its places


@dataclass(frozen=True)
class Outcomes:
    """An entry per prompt in each list; a sample is one letter: `RIGHT`, `WRONG` or `NO_VERDICT`."""

    ids: tuple[int, ...]  # of the rows of the set
    keys: tuple[str, ...]  # equal where the prompts are
    samples: tuple[str, ...]  # equally many of each prompt
    greedy: tuple[str, ...]  # one letter, or none where there is no greedy answer

    @property
    def is_scored(self) -> list[bool]:
        """Whether all answers to a prompt have a verdict: other prompts count in no estimate."""
        return [NO_VERDICT not in drawn + greedy for drawn, greedy in zip(self.samples, self.greedy, strict=True)]


def outcomes_of(records: Sequence[PromptRecord], keys: Mapping[int, str], has_greedy: bool) -> Outcomes:
    """The outcomes in the records, in the order of the set; `keys` by prompt."""
    ordered = sorted(records, key=lambda each: each.prompt_id)
    return Outcomes(
        ids=tuple(each.prompt_id for each in ordered),
        keys=tuple(keys[each.prompt_id] for each in ordered),
        samples=tuple("".join(map(_letter, each.outcomes)) for each in ordered),
        greedy=tuple(_letter(each.greedy_outcome) if has_greedy else "" for each in ordered),
    )


def kept_outcomes(kept: Mapping[str, Any]) -> Outcomes:
    """The outcomes of a JSON object. Raises ValueError where they are not of as many prompts and samples."""
    found = Outcomes(
        ids=tuple(int(each) for each in kept["ids"]),
        keys=tuple(str(each) for each in kept["keys"]),
        samples=tuple(str(each) for each in kept["samples"]),
        greedy=tuple(str(each) for each in kept["greedy"]),
    )
    sizes = {len(each) for each in (found.ids, found.keys, found.samples, found.greedy)}
    if len(sizes) > 1 or len({len(each) for each in found.samples}) != 1:
        raise ValueError("outcomes of unlike numbers of prompts or samples")
    return found


def _letter(outcome: float | None) -> str:
    if outcome is None:
        return NO_VERDICT
    return RIGHT if outcome == 1.0 else WRONG


@lru_cache(maxsize=CACHED)
def difference_by_prompt(ours: Outcomes, theirs: Outcomes, metric: str, *, seed: int) -> Comparison | None:
    """Ours minus theirs of pass@k or greedy, with paired interval and p-value; see `compare`.

    None where the two are not of the same prompts, or have no prompt in common all of whose answers have a verdict, and
    for a metric that is not known by prompt.
    """
    if not _are_paired(ours, theirs):
        return None
    values, reference = _values(ours, metric), _values(theirs, metric)
    if values is None or reference is None:
        return None
    return compare(values, reference, seed=seed, clusters=dict(zip(ours.ids, ours.keys, strict=True)))


@lru_cache(maxsize=CACHED)
def reach_by_prompt(base: Outcomes, tuned: Outcomes, *, seed: int) -> Reach | None:
    """What tuning did to the reach of the base model; None as for `difference_by_prompt`."""
    if not _are_paired(base, tuned):
        return None
    pairs = zip(base.is_scored, tuned.is_scored, strict=True)
    places = [place for place, (theirs, ours) in enumerate(pairs) if theirs and ours]
    base_right, tuned_right = (
        np.array([list(each.samples[place]) for place in places]) == RIGHT for each in (base, tuned)
    )
    ids, keys = [base.ids[place] for place in places], [base.keys[place] for place in places]
    return reach_of(base_right, tuned_right, ids=ids, clusters=keys, seed=seed)


def _are_paired(some: Outcomes, others: Outcomes) -> bool:
    same = (some.ids, some.keys) == (others.ids, others.keys)
    return same and any(a and b for a, b in zip(some.is_scored, others.is_scored, strict=True))


def _values(outcomes: Outcomes, metric: str) -> dict[int, float | None] | None:
    """By prompt; None for those that are not scored. None at all for another metric, or a k above the samples."""
    scored, k = outcomes.is_scored, metric.removeprefix(PASS_AT)
    if metric == GREEDY and all(outcomes.greedy):
        found = [float(letter == RIGHT) for letter in outcomes.greedy]
    elif metric.startswith(PASS_AT) and k.isdecimal() and 1 <= int(k) <= len(outcomes.samples[0]):
        found = [pass_at_k(len(drawn), drawn.count(RIGHT), int(k)) for drawn in outcomes.samples]
    else:
        return None
    return {each: value if ok else None for each, value, ok in zip(outcomes.ids, found, scored, strict=True)}
