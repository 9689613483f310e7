"""Named points of the GRPO family: one value for every switch of the objective."""

from dataclasses import dataclass
from typing import Literal

AdvantageRule = Literal["group", "centered"]
Aggregation = Literal["token_mean", "sequence_mean", "constant"]


@dataclass(frozen=True, kw_only=True)
class Switches:
    """Everything that decides the loss of a step."""

    advantage: AdvantageRule
    advantage_ddof: int
    advantage_eps: float
    clip_low: float
    clip_high: float
    aggregation: Aggregation
    kl_coef: float


@dataclass(frozen=True, kw_only=True)
class Preset(Switches):
    """The switches of a published algorithm."""

    paper: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Algorithm(Switches):
    """The switches of a run: the preset's, except where the recipe sets its own."""

    preset: str


PRESETS: dict[str, Preset] = {
    "grpo": Preset(
        advantage="group",
        advantage_ddof=1,
        advantage_eps=1e-4,
        clip_low=0.2,
        clip_high=0.2,
        aggregation="sequence_mean",
        kl_coef=0.0,
        paper="arXiv:2402.03300",
        note="Mean over tokens, then over completions; the paper's KL penalty is off, as in later RLVR work.",
    ),
    "dapo": Preset(
        advantage="group",
        advantage_ddof=1,
        advantage_eps=1e-4,
        clip_low=0.2,
        clip_high=0.28,
        aggregation="token_mean",
        kl_coef=0.0,
        paper="arXiv:2503.14476",
        note="Every token of the step weighs the same and the upper clip is wider; no dynamic sampling.",
    ),
    "dr_grpo": Preset(
        advantage="centered",
        advantage_ddof=1,
        advantage_eps=1e-4,
        clip_low=0.2,
        clip_high=0.2,
        aggregation="constant",
        kl_coef=0.0,
        paper="arXiv:2503.20783",
        note="No division by the group's standard deviation nor by completion length.",
    ),
}
