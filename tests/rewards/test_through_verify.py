"""Every registered reward as a recipe uses it: loaded by name, with its options as `args`, called by `verify`."""

from pathlib import Path

import pytest

from rewards import REGISTRY
from rlvr.config import RewardsConfig
from rlvr.errors import RewardError
from rlvr.verification import RewardFunction, load_reward, verify
from tests.rewards.cases import CASES, PROMPT


@pytest.mark.parametrize("name", CASES)
def test_gold_and_wrong_through_the_trainer(name: str, request: pytest.FixtureRequest) -> None:
    case = CASES[name]
    completions = [*case.right, *case.wrong]
    args = {**case.options, **({"model": request.getfixturevalue(case.needs_model)} if case.needs_model else {})}
    verdicts = verify(
        [RewardFunction(name, 1.0, load_reward(name, args, Path()))],
        RewardsConfig.model_validate({"functions": [name], "workers": 0}),
        step=0,
        prompts=[PROMPT] * len(completions),
        completions=completions,
        completion_ids=[[7] * 5] * len(completions),
        columns={column: [value] * len(completions) for column, value in case.columns.items()},
        trainer_state=None,
    )
    assert verdicts.rewards == pytest.approx([case.top] * len(case.right) + [case.bottom] * len(case.wrong))


@pytest.mark.parametrize("name", REGISTRY)
def test_misspelt_option_is_refused(name: str) -> None:
    with pytest.raises(RewardError, match="does not accept the argument 'tagg'"):
        load_reward(name, {"tagg": "x"}, Path())
