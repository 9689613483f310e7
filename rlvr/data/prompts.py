"""Prompts from rows: templates, chat messages, token lengths."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from datasets import Dataset

from rlvr.config.problems import nearest
from rlvr.config.schema import DataConfig
from rlvr.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
Row = Mapping[str, Any]


def build_dataset(rows: Sequence[Row], data: DataConfig, tokenizer: "PreTrainedTokenizerBase", where: str) -> Dataset:
    """The data set with the columns prompt, answer, prompt_id and every other column of the rows.

    `prompt` is text, or messages when the tokenizer has a chat template and `data.chat` lets it be used. `prompt_id` is
    the index of the row. Dicts and lists are stored as JSON text, so that rows may differ in shape; `answer` is text
    always. `where`, such as "data.train", opens every message. Raises DataError.
    """
    texts = [_prompt_text(row, data.template, f"{where}: row {number}") for number, row in enumerate(rows, start=1)]
    prompts: list[Any] = list(texts)
    if _uses_chat(data, tokenizer, where):
        system: list[Message] = [] if data.system is None else [{"role": "system", "content": data.system}]
        prompts = [[*system, {"role": "user", "content": text}] for text in texts]
    kept = _within_length(prompts, data, tokenizer, where)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _stored(name, [rows[index].get(name) for index in kept], where) for name in names}
    columns |= {"prompt": [prompts[index] for index in kept], "prompt_id": kept}
    return Dataset.from_dict(columns)


def _prompt_text(row: Row, template: str | None, where: str) -> str:
    if template is None:
        text = row.get("prompt")
        if text is None:
            advice = "name the column with `columns: {prompt: ...}` or give data.template"
            raise DataError(f"{where}: no `prompt` among the columns {', '.join(row)}; {advice}")
        if not isinstance(text, str):
            advice = "take the text out of it with data.template, such as '{prompt[0][content]}'"
            raise DataError(f"{where}: `prompt` is a {type(text).__name__}, not text; {advice}")
    else:
        text = _rendered(template, row, where)
    if not text.strip():
        raise DataError(f"{where}: the prompt is empty; mend the row or data.template")
    return text


def _rendered(template: str, row: Row, where: str) -> str:
    start = f"{where}: data.template {template!r}"
    try:
        return template.format_map(row)
    except KeyError as error:
        key, inner = str(error.args[0]), [key for value in row.values() if isinstance(value, dict) for key in value]
        advice = nearest(key, [*row, *inner], f"its columns are {', '.join(row)}")
        raise DataError(f"{start} names {key!r}, which the row does not have; {advice}") from error
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{start} cannot be filled in: {error}; fields are {{column}} or {{column[key]}}") from error


def _uses_chat(data: DataConfig, tokenizer: "PreTrainedTokenizerBase", where: str) -> bool:
    has_template = bool(tokenizer.chat_template)
    if data.chat == "always" and not has_template:
        raise DataError(
            f"{where}: data.chat is 'always', but the tokenizer has no chat template; set it to 'auto' or 'never'"
        )
    uses_chat = has_template and data.chat != "never"
    if data.system is not None and not uses_chat:
        reason = "data.chat is 'never'" if has_template else "the tokenizer has no chat template"
        raise DataError(f"{where}: data.system needs a chat, but {reason}; put its text into data.template")
    return uses_chat


def _within_length(
    prompts: Sequence[Any], data: DataConfig, tokenizer: "PreTrainedTokenizerBase", where: str
) -> list[int]:
    """The indices of the prompts to keep."""
    lengths = [len(ids) for ids in token_ids(prompts, tokenizer)]
    kept = [index for index, length in enumerate(lengths) if length <= data.max_prompt_length]
    num_over = len(lengths) - len(kept)
    if num_over and data.long_prompts == "error":
        first = next(index for index, length in enumerate(lengths) if length > data.max_prompt_length)
        raise DataError(
            f"{where}: the prompt of row {first + 1} has {lengths[first]} tokens, data.max_prompt_length is"
            f" {data.max_prompt_length} and {num_over} of {len(lengths)} rows are over it;"
            " raise it, or set data.long_prompts to 'drop'"
        )
    if not kept:
        raise DataError(
            f"{where}: all {len(lengths)} prompts are over data.max_prompt_length={data.max_prompt_length}, so none is"
            f" left; raise it to {min(lengths)} or more"
        )
    return kept


def token_ids(
    prompts: Sequence[Any], tokenizer: "PreTrainedTokenizerBase", template_options: Mapping[str, Any] | None = None
) -> Sequence[Sequence[int]]:
    """Exactly what the trainer hands to the sampler; `template_options` are the trainer's `chat_template_kwargs`."""
    if isinstance(prompts[0], str):
        encoded = tokenizer(text=list(prompts))
    else:
        encoded = tokenizer.apply_chat_template(
            list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True, **(template_options or {})
        )
    ids: Sequence[Sequence[int]] = encoded["input_ids"]
    return ids


def _stored(name: str, values: list[Any], where: str) -> list[Any]:
    """The values as one Arrow column: JSON text throughout where any of them is a dict or list."""
    if any(isinstance(value, dict | list | tuple) for value in values):
        return [None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in values]
    if name == "answer":
        return [None if value is None else str(value) for value in values]
    try:
        pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{where}: column {name!r} cannot be stored ({reason}); give all rows values of one type"
        ) from error
    return values
