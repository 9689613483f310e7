"""Everything about a base and a tuned model at once, from their samples."""

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from rlvr.errors import EvaluationError
from rlvr.evaluation.beyond import beyond_base
from rlvr.evaluation.entropy import answer_entropy
from rlvr.evaluation.estimators import Estimate, estimate
from rlvr.evaluation.majority import majority_at_k
from rlvr.evaluation.samples import Sample
from rlvr.evaluation.summary import sample_estimates
from tests.unit.test_samples import sample

GREEDY = {"is_greedy": True, "temperature": 0.0}


def samples(answers_by_prompt: Sequence[str | None], **settings: Any) -> list[Sample]:
    """One prompt per text, whose letters are the answers of its samples: r is right, ? has no verdict, . no answer."""
    found = []
    for prompt_id, letters in enumerate(answers_by_prompt):
        for letter in letters or "":
            outcome = None if letter == "?" else float(letter == "r")
            answer = "" if letter == "." else letter
            found.append(sample(prompt_id, outcome, answer=answer, **settings))
    return found


# ---- one model -------------------------------------------------------------------------------------------------------


def test_estimates_by_hand() -> None:
    drawn = samples(["rrab", "aaaa", "r.aa", "rr?r"])
    drawn[0] = sample(0, 1.0, answer="r", completion_ids=(1,) * 7, truncated=True)
    greedy = [sample(index, float(index == 0), **GREEDY) for index in range(4)]
    found = sample_estimates([*drawn, *greedy], k=[1, 2, 4], majority_k=[2, 4], seed=0)
    values = {name: each.value for name, each in found.items()}
    # The last prompt has a sample without a verdict: it counts in length and truncation only.
    assert values == pytest.approx(
        {
            "pass@1": (0.5 + 0 + 0.25) / 3,
            "pass@2": (5 / 6 + 0 + 0.5) / 3,
            "pass@4": 2 / 3,
            "avg@4": (0.5 + 0 + 0.25) / 3,
            "maj@2": (
                majority_at_k(list("rrab"), [1, 1, 0, 0], 2) + 0 + majority_at_k(["r", "", "a", "a"], [1, 0, 0, 0], 2)
            )
            / 3,
            "maj@4": 1 / 3,
            "greedy": 1 / 3,
            "length": (4 + 3 + 3 + 3) / 4,
            "truncated": 1 / 16,
            "answer_entropy": sum(map(answer_entropy, ["rrab", "aaaa", ["r", "", "a", "a"], "rr?r"])) / 4,
            "token_entropy": 0.25,
        }
    )
    assert found["pass@1"] == estimate([0.5, 0.0, 0.25], seed=0)


def test_a_prompt_whose_greedy_answer_has_no_verdict_is_not_scored() -> None:
    greedy = [sample(0, None, **GREEDY), sample(1, 1.0, **GREEDY)]
    found = sample_estimates([*samples(["aa", "rr"]), *greedy], k=[1], seed=0)
    assert (found["greedy"].value, found["pass@1"].value) == (1.0, 1.0)


def test_estimates_resample_prompts_of_equal_text_together() -> None:
    drawn = samples(["rrab", "aaaa", "r.aa"])
    once = sample_estimates(
        [replace(each, completion_ids=(1,) * (each.prompt_id + 1)) for each in drawn], k=[2], seed=0
    )
    copies = samples(["rrab", "aaaa", "r.aa"] * 4)
    copies = [
        replace(each, prompt=str(each.prompt_id % 3), completion_ids=(1,) * (each.prompt_id % 3 + 1)) for each in copies
    ]
    many = sample_estimates(copies, k=[2], seed=0)
    for name, each in once.items():
        assert _values(many[name]) == pytest.approx(_values(each))


def _values(each: Estimate) -> tuple[float, float, float]:
    return each.value, each.low, each.high


def test_estimates_of_greedy_samples_alone() -> None:
    found = sample_estimates([sample(0, 1.0, **GREEDY), sample(1, 0.0, **GREEDY)], k=[1], seed=0)
    assert set(found) == {"greedy"}
    assert found["greedy"].value == 0.5


def test_estimates_without_any_verdict() -> None:
    found = sample_estimates(samples(["??", "??"]), k=[1], seed=0)
    assert set(found) == {"length", "truncated", "answer_entropy", "token_entropy"}


