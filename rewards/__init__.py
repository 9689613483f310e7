"""Reward functions in the signature of TRL: `fn(completions, **columns) -> list[float | None]`, None for no verdict.

Options such as `tag` come from `args` in a recipe; columns of the data set come as lists. Importing this package
imports none of the functions.
"""

REGISTRY = {
    "co_reward": "rewards.co_reward:co_reward",
    "code": "rewards.code:code",
    "cosine_length": "rewards.cosine_length:cosine_length",
    "countdown": "rewards.countdown:countdown",
    "exact": "rewards.exact:exact",
    "format_length_surrogate": "rewards.format_length:format_length_surrogate",
    "format_tags": "rewards.format_tags:format_tags",
    "ifeval": "rewards.ifeval:ifeval",
    "json_schema": "rewards.json_schema:json_schema",
    "majority": "rewards.majority:majority",
    "math": "rewards.math_answer:math",
    "multiple_choice": "rewards.multiple_choice:multiple_choice",
    "numeric": "rewards.numeric:numeric",
    "reasoning_gym": "rewards.reasoning_gym:reasoning_gym",
    "reference_probability": "rewards.reference_probability:reference_probability",
    "regex": "rewards.regex:regex",
    "repetition": "rewards.repetition:repetition",
    "rm": "rewards.reward_model:rm",
    "soft_overlong": "rewards.soft_overlong:soft_overlong",
}
