"""The majority of a group as its own label."""

from collections.abc import Sequence
from typing import Any

from rewards._batch import answers_of, group_keys, vote
from rewards._text import Completion


def majority(
    completions: Sequence[Completion],
    prompts: Sequence[Any] | None = None,
    prompt_id: Sequence[Any] | None = None,
    *,
    extraction: str = "tag",
    tag: str | None = "answer",
    ties: str = "first",
    **_: Any,
) -> list[float | None]:
    r"""1 for the most frequent answer of the group, else 0 (TTRL, Zuo et al. 2025, arXiv:2504.16084).

    The answer is the text in the last `<tag>...</tag>`, or with `extraction: boxed` in the last `\boxed{}`; answers are
    equal when their characters are, blanks aside. Empty answers do not vote and get 0. At a tie the answer that comes
    first in the batch wins; with `ties: void` nobody does, and the group has no verdict. Nor has a group without any
    answer. A group has one `prompt_id`, which the trainer gives; without it, equal prompts. Assumes that the whole
    group is in the batch of this process, and that the policy is right more often than it makes any one mistake.
    """
    keys = group_keys(completions, prompts, prompt_id, "majority")
    answers = answers_of(completions, extraction, tag)
    groups: dict[Any, list[str]] = {}
    for key, answer in zip(keys, answers, strict=True):
        groups.setdefault(key, []).append(answer)
    labels = {key: vote(group, ties) for key, group in groups.items()}
    return [
        None if labels[key] is None else float(answer == labels[key]) for key, answer in zip(keys, answers, strict=True)
    ]
