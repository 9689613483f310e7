"""Instructions that can be checked, as in IFEval."""

import inspect
from collections.abc import Mapping
from typing import Any

from rewards._columns import check_choice, from_json, is_number
from rewards._instructions import CHECKS, Texts
from rewards._item import Judgement, graded, item_reward, no_answer, unscorable
from rewards._text import tagged

LEVELS = ("strict", "loose")
SCORES = ("all", "fraction")
KINDS = {int: "a whole number", str: "text", Texts: "a list of texts"}


@item_reward
def ifeval(
    text: str,
    instructions: Any = None,
    instruction_id_list: Any = None,
    kwargs: Any = None,
    *,
    level: str = "strict",
    score: str = "all",
    tag: str | None = None,
) -> Judgement:
    """Whether the completion follows its instructions, after IFEval (Zhou et al. 2023, arXiv:2311.07911).

    The column `instructions` is a list of {id, kwargs}, or JSON text of one; in its place the columns
    `instruction_id_list` and `kwargs` of the published data set do. Arguments that are null are left out. `score: all`
    gives 1 where every instruction is followed, `fraction` the share that is. `level: loose` tries each check also
    without the first line, without the last, without both, and without asterisks, and is content with one that passes.
    With `tag` only the text in the last `<tag>...</tag>` is looked at. Blank text follows nothing. The ids are those of
    `rewards._instructions.CHECKS`; an id that is not among them, such as one on language, or an argument that does not
    fit gives no verdict.
    """
    check_choice("level", level, LEVELS)
    check_choice("score", score, SCORES)
    try:
        wanted = _wanted(instructions, instruction_id_list, kwargs)
    except (ValueError, TypeError, LookupError) as error:
        return unscorable(f"the instructions cannot be read: {error}")
    found = tagged(text, tag) if tag else text
    if not found or not found.strip():
        return no_answer("no text")
    texts = _variants(found) if level == "loose" else [found]
    try:
        failed = [name for name, args in wanted if not any(CHECKS[name](each, **args) for each in texts)]
    except ValueError as error:
        return unscorable(str(error))
    verdict = graded(1 - len(failed) / len(wanted) if score == "fraction" else float(not failed))
    return Judgement(verdict.value, verdict.status, f"not followed: {', '.join(failed)}" if failed else "")


def _wanted(instructions: Any, ids: Any, kwargs: Any) -> list[tuple[str, dict[str, Any]]]:
    """Names and arguments, checked. Raises ValueError, TypeError or LookupError."""
    if instructions is not None:
        pairs = [(each["id"], each.get("kwargs")) for each in from_json(instructions)]
    else:
        names, arguments = from_json(ids), from_json(kwargs)
        if names is None:
            raise ValueError("there is no column `instructions`; add one, a list of {id, kwargs}")
        pairs = list(zip(names, arguments or [None] * len(names), strict=True))
    if not pairs:
        raise ValueError("there are none")
    return [(name, _arguments(name, from_json(given))) for name, given in pairs]


def _arguments(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of a check, checked against its annotations."""
    if name not in CHECKS:
        raise ValueError(f"no check is called {name!r}; there are {', '.join(CHECKS)}")
    present = {key: value for key, value in (given or {}).items() if value is not None}
    signature = inspect.signature(CHECKS[name])
    try:
        signature.bind("", **present)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from error
    return {key: _as(signature.parameters[key].annotation, value, f"{name}: {key}") for key, value in present.items()}


def _as(kind: Any, value: Any, what: str) -> Any:
    """The value as the annotation wants it. Tables store whole numbers beside nulls as floats. Raises ValueError."""
    if kind is int and is_number(value) and float(value).is_integer():
        return int(value)
    if kind is str and isinstance(value, str) and value:
        return value
    if kind is Texts and isinstance(value, list | tuple) and value and all(isinstance(e, str) and e for e in value):
        return list(value)
    raise ValueError(f"{what} is {str(value)[:80]!r}, and must be {KINDS[kind]}")


def _variants(text: str) -> list[str]:
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    every = [*cut, *(each.replace("*", "") for each in cut)]
    return [each for each in dict.fromkeys(every) if each.strip()]
