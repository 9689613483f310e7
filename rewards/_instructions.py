"""Checks of instructions on form, under the names of IFEval (Zhou et al. 2023, arXiv:2311.07911).

`check(text, <arguments>) -> bool` on text that is not blank. Every pattern takes time linear in the text. Where IFEval
counts sentences with a trained splitter, here a sentence ends at `.`, `!`, `?` or their full-width forms before a blank
or the end; and where it asks a library for the language of capital or small letters, here only the case counts.
"""

import json
import re
from collections.abc import Callable

WORD = re.compile(r"\w+")
SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++[\"')\]]*+(?=\s|$)|[。！？]")
PLACEHOLDER = re.compile(r"\[[^\[\]\n]*\]")
TITLE = re.compile(r"<<([^<>\n]+)>>")
HIGHLIGHT = re.compile(r"\*\*([^*\n]+)\*\*|\*([^*\n]+)\*")
DIVIDER = re.compile(r"[ \t]?\*{3}[ \t]?")
FENCES = ("```json", "```Json", "```JSON", "```")
POSTSCRIPTS = {"P.S.": re.compile(r"p\.\s?s\.", re.IGNORECASE), "P.P.S": re.compile(r"p\.\s?p\.\s?s", re.IGNORECASE)}
CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
RESPONSES = "******"
Texts = list[str]


def compares(count: int, relation: str, bound: int) -> bool:
    """`less than`, `at least`, `at most` or `exactly`. Raises ValueError."""
    match relation:
        case "less than":
            return count < bound
        case "at least":
            return count >= bound
        case "at most":
            return count <= bound
        case "exactly":
            return count == bound
    raise ValueError(f"relation {relation!r} is not one of less than, at least, at most, exactly")


def occurrences(text: str, keyword: str) -> int:
    """How often the keyword stands in the text, ignoring case, also inside longer words, without overlaps."""
    return text.casefold().count(keyword.casefold())


# ---- keywords -------------------------------------------------------------------------------------------------------


def has_keywords(text: str, keywords: Texts) -> bool:
    return all(occurrences(text, keyword) for keyword in keywords)


def keyword_frequency(text: str, keyword: str, frequency: int, relation: str = "at least") -> bool:
    return compares(occurrences(text, keyword), relation, frequency)


def no_forbidden_words(text: str, forbidden_words: Texts) -> bool:
    """As whole words."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str = "at least") -> bool:
    return compares(text.casefold().count(letter.casefold()), let_relation, let_frequency)


# ---- lengths --------------------------------------------------------------------------------------------------------


def number_words(text: str, num_words: int, relation: str = "at least") -> bool:
    return compares(sum(1 for _ in WORD.finditer(text)), relation, num_words)


def number_sentences(text: str, num_sentences: int, relation: str = "at least") -> bool:
    """Words after the last full stop are one more sentence."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    rest = WORD.search(text, ends[-1] if ends else 0) is not None
    return compares(len(ends) + rest, relation, num_sentences)


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs are divided by `***`; one may stand before the first and after the last."""
    parts = [part.strip() for part in DIVIDER.split(text)]
    inner = parts[1:-1] if len(parts) > 1 else []
    return all(inner) and sum(bool(part) for part in parts) == num_paragraphs


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are divided by an empty line."""
    parts = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    word = parts[nth_paragraph - 1].split(maxsplit=1)[0].strip("\"'.,?!*").casefold()
    return word == first_word.casefold()


# ---- content and format ---------------------------------------------------------------------------------------------


def number_placeholders(text: str, num_placeholders: int) -> bool:
    """At least so many `[...]`."""
    return len(PLACEHOLDER.findall(text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    pattern = POSTSCRIPTS.get(postscript_marker)
    return pattern.search(text) is not None if pattern else occurrences(text, postscript_marker) > 0


def number_bullets(text: str, num_bullets: int) -> bool:
    """Exactly so many lines that start with `*` (not two of them) or `-`."""
    lines = (line.strip() for line in text.splitlines())
    bullets = (line for line in lines if line[:1] in ("*", "-") and line[1:2] != line[:1] and len(line) > 1)
    return sum(1 for _ in bullets) == num_bullets


def constrained_response(text: str) -> bool:
    return any(sentence in text for sentence in CONSTRAINED)


def highlighted_sections(text: str, num_highlights: int) -> bool:
    """At least so many `*...*` or `**...**`."""
    return sum(bool((one or two).strip()) for one, two in HIGHLIGHT.findall(text)) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections that start with, say, `SECTION 1`."""
    return len(re.findall(rf"{re.escape(section_spliter.strip())}[ \t]?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    """The whole text is JSON, perhaps in one fence."""
    body = text.strip()
    for fence in FENCES:
        body = body.removeprefix(fence)
    try:
        json.loads(body.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    """A title in `<<...>>`."""
    return any(match.strip() for match in TITLE.findall(text))


def two_responses(text: str) -> bool:
    """Two different responses, divided by `******`."""
    parts = text.split(RESPONSES)
    inner = parts[1:-1]
    found = [part.strip() for part in parts if part.strip()]
    return all(part.strip() for part in inner) and len(found) == 2 and found[0] != found[1]


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    """The text starts with the prompt."""
    return text.strip().casefold().startswith(prompt_to_repeat.strip().casefold())


# ---- start, end, case, punctuation ----------------------------------------------------------------------------------


def ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').casefold().endswith(end_phrase.strip().casefold())


def starts_with(text: str, start_phrase: str) -> bool:
    return text.strip().strip('"').casefold().startswith(start_phrase.strip().casefold())


def quotation(text: str) -> bool:
    """The whole text stands in double quotation marks."""
    body = text.strip()
    return len(body) > 1 and body[0] == body[-1] == '"'


def all_upper(text: str) -> bool:
    return text.isupper()


def all_lower(text: str) -> bool:
    return text.islower()


def capital_words(text: str, capital_frequency: int, capital_relation: str = "at least") -> bool:
    """Words all in capital letters."""
    count = sum(match[0].isupper() for match in WORD.finditer(text))
    return compares(count, capital_relation, capital_frequency)


def no_comma(text: str) -> bool:
    return "," not in text


CHECKS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": capital_words,
    "change_case:english_capital": all_upper,
    "change_case:english_lowercase": all_lower,
    "combination:repeat_prompt": repeat_prompt,
    "combination:two_responses": two_responses,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:json_format": json_format,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:number_bullet_lists": number_bullets,
    "detectable_format:number_highlighted_sections": highlighted_sections,
    "detectable_format:title": title,
    "keywords:existence": has_keywords,
    "keywords:forbidden_words": no_forbidden_words,
    "keywords:frequency": keyword_frequency,
    "keywords:letter_frequency": letter_frequency,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_words": number_words,
    "punctuation:no_comma": no_comma,
    "startend:end_checker": ends_with,
    "startend:quotation": quotation,
    "startend:start_checker": starts_with,
}
