"""The score of a trained reward model."""

import math
from collections.abc import Sequence
from typing import Any

from rewards._columns import check_choice, check_text
from rewards._models import conversation, end_of, loaded, max_tokens, pad_id
from rewards._text import Completion, text_of
from rewards.process import REFINEMENTS, refine
from rlvr.errors import RewardError


def rm(
    completions: Sequence[Completion],
    prompts: Sequence[Any],
    *,
    model: str,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 8,
    template: str = "auto",
    label: int | None = None,
    max_length: int | None = None,
    step_separator: str | None = None,
    refinement: str = "clip_delta",
    eta: float = 0.0,
    **_: Any,
) -> list[float | None]:
    """What a sequence-classification model of transformers says about prompt and completion: its logit.

    The model is loaded at the first call, once per process, and scores `batch_size` texts at a time. A text is written
    by the tokenizer's chat template where it has one (`template: chat` insists, `plain` joins prompt and completion).
    A model with several labels needs `label`. Texts longer than `max_length` tokens (by default what the model takes)
    lose their beginning. A score that is not finite is no verdict. An empty completion is judged like any other.

    With `step_separator` the model is a process reward model: the completion is cut there into steps, the text up to
    the end of each step is scored, and the value is the sum of these scores after `refinement` by `clip`, `delta`,
    `clip_delta` (see `rewards.process`, with `eta`) or `none`, which pays for more steps. A completion without any
    step gets 0. The reward is only as right as its model, which a policy learns to fool: log a verifier beside it.
    """
    check_text("model", model)
    check_choice("refinement", refinement, REFINEMENTS)
    if batch_size < 1:
        raise RewardError(f"reward 'rm': batch_size is {batch_size}; it must be at least 1")
    network, tokenizer = loaded("AutoModelForSequenceClassification", model, device, dtype)
    column = _column(network.config.num_labels, label, model)
    pieces: list[list[Completion]] = [
        [completion] if step_separator is None else [*_prefixes(text_of(completion), step_separator)]
        for completion in completions
    ]
    texts = [
        conversation(tokenizer, prompt, piece, template)
        for prompt, parts in zip(prompts, pieces, strict=True)
        for piece in parts
    ]
    scores = iter(_scores(network, tokenizer, texts, column, batch_size, max_length))
    values: list[float | None] = []
    for parts in pieces:
        own = [next(scores) for _ in parts]
        value = own[0] if step_separator is None else sum(refine(own, refinement, eta))
        values.append(float(value) if math.isfinite(value) else None)
    return values


def _column(num_labels: int, label: int | None, model: str) -> int:
    if label is None and num_labels != 1:
        raise RewardError(f"the model {model!r} has {num_labels} labels; choose one with `args: {{label: 0}}`")
    if label is not None and not 0 <= label < num_labels:
        raise RewardError(f"`label` is {label}, but the model {model!r} has {num_labels} labels, counted from 0")
    return label or 0


def _prefixes(text: str, separator: str) -> list[str]:
    """The text up to the end of each step that is not blank."""
    if not separator:
        raise RewardError("`step_separator` of the reward 'rm' is empty; write what stands between steps")
    steps = text.split(separator)
    return [separator.join(steps[: end + 1]) for end, step in enumerate(steps) if step.strip()]


def _scores(
    network: Any, tokenizer: Any, texts: Sequence[str], column: int, batch_size: int, max_length: int | None
) -> list[float]:
    """One logit per text. Texts of like length share a batch, so that little is padding."""
    import torch

    limit = min(max_length or tokenizer.model_max_length, max_tokens(network))
    special = tokenizer.chat_template is None  # a chat template writes the special tokens itself
    encoded = [tokenizer(end_of(text, limit), add_special_tokens=special)["input_ids"][-limit:] for text in texts]
    padding = pad_id(network)
    encoded = [ids or [padding] for ids in encoded]
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    scores = [0.0] * len(texts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = len(encoded[chosen[-1]])
        # Padding on the right is after the last token, which decoders judge by; encoders do not see it.
        rows = [encoded[i] + [padding] * (width - len(encoded[i])) for i in chosen]
        mask = [[1] * len(encoded[i]) + [0] * (width - len(encoded[i])) for i in chosen]
        with torch.no_grad():
            logits = network(
                input_ids=torch.tensor(rows, device=network.device),
                attention_mask=torch.tensor(mask, device=network.device),
            ).logits
        for i, value in zip(chosen, logits[:, column].float().tolist(), strict=True):
            scores[i] = value
    return scores
