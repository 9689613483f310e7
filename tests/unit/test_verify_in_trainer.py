"""What the verify stage of the trainer logs."""

from typing import Any

from rewards._item import Judgement, Status, item_reward
from rlvr.config.schema import RewardsConfig
from tests.conftest import MakeTrainer, letter_dataset


def test_shares_of_the_verifiers_statuses_are_logged(make_trainer: MakeTrainer) -> None:
    statuses = iter([Status.TIMEOUT, Status.NO_ANSWER, Status.ERROR, *[Status.WRONG] * 100])

    @item_reward
    def scripted(text: str) -> Judgement:
        status = next(statuses)
        return Judgement(None if status is Status.ERROR else 0.0, status)

    trainer = make_trainer(reward=scripted)
    trainer.rewards_config = RewardsConfig.model_validate(
        {"functions": [{"use": "exact", "name": "reward"}], "workers": 0}
    )
    rows: list[Any] = [row for row in letter_dataset(4) for _ in range(4)]
    rollouts = trainer.rollout(rows)
    distinct = len(set(rollouts.completions))
    assert distinct > 3
    trainer.verify(rollouts)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if name.startswith("verify/")}
    assert metrics["verify/timeout_frac"] >= 1 / 16
    assert metrics["verify/no_answer_frac"] >= 1 / 16
    assert metrics["verify/error_frac"] >= 1 / 16
    assert metrics["verify/cache_hit_frac"] == (16 - distinct) / 16
