"""Outcomes by prompt that evaluations keep, and what two of them say about one another."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
from datasets import Dataset

from rlvr.config.schema import EvaluationConfig
from rlvr.evaluation.beyond import beyond_base
from rlvr.evaluation.comparison import compare
from rlvr.evaluation.evaluate import summarise
from rlvr.evaluation.outcomes import (
    Outcomes,
    difference_by_prompt,
    kept_outcomes,
    outcomes_of,
    reach_by_prompt,
)
from rlvr.evaluation.records import PromptRecord
from rlvr.evaluation.sets import prompt_keys
from tests.unit.test_beyond_base import samples

CONFIG = EvaluationConfig(num_samples=4, k=[1, 2, 4])
BASE = ["0000", "1000", "1100", "1111", "0001", "0000", "1010", "0100"]
TUNED = ["1000", "1110", "1100", "1111", "1001", "0000", "1110", "0000"]


def record(prompt_id: int, outcomes: Sequence[float | None], greedy: float | None = 0.0) -> PromptRecord:
    return PromptRecord(prompt_id, tuple(outcomes), greedy, tuple(outcomes), (1,) * len(outcomes), 0)


def kept(drawn: Sequence[str], greedy: Sequence[str] | None = None, **others: Any) -> Outcomes:
    ids = tuple(range(len(drawn)))
    return replace(Outcomes(ids, tuple(map(str, ids)), tuple(drawn), tuple(greedy or [""] * len(drawn))), **others)


def test_records_become_letters_in_the_order_of_the_set() -> None:
    records = [record(7, [1.0, None, 0.0], None), record(2, [0.5, 1.0, 1.0], 1.0)]
    keys = {2: "a", 7: "b"}
    assert outcomes_of(records, keys, has_greedy=True) == Outcomes((2, 7), ("a", "b"), ("011", "1-0"), ("1", "-"))
    assert outcomes_of(records, keys, has_greedy=False).greedy == ("", "")


def test_they_come_back_from_json() -> None:
    found = kept(BASE, greedy="01-01010")
    assert kept_outcomes(json.loads(json.dumps(asdict(found)))) == found


@pytest.mark.parametrize("change", [{"samples": ["11"]}, {"samples": ["11", "1"]}, {"keys": ["a", "b", "c"]}])
def test_damaged_ones_are_refused(change: dict[str, Any]) -> None:
    content = {"ids": [0, 1], "keys": ["a", "b"], "samples": ["11", "00"], "greedy": ["", ""]}
    assert kept_outcomes(content).samples == ("11", "00")
    with pytest.raises(ValueError, match="unlike numbers"):
        kept_outcomes(content | change)


def test_differences_are_paired() -> None:
    found = difference_by_prompt(kept(TUNED), kept(BASE), "pass@1", seed=3)
    assert found is not None
    ours, theirs = ({i: each.count("1") / 4 for i, each in enumerate(drawn)} for drawn in (TUNED, BASE))
    assert found == compare(ours, theirs, seed=3)
    assert found.difference.value == pytest.approx((1 + 2 + 0 + 0 + 1 + 0 + 1 - 1) / 4 / 8)


def test_differences_of_pass_at_k_and_greedy() -> None:
    ours, theirs = kept(["1100", "0000"], greedy="10"), kept(["1000", "0000"], greedy="00")
    found = difference_by_prompt(ours, theirs, "pass@2", seed=0)
    assert found is not None
    assert found.difference.value == pytest.approx(((1 - 1 / 6) - 1 / 2) / 2)
    greedy = difference_by_prompt(ours, theirs, "greedy", seed=0)
    assert greedy is not None
    assert greedy.difference.value == 0.5
    for other in ("mean_length", "pass@5", "pass@0", "pass@x", "pass@"):
        assert difference_by_prompt(ours, theirs, other, seed=0) is None
    assert difference_by_prompt(kept(TUNED), kept(BASE), "greedy", seed=0) is None  # without greedy answers


def test_prompts_without_all_verdicts_are_left_out_of_both() -> None:
    ours, theirs = kept(["11", "1-", "00", "11"], greedy="11-1"), kept(["00", "00", "00", "-0"], greedy="0000")
    found = difference_by_prompt(ours, theirs, "pass@1", seed=0)
    assert found is not None
    assert (found.num_prompts, found.num_unscored, found.difference.value) == (1, 3, 1.0)
    reach = reach_by_prompt(theirs, ours, seed=0)
    assert reach is not None
    assert reach.num_prompts == 1


@pytest.mark.parametrize(
    "other",
    [
        kept(BASE[:-1]),
        kept(BASE, keys=("x", *map(str, range(1, 8)))),
        kept(BASE, ids=(9, *range(1, 8))),
        kept(["----"] * 8),
    ],
)
def test_no_difference_between_other_prompts(other: Outcomes) -> None:
    assert difference_by_prompt(kept(TUNED), other, "pass@1", seed=0) is None
    assert reach_by_prompt(other, kept(TUNED), seed=0) is None


def test_equal_prompts_count_as_one() -> None:
    twice = {"keys": ("0", "1", "2", "3") * 2}
    doubled = difference_by_prompt(kept(TUNED[:4] * 2, **twice), kept(BASE[:4] * 2, **twice), "pass@1", seed=0)
    once = difference_by_prompt(kept(TUNED[:4]), kept(BASE[:4]), "pass@1", seed=0)
    assert doubled is not None
    assert once is not None
    assert doubled.difference == once.difference
    assert doubled.p_value == once.p_value
    reaches = [
        reach_by_prompt(kept(BASE[:4] * times, **more), kept(TUNED[:4] * times, **more), seed=0)
        for times, more in ((2, twice), (1, {}))
    ]
    found = [(each.curves, each.metrics, each.pass_at_1.difference) for each in reaches if each is not None]
    assert repr(found[0]) == repr(found[1])  # NaN is not equal to itself


def test_reach_is_that_of_the_samples_themselves() -> None:
    letters = str.maketrans({"1": "r", "0": "a"})
    base, tuned = (samples([each.translate(letters) for each in drawn]) for drawn in (BASE, TUNED))
    whole = beyond_base(base, tuned, seed=5)
    found = reach_by_prompt(kept(BASE), kept(TUNED), seed=5)
    assert found is not None
    assert found.support == whole.support
    assert (found.support.preserved, found.support.shrunk, found.support.expanded) == (5, 1, 1)
    for name, value in vars(found).items():
        assert repr(value) == repr(getattr(whole, name)), name  # NaN is not equal to itself


def test_an_evaluation_keeps_them_and_resamples_equal_prompts_together() -> None:
    rates = [[0.0] * 4, [1.0, 0.0, 0.0, 0.0], [1.0] * 4]
    once = summarise("set", [record(i, each) for i, each in enumerate(rates)], CONFIG, keys={0: "a", 1: "b", 2: "c"})
    many = [record(i, rates[i % 3]) for i in range(12)]
    data = Dataset.from_list([{"prompt_id": i, "prompt": f"What is {i % 3}?"} for i in range(12)])
    keys = prompt_keys(data)
    assert len(set(keys.values())) == 3
    repeated = summarise("set", many, CONFIG, keys=keys)
    assert repeated.estimates["pass@1"] == once.estimates["pass@1"]
    assert summarise("set", many, CONFIG).estimates["pass@1"] != once.estimates["pass@1"]
    assert repeated.outcomes is not None
    assert repeated.outcomes.samples[:3] == ("0000", "1000", "1111")
    assert summarise("set", many, CONFIG).outcomes is None


def test_keys_of_chats_and_lone_surrogates() -> None:
    chat = [{"role": "user", "content": "2 + 2?"}]
    keys = prompt_keys({"prompt_id": [3, 5], "prompt": [chat, "\ud800"]})  # type: ignore[arg-type]
    assert list(keys) == [3, 5]
    assert all(len(each) == 12 for each in keys.values())
