"""The settings that the trainer's engine samples with, changed for a while."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig
from trl.trainer.grpo_trainer import GRPOTrainer


def evaluation_options(temperature: float) -> dict[str, Any]:
    """What of a run's generation settings differs at `temperature`; at 0 nothing is drawn, so nothing is left out."""
    if temperature > 0:
        return {"do_sample": True, "temperature": temperature}
    return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "min_p": None}


@contextmanager
def sampling_at(trainer: GRPOTrainer, temperature: float) -> Iterator[None]:
    """Within it the trainer's engine samples at `temperature`, 0 being greedy, as vLLM understands it too."""
    with engine_settings(trainer, evaluation_options(temperature), {"temperature": temperature}):
        yield


@contextmanager
def engine_settings(
    trainer: GRPOTrainer,
    options: Mapping[str, Any],
    vllm_options: Mapping[str, Any],
    without: Collection[str] = (),
) -> Iterator[None]:
    """Within it the trainer's engine samples one completion per prompt, with these settings over its own.

    `options` are fields of transformers' GenerationConfig, of which it has none in `without`; `vllm_options` attributes
    of TRL's VLLMGeneration.
    """
    kept_number = trainer.num_generations_eval
    # Of n completions per prompt TRL gives vLLM's server every n-th prompt; here each stands for itself.
    trainer.num_generations_eval = 1
    if trainer.use_vllm:
        settings = _vllm_settings(trainer, vllm_options)
    else:
        settings = _transformers_settings(trainer, options, without)
    try:
        with settings:
            yield
    finally:
        trainer.num_generations_eval = kept_number


@contextmanager
def _vllm_settings(trainer: GRPOTrainer, options: Mapping[str, Any]) -> Iterator[None]:
    engine = trainer.vllm_generation
    kept = {name: vars(engine)[name] for name in options}
    vars(engine).update(options)
    try:
        yield
    finally:
        vars(engine).update(kept)


@contextmanager
def _transformers_settings(
    trainer: GRPOTrainer, options: Mapping[str, Any], without: Collection[str]
) -> Iterator[None]:
    kept_kwargs, kept_config = trainer.generation_kwargs, trainer.generation_config
    trainer.generation_kwargs = {k: v for k, v in kept_kwargs.items() if k not in without} | dict(options)
    trainer.generation_config = GenerationConfig(**trainer.generation_kwargs, disable_compile=True)
    try:
        yield
    finally:
        trainer.generation_kwargs, trainer.generation_config = kept_kwargs, kept_config
