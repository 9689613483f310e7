"""Two phrasings of a question that label each other."""

from collections.abc import Sequence
from typing import Any

from rewards._batch import answers_of, group_keys, vote
from rewards._text import Completion
from rlvr.errors import RewardError


def co_reward(
    completions: Sequence[Completion],
    pair_id: Sequence[Any],
    prompts: Sequence[Any] | None = None,
    prompt_id: Sequence[Any] | None = None,
    *,
    extraction: str = "boxed",
    tag: str | None = "answer",
    ties: str = "first",
    **_: Any,
) -> list[float | None]:
    r"""1 for the most frequent answer to the other phrasing of the question (Co-Reward, Zhang et al. 2025).

    For a question x and its paraphrase x' (arXiv:2508.00410): v = majority(answers to x), v' = majority(answers to x');
    an answer to x is worth 1 if it equals v', one to x' if it equals v, else 0. Empty answers do not vote. A phrasing
    without any answer, or with a tie under `ties: void`, labels nothing: the other side gets 0.

    Rows of equal `pair_id` are one question; its phrasings are told apart by `prompt_id`, which the trainer gives, else
    by their prompts. Assumes that both phrasings are in the batch of this process with their whole groups: a
    lone phrasing has no verdict. Answers are read and compared as in `majority`.
    """
    keys = group_keys(completions, prompts, prompt_id, "co_reward")
    answers = answers_of(completions, extraction, tag)
    views: dict[Any, dict[Any, list[str]]] = {}
    for pair, key, answer in zip(pair_id, keys, answers, strict=True):
        views.setdefault(pair, {}).setdefault(key, []).append(answer)
    labels: dict[Any, dict[Any, str | None]] = {}
    for pair, groups in views.items():
        if len(groups) > 2:
            raise RewardError(
                f"reward 'co_reward': pair_id {pair!r} has {len(groups)} different prompts; it must have 2"
            )
        labels[pair] = {key: vote(group, ties) for key, group in groups.items()}
    values: list[float | None] = []
    for pair, key, answer in zip(pair_id, keys, answers, strict=True):
        others = [label for other, label in labels[pair].items() if other != key]
        values.append(float(bool(answer) and answer == others[0]) if others else None)
    return values
