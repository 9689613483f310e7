"""The `guidance` section: help for prompts that the policy cannot solve yet, and where the help comes from."""

import string
from typing import Literal, Self

from pydantic import Field, model_validator

from rlvr.config.problems import Problem, misfit, nearest, shown
from rlvr.config.schedules import Coefficient
from rlvr.config.section import Section

RuleName = Literal["nurl", "guide", "sage", "exemplar", "teacher"]
Conditioning = Literal["keep", "drop_with_ratio", "drop_plain"]

# By option: the rules that read it. Set for another rule, it would do nothing.
READ_BY: dict[str, tuple[str, ...]] = {
    "hint_conditioning": ("nurl", "guide", "sage", "exemplar"),
    "shaping_quantile": ("nurl", "guide", "sage", "exemplar"),
    "retries": ("nurl", "guide", "sage", "exemplar"),
    "max_extra_rollouts": ("nurl", "guide", "sage", "exemplar"),
    "prompt_template": ("nurl", "guide", "sage", "exemplar"),
    "max_prompt_length": ("nurl", "guide", "sage", "exemplar"),
    "hints": ("nurl", "guide", "sage"),
    "plain_rollout": ("nurl",),
    "schedule": ("sage",),
    "exemplars": ("exemplar",),
    "exemplar_template": ("exemplar",),
    "teacher": ("teacher",),
}
DEFAULT_CONDITIONING: dict[str, Conditioning] = {
    "nurl": "keep",
    "guide": "drop_with_ratio",
    "sage": "keep",
    "exemplar": "keep",
}


def _check_template(key: str, template: str, wanted: tuple[str, ...], allowed: tuple[str, ...] | None) -> None:
    """Raises Problem unless `template` has the placeholders `wanted`, and none beside `allowed` where that is given."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise Problem(key, f"{template!r} is no template: {error}; write a literal brace twice") from error
    fields = [name.partition("[")[0].partition(".")[0] for name in names]
    for name in wanted:
        if name not in fields:
            raise Problem(key, f"{template!r} lacks the placeholder {{{name}}}; put it where the {name} belongs")
    for name in fields:
        if allowed is not None and name not in allowed:
            advice = nearest(name, allowed, f"placeholders are {', '.join(allowed)}")
            raise Problem(key, f"{template!r} names {name!r}; {advice}")


class HintsConfig(Section):
    """Where hints come from, and which are refused.

    `column`: of the training data; a text, or a list of texts from little to much help. `file`: a .jsonl or .parquet
    file with `prompt_id` and `hints` (or `hint`, and `level` from 1). `self`: written by the current policy.
    """

    source: Literal["column", "file", "self"] = "column"
    column: str = "hint"
    file: str | None = None
    explain_template: str | None = (  # self: asks for the reasoning that the hint is then drawn from; null: not asked
        "{prompt}\n\nThe answer is {answer}. Explain step by step why."
    )
    write_template: str = (  # self: asks for the hint; {level} is 1 (little help) to 3 (much help)
        "{prompt}\n\nThe answer is {answer}, because:\n{explanation}\n\nWrite one hint of level {level} of 3 for a"
        " student: the idea or fact that leads to the answer, without the answer and without the steps. Put it into"
        " <hint> </hint>."
    )
    tag: str | None = "hint"  # self: the hint is what the last <tag>...</tag> holds; null: the whole text
    attempts: int = Field(default=2, ge=1)  # self: how often a hint that is missing, empty or refused is asked for
    refresh_every: int | None = Field(default=None, ge=1)  # self: steps after which a hint is written anew
    refuse_answers: bool = True  # the gold answer stands in the hint, by the verifier's own judgement
    refuse_sufficient: bool = True  # the policy gets the answer from the hint alone
    alone_template: str = "{hint}"  # what the policy is shown for that

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.source == "file") != (self.file is not None):
            advice = "give the file" if self.file is None else "set source to 'file', or remove it"
            raise Problem("file", f"is {shown(self.file)} while source is {self.source!r}; {advice}")
        if self.source != "self" and self.refresh_every is not None:
            raise Problem("refresh_every", f"has no effect with source {self.source!r}; remove it")
        _check_template("write_template", self.write_template, ("answer",), None)
        if self.explain_template is not None:
            _check_template("explain_template", self.explain_template, ("answer",), None)
        _check_template("alone_template", self.alone_template, ("hint",), ("hint",))
        return self


class TeacherConfig(Section):
    """Where a teacher's completions come from, and how many of them a group takes."""

    column: str | None = None  # of the training data: a text or a list of texts
    file: str | None = None  # .jsonl or .parquet with `prompt_id` and `completion`
    max_replaced: int = Field(default=2, ge=1)  # completions of a group
    gamma: float = Field(default=0.1, gt=0)  # of the shaped probability p / (p + gamma) of a teacher's token
    pick_by: Literal["mean", "geometric"] = "mean"  # how likely the policy finds the reference after the reasoning

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.column is None) == (self.file is None):
            raise Problem("column", "give one of column and file: that is where the teacher's completions are")
        return self


