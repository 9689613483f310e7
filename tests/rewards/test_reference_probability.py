"""The probability of the reference answer: formulas by hand, a scorer by table, and a real model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rewards._scorer import ModelScorer
from rewards.reference_probability import (
    aggregate,
    debiased,
    mean_probability,
    reference_probability,
)
from rlvr.errors import RewardError
from tests.rewards.tiny_models import POSITIONS, saved_gpt2

TOKENS = [math.log(0.5), math.log(0.25), math.log(0.75)]


class TableScorer:
    """Scores by a table of texts, and remembers what it was asked."""

    def __init__(self, table: dict[str, list[float]]) -> None:
        self.table = table
        self.asked: list[tuple[str, str]] = []

    def render(self, prompt: Any) -> str:
        return f"[{prompt}]"

    def score_tokens(self, texts: Sequence[str], targets: Sequence[str]) -> list[list[float]]:
        self.asked += zip(texts, targets, strict=True)
        return [[math.log(p) for p in self.table[text]] for text in texts]


# ---- formulas -------------------------------------------------------------------------------------------------------


def test_aggregates() -> None:
    assert mean_probability(TOKENS) == pytest.approx(0.5)
    assert aggregate(TOKENS, "mean") == pytest.approx(0.5)
    assert aggregate(TOKENS, "product") == pytest.approx(0.09375)
    assert aggregate(TOKENS, "geometric") == pytest.approx(0.09375 ** (1 / 3))
    assert aggregate(TOKENS, "mean_logprob") == pytest.approx(math.log(0.09375) / 3)
    with pytest.raises(RewardError, match="not one of mean, geometric"):
        aggregate(TOKENS, "median")


def test_debiased_is_never_negative() -> None:
    assert debiased(0.75, 0.5) == 0.25
    assert debiased(0.25, 0.5) == 0.0


# ---- reward ---------------------------------------------------------------------------------------------------------


def test_reference_replaces_the_last_answer_and_nothing_of_the_reasoning() -> None:
    scorer = TableScorer(
        {"[q]<answer>2</answer> no <answer>": [0.9, 0.7], "[q]hm <answer>": [0.1, 0.1], "[q]": [0.2, 0.4]}
    )
    completions = ["<answer>2</answer> no <answer>4</answer> end", "hm <answer>3</answer>", "no answer"]
    got = reference_probability(completions, ["q"] * 3, ["3"] * 3, scorer)
    assert got == pytest.approx([0.8 - 0.3, 0.0, 0.0])
    assert scorer.asked == [("[q]<answer>2</answer> no <answer>", "3"), ("[q]", "3"), ("[q]hm <answer>", "3")]


def test_options_of_the_reward() -> None:
    table = {"[q]z<a>": [0.9, 0.4], "[q]": [0.5, 0.5], "[q]<a>": [0.1, 0.2]}

    def score(**options: Any) -> float | None:
        return reference_probability(["z<a>4</a>"], ["q"], ["3"], TableScorer(table), tag="a", **options)[0]

    assert score() == pytest.approx(0.15)
    assert score(debias=False) == pytest.approx(0.65)
    assert score(aggregate="product") == pytest.approx(0.36 - 0.25)
    assert score(baseline_prefix="<a>") == pytest.approx(0.65 - 0.15)


def test_model_of_the_recipe_comes_before_the_trainers_policy(language_model: str) -> None:
    scorer, texts = TableScorer({}), ["z<answer>4</answer>"]
    alone = reference_probability(texts, ["q"], ["3"], model=language_model, debias=False)
    assert reference_probability(texts, ["q"], ["3"], scorer, model=language_model, debias=False) == alone
    assert scorer.asked == []


def test_no_reference_no_verdict() -> None:
    got = reference_probability(["<answer></answer>"] * 3, ["q"] * 3, ["", None, ["3"]], TableScorer({}))  # type: ignore[list-item]
    assert got == [None, None, None]


def test_without_any_model_the_remedy_is_named() -> None:
    with pytest.raises(RewardError, match=r"no model to score with; set `args: {model: \.\.\.}`"):
        reference_probability(["a"], ["q"], ["3"])


# ---- a model --------------------------------------------------------------------------------------------------------


def alone(path: str, text: str, target: str) -> list[float]:
    """Of one text and target, without padding, by nothing but transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    before, after = tokenizer(text)["input_ids"], tokenizer(target)["input_ids"]
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
    return [logprobs[len(before) + i - 1, token].item() for i, token in enumerate(after)]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("absolute_positions", [False, True])
def test_model_scores_each_text_as_if_alone(
    language_model: str, tmp_path: Path, batch_size: int, absolute_positions: bool
) -> None:
    path = saved_gpt2(tmp_path) if absolute_positions else language_model
    texts, targets = ["short", "a much longer text before it", "x"], ["3", "42", "a long reference answer"]
    got = ModelScorer(path, "cpu", "auto", batch_size, "auto").score_tokens(texts, targets)
    for values, text, target in zip(got, texts, targets, strict=True):
        assert values == pytest.approx(alone(path, text, target), abs=1e-4)


def test_model_drops_the_beginning_of_a_text_that_is_too_long(language_model: str) -> None:
    scorer = ModelScorer(language_model, "cpu", "auto", 8, "auto")
    long = "y" * 300 + "z" * (POSITIONS - 2)
    assert scorer.score_tokens([long], ["42"])[0] == pytest.approx(
        alone(language_model, "z" * (POSITIONS - 2), "42"), abs=1e-4
    )


def test_reward_of_a_model_is_the_formula(language_model: str) -> None:
    text, prompt, gold = "<think>so</think><answer>9</answer>", "1 + 2 = ?", "3.5"
    p = mean_probability(alone(language_model, prompt + "<think>so</think><answer>", gold))
    p0 = mean_probability(alone(language_model, prompt, gold))
    got = reference_probability([text], [prompt], [gold], model=language_model)
    assert got == pytest.approx([max(0.0, p - p0)], abs=1e-6)
    got = reference_probability([text], [prompt], [gold], model=language_model, debias=False)
    assert got == pytest.approx([p], abs=1e-6)
