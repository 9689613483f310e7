"""The page: what stands on it, and its HTML."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from rlvr.reporting.report.alarms import Alarm
from rlvr.reporting.report.blocks import Section, Table


@dataclass(frozen=True)
class Page:
    """Everything the template shows."""

    title: str
    subtitle: str
    is_live: bool  # it reloads itself
    verdicts: Sequence[tuple[str, Sequence[str]]]  # (run, sentences)
    notes: Sequence[str]
    changes: Table | None
    alarms: Sequence[Alarm] | None  # None: they are a section of their own
    sections: Sequence[Section]
    completion_notes: Sequence[str]
    chunks: Sequence[str]
    has_tokens: bool
    examples: Sequence[Mapping[str, Any]]  # for print and for browsers without JavaScript
    run_names: Sequence[str]
    footer: str

    @property
    def contents(self) -> list[tuple[str, str]]:
        """(id, title) of the sections."""
        alarms = [] if self.alarms is None else [("alarms", "Alarms")]
        middle = [(each.id, each.title) for each in self.sections]
        return [("verdict", "Verdict"), *alarms, *middle, ("completions", "Completions")]


def render(page: Page) -> str:
    """The HTML. Everything but our own style, script and charts is escaped, and no other script may run."""
    script = _part("browser.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_part("report.html.j2"))
    return template.render(page=page, style=Markup(_part("style.css")), script=Markup(script), script_hash=digest)


@cache
def _part(name: str) -> str:
    return (files("rlvr.reporting.report") / "assets" / name).read_text(encoding="utf-8")
