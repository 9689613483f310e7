"""Recipes as text, and what loading them gives or says."""

from pathlib import Path

import pytest

from rlvr.config import LoadedRecipe, load_recipe
from rlvr.errors import RecipeError

QUICKSTART = """\
model: builtin://starter
data:
  train: {dataset: "reasoning_gym://chain_sum?min_terms=6&max_terms=6&max_digits=1&seed=1&size=4000"}
  template: "solve {metadata[expression]} ="
rewards:
  functions:
    - reasoning_gym
    - {use: format_tags, weight: 0.2}
  verifier: reasoning_gym
algorithm: {preset: dapo}
trainer: {num_generations: 8, per_device_train_batch_size: 64, gradient_accumulation_steps: 4, learning_rate: 1e-4, \
max_steps: 60, max_completion_length: 64}
evaluation:
  sets: {heldout: {dataset: "reasoning_gym://chain_sum?min_terms=6&max_terms=6&max_digits=1&seed=2&size=200"}}
report: {to: [wandb]}
"""
MINIMAL = "model: some/policy\ndata: {train: {dataset: some/rows}}\nrewards: {functions: [exact]}\n"

MODEL_KEYS = "path, dtype, attn_implementation, revision, trust_remote_code, lora, quantization"
SECTIONS = (
    "model, data, rewards, algorithm, regularizers, guidance, extrapolation, sampler, trainer, checkpoints, rollout,"
    " evaluation, report, watch"
)


def load(text: str, *overrides: str) -> LoadedRecipe:
    Path("r.yaml").write_text(text, encoding="utf-8")
    return load_recipe("r.yaml", overrides)


def error_of(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message
