"""The `trainer` section: fields of TRL's GRPOConfig, our defaults for them and the ones the recipe sets elsewhere."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlvr.config.problems import Problem, misfit, nearest

# Every value that decides a number is written out: a TRL upgrade must not change a run.
TRAINER_DEFAULTS: dict[str, Any] = {
    "output_dir": None,  # runs/<stem of the recipe file>
    "num_generations": 8,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 512,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "num_iterations": 1,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch",
    "max_steps": -1,
    "num_train_epochs": 1,
    "seed": 42,
    "bf16": False,
    "fp16": False,
    "gradient_checkpointing": False,
    "cast_lm_head_to_fp32": False,
    "disable_dropout": True,
    "shuffle_dataset": True,
    "pad_to_multiple_of": None,
    "remove_unused_columns": False,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 500,
    "disable_tqdm": True,
    "ddp_timeout": 1800,  # seconds that processes wait for each other, at the start as well
}

# What the framework decides itself, and where the recipe says it.
OWNED = {
    "loss_type": "use algorithm.aggregation",
    "epsilon": "use algorithm.clip_low",
    "epsilon_high": "use algorithm.clip_high",
    "beta": "use algorithm.kl_coef",
    "scale_rewards": "use algorithm.advantage",
    "reward_weights": "use rewards.functions.N.weight",
    "multi_objective_aggregation": "use rewards.functions.N.weight",
    "report_to": "use report.to",
    "project": "use report.project",
    "log_completions": "use report.completions_every",
    "model_init_kwargs": "use model.dtype, model.attn_implementation or model.revision",
    "trust_remote_code": "use model.trust_remote_code",
    "eval_strategy": "use evaluation.sets",
    "do_eval": "use evaluation.sets",
    "delta": "it is not supported",
    "importance_sampling_level": "it is not supported",
    "entropy_coef": "it is not supported",
    "use_adaptive_entropy": "it is not supported",
    "top_entropy_quantile": "it is not supported",
    "mask_truncated_completions": "it is not supported",
    "off_policy_mask_threshold": "it is not supported",
    "use_liger_kernel": "it is not supported",
    "save_total_limit": "use checkpoints.keep_last",
    "load_best_model_at_end": "use checkpoints.keep_best",
    "metric_for_best_model": "use checkpoints.best_by",
    "greater_is_better": "use checkpoints.best_by",
    "save_only_model": "a run could not go on from such checkpoints; use checkpoints.keep_last to save room",
    "ignore_data_skip": "a run goes on with the prompts that come next",
    "resume_from_checkpoint": "the command says it: rlvr train --resume",
    "use_transformers_paged": "it is an old name of use_transformers_continuous_batching",
    "hub_token": "a recipe is stored with the run, so set the environment variable HF_TOKEN",
} | dict.fromkeys(
    [
        *("sapo_temperature_neg", "sapo_temperature_pos"),
        *("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
        *("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
        "use_bias_correction_kl",
    ],
    "it is not supported",
)

MINIMUM = {
    "num_generations": 2,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "generation_batch_size": 1,
    "num_iterations": 1,
    "max_completion_length": 1,
    "ddp_timeout": 1,
}

ALLOWED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "list": "a list",
    "dict": "a mapping",
    "None": "null",
}


def trl_fields() -> dict[str, dict[str, Any]]:
    """The recorded fields of GRPOConfig: type, default and choices by name (see scripts/record_trl_fields.py)."""
    table: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("trl_fields.json").read_text("utf-8"))
    return table


def merged_trainer(own: Mapping[str, Any], default_output_dir: str) -> dict[str, Any]:
    """The recipe's values over our defaults.

    Raises Problem, with a key below `trainer`, for a key or value that cannot be used.
    """
    table = trl_fields()
    for key, value in own.items():
        _check_value(key, value, table)
    merged = TRAINER_DEFAULTS | dict(own)
    merged["output_dir"] = merged["output_dir"] or default_output_dir
    for key, least in MINIMUM.items():
        # TRL takes null for these as "derive it", except for the size of a group.
        value = merged.get(key)
        if value is None and key != "num_generations":
            continue
        if value is None or value < least:
            raise Problem(key, misfit(value, f"at least {least}"))
    _check_groups(merged, int(os.environ.get("WORLD_SIZE", "1")))
    return merged


def _check_value(key: str, value: Any, table: Mapping[str, Mapping[str, Any]]) -> None:
    if key in OWNED:
        raise Problem(key, f"cannot be set here; {OWNED[key]}")
    if key not in table:
        allowed = [name for name in table if name not in OWNED]
        raise Problem(key, f"unknown key; {nearest(key, allowed, 'allowed are the fields of TRL GRPOConfig')}")
    kinds = table[key]["type"].split(" | ")
    if not any(_fits(value, kind) for kind in kinds):
        raise Problem(key, misfit(value, " or ".join(ALLOWED.get(kind, kind) for kind in kinds)))
    choices = table[key].get("choices")
    if choices is not None and value not in choices:
        advice = nearest(value, choices, f"it must be one of {', '.join(choices)}")
        raise Problem(key, f"{value!r} is not valid; {advice}")


def _fits(value: Any, kind: str) -> bool:
    """Whether a YAML value has the type that the table names; a whole number is a number, a bool is neither."""
    if kind == "None":
        return value is None
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    plain: dict[str, type] = {"bool": bool, "str": str, "list": list, "dict": dict}
    return kind in plain and isinstance(value, plain[kind])


def _check_groups(trainer: Mapping[str, Any], world_size: int) -> None:
    """Raises Problem unless a generation batch holds whole groups, and as many rows for each process."""
    size, steps = trainer.get("generation_batch_size"), trainer.get("steps_per_generation")
    group = trainer["num_generations"]
    if size is not None and steps is not None:
        raise Problem("generation_batch_size", "contradicts steps_per_generation; give only one of the two")
    per_device = trainer["per_device_train_batch_size"]
    processes = f" x {world_size} processes" if world_size > 1 else ""
    if size is not None:
        if size % group:
            raise Problem("generation_batch_size", f"{size} is not a multiple of num_generations={group}; make it one")
        if size % (per_device * world_size):
            raise Problem(
                "generation_batch_size",
                f"{size} is not a multiple of per_device_train_batch_size={per_device}{processes} ="
                f" {per_device * world_size}; make it one",
            )
        return
    factor = "steps_per_generation" if steps is not None else "gradient_accumulation_steps"
    product = per_device * trainer[factor] * world_size
    if product % group:
        raise Problem(
            "num_generations",
            f"per_device_train_batch_size={per_device} x {factor}={trainer[factor]}{processes} = {product} is not a "
            f"multiple of num_generations={group}; make it one (with N processes the product counts N times)",
        )
