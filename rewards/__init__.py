"""Reward functions in the signature of TRL: `fn(completions, **columns) -> list[float | None]`, None for no verdict.

Options such as `tag` come from `args` in a recipe; columns of the data set come as lists. Importing this package
imports none of the functions.
"""

REGISTRY = {
    "exact": "rewards.exact:exact",
    "format_tags": "rewards.format_tags:format_tags",
    "math": "rewards.math_answer:math",
    "numeric": "rewards.numeric:numeric",
    "reasoning_gym": "rewards.reasoning_gym:reasoning_gym",
}
