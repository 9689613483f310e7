"""How likely the reasoning makes the reference answer (RLPR, Yu et al. 2025, arXiv:2506.18254)."""

import math
from collections.abc import Sequence
from typing import Any

from rewards._columns import as_text, check_choice, check_text
from rewards._scorer import ModelScorer, TokenScorer
from rewards._text import Completion, tagged, text_of
from rlvr.errors import RewardError

AGGREGATES = ("mean", "geometric", "product", "mean_logprob")


# ---- formulas -------------------------------------------------------------------------------------------------------


def mean_probability(logprobs: Sequence[float]) -> float:
    """p = (1/T) sum_t exp(logprob_t): the arithmetic mean, in which one unlucky synonym does not zero the score."""
    return sum(math.exp(value) for value in logprobs) / len(logprobs)


def aggregate(logprobs: Sequence[float], how: str) -> float:
    """One score of the tokens of a text, T >= 1: `mean` probability, or

    `geometric` exp of the mean log-probability, `product` exp of their sum, `mean_logprob` their mean.
    """
    check_choice("aggregate", how, AGGREGATES)
    mean_logprob = sum(logprobs) / len(logprobs)
    match how:
        case "geometric":
            return math.exp(mean_logprob)
        case "product":
            return math.exp(sum(logprobs))
        case "mean_logprob":
            return mean_logprob
    return mean_probability(logprobs)


def debiased(with_reasoning: float, without: float) -> float:
    """r = max(0, p - p0): what the reasoning added to the likelihood that the answer had anyway."""
    return max(0.0, with_reasoning - without)


# ---- reward ---------------------------------------------------------------------------------------------------------


def reference_probability(
    completions: Sequence[Completion],
    prompts: Sequence[Any],
    answer: Sequence[str],
    scorer: TokenScorer | None = None,
    *,
    model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 8,
    template: str = "auto",
    tag: str = "answer",
    aggregate: str = "mean",
    debias: bool = True,
    baseline_prefix: str = "",
    **_: Any,
) -> list[float | None]:
    """How much likelier the reasoning makes the reference answer: max(0, p(z) - p0) (RLPR, arXiv:2506.18254).

    z is the completion with the content of its last `<tag>...</tag>` replaced by the reference a*, and
    p(z) = (1/|a*|) sum_t pi(a*_t | x, z, a*_<t). p0 is the same right after the prompt and `baseline_prefix`, without
    reasoning. `debias: false` gives p(z) itself; `aggregate` takes another mean (`geometric`, `product`,
    `mean_logprob`) in place of the arithmetic one. pi is the policy as it is at this step, the trainer's `scorer`; with
    `model` it is that causal language model instead (a folder, loaded once per process). A completion without the tag
    gets 0; an empty reference, or a value that is not finite, gives no verdict. Assumes that reasoning which merely
    states the answer is as good as reasoning that finds it. In the paper the reward is 0.9 of this and 0.1 of
    `format_tags`.
    """
    check_choice("aggregate", aggregate, AGGREGATES)
    check_text("tag", tag)
    judge = scorer if scorer and model is None else _model_scorer(model, device, dtype, batch_size, template)
    references = [as_text(gold) for gold in answer]
    reasonings = [_before_answer(text_of(completion), tag) for completion in completions]
    starts = [judge.render(prompt) for prompt in prompts]
    # A dict, as the baseline of a prompt is the same for its whole group.
    known: dict[tuple[str, str], Sequence[float]] = {}
    for start, reasoning, reference in zip(starts, reasonings, references, strict=True):
        if reference is not None and reasoning is not None:
            known |= {(start + reasoning, reference): (), (start + baseline_prefix, reference): ()}
    scored = judge.score_tokens([text for text, _ in known], [target for _, target in known])
    known = dict(zip(known, scored, strict=True))
    values: list[float | None] = []
    for start, reasoning, reference in zip(starts, reasonings, references, strict=True):
        if reference is None or reasoning is None:
            values.append(None if reference is None else 0.0)
            continue
        with_reasoning, without = known[start + reasoning, reference], known[start + baseline_prefix, reference]
        values.append(_value(with_reasoning, without, aggregate, debias))
    return values


def _value(with_reasoning: Sequence[float], without: Sequence[float], how: str, debias: bool) -> float | None:
    if not with_reasoning:
        return None
    p = aggregate(with_reasoning, how)
    value = debiased(p, aggregate(without, how)) if debias else p
    return value if math.isfinite(value) else None


def _before_answer(text: str, tag: str) -> str | None:
    """The text up to and with the opening of its last closed tag, None where there is none."""
    if tagged(text, tag) is None:
        return None
    opening = f"<{tag}>"
    return text[: text.rfind(opening, 0, text.rfind(f"</{tag}>")) + len(opening)]


def _model_scorer(model: str | None, device: str, dtype: str, batch_size: int, template: str) -> TokenScorer:
    if model is None:
        remedy = "set `args: {model: ...}` to a folder with a causal language model; a run offers its policy by itself"
        raise RewardError(f"reward 'reference_probability' has no model to score with; {remedy}")
    check_text("model", model)
    if batch_size < 1:
        raise RewardError(f"reward 'reference_probability': batch_size is {batch_size}; it must be at least 1")
    return ModelScorer(model, device, dtype, batch_size, template)
