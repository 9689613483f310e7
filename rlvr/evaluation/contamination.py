"""Whether evaluation prompts, or long pieces of them, are among the training prompts."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

# A word, a number or one sign: signs tell arithmetic expressions apart.
WORD = re.compile(r"\w+|[^\w\s]")
NGRAM = 13  # words, as in arXiv 2005.14165
# What more training prompts than these have in common, as a question's fixed wording, is a template and no overlap.
TEMPLATE_SHARE, TEMPLATE_PROMPTS = 0.01, 20
NUM_OFFENDERS = 10
CHUNK = 20_000  # training prompts at a time

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Offender:
    """An evaluation prompt and the training prompt that it shares most with; places in the sequences, from 0."""

    prompt: int
    training_prompt: int
    overlap: float  # the share of the evaluation prompt's n-grams that training prompts have; 1 for equal prompts
    is_equal: bool  # the two have the same words


@dataclass(frozen=True)
class Contamination:
    """How many evaluation prompts overlap with training prompts, and the worst of them."""

    n: int
    num_prompts: int
    num_equal: int  # prompts that are a training prompt, word by word
    num_overlapping: int  # prompts with at least one n-gram of a training prompt, or equal to one
    overlaps: tuple[float, ...]  # [num_prompts] the share of each prompt's n-grams that training prompts have
    offenders: tuple[Offender, ...]  # by falling overlap

    @property
    def share(self) -> float:
        return self.num_overlapping / self.num_prompts


def contamination(prompts: Sequence[str], training_prompts: Sequence[str], n: int = NGRAM) -> Contamination:
    """The overlap of evaluation prompts with training prompts in n-grams of words, without regard to case and blanks.

    A prompt overlaps when an n-gram of it is in a training prompt. One of fewer than n words, such as an arithmetic
    expression, has none; it overlaps when it equals a training prompt word by word, as `3 + 4` and `3+4` do.

    What says nothing about a prompt is left out, if there are more than 20 training prompts: first the words that all
    prompts, of both kinds, begin or end with, then n-grams in more than 20 and more than 1% of the training prompts.
    Prompts of which fewer than n words, or no n-gram, are left are judged by equality as well.

    N-grams are compared by hashes of 64 bits: among 10^7 training and 10^5 evaluation n-grams the probability that any
    two unlike ones are taken for equal is about 10^-7. Raises ValueError without an evaluation prompt, or for n < 1.
    """
    if not prompts or n < 1:
        raise ValueError("contamination needs at least one evaluation prompt and n-grams of at least one word")
    vocabulary = defaultdict[str, int](count().__next__)  # numbers words as they are first met
    ours, theirs = [_ids(text, vocabulary) for text in prompts], [_ids(text, vocabulary) for text in training_prompts]
    head, tail = _common(ours + theirs) if len(theirs) > TEMPLATE_PROMPTS else (0, 0)
    ours, theirs = ([ids[head : len(ids) - tail] for ids in each] for each in (ours, theirs))
    codes = _codes(len(vocabulary))
    shared = _shared(ours, theirs, codes, n)
    equals = _equals(ours, theirs)
    is_found = np.bincount(shared.found, minlength=shared.num_grams) > 0
    counted = np.bincount(shared.owners, minlength=len(ours))
    overlaps = np.bincount(shared.owners, weights=is_found[shared.grams], minlength=len(ours)) / np.maximum(counted, 1)
    overlaps[list(equals)] = 1.0
    worst = [int(each) for each in np.argsort(-overlaps, kind="stable")[:NUM_OFFENDERS] if overlaps[each] > 0]
    offenders = []
    for prompt in worst:
        matches = shared.found_in[np.isin(shared.found, shared.grams[shared.owners == prompt])]
        partner = equals[prompt] if prompt in equals else int(np.bincount(matches).argmax())
        offenders.append(Offender(prompt, partner, float(overlaps[prompt]), prompt in equals))
    return Contamination(
        n, len(ours), len(equals), int((overlaps > 0).sum()), tuple(float(each) for each in overlaps), tuple(offenders)
    )


@dataclass(frozen=True)
class _Shared:
    """N-grams of evaluation prompts that are no templates, each by a number below `num_grams`."""

    num_grams: int
    grams: Ints  # every n-gram of every evaluation prompt
    owners: Ints  # and its prompt
    found: Ints  # those in training prompts, once per training prompt
    found_in: Ints  # and that training prompt


def _ids(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    return list(map(vocabulary.__getitem__, WORD.findall(text.casefold())))


def _common(prompts: Sequence[list[int]]) -> tuple[int, int]:
    """How many words all prompts begin with, and how many of the others all end with; none where all are equal."""
    head = _agreeing(min(prompts), max(prompts))  # those in between in this order begin alike, too
    backwards = [ids[::-1] for ids in prompts]
    tail = min(_agreeing(min(backwards), max(backwards)), min(map(len, prompts)) - head)
    return (0, 0) if head == max(map(len, prompts)) else (head, tail)


def _agreeing(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two sequences have in common from their start."""
    shorter = min(len(first), len(second))
    return next((place for place in range(shorter) if first[place] != second[place]), shorter)


