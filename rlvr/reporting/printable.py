"""Text of a model as a person may safely be shown it."""

import re
import unicodedata
from functools import lru_cache

_PERHAPS_UNSAFE = re.compile(r"[^\n\t -~]")


def printable(text: str) -> str:
    """The text with control characters, all but line ends and tabs, as escapes such as \\x1b: terminals obey them.

    Invisible characters and those that turn the direction of writing are among them.
    """
    return _PERHAPS_UNSAFE.sub(lambda found: _shown(found[0]), text)


@lru_cache(maxsize=4096)
def _shown(character: str) -> str:
    if unicodedata.category(character)[0] == "C":
        return character.encode("unicode_escape").decode()
    return character
