"""The policy in training as the scorer of a reward: the numbers of its saved copy, and only where it is asked for."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from rewards._scorer import ModelScorer
from rewards.reference_probability import reference_probability
from rlvr.config.schema import EvaluationConfig, RewardsConfig
from rlvr.evaluation.callback import EvaluationCallback
from rlvr.evaluation.sets import EvaluationSets
from rlvr.policy_scorer import PolicyScorer
from rlvr.trainer import RLVRTrainer
from rlvr.verification import RewardFunction, load_reward
from tests.conftest import MakeTrainer, letter_dataset, sharp, tiny_model, tiny_tokenizer

TEXTS = ["a", "a b c d e f g", "", "b " * 100, "k l", "a b"]
TARGETS = ["b", "c d e", "f", "g h", "", "m a b"]


def saved(trainer: RLVRTrainer, folder: Path) -> str:
    trainer.model.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    return str(folder)


def scorer_of(trainer: RLVRTrainer, tokenizer: PreTrainedTokenizerBase | None = None, **options: Any) -> PolicyScorer:
    frozen = replace(trainer._frozen, batch_size=4)
    return PolicyScorer(lambda: trainer.model, tokenizer or tiny_tokenizer(), frozen, **options)


def asking(completions: list[str], scorer: PolicyScorer, **_: Any) -> list[float]:
    """How likely the policy finds the letter a in the place of each completion."""
    return [values[0] for values in scorer.score_tokens([""] * len(completions), ["a"] * len(completions))]


def test_tokens_are_scored_as_by_the_saved_policy(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(model=sharp(tiny_model()))
    expected = ModelScorer(saved(trainer, tmp_path / "saved"), "cpu", "auto", 2, "plain").score_tokens(TEXTS, TARGETS)
    got = scorer_of(trainer).score_tokens(TEXTS, TARGETS)
    assert [len(values) for values in got] == [1, 3, 1, 2, 0, 3]
    for values, wanted in zip(got, expected, strict=True):
        assert values == pytest.approx(wanted, abs=1e-5)
    assert scorer_of(trainer).score_tokens([], []) == []


def test_reward_in_the_trainer_equals_that_of_the_saved_policy(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    reward = load_reward("reference_probability", {"baseline_prefix": " <answer>"}, tmp_path)
    trainer = make_trainer(model=sharp(tiny_model()), reward=reward, temperature=0.5)
    rollouts = trainer.rollout([row for row in letter_dataset(4) for _ in range(4)])
    completions = [f" {text} <answer>b</answer>" if i % 5 else "" for i, text in enumerate(rollouts.completions)]
    rewards = trainer.verify(replace(rollouts, completions=completions)).verdicts.rewards
    expected = reference_probability(
        completions,
        rollouts.prompts,
        rollouts.columns["answer"],
        model=saved(trainer, tmp_path / "saved"),
        baseline_prefix=" <answer>",
    )
    assert rewards == pytest.approx(expected, abs=1e-6)
    assert len({round(value, 4) for value in rewards}) > 3


def test_scores_are_of_the_weights_of_the_moment(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(reward=asking)
    before = trainer.offers["scorer"].score_tokens(["a"], ["b"])
    sharp(trainer.model)
    assert trainer.offers["scorer"].score_tokens(["a"], ["b"]) != before


@pytest.mark.parametrize("training", [True, False])
def test_model_is_in_eval_mode_while_it_scores_and_then_as_before(make_trainer: MakeTrainer, training: bool) -> None:
    trainer, seen = make_trainer(), []
    trainer.model.model.register_forward_hook(
        lambda module, *_: seen.append((module.training, torch.is_grad_enabled()))
    )
    trainer.model.train(training)
    scorer_of(trainer).score_tokens(["a"], ["b"])
    assert seen == [(False, False)]
    assert trainer.model.training is training


def test_scorer_is_offered_only_where_a_function_takes_it(make_trainer: MakeTrainer) -> None:
    seen: list[set[str]] = []

    def spy(completions: list[str], **columns: Any) -> list[float]:
        seen.append(set(columns))
        return [0.0] * len(completions)

    trainer = make_trainer(reward=spy)
    trainer.verify(trainer.rollout([row for row in letter_dataset(4) for _ in range(4)]))
    assert "scorer" not in seen[0]
    assert trainer.offers == {}
    assert make_trainer(reward=partial(asking, scorer=scorer_of(trainer))).offers == {}
    assert set(make_trainer(reward=asking).offers) == {"scorer"}


def test_evaluation_offers_it_too(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(reward=asking)
    rewards = RewardsConfig.model_validate({"functions": [{"use": "exact", "name": "reward"}]})
    config = EvaluationConfig(num_samples=2, k=[1])
    sets = EvaluationSets(test={"heldout": letter_dataset(3)})
    callback = EvaluationCallback(sets, config, [RewardFunction("reward", 1.0, asking)], rewards, tmp_path, Console())
    callback.sample, callback.offers = trainer.sample, trainer.offers
    (result,) = callback.run("before")
    assert result.mean_reward == pytest.approx(scorer_of(trainer).score_tokens([""], ["a"])[0][0], abs=1e-5)


# ---- prompts --------------------------------------------------------------------------------------------------------


def test_messages_are_written_by_the_chat_template_and_text_is_not(make_trainer: MakeTrainer) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}{{ opening }}{% endif %}"
    )
    scorer = scorer_of(make_trainer(), tokenizer, template_options={"opening": "k"})
    assert scorer.render([{"role": "user", "content": "a b"}]) == "a b k"
    assert scorer.render("a b") == "a b"


def test_special_tokens_are_added_unless_the_chat_template_wrote_them(make_trainer: MakeTrainer) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<eos>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 1)]
    )
    assert tokenizer("a")["input_ids"] == [1, 3]
    scorer = scorer_of(make_trainer(model=sharp(tiny_model())), tokenizer)
    bare, opened, plain = scorer.score_tokens(["a", "<eos> a", "b"], ["c"] * 3)
    assert bare == opened
    assert bare != plain
    without = scorer_of(make_trainer(model=sharp(tiny_model()))).score_tokens(["a"], ["c"])
    assert without != [bare]
