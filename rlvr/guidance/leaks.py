"""Whether a hint gives the answer away: by the verifier's own reading and equality, and by the words in it."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rewards._item import ItemReward
from rlvr.verification.calling import RewardFunction
from rlvr.verification.judging import REFERENCE, Judge, gold_text
from rlvr.verification.tasks import Item

MAX_CANDIDATES = 64  # of one hint, the hint itself among them
MAX_CANDIDATE_CHARACTERS = 200  # of a part of a hint

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# A sign belongs to the number unless something to subtract from stands before it.
NUMBERS = re.compile(rf"(?:(?<![\w.)\]])[+\-\N{{MINUS SIGN}}])?(?:{NUMBER})(?:\s{{0,3}}/\s{{0,3}}\d+|%)?")
FRACTIONS = re.compile(r"-?\\[dt]?frac\{[^{}]{1,50}\}\{[^{}]{1,50}\}")
BRACES = re.compile(r"(?P<box>\\boxed\s*\{)|\\[{}]|(?P<open>\{)|(?P<close>\})")
MATH = re.compile(r"\$+|\\[()\[\]]")
TAG = re.compile(r"</?[A-Za-z_]\w*>")
QUOTED = re.compile(
    r"""(?<!\w)(?:"([^"\n]{1,200})"|'([^'\n]{1,200})'|`([^`\n]{1,200})`)|“([^“”\n]{1,200})”|«([^«»\n]{1,200})»"""
)
ANNOUNCED = re.compile(r"\banswer\s{0,20}(?:is\b|:)\s{0,20}:?|=", re.IGNORECASE)
# A capital letter on its own. Bare, `A` and `I` are words: they count where nothing or a mark or a verb follows.
LETTER = re.compile(
    r"(?<!\w)(?:(?:[Aa]nswer|[Oo]ption|[Cc]hoice)\s(?:is\s)?([A-Z])|([B-HJ-Z]|[AI](?!['’]|\s+(?!(?:is|fits|and|or)\b)\w)))(?!\w)"
)
NOT_SIGNED = r"(?<![^\w.)\]][-\N{MINUS SIGN}])(?<!\A[-\N{MINUS SIGN}])"
DECORATION = " \t\r\n.,;:!?*_`\"'"
# Scripts that put no blanks between words: Thai to Lao, kana, and Chinese characters.
UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"