def test_estimates_refuse_what_they_cannot_sum_up() -> None:
    with pytest.raises(EvaluationError, match="no samples"):
        sample_estimates([], k=[1], seed=0)
    with pytest.raises(EvaluationError, match="other, sums"):
        sample_estimates([sample(0), sample(0, set_name="other")], k=[1], seed=0)
    with pytest.raises(EvaluationError, match="Prompt 1 of sums lacks samples"):
        sample_estimates(samples(["rr", "r"]), k=[1], seed=0)
    with pytest.raises(EvaluationError, match="Prompt 1 of sums lacks samples"):
        sample_estimates([*samples(["r", "r"]), sample(0, **GREEDY)], k=[1], seed=0)
    with pytest.raises(EvaluationError, match=r"pass@3 .* 2 samples"):
        sample_estimates(samples(["rr"]), k=[3], seed=0)


# ---- two models ------------------------------------------------------------------------------------------------------

BASE = ["rabc", "aaab", "rrrr", "abcd", "arar", "rr?r", "aara", "raaa"]
TUNED = ["rrrr", "aaaa", "rrrr", "rrrr", "rrrr", "rrrr", "aaaa", "rrra"]


def test_everything_at_once() -> None:
    found = beyond_base([*samples(BASE), sample(0, **GREEDY)], samples(TUNED), seed=0)
    assert (found.num_prompts, found.num_unscored, found.num_compared) == (7, 1, 4)
    support = found.support
    # Solved by the base: 0, 2, 4, 6, 7; by the tuned: 0, 2, 3, 4, 7.
    assert (support.preserved, support.shrunk, support.expanded, support.unsolved) == (4, 1, 1, 1)
    assert (found.metrics.srr.value, found.metrics.ndr.value) == pytest.approx((4 / 5, 1 / 5))
    assert found.detectable_pass_rate == pytest.approx(1 - 0.05**0.25)
    assert [point.k for point in found.curves.points] == [1, 2, 4]
    assert _values(found.pass_at_1.difference) == pytest.approx(_values(found.curves.points[0].difference))
    assert found.pass_at_1.reference_mean == pytest.approx((0.25 + 0 + 1 + 0 + 0.5 + 0.25 + 0.25) / 7)
    assert found.pass_at_1.mean == pytest.approx(4.75 / 7)
    assert found.base.answer_entropy.value > found.tuned.answer_entropy.value
    assert found.tuned.answer_entropy.value == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / 7)
    assert found.base.token_entropy is not None
    assert found.base.token_entropy.value == pytest.approx(0.25)
    assert sum(row.num_prompts for row in found.difficulty) == 7
    assert found.verdict.startswith("These 7 prompts do not tell RL from the base model")


def test_models_with_unlike_numbers_of_samples_are_compared_by_as_many() -> None:
    found = beyond_base(samples(["aaaaaaar"] * 6), samples(["rrrr"] * 6), seed=0)
    assert found.num_compared == 4
    assert (found.support.expanded, found.support.preserved) == (6, 0)
    assert found.base.answer_entropy.value == 0.0  # of the first four
    assert [point.k for point in found.curves.points] == [1, 2, 4]


def test_prompts_of_equal_text_are_one_piece_of_evidence() -> None:
    found = beyond_base(samples(["aaaa"] * 30, prompt="1"), samples(["rrrr"] * 30, prompt="1"), seed=0)
    assert found.curves.num_prompts == 1
    assert found.verdict.startswith("Too few prompts")
    assert found.pass_at_1.p_value == 1.0


def test_one_sample_each() -> None:
    found = beyond_base(samples(["a"] * 8), samples(["r"] * 8), seed=0)
    assert found.difficulty == ()
    assert found.verdict.startswith("RL wins at k = 1. More samples")


def test_unlike_prompts_are_refused() -> None:
    with pytest.raises(EvaluationError, match="Evaluated for the reference but not for the model: prompt 1;"):
        beyond_base(samples(["r", "r"]), samples(["r"]), seed=0)
    with pytest.raises(EvaluationError, match="Prompt 0 is not the same text"):
        beyond_base(samples(["r"]), samples(["r"], prompt="another"), seed=0)
    with pytest.raises(EvaluationError, match="No prompt has a verdict"):
        beyond_base(samples(["?"]), samples(["r"]), seed=0)
    with pytest.raises(EvaluationError, match="no samples"):
        beyond_base([], samples(["r"]), seed=0)


def test_no_statistic_imports_torch() -> None:
    modules = "beyond, comparison, contamination, curves, difficulty, entropy, estimators, majority, samples, summary"
    code = f"import sys\nfrom rlvr.evaluation import {modules}, support, verdict\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
