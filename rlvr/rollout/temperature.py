"""Sampling at another temperature than the training's, for evaluation."""

from collections.abc import Iterator
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
    trainer.generation_kwargs = kept_kwargs | evaluation_options(temperature)
    trainer.generation_config = GenerationConfig(**trainer.generation_kwargs, disable_compile=True)
    try:
        yield
    finally:
        trainer.generation_kwargs, trainer.generation_config = kept_kwargs, kept_config
