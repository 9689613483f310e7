"""Evaluation through an engine with weights and settings of its own, as vLLM's server is."""

import pytest
import torch

from rlvr.rollout import make_rollouts
from rlvr.rollout.rows import with_completions
from rlvr.rollout.spread import Sampled
from tests.conftest import MakeTrainer, letter_dataset, sharp, tiny_model
from tests.unit.separate_engine import with_separate_engine


def test_evaluation_asks_a_server_for_each_prompt(make_trainer: MakeTrainer) -> None:
    """Rows that do not come in groups of num_generations; at temperature 0 each has its own greedy completion."""
    trainer, engine = with_separate_engine(make_trainer(model=sharp(tiny_model()), num_generations=4))
    rows = letter_dataset(6).to_list()
    rollouts = trainer.sample(rows, temperature=0.0)
    plain = sharp(tiny_model())
    for row, prompt_ids, completion in zip(rows, rollouts.prompt_ids, rollouts.completion_ids, strict=True):
        ids = trainer.processing_class(row["prompt"], return_tensors="pt").input_ids
        assert prompt_ids == ids[0].tolist()
        expected = plain.generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=0)[0, ids.shape[1] :]
        assert completion == expected.tolist()
    assert trainer.num_generations_eval == 4
    assert engine.temperature == 1.0
    assert not trainer._metrics["eval"]


def test_settings_come_back_after_an_error(make_trainer: MakeTrainer) -> None:
    trainer, engine = with_separate_engine(make_trainer())
    with pytest.raises(IndexError):
        trainer.sample([], temperature=0.3)
    assert (trainer.num_generations_eval, engine.temperature) == (4, 1.0)


def test_training_after_new_weights_samples_from_them(make_trainer: MakeTrainer) -> None:
    trainer, engine = with_separate_engine(make_trainer(max_steps=2))
    trainer.train()
    assert engine.num_syncs == 2
    trainer._forget_rollouts()
    trainer.rollout([row for row in letter_dataset(2) for _ in range(4)])
    assert engine.num_syncs == 3


def test_a_token_without_a_logprob_is_unknown() -> None:
    rows = [{"prompt": "a", "prompt_id": 0}]
    made = make_rollouts(
        rows, [[3]], [[4, 1]], ["b"], generated_masks=None, sampling_logprobs=[[None, -0.5]], end_token_ids=[1]
    )
    assert made.sampling_logprobs is not None
    assert torch.equal(torch.tensor(made.sampling_logprobs).isnan(), torch.tensor([[True, False]]))


def test_answers_that_no_engine_drew_have_unknown_logprobs() -> None:
    rows = [{"prompt": "a", "prompt_id": 0}, {"prompt": "b", "prompt_id": 1}]
    made = make_rollouts(
        rows, [[3], [4]], [[4], [5]], ["b", "c"], generated_masks=None, sampling_logprobs=[[-1.0], [-2.0]],
        end_token_ids=[1],
    )  # fmt: skip
    taught = with_completions(made, {1: Sampled([4], [6, 1], "d", [True, True], None, False)})
    assert taught.sampling_logprobs is not None
    assert taught.sampling_logprobs[0] == [-1.0]
    assert torch.tensor(taught.sampling_logprobs[1]).isnan().tolist() == [True, True]
