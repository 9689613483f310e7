"""What rewards over a whole batch share: lengths, outcomes of another reward, and votes within groups."""

import importlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rewards import REGISTRY
from rewards._columns import check_choice
from rewards._text import Completion, tagged, text_of
from rlvr.errors import RewardError

EXTRACTIONS = ("tag", "boxed")
TIES = ("first", "void")


def outcomes_of(
    name: str,
    completions: Sequence[Completion],
    outcomes: Sequence[float | None] | None,
    verifier: str | None,
    verifier_args: Mapping[str, Any] | None,
    columns: Mapping[str, Any],
) -> list[bool | None]:
    """Whether each completion is right, for the reward `name`: as the registered `verifier` judges it, else as given.

    None stands for no verdict. The verifier runs here, in this process. Raises RewardError where there is neither.
    """
    if outcomes is None or verifier is not None:
        if verifier not in REGISTRY:
            remedy = f"set `args: {{verifier: ...}}` to one of {', '.join(REGISTRY)}"
            raise RewardError(f"reward {name!r} must know which completions are right; {remedy}")
        module, _, function = REGISTRY[verifier].partition(":")
        judge = getattr(importlib.import_module(module), function)
        outcomes = judge(completions, **columns, **(verifier_args or {}))
    return [None if value is None else value >= 1.0 for value in outcomes]


def lengths_of(name: str, completion_ids: Sequence[Sequence[int]], max_length: int) -> list[int]:
    """Tokens per completion. Raises RewardError for a limit that is none."""
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1:
        remedy = "set `args: {max_length: ...}` to the limit on completion tokens"
        raise RewardError(f"reward {name!r}: max_length is {max_length!r}; {remedy}")
    return [len(ids) for ids in completion_ids]


def group_keys(
    completions: Sequence[Any], prompts: Sequence[Any] | None, prompt_id: Sequence[Any] | None, name: str
) -> list[Any]:
    """What the completions of one group have in common: the prompt's id, else the prompt itself."""
    if prompt_id is not None:
        return list(prompt_id)
    if prompts is None or len(prompts) != len(completions):
        raise RewardError(f"reward {name!r} needs the prompt of every completion; pass `prompts` or `prompt_id`")
    return [each if isinstance(each, str) else json.dumps(each, sort_keys=True, default=str) for each in prompts]


def boxed(text: str) -> str | None:
    r"""The stripped content of the last `\boxed{...}` that closes, None where there is none."""
    end = len(text)
    for _ in range(8):  # a few boxes that do not close may follow it
        start = text.rfind("\\boxed{", 0, end)
        if start < 0:
            return None
        depth = 0
        for position in range(start + 6, len(text)):
            depth += (text[position] == "{") - (text[position] == "}")
            if depth == 0:
                return text[start + 7 : position].strip()
        end = start
    return None


def answers_of(completions: Sequence[Completion], extraction: str, tag: str | None) -> list[str]:
    """The answer of each completion with runs of blanks made one; empty where there is none."""
    check_choice("extraction", extraction, EXTRACTIONS)
    texts = [text_of(completion) for completion in completions]
    found = [boxed(text) if extraction == "boxed" else tagged(text, tag) for text in texts]
    return [" ".join((answer or "").split()) for answer in found]


def vote(answers: Sequence[str], ties: str) -> str | None:
    """The most frequent answer that is not empty. None without one, or at a tie with `void`.

    At a tie with `first`, the answer that comes first in the batch wins.
    """
    check_choice("ties", ties, TIES)
    ranked = Counter(answer for answer in answers if answer).most_common(2)
    if not ranked or (ties == "void" and len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]
