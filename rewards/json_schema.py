"""JSON that fits a schema."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NoReturn

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from rewards._columns import from_json
from rewards._item import Judgement, graded, item_reward, no_answer, unscorable
from rewards._text import tagged

FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[ \t]*$", re.MULTILINE)
# Without a way to fetch, a reference to another document is an error instead of a download.
NOTHING_REMOTE: Registry[Any] = Registry()


@item_reward
def json_schema(
    text: str,
    json_schema: Mapping[str, Any] | str | None = None,
    *,
    schema: Mapping[str, Any] | str | None = None,
    tag: str | None = "answer",
) -> Judgement:
    """1 where the completion is JSON that is valid under a JSON Schema; else 0.

    Read is the last closed `<tag>...</tag>`, without one the last fenced block (plain or `json`), without one the whole
    text. The schema is the column `json_schema` (an object, or JSON text), without one the option `schema`; its draft
    is that of its `$schema`, 2020-12 by default. NaN and Infinity are not JSON. `format` is not checked. A schema that
    is itself invalid, or that points at another document, gives no verdict. Patterns in a schema may backtrack without
    end: isolation is the caller's.
    """
    wanted = schema if json_schema is None else json_schema
    if wanted is None:
        return unscorable("there is no schema; add a column `json_schema` or `args: {schema: {...}}`")
    try:
        validator = _validator(wanted if isinstance(wanted, str) else json.dumps(wanted))
    except (ValueError, TypeError, SchemaError) as error:
        return unscorable(f"the schema is invalid: {str(error)[:200]}")
    source = _source(text, tag)
    if not source:
        return no_answer("no JSON")
    try:
        value = json.loads(source, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return no_answer(f"not JSON: {str(error)[:200]}")
    try:
        return graded(float(validator.is_valid(value)))
    except Unresolvable as error:
        return unscorable(f"the schema refers to what is not in it: {str(error)[:200]}")
    except RecursionError:
        return Judgement(0.0, graded(0.0).status, "nested too deep to validate")


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Validator:
    loaded = from_json(schema)
    if not isinstance(loaded, Mapping | bool):
        raise TypeError(f"it is {type(loaded).__name__}, and must be an object")
    kind = validator_for(loaded, default=Draft202012Validator)
    kind.check_schema(loaded)
    return kind(loaded, registry=NOTHING_REMOTE)


def _source(text: str, tag: str | None) -> str:
    found = tagged(text, tag) if tag else None
    text = text if found is None else found
    block, opened = text, None
    for fence in FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif not fence[1]:
            block = text[opened.end() : fence.start()] if opened[1].lower() in ("", "json") else block
            opened = None
    return block.strip()


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
