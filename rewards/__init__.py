"""Reward functions in the signature of TRL: `fn(completions, **columns) -> list[float | None]`, None for no verdict.

Options such as `tag` come from `args` in a recipe; columns of the data set come as lists. Importing this package
imports none of the functions.
"""

REGISTRY = {
    "countdown": "rewards.countdown:countdown",
    "exact": "rewards.exact:exact",
    "format_tags": "rewards.format_tags:format_tags",
    "ifeval": "rewards.ifeval:ifeval",
    "json_schema": "rewards.json_schema:json_schema",
    "math": "rewards.math_answer:math",
    "multiple_choice": "rewards.multiple_choice:multiple_choice",
    "numeric": "rewards.numeric:numeric",
    "reasoning_gym": "rewards.reasoning_gym:reasoning_gym",
    "regex": "rewards.regex:regex",
}
