"""What the trainer relies on inside TRL. A failure names what to look at in rlvr/trainer.py before upgrading TRL."""

import inspect
from collections import defaultdict

import torch
from transformers import Trainer
from trl import GRPOTrainer

from tests.conftest import MakeTrainer, letter_dataset

ADVICE = "TRL changed under rlvr/trainer.py: compare that file with the new trl/trainer/grpo_trainer.py"


def test_overridden_methods_keep_their_signatures() -> None:
    expected = {
        "_prepare_inputs": ["self", "generation_batch"],
        "_generate_and_score_completions": ["self", "inputs"],
        "_compute_loss": ["self", "model", "inputs"],
        "_generate": ["self", "prompts"],
        "_generate_single_turn": [
            "self",
            "prompt_ids",
            "images",
            "multimodal_fields",
            "num_generations",
            "has_tool_images",
        ],
        "_save_checkpoint": ["self", "model", "trial"],
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
        "_get_output_dir": ["self", "trial"],
        "_load_rng_state": ["self", "checkpoint"],
        "_get_train_sampler": ["self", "dataset"],
        "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    }
    found = {name: list(inspect.signature(getattr(GRPOTrainer, name)).parameters) for name in expected}
    assert found == expected, ADVICE


def test_attributes_that_the_trainer_reads_exist(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    expected = {
        "_step": 0,
        "_buffered_inputs": None,
        "num_iterations": 1,
        "temperature": 1.0,
        "max_completion_length": 6,
        "ref_model": None,
        "use_vllm": False,
        "eos_token_ids": [1],
    }
    assert {name: getattr(trainer, name) for name in expected} == expected, ADVICE
    assert isinstance(trainer._metrics["train"], defaultdict), ADVICE
    assert trainer._tokenizer is trainer.processing_class, ADVICE
    assert trainer.generation_kwargs["max_new_tokens"] == 6, ADVICE
    assert trainer.generation_config.do_sample is True, ADVICE


def test_checkpoints_come_about_as_they_are_resumed() -> None:
    """What rlvr/resumable.py takes for granted in transformers' loop."""
    advice = "transformers changed under rlvr/resumable.py: compare that file with the new transformers/trainer.py"
    source = inspect.getsource(Trainer._inner_training_loop)
    assert "self._run_epoch(\n                model=model," in source, advice
    assert source.index("self._tr_loss = ") < source.index("self._run_epoch("), advice
    epoch = inspect.getsource(Trainer._run_epoch)
    assert epoch.index("self._load_rng_state(resume_from_checkpoint)") < epoch.index("self.training_step("), advice
    save = inspect.getsource(Trainer._save_checkpoint)
    assert "run_dir = self._get_output_dir(trial=trial)" in save, advice
    step = inspect.getsource(Trainer._maybe_log_save_evaluate)
    assert step.index("self.log(") < step.index("self._save_checkpoint("), advice


def test_vllm_is_given_new_weights_by_the_step_that_it_has() -> None:
    source = inspect.getsource(GRPOTrainer._generate_single_turn)
    assert "if self.state.global_step != self._last_loaded_step:" in source, ADVICE


def test_hf_trainer_does_not_rescale_the_loss(make_trainer: MakeTrainer) -> None:
    assert make_trainer().compute_loss_func is not None, (
        "TRL no longer switches HF's division by accumulation steps off"
    )


def test_generate_returns_what_a_rollout_is_made_of(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    prompts = letter_dataset(8)["prompt"]
    generated = trainer._generate(list(prompts))
    assert len(generated) == 8, ADVICE
    prompt_ids, completion_ids, tool_masks, completions, sampling_logprobs = generated[:5]
    assert [len(ids) for ids in prompt_ids] == [len(p.split()) for p in prompts], ADVICE
    assert all(1 <= len(ids) <= 6 for ids in completion_ids), ADVICE
    assert all(isinstance(text, str) for text in completions), ADVICE
    assert tool_masks is None, ADVICE
    assert sampling_logprobs is None, ADVICE
    assert "completions/clipped_ratio" in trainer._metrics["train"], ADVICE


def test_every_step_generates_once_and_trains_on_every_row(make_trainer: MakeTrainer) -> None:
    """Two optimiser steps of two micro-batches each: TRL asks for four micro-batches and two generations."""
    trainer = make_trainer()
    seen: list[int] = []
    original = trainer._compute_loss

    def spy(model: torch.nn.Module, inputs: object) -> torch.Tensor:
        seen.append(inputs.input_ids.shape[0])  # type: ignore[attr-defined]
        return original(model, inputs)  # type: ignore[arg-type]

    trainer._compute_loss = spy  # type: ignore[method-assign]
    trainer.train()
    assert seen == [8, 8, 8, 8], ADVICE
    assert len(trainer.state.log_history) >= 2
    assert {"reward/mean", "entropy/mean_token", "loss/policy"} <= set(trainer.state.log_history[0])
