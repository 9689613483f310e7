"""The `regularizers` section: one key per regulariser, and what each of them may say.

`coef` is a number or a schedule `{step: value}` (see `rlvr.schedule`).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rlvr.config.problems import Problem
from rlvr.config.schedules import Coefficient
from rlvr.config.section import Section

Share = Annotated[float, Field(gt=0, le=1)]


class EntropyConfig(Section):
    """A bonus on the entropy; with `target` its coefficient adapts (arXiv 2505.22312)."""

    coef: Coefficient = 0.001  # with a target: where the adapting coefficient starts
    target: float | None = Field(default=None, ge=0)  # nats per token
    coef_delta: float = Field(default=0.005, gt=0)
    coef_min: float = Field(default=0.0, ge=0)
    coef_max: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        if self.target is None:
            for name in ("coef_delta", "coef_min", "coef_max"):
                if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                    raise Problem(name, "has no effect without a target; set target, or remove it")
            return self
        if not isinstance(self.coef, float):
            raise Problem(
                "coef", "is a schedule, which an adapting coefficient cannot follow; remove target or give a number"
            )
        if not self.coef_min <= self.coef <= self.coef_max:
            raise Problem("coef", f"{self.coef} is not between coef_min={self.coef_min} and coef_max={self.coef_max}")
        return self


class TopEntropyMaskConfig(Section):
    """Only the most uncertain tokens are trained (80/20, arXiv 2506.01939)."""

    share: Share = 0.2  # of the step's loss tokens


class ClipCovConfig(Section):
    """A few tokens of high covariance lose their gradient (Clip-Cov, arXiv 2505.22617)."""

    share: Share = 0.0002  # of the step's loss tokens
    low: float = 1.0  # bounds on the covariance
    high: float = 5.0

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.low >= self.high:
            raise Problem("low", f"{self.low} is not below high={self.high}; no covariance lies between them")
        return self


class KlCovConfig(Section):
    """The tokens of highest covariance are held at the old policy (KL-Cov, arXiv 2505.22617)."""

    coef: Coefficient = 1.0
    share: Share = 0.0002  # of the step's loss tokens


class LpRegConfig(Section):
    """Unlikely tokens of failed completions are held at a filtered policy (Lp-Reg, arXiv 2510.03222)."""

    coef: Coefficient = 1.0
    share: Share = 0.01  # of the tokens that `scope` looks at
    proxy: Literal["min_p", "fixed"] = "min_p"
    threshold: float = Field(default=0.02, ge=0, le=1)  # min_p: share of the largest probability; fixed: a probability
    scope: Literal["batch_all", "microbatch_neg"] = "batch_all"
    kl: Literal["k3_token", "exact_vocab"] = "k3_token"
    direction: Literal["forward", "reverse"] = "forward"


class SirenConfig(Section):
    """The entropy of peak tokens is held at its first value (SIREN, arXiv 2509.25133)."""

    coef: Coefficient = 0.005
    nucleus_p: Share = 0.8
    nucleus: Literal["standard", "paper_code"] = "standard"
    peak_quantile: float = Field(default=0.8, ge=0, lt=1)  # of one completion's tokens


class MasteredMaskConfig(Section):
    """Tokens already certain in right completions are not trained (UloRL's DMMPT, arXiv 2507.19766)."""

    min_prob: float = Field(default=0.99, gt=0, le=1)
    max_entropy: float = Field(default=0.2, gt=0)  # mean over the completion, nats


class RegularizersConfig(Section):
    """Any number of regularisers; null takes one of the preset's away."""

    entropy: EntropyConfig | None = None
    top_entropy_mask: TopEntropyMaskConfig | None = None
    clip_cov: ClipCovConfig | None = None
    kl_cov: KlCovConfig | None = None
    lp_reg: LpRegConfig | None = None
    siren: SirenConfig | None = None
    mastered_mask: MasteredMaskConfig | None = None

    def over(self, preset: Mapping[str, Mapping[str, Any]]) -> "RegularizersConfig":
        """The preset's regularisers, with what this section says in their place or beside them."""
        own = self.model_dump(exclude_unset=True)
        merged: dict[str, Any] = {name: dict(values) for name, values in preset.items()}
        for name, values in own.items():
            merged[name] = None if values is None else (merged.get(name) or {}) | values
        return RegularizersConfig.model_validate(merged)