def states_answer(
    judge: Judge, verifier: RewardFunction, correct_at: float, cases: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[bool]:
    """For each hint and the row of its prompt: whether the row's `answer` stands in the hint.

    It does where the verifier gives at least `correct_at` to the hint as a completion, or to anything in it that may be
    an answer (numbers, boxes, formulas, tags, quotations, what follows "answer is" or "=", option letters where the
    answer is one), put as the verifier expects its reference; so "9 - 2" states 7 where the verifier computes. It also
    does where the answer's own words do. At most `MAX_CANDIDATES` of a hint are judged, in one call for all hints. What
    the verifier cannot judge is no answer. A verifier that does not judge one completion at a time, or asynchronously,
    or that needs a column which the row lacks, is not asked. Raises RewardError when it breaks its contract.
    """
    stated = [_contains(hint, row.get(REFERENCE)) for hint, row in cases]
    reward: Any = verifier.function
    bound: Mapping[str, Any] = {}
    if isinstance(reward, partial):
        reward, bound = reward.func, reward.keywords
    if not isinstance(reward, ItemReward) or inspect.iscoroutinefunction(reward.judge):
        return stated
    options = {name: bound[name] for name in reward.options if name in bound}
    items: list[Item] = []
    owners: list[int] = []
    for index, (hint, row) in enumerate(cases):
        columns = _columns(reward, row)
        if stated[index] or columns is None or not isinstance(row.get(REFERENCE), str):
            continue
        texts = _completions(reward, options, hint, row)
        items += [(text, columns) for text in texts]
        owners += [index] * len(texts)
    for index, judged in zip(owners, judge.judge(reward, options, items), strict=True):
        value = judged.judgement.value
        stated[index] = stated[index] or (value is not None and value >= correct_at)
    return stated


def _columns(reward: ItemReward, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The columns that the reward takes; None where the row lacks one that it needs."""
    if any(each.default is each.empty and each.name not in row for each in reward.columns):
        return None
    return {each.name: row[each.name] for each in reward.columns if each.name in row}


def _completions(reward: ItemReward, options: Mapping[str, Any], hint: str, row: Mapping[str, Any]) -> list[str]:
    """The hint, and every candidate in it as the verifier expects its reference; each once."""
    texts, seen = {hint: None}, {""}
    for candidate in _candidates(hint, row[REFERENCE]):
        if len(texts) == MAX_CANDIDATES:
            break
        if candidate not in seen:
            seen.add(candidate)
            text = gold_text(reward, options, {**row, REFERENCE: candidate})
            assert text is not None
            texts[text] = None
    return list(texts)


# ---- candidates -----------------------------------------------------------------------------------------------------


def _candidates(hint: str, gold: str) -> Iterator[str]:
    """The hint and what may be an answer in it, likely kinds first and of each kind the last first; some repeatedly."""
    yield hint.strip()
    kinds = [
        _boxes(hint),
        TAG.split(hint)[1:-1],
        _announced(hint),
        [letter for match in LETTER.findall(hint) for letter in match] if _is_letter(gold) else [],
        MATH.split(hint)[1:-1],
        [span for match in QUOTED.findall(hint) for span in match],
        FRACTIONS.findall(hint),
        _numbers(hint),
    ]
    for kind in kinds:
        for found in reversed(kind):
            if len(found) <= MAX_CANDIDATE_CHARACTERS:
                yield found.strip()


def _boxes(text: str) -> list[str]:
    r"""What stands in each `\boxed{...}` that is closed."""
    found = []
    opened: list[int | None] = []  # where the content of a box begins; None for another brace
    for match in BRACES.finditer(text):
        if match["box"]:
            opened.append(match.end())
        elif match["open"]:
            opened.append(None)
        elif match["close"] and opened:
            start = opened.pop()
            if start is not None:
                found.append(text[start : match.start()])
    return found


def _announced(text: str) -> list[str]:
    found = []
    for line in text.splitlines():
        for part in ANNOUNCED.split(line)[1:]:
            found += [part.strip(DECORATION), part]
    return found


def _numbers(text: str) -> list[str]:
    found = []
    for number in NUMBERS.findall(text):
        plain = number.replace(",", "").replace("\N{MINUS SIGN}", "-")
        found += [number, plain, plain.rstrip("%")]
    return found


def _is_letter(gold: str) -> bool:
    return re.fullmatch(r"\s*\(?[A-Za-z][).]?\s*", gold) is not None


# ---- containment ----------------------------------------------------------------------------------------------------


def _contains(hint: str, answer: Any) -> bool:
    """Whether the words of the answer stand in the hint, whatever their case. A lone letter must be written as one."""
    if not isinstance(answer, str) or not any(each.isalnum() for each in answer):
        return False
    if _is_letter(answer):
        letter = re.sub(r"[^A-Za-z]", "", answer)
        found = {each for match in LETTER.findall(hint) for each in match}
        return letter.upper() in found or (letter in "bcdefghjklmnopqrstuvwxyz" and _stands_in(letter, hint))
    return _stands_in(_normal(answer), _normal(hint))


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def _stands_in(words: str, text: str) -> bool:
    """Whether `words` are in the text with no word going on at either end; 7 is not in 7.5, -7 and 7,000."""
    letter = rf"[^\W{UNSPACED}]" if len(words) > 1 else r"\w"
    before = rf"(?<!{letter})" if re.match(letter, words) else ""
    after = rf"(?!{letter})" if re.search(rf"{letter}\Z", words) else ""
    if re.match(r"[+\-\N{MINUS SIGN}]?[\d.]", words):
        before += rf"(?<!\d\.){NOT_SIGNED}" if words[0].isdigit() else r"(?<![\w.)\]])"
        before += r"(?<!\d,)" if re.match(r"\d{3}(?!\d)", words) else ""
    if words[-1].isdigit():
        after += r"(?!\.\d|,\d{3}(?!\d))"
    begins, ends = re.compile(before), re.compile(after)
    start = text.find(words)
    while start >= 0:
        if begins.match(text, start) and ends.match(text, start + len(words)):
            return True
        start = text.find(words, start + 1)
    return False
