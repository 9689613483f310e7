"""Named points of the GRPO family: one value for every switch of the objective."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

AdvantageRule = Literal["group", "centered", "batch_std", "rloo", "reinforce_pp", "reinforce_pp_baseline", "none"]
RatioLevel = Literal["token", "sequence", "sequence_token"]
PolicyLoss = Literal["clip", "cispo", "sapo", "gppo", "reinforce"]
Aggregation = Literal["token_mean", "sequence_mean", "constant", "token_sum"]
KLPlacement = Literal["loss", "reward"]
KLEstimator = Literal["k1", "k2", "k3", "k3_ratio"]
GroupFilter = Literal["none", "std_ema"]
Mismatch = Literal["none", "token_tis", "sequence_tis", "icepop", "sequence_mask", "geometric"]


@dataclass(frozen=True, kw_only=True)
class Switches:
    """Everything that decides the loss of a step."""

    advantage: AdvantageRule
    advantage_ddof: int
    advantage_eps: float
    ratio_level: RatioLevel
    policy_loss: PolicyLoss
    clip_low: float
    clip_high: float
    dual_clip: float | None  # cap on the loss of a negative advantage, in units of |A|
    delta: float | None  # cap on the unclipped ratio
    cispo_cap: float  # largest weight of policy_loss=cispo
    sapo_tau_pos: float
    sapo_tau_neg: float
    aggregation: Aggregation
    group_filter: GroupFilter  # which groups are trained on; std_ema: not those whose rewards hardly differ
    overlong_filter: bool  # completions cut off by the length limit take no part in the loss
    kl_coef: float
    kl_estimator: KLEstimator
    kl_placement: KLPlacement  # a term of the loss, or taken off the reward
    mismatch: Mismatch  # correction for an engine whose probabilities are not the trainer's
    mismatch_low: float
    mismatch_high: float


@dataclass(frozen=True, kw_only=True)
class Preset(Switches):
    """The switches of a published algorithm."""

    regularizers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings by name
    paper: str
    note: str  # what it changes, and where it departs from the paper or the authors' code


@dataclass(frozen=True, kw_only=True)
class Algorithm(Switches):
    """The switches of a run: the preset's, except where the recipe sets its own."""

    preset: str


GRPO = Preset(
    advantage="group",
    advantage_ddof=1,
    advantage_eps=1e-4,
    ratio_level="token",
    policy_loss="clip",
    clip_low=0.2,
    clip_high=0.2,
    dual_clip=None,
    delta=None,
    cispo_cap=5.0,
    sapo_tau_pos=1.0,
    sapo_tau_neg=1.05,
    aggregation="sequence_mean",
    group_filter="none",
    overlong_filter=False,
    kl_coef=0.0,
    kl_estimator="k3",
    kl_placement="loss",
    mismatch="none",
    mismatch_low=0.5,
    mismatch_high=2.0,
    paper="arXiv:2402.03300",
    note="Mean over tokens, then over completions; the paper's KL penalty (0.04) is off, as in later RLVR work.",
)


def _changed(paper: str, note: str, **switches: Any) -> Preset:
    """GRPO with other switches."""
    return Preset(**(asdict(GRPO) | switches | {"paper": f"arXiv:{paper}", "note": note}))


PRESETS: dict[str, Preset] = {
    "grpo": GRPO,
    "dapo": _changed(
        "2503.14476",
        "Every token of the step weighs the same and the upper clip is wider; no dynamic sampling.",
        clip_high=0.28,
        aggregation="token_mean",
    ),
    "dr_grpo": _changed(
        "2503.20783",
        "No division by the group's standard deviation nor by completion length.",
        advantage="centered",
        aggregation="constant",
    ),
    "gspo": _changed(
        "2507.18071",
        "One ratio per completion; its clip range is about a thousandth of a token ratio's. Without effect on-policy.",
        ratio_level="sequence",
        clip_low=3e-4,
        clip_high=4e-4,
    ),
    "cispo": _changed(
        "2506.13585",
        "REINFORCE weighted by the capped, frozen ratio, so that no token loses its gradient. The cap is the weight"
        " itself (5, after ScaleRL); verl means 1 + cap.",
        policy_loss="cispo",
        aggregation="token_mean",
    ),
    "sapo": _changed(
        "2511.20347",
        "A smooth gate around ratio 1 instead of a clip; the loss value is not 0 at ratio 1, so do not read its curve.",
        policy_loss="sapo",
    ),
    "gppo": _changed(
        "2508.07629",
        "Clip-higher whose clipped tokens keep the gradient of the bound. The authors' code adds a dual clip at 10 and"
        " a supervised term on right completions; neither is part of this preset.",
        policy_loss="gppo",
        clip_high=0.28,
        aggregation="token_mean",
    ),
    "lite_ppo": _changed(
        "2508.08221",
        "Group mean but the standard deviation of the whole batch; mean over all tokens. The paper samples with top_p"
        " 0.99 and top_k 100, which biases ratios and is not set here.",
        advantage="batch_std",
        aggregation="token_mean",
    ),
    "rloo": _changed(
        "2402.14740",
        "The mean of the other completions is the baseline; plain REINFORCE on whole completions. The KL penalty is"
        " taken off the reward, as in the paper, but its coefficient is 0, unlike the 0.05 of common implementations.",
        kl_placement="reward",
        kl_estimator="k1",
        advantage="rloo",
        policy_loss="reinforce",
        aggregation="token_sum",
    ),
    "reinforce_pp": _changed(
        "2501.03262",
        "Advantages whitened over all tokens of the batch instead of within groups. The KL penalty is taken off the"
        " reward token by token, as in the paper, but its coefficient is 0.",
        kl_placement="reward",
        kl_estimator="k1",
        advantage="reinforce_pp",
        aggregation="token_mean",
    ),
    "lp_reg": _changed(
        "2510.03222",
        "Unlikely tokens of failed completions are held at the min-p filtered policy; the ratio is capped at 10 and"
        " otherwise free. The released code takes the percentile within a micro-batch and among negative tokens only"
        " (regularizers.lp_reg.scope=microbatch_neg), and does not cap the ratio of a negative advantage (delta=null).",
        aggregation="token_mean",
        clip_low=1.0,
        clip_high=9.0,
        delta=10.0,
        regularizers={"lp_reg": {"coef": 1.0, "share": 0.01, "proxy": "min_p", "threshold": 0.02}},
    ),
    "siren": _changed(
        "2509.25133",
        "Dr.GRPO's loss plus the squared distance of peak-token entropy from its first value. The nucleus is the"
        " standard one; the released code's is smaller (regularizers.siren.nucleus=paper_code), its square is per"
        " micro-batch, and it has a dual clip at 3.",
        advantage="centered",
        aggregation="constant",
        regularizers={"siren": {"coef": 0.005, "nucleus_p": 0.8, "peak_quantile": 0.8}},
    ),
}
