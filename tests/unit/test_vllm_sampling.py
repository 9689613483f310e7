"""What a recipe's settings mean to vLLM, and a sampler that goes by them; the engine is a stand-in."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, set_seed

from rlvr.config.schema import ModelConfig
from rlvr.config.trainer_defaults import TRAINER_DEFAULTS
from rlvr.errors import EvaluationError, RecipeError, UserError
from rlvr.model import load_declared, load_policy, load_tokenizer
from rlvr.rollout.generating import ModelSampler, declared_ends, end_token_ids
from rlvr.rollout.vllm_sampling import VLLMSampler, vllm_sampler
from rlvr.rollout.vllm_settings import engine_environment, engine_options, engine_record, sampling_options
from tests.conftest import WORDS, sharp, tiny_model, tiny_tokenizer
from tests.unit.vllm_stand_in import CONTROL, Engine, install

SETTINGS: dict[str, Any] = TRAINER_DEFAULTS | {"use_vllm": True, "max_completion_length": 4}
CHAT = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}{{ opening }}{% endif %}"
TEXTS = [{"prompt": f"{a} {b}", "prompt_id": i} for i, (a, b) in enumerate(pairwise(WORDS[3:10]))]
MESSAGES = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in TEXTS]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    return install(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A saved model with an end token of its own, and a tokenizer with a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    model = sharp(tiny_model())
    model.generation_config.eos_token_id = [9]  # it ends some greedy completions, and cuts leave others without
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@contextmanager
def sampler_of(folder: str, device: torch.device | None = None, **changes: Any) -> Iterator[VLLMSampler]:
    config = ModelConfig(path=folder)
    with vllm_sampler(config, load_tokenizer(config), SETTINGS | changes, device, "--model") as sampler:
        yield sampler


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"min_p": 0.1, "top_k": 5, "top_p": 0.9}, {"min_p": 0.1, "top_k": 5, "top_p": 0.9}),
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"generation_kwargs": {"frequency_penalty": 0.5}}, {"frequency_penalty": 0.5}),
        ({"generation_kwargs": '{"frequency_penalty": 0.5}'}, {"frequency_penalty": 0.5}),
        ({"vllm_structured_outputs_regex": "a+"}, {"structured_outputs": {"regex": "a+"}}),
    ],
)
def test_sampling_parameters_are_the_recipes(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    """None and 0, by which TRL and transformers leave no token out, are what vLLM understands as that."""
    plain = {
        "temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "max_tokens": 4,
        "stop_token_ids": [1, 7],
    }  # fmt: skip
    assert sampling_options(SETTINGS | changes, [1, 7], 0.7) == plain | expected


def test_temperature_zero_is_greedy() -> None:
    assert sampling_options(SETTINGS, [1], 0.0)["temperature"] == 0.0


@pytest.mark.parametrize(
    ("dtype", "changes", "expected"),
    [
        ("auto", {}, "float32"),  # of the saved model: vLLM by itself would take 16 bits
        ("float16", {}, "float16"),
        ("float32", {"bf16": True}, "bfloat16"),
        ("auto", {"fp16": True}, "float16"),
    ],
)
def test_engine_computes_in_the_precision_of_generate(dtype: Any, changes: dict[str, Any], expected: str) -> None:
    config = ModelConfig(path="builtin://starter", dtype=dtype)
    declared, _ = load_declared(config)
    options = engine_options(config, declared, load_tokenizer(config), SETTINGS | changes, "--model")
    assert options["dtype"] == expected


def test_precision_that_nothing_says_is_left_to_vllm() -> None:
    config = ModelConfig(path="builtin://starter")
    assert engine_options(config, Qwen3Config(), tiny_tokenizer(), SETTINGS, "--model")["dtype"] == "auto"


def test_engine_has_the_settings_of_training() -> None:
    config = ModelConfig(path="builtin://starter")
    declared, _ = load_declared(config)
    options = engine_options(config, declared, load_tokenizer(config), SETTINGS, "--model")
    assert Path(options["model"], "config.json").is_file()
    assert options["tokenizer"] == options["model"]
    names = ("gpu_memory_utilization", "max_model_len", "tensor_parallel_size", "model_impl")
    assert [options[name] for name in names] == [0.3, None, 1, "vllm"]  # TRL's defaults
    own = {"gpu_memory_utilization": 0.8, "max_model_length": 99, "tensor_parallel_size": 2}
    own["model_impl"] = "transformers"
    changed = engine_options(
        config, declared, tiny_tokenizer(), SETTINGS | {f"vllm_{k}": v for k, v in own.items()}, "--model"
    )
    assert [changed[name] for name in names] == [0.8, 99, 2, "transformers"]


@pytest.mark.parametrize(
    ("index", "visible", "expected"),
    [(None, "4,6", None), (1, "4,6", "6"), (1, "", "1"), (0, "GPU-a", "GPU-a")],
)
def test_engine_sees_the_device_of_its_process(index: int | None, visible: str, expected: str | None) -> None:
    own = engine_environment({CONTROL: visible}, CONTROL, index)
    assert own.pop("VLLM_ENABLE_V1_MULTIPROCESSING") == "1"
    assert own.get(CONTROL) == expected


def test_environment_is_as_before(engines: list[Engine], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    before = dict(os.environ)
    with sampler_of(folder, torch.device("cuda", 3)):
        assert dict(os.environ) == before
    assert engines[0].environment == {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", CONTROL: "3"}
    with pytest.raises(UserError), sampler_of(folder, vllm_gpu_memory_utilization=0.99):
        pass
    assert dict(os.environ) == before


def test_what_samples_depend_on() -> None:
    assert engine_record(TRAINER_DEFAULTS) == {"engine": "generate"}
    found = engine_record(SETTINGS | {"vllm_max_model_length": 128, "generation_kwargs": {"frequency_penalty": 1.0}})
    assert found["engine"] == "vllm"
    assert found["vllm_max_model_length"] == 128
    assert found["generation_kwargs"] == {"frequency_penalty": 1.0}
    assert "vllm_gpu_memory_utilization" not in found


@pytest.mark.parametrize("has_file", [True, False])
def test_end_tokens_are_known_without_the_weights(folder: str, has_file: bool) -> None:
    model = sharp(tiny_model())
    model.generation_config.eos_token_id = [7, 9]
    model.config.eos_token_id = [7, 9]
    model.save_pretrained(folder)
    if not has_file:
        Path(folder, "generation_config.json").unlink()
    config = ModelConfig(path=folder)
    _, generation = load_declared(config)
    expected = end_token_ids(load_policy(config), tiny_tokenizer())
    assert declared_ends(generation, tiny_tokenizer()) == expected == [1, 7, 9]


# ---- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [TEXTS, MESSAGES], ids=["text", "chat"])
def test_greedy_rollouts_are_those_of_generate(engines: list[Engine], folder: str, rows: list[dict[str, Any]]) -> None:
    changes = {"chat_template_kwargs": {"opening": "k"}}
    config = ModelConfig(path=folder)
    expected = ModelSampler(load_policy(config), load_tokenizer(config), SETTINGS | changes)(rows, temperature=0.0)
    assert {True, False} == set(expected.truncated)
    with sampler_of(folder, **changes) as sampler:
        assert sampler(rows, temperature=0.0) == expected


def test_seeds_come_from_the_generator(engines: list[Engine], folder: str) -> None:
    """So that a batch has the same samples whatever was sampled before it, and each of its requests others."""
    with sampler_of(folder, generation_kwargs={"seed": 5}) as sampler:
        drawn = []
        for seed, before in ((3, []), (3, TEXTS), (4, [])):
            if before:
                sampler(before, temperature=1.0)
            set_seed(seed)
            drawn.append(sampler([TEXTS[0]] * 8, temperature=1.0).completion_ids)
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(map(tuple, drawn[0]))) > 1
    seeds = [each.seed for each in engines[0].asked[:8]]
    assert len(set(seeds)) == 8
    assert all(0 <= each < 2**63 for each in seeds)


def test_engine_ends_after_an_error_too(engines: list[Engine], folder: str) -> None:
    with pytest.raises(EvaluationError) as caught, sampler_of(folder, vllm_max_model_length=2) as sampler:
        sampler(TEXTS, temperature=0.0)
    assert str(caught.value) == (
        "Prompt 0 has 2 tokens, and vLLM has room for 2 with the completion; raise trainer.vllm_max_model_length, or"
        " leave the prompt out."
    )
    assert [each.is_over for each in engines] == [True]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"generation_kwargs": {"suppress_tokens": [5]}}, "Unexpected keyword argument 'suppress_tokens'"),
        ({"top_k": -5}, "top_k must be 0 (disable), or at least 1, got -5."),
    ],
)
def test_settings_that_vllm_does_not_take(
    engines: list[Engine], folder: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RecipeError) as caught, sampler_of(folder, **changes):
        pass
    assert str(caught.value) == (
        f"trainer: vLLM does not take its sampling settings ({reason}); change them (generation_kwargs are arguments of"
        " vLLM's SamplingParams), or set trainer.use_vllm to false"
    )
    assert not engines


def test_engine_that_does_not_start(engines: list[Engine], folder: str) -> None:
    with pytest.raises(UserError) as caught, sampler_of(folder, vllm_gpu_memory_utilization=0.99):
        pass
    assert str(caught.value) == (
        f"--model: vLLM does not start with {folder!r} (Free memory on device is less than desired GPU memory"
        " utilization); see its log, change the vllm_ settings of the trainer section, or set trainer.use_vllm to false"
    )


def test_tokenizer_is_the_recipes(engines: list[Engine], folder: str, tmp_path: Path) -> None:
    """A model that was saved without one is sampled all the same."""
    tiny_model().save_pretrained(tmp_path / "bare")
    tokenizer: PreTrainedTokenizerFast = load_tokenizer(ModelConfig(path=folder))
    with vllm_sampler(ModelConfig(path=str(tmp_path / "bare")), tokenizer, SETTINGS, None, "--model") as sampler:
        assert len(sampler(TEXTS, temperature=0.0).completions) == len(TEXTS)
    assert engines[0].options["tokenizer"] == folder
