"""Prompts with help in them, and hints out of what the policy writes. Texts are filled in once, so braces survive."""

import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards._text import tagged
from rlvr.config.problems import nearest, shown
from rlvr.errors import DataError

Prompt = str | list[dict[str, str]]  # text, or chat messages with `role` and `content`

MAX_HINT_CHARACTERS = 4_000  # of a written hint; what is longer is no hint


def with_help(prompt: Prompt, template: str, help: str) -> Prompt:
    """The prompt with the help in it: `template` with {prompt} and {hint} filled in, once.

    Of messages, {prompt} is the last user message's content, and the result replaces it; `prompt` stays as it was.
    Raises DataError for messages without a user's, and for a template that cannot be filled in.
    """
    text = _filled(template, {"prompt": text_of_prompt(prompt), "hint": help})
    if isinstance(prompt, str):
        return text
    last = _last_user(prompt)
    return [{**message, "content": text} if index == last else dict(message) for index, message in enumerate(prompt)]


def text_of_prompt(prompt: Prompt) -> str:
    """The text, or the last user message's content. Raises DataError for messages without a user's."""
    return prompt if isinstance(prompt, str) else prompt[_last_user(prompt)]["content"]


def _last_user(messages: list[dict[str, str]]) -> int:
    for index in reversed(range(len(messages))):
        if messages[index]["role"] == "user":
            return index
    raise DataError("a prompt has no message of the role 'user'; a hint needs one to stand in, so add it to the data")


def cut_help(
    prompt: Prompt, template: str, help: str, max_tokens: int, count_tokens: Callable[[Prompt], int]
) -> str | None:
    """The help, or its longest beginning of whole words, with which the prompt has at most `max_tokens` tokens.

    Never cuts the prompt itself: None where not even the first word fits, or where there is none. Raises what
    `with_help` raises.
    """

    def fits(text: str) -> bool:
        return count_tokens(with_help(prompt, template, text)) <= max_tokens

    ends = [word.end() for word in re.finditer(r"\S+", help)]
    if not ends:
        return None
    if fits(help):
        return help
    fitting, too_many = 0, len(ends) + 1  # words; without the blanks at the end all of them may fit
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if fits(help[: ends[middle - 1]]):
            fitting = middle
        else:
            too_many = middle
    return help[: ends[fitting - 1]] if fitting else None


def hint_in(text: str, tag: str | None) -> str | None:
    """The stripped content of the last closed `<tag>...</tag>`, or with no tag the stripped text.

    None where that is missing, blank or longer than `MAX_HINT_CHARACTERS`.
    """
    hint = tagged(text, tag)
    return hint if hint and len(hint) <= MAX_HINT_CHARACTERS else None


def request_text(template: str, row: Mapping[str, Any], **extra: Any) -> str:
    """The template with {column} filled in from the row and `extra`, which wins.

    {prompt} of messages is the last user message's content. In {column[key]} a column of JSON text, which is how data
    sets hold dicts and lists, stands for what that text says. Raises DataError for a name that the row lacks or has no
    value for, and for a template that cannot be filled in.
    """
    return _filled(template, {**row, **extra})


def _filled(template: str, values: Mapping[str, Any]) -> str:
    start = f"template {shown(template)}"
    try:
        return _Filler().vformat(template, (), values)
    except KeyError as error:
        key, names = str(error.args[0]), [name for name, value in values.items() if value is not None]
        inner = [each for value in values.values() if isinstance(found := _of_json(value), dict) for each in found]
        advice = nearest(key, [*names, *inner], f"there are {', '.join(names)}")
        raise DataError(f"{start} names {key!r}, which the row lacks; {advice}") from error
    except (IndexError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{start} cannot be filled in: {error}; fields are {{column}} or {{column[key]}}") from error


class _Filler(string.Formatter):
    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        name = re.split(r"[.\[]", field_name, maxsplit=1)[0]
        value = kwargs.get(name)
        if value is None:
            raise KeyError(name)
        if name == "prompt":
            value = text_of_prompt(value)
        elif field_name.startswith(f"{name}["):
            value = _of_json(value)
        return super().get_field(field_name, args, {name: value})


def _of_json(value: Any) -> Any:
    """What the value says as JSON text of a dict or list; anything else as it is."""
    if not isinstance(value, str) or not value.startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
