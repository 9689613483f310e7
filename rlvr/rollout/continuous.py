"""Sampling by transformers' continuous batching: requests join and leave a running batch, over a paged cache.

TRL calls it too, but leaves the weights cast to 16 bits for good, returns no log-probs and drops failed requests; the
requests of a batch reach a thread that already runs, so that equal seeds give other samples.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import DistributedType
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.utils import WorkloadHints
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.grpo_trainer import GRPOTrainer

from rlvr.errors import RecipeError

# Processors that look at nothing but the scores of one position; of what came before, the engine shows only one token.
PROCESSORS = {"TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper"}
PROCESSORS |= {"SuppressTokensLogitsProcessor", "InfNanRemoveLogitsProcessor"}
CPU_BLOCK, CPU_BATCH_TOKENS = 32, 1024


def sample_continuously(
    trainer: GRPOTrainer, prompt_ids: Sequence[list[int]]
) -> tuple[list[list[int]], list[list[float]]]:
    """Completions of this rank's prompts and the log-probs [T] that their tokens were drawn by, in order.

    The weights are those of the trainer at this moment, in the precision that it trains with. Raises RecipeError for a
    run whose weights or settings the engine cannot sample with.
    """
    args: Any = trainer.args
    _check_weights(trainer, is_gathered=args.ds3_gather_for_generation)
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as model,
        cast_weights(model, dtype, with_head=not args.cast_lm_head_to_fp32),
    ):
        was_training = model.training
        try:
            return generate(model, prompt_ids, trainer.generation_config, trainer.continuous_batching_config)
        finally:
            model.train(was_training)


def _check_weights(trainer: GRPOTrainer, is_gathered: bool) -> None:
    """Ranks take different numbers of forward passes, so none may have to wait for the others in one."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    sharding = {
        "FSDP": trainer.accelerator.distributed_type == DistributedType.FSDP,
        "ZeRO-3 without ds3_gather_for_generation": plugin is not None and plugin.zero_stage == 3 and not is_gathered,
    }
    for name, is_used in sharding.items():
        if is_used:
            raise RecipeError(
                f"trainer.use_transformers_continuous_batching cannot sample from weights that are sharded by {name};"
                " set it to false, or launch the run with DDP, ZeRO-2 or ZeRO-3."
            )


@torch.no_grad()
def generate(
    model: Any, prompt_ids: Sequence[list[int]], config: GenerationConfig, engine: ContinuousBatchingConfig
) -> tuple[list[list[int]], list[list[float]]]:
    """As `sample_continuously`, from a model in memory; leaves it in evaluation mode.

    All requests wait in the queue before the engine's thread starts, so that batches, and with them the use of random
    numbers, are the same in every run.
    """
    longest, max_new_tokens = max(map(len, prompt_ids)), config.max_new_tokens or 0
    manager = model.init_continuous_batching(
        generation_config=config,
        continuous_batching_config=replace(
            _sized(engine, prompt_ids, max_new_tokens, model.device),
            return_logprobs=True,
            drop_unsupported_processors=False,  # or settings would be ignored; `_check_processors` refuses them
            max_queue_size=0,
        ),
        workload_hints=WorkloadHints(longest, max_new_tokens, len(prompt_ids)),
    )
    _check_processors(manager)
    manager.warmup()
    names = manager.add_requests(list(prompt_ids), max_new_tokens=config.max_new_tokens)
    manager.start()
    try:
        outputs = _outputs(manager, len(names))
    finally:
        manager.stop(block=True)
        manager.destroy()
    return [outputs[name].generated_tokens for name in names], [outputs[name].logprobs for name in names]


def _outputs(manager: Any, number: int) -> dict[str, Any]:
    """The finished requests by name. Raises RuntimeError where one failed."""
    found: dict[str, Any] = {}
    while len(found) < number:
        output = manager.get_result(timeout=1)
        if output is None:
            if not manager.is_running():
                raise RuntimeError(f"Continuous batching stopped after {len(found)} of {number} completions.")
        elif output.error is not None:
            raise RuntimeError(f"Continuous batching failed: {output.error}")
        elif output.is_finished():
            found[output.request_id] = output
    return found


def _check_processors(manager: Any) -> None:
    names = [type(each).__name__ for each in manager.logit_processor.logits_processor]
    refused = [name for name in names if name not in PROCESSORS]
    if refused:
        raise RecipeError(
            f"Continuous batching cannot apply {', '.join(refused)}; take the setting out of trainer.generation_kwargs"
            " or set trainer.use_transformers_continuous_batching to false."
        )


def _sized(
    engine: ContinuousBatchingConfig, prompt_ids: Sequence[list[int]], max_new_tokens: int, device: torch.device
) -> ContinuousBatchingConfig:
    """On a CPU a cache for these requests, where the engine would take its share of the machine's whole memory."""
    if device.type != "cpu" or engine.num_blocks is not None or engine.max_batch_tokens is not None:
        return engine
    blocks = sum(-(-(len(ids) + max_new_tokens) // CPU_BLOCK) + 1 for ids in prompt_ids)
    batch_tokens = max(len(prompt_ids), min(sum(map(len, prompt_ids)), CPU_BATCH_TOKENS))
    return replace(engine, block_size=CPU_BLOCK, num_blocks=blocks, max_batch_tokens=batch_tokens)


@contextmanager
def cast_weights(model: torch.nn.Module, dtype: torch.dtype | None, *, with_head: bool) -> Iterator[None]:
    """Within it the floating-point weights are rounded to `dtype`; afterwards they are the tensors they were.

    The cache has the precision of the weights, so under mixed precision it must be that of the activations.
    """
    head = set() if with_head else {id(each) for each in model.get_output_embeddings().parameters()}  # type: ignore[operator]
    kept = [
        (each, each.data)
        for each in model.parameters()
        if dtype is not None and each.is_floating_point() and id(each) not in head
    ]
    for parameter, values in kept:
        parameter.data = values.to(dtype)
    try:
        yield
    finally:
        for parameter, values in kept:
            parameter.data = values
