"""What rlvr/rollout relies on inside TRL's and transformers' engines, vLLM's included, which no test here can start."""

import dataclasses
import inspect

import pytest
from transformers import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.continuous_batching.requests import GenerationOutput
from trl import GRPOTrainer
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration

from rlvr.rollout.probe import WHOLE_VOCABULARY

SETTINGS = (
    "TRL changed under rlvr/rollout/settings.py and probe.py: compare them with trl/generation/vllm_generation.py"
)
OFFLINE = "TRL changed: compare rlvr/rollout/vllm_settings.py with trl/generation/vllm_generation.py"
TURN = "TRL changed under rlvr/rollout: compare with GRPOTrainer._generate_single_turn"
PAGED = "transformers changed under rlvr/rollout/continuous.py: compare it with ContinuousMixin.generate_batch"


@pytest.mark.parametrize("name", [*WHOLE_VOCABULARY, "temperature", "max_completion_length"])
def test_vllm_engine_looks_its_settings_up_at_each_call(name: str) -> None:
    assert f"self.{name} = {name}\n" in inspect.getsource(VLLMGeneration.__init__), SETTINGS
    assert f"{name} = self.{name}\n" in inspect.getsource(VLLMGeneration.generate), SETTINGS


def test_vllm_engine_adds_its_generation_kwargs_to_each_request() -> None:
    source = inspect.getsource(VLLMGeneration.generate)
    assert "self.generation_kwargs = generation_kwargs or {}" in inspect.getsource(VLLMGeneration.__init__), SETTINGS
    assert "generation_kwargs.update(self.generation_kwargs)" in source, SETTINGS
    assert '"generation_kwargs": self.generation_kwargs,' in source, SETTINGS


def test_vllm_gets_the_settings_of_training_as_evaluation_gives_them() -> None:
    """What rlvr/rollout/vllm_settings.py has for `rlvr eval`."""
    source = inspect.getsource(VLLMGeneration.generate)
    for each in (
        '"repetition_penalty": repetition_penalty,',
        '"temperature": temperature,',
        '"top_p": top_p,',
        '"top_k": top_k,',
        '"min_p": 0.0 if min_p is None else min_p,',
        '"max_tokens": max_completion_length,',
        "StructuredOutputsParams(regex=self.structured_outputs_regex)",
        '[{"prompt_token_ids": ids} for ids in all_prompts]',
    ):
        assert each in source, OFFLINE
    started = inspect.getsource(VLLMGeneration._init_vllm)
    for each in ("tensor_parallel_size", "gpu_memory_utilization", "model_impl"):
        assert f"{each}=self.{each}" in started, OFFLINE
    assert "max_model_len=self.max_model_length" in started, OFFLINE


def test_vllm_server_takes_every_nth_prompt() -> None:
    assert "all_prompts[::num_generations]" in inspect.getsource(VLLMGeneration.generate), SETTINGS
    assert (
        'num_generations = self.num_generations if mode == "train" else self.num_generations_eval'
        in inspect.getsource(GRPOTrainer._generate)
    ), SETTINGS


def test_vllm_reports_the_probabilities_that_it_draws_by() -> None:
    assert 'logprobs_mode="processed_logprobs"' in inspect.getsource(VLLMGeneration._init_vllm), TURN
    assert "self.vllm_generation = VLLMGeneration(" in inspect.getsource(GRPOTrainer.__init__), TURN
    assert "logprobs = [[lp[0] for lp in seq] for seq in logprobs]" in inspect.getsource(
        GRPOTrainer._generate_single_turn
    ), TURN
    assert "None if math.isnan(" in inspect.getsource(vllm_generation.extract_logprobs), TURN


def test_vllm_is_asked_before_continuous_batching() -> None:
    source = inspect.getsource(GRPOTrainer._generate_single_turn)
    places = [source.index(each) for each in ("if self.use_vllm:", "elif self.use_transformers_continuous_batching:")]
    assert places == sorted(places), TURN


def test_continuous_batching_of_trl_still_needs_a_replacement() -> None:
    source = inspect.getsource(GRPOTrainer._generate_single_turn)
    for each in ("unwrapped_model.to(torch.bfloat16)", "unwrapped_model.train()", "logprobs = None\n"):
        assert each in source, "TRL mended its use of continuous batching: is rlvr/rollout/continuous.py still needed?"


def test_manager_and_outputs_of_continuous_batching() -> None:
    expected = {
        "warmup": ["self"],
        "start": ["self"],
        "is_running": ["self"],
        "destroy": ["self"],
        "stop": ["self", "block", "timeout", "keep_for_next_session", "hard_stop"],
        "get_result": ["self", "request_id", "timeout"],
    }
    found = {name: list(inspect.signature(getattr(ContinuousBatchingManager, name)).parameters) for name in expected}
    assert found == expected, PAGED
    adding = list(inspect.signature(ContinuousBatchingManager.add_requests).parameters)
    assert adding[:3] == ["self", "inputs", "max_new_tokens"], PAGED
    fields = {field.name for field in dataclasses.fields(GenerationOutput)}
    assert {"request_id", "generated_tokens", "logprobs", "error"} <= fields, PAGED
    settings = {field.name: field.default for field in dataclasses.fields(ContinuousBatchingConfig)}
    for name in ("return_logprobs", "drop_unsupported_processors", "max_queue_size", "block_size", "max_batch_tokens"):
        assert name in settings, PAGED
    assert settings["num_blocks"] is None, PAGED
