"""Multiple choice: a letter, or the text of an option."""

import json
import re
from collections.abc import Sequence
from typing import Any

from rewards._columns import from_json
from rewards._item import Judgement, graded, item_reward, no_answer, unscorable
from rewards._text import tagged

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# An announcement before the letter, which is dropped. Only its last occurrence in untagged text counts.
CUE = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*(?:option\s+|choice\s+)?", re.IGNORECASE)
STATED = re.compile(r"\banswer(?:\s{1,20}is\b|\s{0,20}:)[\s:]{0,20}([^\n]{1,200})", re.IGNORECASE)
BOXED = re.compile(r"\\boxed\{(?:\\text\{)?([^{}\n]{1,200})\}")
LEAD = re.compile(r"[(\[]?([A-Za-z])(?:([)\].:,]+)|\b)\s*(.*)", re.DOTALL)
# What shows after a letter that it was meant as one, where no punctuation does.
CLAUSE = re.compile(r"(?:because|since|as|for|and|or|not|[-,;/&])(?!\w)", re.IGNORECASE)
ANOTHER = re.compile(r"(?:\b(?:or|and)\s+|[/,&]\s*)[(\[]?([A-Za-z])(?!\w)|\b([A-Z])[)\]]")
LISTED = re.compile(r"[(\[]?([A-Za-z])[)\].:,]*")
DECORATION = " \t\r\n*_$`\"'"


@item_reward
def multiple_choice(
    text: str, answer: str | int, choices: Sequence[str] | str | None = None, *, tag: str | None = "answer"
) -> Judgement:
    r"""1 where the completion names the right option, by its letter (`B`, `(b)`, `B. Paris`) or by its text; else 0.

    Read is the last `<tag>...</tag>`; without one, the last of what follows "answer is" or "answer:" and what
    stands in `\boxed{}`. The text of an option counts only where a `choices` column has it (a list, or JSON text).
    Two different letters ("A or B") are no answer. The gold answer is a letter, a position counted from 0, or the text
    of one option. A gold answer that is none of these gives no verdict.
    """
    try:
        options = _options(choices)
        gold = _gold(answer, options)
    except ValueError as error:
        return unscorable(str(error))
    stated = _stated(text, tag)
    if stated is None:
        return no_answer("no option is named")
    letters = _letters(stated, options)
    if len(letters) != 1:
        return no_answer(f"{stated[:80]!r} names {' and '.join(sorted(letters)) or 'no option'}")
    return graded(float(letters == {gold}))


def _options(choices: Any) -> list[str]:
    """The normalised text of every option; empty without a column. Raises ValueError."""
    if choices is None:
        return []
    try:
        found = from_json(choices)
    except json.JSONDecodeError as error:
        raise ValueError(f"column 'choices' is text but not a JSON list: {str(choices)[:80]!r}") from error
    if not isinstance(found, Sequence) or isinstance(found, str) or not 1 < len(found) <= len(LETTERS):
        raise ValueError(f"column 'choices' holds {str(found)[:80]!r}; it must be a list of 2 to 26 texts")
    return [_normal(str(each)) for each in found]


def _gold(answer: Any, options: list[str]) -> str:
    """The letter of the right option. Raises ValueError."""
    valid = LETTERS[: len(options) or None]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(valid):
        return valid[answer]
    if isinstance(answer, str):
        if options.count(_normal(answer)) == 1:
            return LETTERS[options.index(_normal(answer))]
        match = re.fullmatch(r"\s*\(?([A-Za-z])[).]?\s*", answer)
        if match and match[1].upper() in valid:
            return match[1].upper()
    raise ValueError(f"the answer {str(answer)[:80]!r} is no letter up to {valid[-1]} and not the text of one option")


def _stated(text: str, tag: str | None) -> str | None:
    """The part of the text that names the option."""
    found = tagged(text, tag) if tag else None
    if found is not None:
        return found or None
    if tag is None and len(text) <= 200:
        return text.strip() or None
    matches = [*STATED.finditer(text), *BOXED.finditer(text)]
    return max(matches, key=lambda match: match.start())[1].strip() if matches else None


def _letters(stated: str, options: list[str]) -> set[str]:
    """The letters of the options that are named."""
    valid = LETTERS[: len(options) or None]
    plain = stated.strip(DECORATION)
    cue = CUE.search(plain[:100])
    plain = plain[cue.end() :].strip(DECORATION) if cue else plain
    if plain.startswith("\\text{"):
        plain = plain.removeprefix("\\text{").rstrip("}")
    as_text = {LETTERS[i] for i, option in enumerate(options) if option == _normal(plain)}
    if as_text:
        return as_text
    match = LEAD.match(plain)
    if match is None or match[1].upper() not in valid:
        return set()
    letter, mark, rest = match[1].upper(), match[2], match[3].strip(DECORATION)
    if rest.rstrip(".") and not mark and not _meant_as_letter(match[1], rest, letter, options):
        return set()
    if options and _normal(rest) == options[LETTERS.index(letter)]:
        return {letter}
    others = {LETTERS[i] for i, option in enumerate(options) if option and option == _normal(rest)}
    named = {(one or two).upper() for one, two in ANOTHER.findall((mark or "") + rest[:1000])}
    listed = [LISTED.fullmatch(word) for word in rest[:200].split()]
    named |= {match[1].upper() for match in listed if match} if all(listed) else set()
    return {letter} | others | (named & set(valid))


def _meant_as_letter(written: str, rest: str, letter: str, options: list[str]) -> bool:
    """`B because ...` and `B Paris` are; `a dog` and `I think` are not."""
    if options and _normal(rest) == options[LETTERS.index(letter)]:
        return True
    return bool(CLAUSE.match(rest)) or (written.isupper() and written not in "AI")


def _normal(text: str) -> str:
    return " ".join(text.strip(DECORATION).rstrip(".").casefold().split())
