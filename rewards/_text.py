"""The part of a completion that is judged."""

from collections.abc import Mapping, Sequence
from typing import Any

Completion = str | Sequence[Mapping[str, Any]]


def text_of(completion: Completion) -> str:
    """The text of a completion; of messages the last assistant's content, empty where there is none."""
    if isinstance(completion, str):
        return completion
    contents = [message.get("content") for message in completion if message["role"] == "assistant"]
    return contents[-1] or "" if contents else ""


def tagged(text: str, tag: str | None) -> str | None:
    """The stripped text in the last closed `<tag>...</tag>`, None where there is none; the whole text without a tag.

    Raises TypeError when a column of the data set took the place of the option.
    """
    if tag is None:
        return text.strip()
    if not isinstance(tag, str):
        raise TypeError("`tag` came from a column of the data set; set `args: {tag: ...}` of the reward")
    opening, closing = f"<{tag}>", f"</{tag}>"
    last_end = text.rfind(closing)
    # The last opening that is closed; then the first closing after it, as more of them may follow.
    start = text.rfind(opening, 0, max(last_end, 0))
    if start < 0:
        return None
    start += len(opening)
    return text[start : text.find(closing, start)].strip()
