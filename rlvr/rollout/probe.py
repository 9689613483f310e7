"""A few short completions of the trainer's engine, with the log-probabilities by which it drew their tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from rlvr.rollout.settings import engine_settings
from rlvr.types import Rollouts, TrainRow

MAX_TOKENS = 16  # of each completion
# The trainer scores the whole vocabulary, so a probe leaves no token out. Of the recipe's settings it has the
# temperature, and of `trainer.generation_kwargs` what stands in the place of one that TRL sets.
WHOLE_VOCABULARY = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
SET_BY_TRL = {"max_new_tokens", "do_sample", "pad_token_id", "bos_token_id", "eos_token_id", "temperature"}
SET_BY_TRL |= WHOLE_VOCABULARY.keys() | {"cache_implementation"}
SCORES = {"output_scores": True, "return_dict_in_generate": True}


def probe(
    trainer: GRPOTrainer,
    sample: Callable[[Sequence[Mapping[str, Any]]], Rollouts],
    prompts: Sequence[Any],
    seed: int,
) -> Rollouts:
    """One completion per prompt by `sample`, the trainer's rollouts in evaluation mode.

    `seed` is for vLLM, whose random numbers are its own; the others draw from the process's generators.
    """
    rows = [{"prompt": prompt, "prompt_id": index} for index, prompt in enumerate(prompts)]
    generates = not trainer.use_vllm and not trainer.use_transformers_continuous_batching
    args: Any = trainer.args
    added = args.generation_kwargs or {}
    neutral = {name: value for name, value in WHOLE_VOCABULARY.items() if name not in added}
    options = neutral | {"max_new_tokens": MAX_TOKENS} | (SCORES if generates else {})
    vllm_options: dict[str, Any] = WHOLE_VOCABULARY | {"max_completion_length": MAX_TOKENS}
    if trainer.use_vllm:
        own = trainer.vllm_generation.generation_kwargs
        vllm_options["generation_kwargs"] = {k: v for k, v in own.items() if k in SET_BY_TRL} | {"seed": seed}
    with engine_settings(trainer, options, vllm_options, without=added.keys() - SET_BY_TRL):
        if not generates:
            return sample(rows)
        with recorded_logprobs(trainer.accelerator.unwrap_model(trainer.model)) as recorded:
            rollouts = sample(rows)
    (logprobs,) = recorded
    lengths = map(len, rollouts.completion_ids)
    kept = [row[:length].tolist() for row, length in zip(logprobs, lengths, strict=True)]
    return replace(rollouts, sampling_logprobs=kept)


@contextmanager
def recorded_logprobs(model: Any) -> Iterator[list[Tensor]]:
    """Within it `model.generate`, asked for scores, returns the sequences alone.

    What it drew by, the log-probs [b, T] of the new tokens after all processing, is added to the list at each call.
    """
    generate, found = model.generate, []
    was_its_own = "generate" in vars(model)  # of FSDP2, which gathers weights by it

    def recording(*args: Any, **kwargs: Any) -> Tensor:
        output = generate(*args, **kwargs)
        new_ids = output.sequences[:, -len(output.scores) :]
        steps = zip(output.scores, new_ids.split(1, dim=1), strict=True)
        found.append(torch.cat([scores.float().log_softmax(-1).gather(1, ids) for scores, ids in steps], dim=1))
        sequences: Tensor = output.sequences
        return sequences

    model.generate = recording
    try:
        yield found
    finally:
        if was_its_own:
            model.generate = generate
        else:
            del model.generate


def rows_of(rollouts: Rollouts) -> list[TrainRow]:
    """The completions as the trainer scores them."""
    pairs = zip(rollouts.context_ids, rollouts.completion_ids, strict=True)
    return [TrainRow(context, completion, [True] * len(completion), 0.0) for context, completion in pairs]
