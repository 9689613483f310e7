"""What is wrong at which key of a recipe, in words."""

import difflib
from collections.abc import Collection, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Location = Sequence[str | int]


class Problem(ValueError):
    """What is wrong at `key`, a dotted path below the section that raises it ("" is the section itself)."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key}: {text}" if key else text)
        self.key = key
        self.text = text


def dotted(*parts: str | int) -> str:
    """`("rewards", "functions", 0)` as `rewards.functions.0`."""
    return ".".join(str(part) for part in parts if part != "")


def nearest(name: str, valid: Collection[str], otherwise: str) -> str:
    """The question whether the closest of `valid` was meant; `otherwise` when none is close."""
    close = difflib.get_close_matches(name, valid, n=1)
    return f"did you mean {close[0]!r}?" if close else otherwise


def shown(value: object) -> str:
    """The value as a message shows it: on one line and not too long."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def misfit(value: object, allowed: str) -> str:
    """The sentence for a value of the wrong type or out of range."""
    return f"{shown(value)} is not valid; it must be {allowed}"


def model_at(model: type[BaseModel], location: Location) -> type[BaseModel] | None:
    """The model that describes the value at `location` below `model`; None where there is a plain value or nothing."""
    described: Any = model
    for part in location:
        if isinstance(described, type) and issubclass(described, BaseModel):
            field = described.model_fields.get(str(part))
            described = None if field is None else _without_none(field.annotation)
        elif get_origin(described) in (list, dict):
            described = get_args(described)[-1]
        else:
            return None
    return described if isinstance(described, type) and issubclass(described, BaseModel) else None


def _without_none(annotation: Any) -> Any:
    """The X of `X | None`, anything else as it is."""
    parts = [part for part in get_args(annotation) if part is not NoneType]
    return parts[0] if get_origin(annotation) is UnionType and len(parts) == 1 else annotation


# pydantic's error type -> what the value must be; filled in from the error's context.
ALLOWED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "a string that is not empty",
    "too_short": "a list that is not empty",
}


def first_problem(error: ValidationError, model: type[BaseModel], shorthands: Collection[type[BaseModel]]) -> Problem:
    """The problem to report: an unknown key before anything else, as a misspelt key is also a missing one.

    Models in `shorthands` may be written as a plain string.
    """
    details = sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    return _problem(details[0], model, shorthands)


def _problem(detail: ErrorDetails, model: type[BaseModel], shorthands: Collection[type[BaseModel]]) -> Problem:
    kind, location, context = detail["type"], detail["loc"], detail.get("ctx", {})
    key, value = dotted(*location), detail["input"]
    if kind == "invalid_key" or location[-1:] == ("[key]",):
        return Problem(dotted(*location[: -2 if kind != "invalid_key" else -1]), f"key {shown(value)} must be a string")
    if kind == "value_error" and isinstance(context["error"], Problem):
        return Problem(dotted(key, context["error"].key), context["error"].text)
    if kind in ("extra_forbidden", "missing"):
        fields = _fields(model_at(model, location[:-1]))
        allowed = f"allowed here are {', '.join(fields)}"
        if kind == "missing":
            return Problem(key, f"required key is missing; {allowed}")
        return Problem(key, f"unknown key; {nearest(str(location[-1]), fields, allowed)}")
    if kind == "model_type":
        section = model_at(model, location)
        string = "a string or " if section in shorthands else ""
        return Problem(key, misfit(value, f"{string}a mapping with the keys {', '.join(_fields(section))}"))
    if kind in ALLOWED:
        return Problem(key, misfit(value, ALLOWED[kind].format(**context)))
    return Problem(key, detail["msg"])


def _fields(section: type[BaseModel] | None) -> list[str]:
    return [] if section is None else list(section.model_fields)
