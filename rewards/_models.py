"""What rewards that run a model share: loading it once, and writing prompts as its texts."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rewards._text import Completion, text_of
from rlvr.errors import RewardError

TEMPLATES = ("auto", "chat", "plain")


@lru_cache(maxsize=4)
def loaded(kind: str, path: str, device: str, dtype: str) -> tuple[Any, Any]:
    """(model, tokenizer) of `transformers.<kind>.from_pretrained(path)`, in evaluation mode, once per process.

    `device: auto` is the GPU of this process where there is one, else the CPU. Raises RewardError.
    """
    import torch
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model = getattr(transformers, kind).from_pretrained(path, dtype=dtype)
    except (OSError, ValueError) as error:
        kept = "a folder" if Path(path).exists() else "a folder, or a name on the Hub that can be reached"
        raise RewardError(f"the model {path!r} of a reward cannot be loaded; name {kept}: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    text_config = model.config.get_text_config()
    if text_config.pad_token_id is None:
        text_config.pad_token_id = tokenizer.pad_token_id
    if text_config.pad_token_id is None:
        raise RewardError(f"the tokenizer of {path!r} has neither a padding token nor an end token; add one to it")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return model.eval().requires_grad_(False).to(chosen), tokenizer


def as_messages(value: str | Sequence[Mapping[str, Any]], role: str) -> list[dict[str, Any]]:
    """Text as one message of that role; messages as they are."""
    return [{"role": role, "content": value}] if isinstance(value, str) else [dict(message) for message in value]


def plain(value: Completion) -> str:
    """Text as it is; of messages the contents, one under the other."""
    return value if isinstance(value, str) else "\n".join(str(message.get("content") or "") for message in value)


def uses_chat(tokenizer: Any, template: str) -> bool:
    """Whether texts are written by the tokenizer's chat template. Raises RewardError."""
    if template not in TEMPLATES:
        raise RewardError(
            f"`args: {{template: {template}}}` of a reward is not one of {', '.join(TEMPLATES)}; write one"
        )
    has = tokenizer.chat_template is not None
    if template == "chat" and not has:
        raise RewardError("`template: chat` needs a tokenizer with a chat template; write `template: plain`")
    return has and template != "plain"


def conversation(tokenizer: Any, prompt: Any, completion: Completion, template: str) -> str:
    """Prompt and completion as one text for the model."""
    if not uses_chat(tokenizer, template):
        return plain(prompt) + text_of(completion)
    messages = as_messages(prompt, "user") + as_messages(completion, "assistant")
    text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    return text


def opened(tokenizer: Any, prompt: Any, template: str) -> str:
    """The prompt as a text that the model would go on from."""
    if not uses_chat(tokenizer, template):
        return plain(prompt)
    text: str = tokenizer.apply_chat_template(as_messages(prompt, "user"), tokenize=False, add_generation_prompt=True)
    return text


def pad_id(network: Any) -> int:
    """The token that the model takes for padding."""
    return int(network.config.get_text_config().pad_token_id)


def max_tokens(network: Any) -> int:
    """How many tokens the model has positions for."""
    known = network.config.get_text_config().to_dict().get("max_position_embeddings")
    return int(known) if known else 1 << 30


def end_of(text: str, limit: int) -> str:
    """More than the last `limit` tokens of a text, as hardly a token has more than 64 characters; lone surrogates,
    which tokenizers refuse, replaced.
    """
    return text[-64 * limit :].encode("utf-8", "replace").decode("utf-8")
