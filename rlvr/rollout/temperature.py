"""Sampling at another temperature than the training's, for evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import GenerationConfig
from trl.trainer.grpo_trainer import GRPOTrainer


@contextmanager
def sampling_at(trainer: GRPOTrainer, temperature: float) -> Iterator[None]:
    """Within it the trainer's engine samples at `temperature`, 0 being greedy."""
    if trainer.use_vllm:
        engine, kept = trainer.vllm_generation, trainer.vllm_generation.temperature
        engine.temperature = temperature
        try:
            yield
        finally:
            engine.temperature = kept
        return
    kept_kwargs, kept_config = trainer.generation_kwargs, trainer.generation_config
    options = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    trainer.generation_kwargs = kept_kwargs | options
    if temperature == 0:
        trainer.generation_kwargs |= {"temperature": None, "top_p": None, "top_k": None, "min_p": None}
    trainer.generation_config = GenerationConfig(**trainer.generation_kwargs, disable_compile=True)
    try:
        yield
    finally:
        trainer.generation_kwargs, trainer.generation_config = kept_kwargs, kept_config