def _codes(num_words: int) -> Hashes:
    """Random codes of 64 bits of the words."""
    return np.random.default_rng(0).integers(0, 2**64, size=num_words, dtype=np.uint64)


def _ngrams(prompts: Sequence[Sequence[int]], codes: Hashes, n: int) -> tuple[Hashes, Ints]:
    """The hash of every n-gram of every prompt, and the place of its prompt: sum_i code_i base^i modulo 2^64."""
    lengths = np.array([len(ids) for ids in prompts], dtype=np.int64)
    words = codes[np.concatenate([np.asarray(ids, dtype=np.int64) for ids in prompts])]
    if len(words) < n:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    hashes = np.zeros(len(words) - n + 1, dtype=np.uint64)
    base = np.uint64(0x9E3779B97F4A7C15)
    for offset in range(n):
        hashes = hashes * base + words[offset : offset + len(hashes)]
    owners = np.repeat(np.arange(len(prompts)), lengths)
    inside = owners[: len(hashes)] == owners[n - 1 :]
    return hashes[inside], owners[: len(hashes)][inside]


def _shared(prompts: Sequence[Sequence[int]], training: Sequence[Sequence[int]], codes: Hashes, n: int) -> _Shared:
    hashes, owners = _ngrams(prompts, codes, n)
    distinct, grams = np.unique(hashes, return_inverse=True)
    found, found_in = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for first in range(0, len(training) if len(distinct) else 0, CHUNK):
        theirs, places = _ngrams(training[first : first + CHUNK], codes, n)
        near = np.minimum(np.searchsorted(distinct, theirs), len(distinct) - 1)
        known = distinct[near] == theirs
        pairs = np.unique(places[known] * len(distinct) + near[known])
        found.append(pairs % len(distinct))
        found_in.append(pairs // len(distinct) + first)
    matched, matched_in = np.concatenate(found), np.concatenate(found_in)
    is_template = np.bincount(matched, minlength=len(distinct)) > max(TEMPLATE_PROMPTS, TEMPLATE_SHARE * len(training))
    ours, theirs_kept = ~is_template[grams], ~is_template[matched]
    return _Shared(len(distinct), grams[ours], owners[ours], matched[theirs_kept], matched_in[theirs_kept])


def _equals(prompts: Sequence[list[int]], training: Sequence[list[int]]) -> dict[int, int]:
    """For each prompt that equals a training prompt, the place of the first such."""
    places: dict[tuple[int, ...], int] = {}
    for place, ids in enumerate(training):
        places.setdefault(tuple(ids), place)
    return {index: places[tuple(ids)] for index, ids in enumerate(prompts) if tuple(ids) in places}