class GuidanceConfig(Section):
    """A rule, which prompts it helps from when on, and with how much work."""

    shorthand = "rule"

    rule: RuleName
    threshold: float = Field(default=0.0, ge=0, lt=1)  # a prompt is helped when its unhinted pass rate is at most this
    hint_conditioning: Conditioning | None = None  # what the loss conditions on; null: as the rule's paper
    shaping_quantile: float = Field(default=0.9, gt=0, lt=1)  # of the ratios r: the g of f(r) = r / (r + g)
    start: Literal["first_step", "plateau"] = "first_step"
    plateau_steps: int = Field(default=10, ge=1)  # without a gain, after which help begins
    plateau_gain: float = Field(default=0.0, ge=0)  # in the mean unhinted pass rate that counts as one
    probability: Coefficient = 1.0  # that a prompt in need is helped: a number, or a schedule {step: number}
    retries: int = Field(default=0, ge=0)  # further rounds for groups that the help did not mend
    max_extra_rollouts: int | None = Field(default=None, ge=1)  # per step, over all processes
    prompt_template: str | None = None  # null: "{prompt}\n\nHint: {hint}"; exemplar: "{hint}\n\n{prompt}"
    max_prompt_length: int | None = Field(default=None, ge=1)  # tokens with the hint; null: data.max_prompt_length
    hints: HintsConfig = HintsConfig()
    plain_rollout: Literal["reuse", "resample"] = "reuse"  # nurl: the unhinted completion of the new group
    schedule: Literal["escalate", "light"] = "escalate"  # sage: all levels in turn, or the one that fits the prompt
    exemplars: int = Field(default=2, ge=1)  # exemplar: solved problems shown
    exemplar_template: str = "{prompt}\n{completion}"  # exemplar: one of them
    teacher: TeacherConfig | None = None

    @property
    def conditioning(self) -> Conditioning:
        """What the loss of a helped completion conditions on."""
        return self.hint_conditioning or DEFAULT_CONDITIONING[self.rule]

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        for name, rules in READ_BY.items():
            is_set = name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default
            if is_set and self.rule not in rules:
                raise Problem(name, f"has no effect with rule {self.rule!r}; it belongs to {' and '.join(rules)}")
        if self.rule == "teacher" and self.teacher is None:
            raise Problem("teacher", "is missing; say where the teacher's completions are, as teacher: {column: ...}")
        values = self.probability.values() if isinstance(self.probability, dict) else [self.probability]
        if max(values) > 1:
            raise Problem("probability", misfit(max(values), "at most 1"))
        if self.start == "first_step":
            for name in ("plateau_steps", "plateau_gain"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise Problem(name, "has no effect with start 'first_step'; set start to 'plateau', or remove it")
        if self.prompt_template is not None:
            _check_template("prompt_template", self.prompt_template, ("prompt", "hint"), ("prompt", "hint"))
        _check_template("exemplar_template", self.exemplar_template, ("prompt", "completion"), ("prompt", "completion"))
        return self
