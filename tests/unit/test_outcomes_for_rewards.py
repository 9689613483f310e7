"""Rewards that learn what the verifier said, and which completions belong together."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rewards._item import Judgement, graded, item_reward
from rlvr.config.schema import EvaluationConfig, RewardsConfig
from rlvr.errors import RewardError
from rlvr.evaluation.evaluate import evaluate_rows
from rlvr.verification import RewardFunction, load_reward
from tests.conftest import MakeTrainer, letter_dataset
from tests.unit.test_evaluate import ScriptedSampler
from tests.unit.test_verification import TEXTS, constant, judged


def told(outcomes: list[float | None], **_: Any) -> list[float | None]:
    """What a function is told, as its values."""
    return [None if value is None else 10.0 + value for value in outcomes]


def test_outcomes_are_the_verifiers_whatever_its_place() -> None:
    calls = []

    def verifier(completions: list[str], **_: Any) -> list[float | None]:
        calls.append(completions)
        return [0.5, 0.25, None]

    functions = [RewardFunction("told", 1.0, told), constant("other", [3.0] * 3), RewardFunction("v", 2.0, verifier)]
    verdicts = judged(*functions, config={"verifier": "v", "correct_at": 0.5})
    assert verdicts.names == ("told", "other", "v")
    assert verdicts.components == [[11.0, 3.0, 0.5], [10.0, 3.0, 0.25], [None, 3.0, None]]
    assert verdicts.outcomes == [1.0, 0.0, None]
    assert verdicts.rewards == [15.0, 13.5, None]
    assert calls == [TEXTS]


def test_column_called_outcomes_loses() -> None:
    seen: list[set[str]] = []

    def verifier(completions: list[str], **columns: Any) -> list[float]:
        seen.append(set(columns))
        return [1.0, 0.0, 1.0]

    verdicts = judged(RewardFunction("v", 1.0, verifier), RewardFunction("told", 1.0, told), outcomes=["x"] * 3)
    assert [row[1] for row in verdicts.components] == [11.0, 10.0, 11.0]
    assert "outcomes" not in seen[0]


def test_asynchronous_functions_learn_outcomes_too_even_of_an_asynchronous_verifier() -> None:
    async def verifier(completions: list[str]) -> list[float]:
        await asyncio.sleep(0)
        return [1.0, 0.0, 1.0]

    async def later(completions: list[str], outcomes: list[float | None]) -> list[float | None]:
        await asyncio.sleep(0)
        return told(outcomes)

    @item_reward
    async def each(text: str, outcomes: float) -> Judgement:
        return graded(outcomes + len(text))

    functions = [
        RewardFunction("later", 1.0, later),
        RewardFunction("v", 1.0, verifier),
        RewardFunction("e", 1.0, each),
    ]
    verdicts = judged(*functions, config={"verifier": "v"})
    assert verdicts.components == [[11.0, 1.0, 2.0], [10.0, 0.0, 2.0], [11.0, 1.0, 4.0]]


def test_verifier_cannot_need_its_own_outcomes() -> None:
    with pytest.raises(RewardError, match=r"reward 'told' is the verifier and needs 'outcomes'.*rewards\.verifier"):
        judged(RewardFunction("told", 1.0, told))


def test_verifier_that_can_do_without_outcomes_gets_none() -> None:
    def verifier(completions: list[str], outcomes: list[float] | None = None) -> list[float]:
        assert outcomes is None
        return [1.0] * 3

    assert judged(RewardFunction("v", 1.0, verifier), outcomes=[[1.0] * 3]).outcomes == [1.0] * 3


def test_argument_bound_to_a_function_wins() -> None:
    bound = RewardFunction("told", 1.0, partial(told, outcomes=[5.0, 6.0, 7.0]))
    assert [row[1] for row in judged(constant("v", [1.0] * 3), bound).components] == [15.0, 16.0, 17.0]


@pytest.mark.parametrize("name", ["outcomes", "prompt_id"])
def test_recipe_cannot_set_what_the_trainer_gives(name: str) -> None:
    with pytest.raises(RewardError, match=f"'{name}' is given by the trainer"):
        load_reward("majority" if name == "prompt_id" else "cosine_length", {name: [1]}, Path())


# ---- the registered rewards that use them ---------------------------------------------------------------------------


def test_cosine_length_believes_the_verifier_and_judges_nothing_again() -> None:
    judgements = []

    def verifier(completions: list[str], **_: Any) -> list[float | None]:
        judgements.append(len(completions))
        return [1.0, 0.0, None]

    cosine = load_reward("cosine_length", {"max_length": 30}, Path())
    functions = [RewardFunction("cosine", 1.0, cosine), RewardFunction("v", 0.0, verifier)]
    verdicts = judged(*functions, config={"verifier": "v"})
    # One and two tokens of 30: 1 + (1 + cos(pi / 30)) / 2 and -10 (1 + cos(2 pi / 30)) / 2.
    assert verdicts.components[0][0] == pytest.approx(1.9972609)
    assert verdicts.components[1][0] == pytest.approx(-9.8907380)
    assert verdicts.components[2][0] is None
    assert judgements == [3]


def test_cosine_length_believes_the_verifier_that_it_names_before_the_runs() -> None:
    cosine = load_reward(
        "cosine_length", {"max_length": 30, "verifier": "exact", "verifier_args": {"tag": None}}, Path()
    )
    verdicts = judged(constant("v", [0.0] * 3), RewardFunction("cosine", 1.0, cosine), answer=["a", "b", "ccc"])
    assert [row[1] is not None and row[1] > 0 for row in verdicts.components] == [True, False, True]


def test_repetition_spares_what_the_verifier_finds_right() -> None:
    repetition = load_reward("repetition", {"only_wrong": True, "ngram": 1, "max_penalty": -2.0}, Path())
    functions = [constant("v", [1.0, 0.0, None]), RewardFunction("repetition", 1.0, repetition)]
    verdicts = judged(*functions, config={"verifier": "v"})
    assert [row[1] for row in verdicts.components] == [0.0, 0.0, None]


def test_majority_of_equal_prompts_with_different_ids() -> None:
    majority = RewardFunction("majority", 1.0, load_reward("majority", {"tag": None}, Path()))
    assert judged(majority).rewards == [1.0, 0.0, 0.0]  # one group, whose first answer wins the tie
    assert judged(majority, prompt_ids=[4, 9, 9]).rewards == [1.0, 1.0, 0.0]


def test_co_reward_of_equal_prompts_with_different_ids() -> None:
    co_reward = load_reward("co_reward", {"extraction": "tag", "tag": None}, Path())
    function = RewardFunction("co", 1.0, co_reward)
    assert judged(function, pair_id=[1, 1, 2]).rewards == [None] * 3  # lone phrasings
    assert judged(function, pair_id=[1, 1, 2], prompt_ids=[4, 9, 9]).rewards == [0.0, 0.0, None]


# ---- in a run -------------------------------------------------------------------------------------------------------


def ids_as_values(completions: list[str], prompt_id: list[int], **_: Any) -> list[float]:
    return [float(each) for each in prompt_id]


def test_trainer_offers_the_ids_of_groups(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(reward=ids_as_values)
    rollouts = trainer.rollout([row for row in letter_dataset(4) for _ in range(4)])
    assert trainer.verify(rollouts).verdicts.rewards == [float(i // 4) for i in range(16)]


def test_evaluation_offers_the_ids_of_groups() -> None:
    records = evaluate_rows(
        [{"prompt": "a", "prompt_id": 7, "right": ""}, {"prompt": "a", "prompt_id": 9, "right": ""}],
        ScriptedSampler(),
        [RewardFunction("reward", 1.0, ids_as_values)],
        RewardsConfig.model_validate({"functions": [{"use": "exact", "name": "reward"}]}),
        EvaluationConfig(num_samples=2, k=[1], greedy=False),
        lambda done: None,
    )
    assert [record.rewards for record in records] == [(7.0, 7.0), (9.0, 9.0)]
