"""The regularisers and settings that the golden tests run, each with what the scalar reference says of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from rlvr.objectives.regularizers.base import Regularizer
from tests.golden.cases import close, close_gradient, tensor
from tests.golden.regularizer_cases import (
    COLUMNS,
    MAX_COMPLETION_LENGTH,
    STEP,
    Leaves,
    Live,
    Outcome,
    StepCase,
    one_of,
    step_case,
    step_tokens_of,
)
from tests.reference import regularizers as reference
from tests.reference.objectives import Mask, flatten, numerical_gradient, reshape

SEEDS = [1, 2]
RULES = ("token_mean", "sequence_mean", "constant", "token_sum")
LEAVES = ("logprobs", "entropy", "nucleus", "support")
ANCHOR_SEED = 17
Loss = Callable[[StepCase, Live, str], float]


@dataclass(frozen=True)
class Spec:
    """A regulariser with settings, and what the reference says of it."""

    settings: dict[str, Any]
    loss: Loss | None = None
    stays: Callable[[StepCase], Mask] | None = None
    moves: str = ""  # the leaf that gets a gradient
    moved: bool = True  # the rule speaks of live values other than those before the step

    def make(self) -> Regularizer:
        """A fresh one, started on rollouts of its own where that matters."""
        regularizer = one_of(self.settings)
        regularizer.start(step_tokens_of(step_case(ANCHOR_SEED)))
        return regularizer

    def case(self, seed: int) -> StepCase:
        return step_case(seed, self.moved)


def entropy_spec(coef: float | dict[int, float]) -> Spec:
    acting = reference.coefficient(coef, STEP)
    return Spec(
        {"entropy": {"coef": coef}},
        loss=lambda case, live, rule: reference.entropy_loss(live.entropy, case.mask, acting),
        moves="entropy",
    )


def top_entropy_spec(share: float) -> Spec:
    return Spec(
        {"top_entropy_mask": {"share": share}},
        stays=lambda case: reference.top_entropy_stays(case.current.entropy, case.mask, share),
    )


def mastered_spec(min_prob: float, max_entropy: float) -> Spec:
    def stays(case: StepCase) -> Mask:
        given = (case.live.logprobs, case.live.entropy, case.advantages, case.mask)
        leaves = reference.mastered_leaves(*given, min_prob, max_entropy)
        return reference.marked(case.mask, [(b, t) for b, t in reference.places(case.mask) if not leaves[b][t]])

    return Spec({"mastered_mask": {"min_prob": min_prob, "max_entropy": max_entropy}}, stays=stays)


def clip_cov_spec(low: float, high: float) -> Spec:
    """With share 1 every candidate leaves, so there is nothing random."""

    def stays(case: StepCase) -> Mask:
        given = (case.current.logprobs, case.advantages, case.clipped, case.mask)
        candidates = reference.clip_cov_candidates(*given, low, high)
        return reference.marked(case.mask, [p for p in reference.places(case.mask) if p not in candidates])

    return Spec({"clip_cov": {"share": 1.0, "low": low, "high": high}}, stays=stays)


def kl_cov_spec(coef: float, share: float) -> Spec:
    def loss(case: StepCase, live: Live, rule: str) -> float:
        selected = reference.kl_cov_selected(case.current.logprobs, case.advantages, case.mask, share)
        values = reference.kl_cov_values(live.logprobs, case.old, selected, case.mask)
        return coef * reference.aggregate(values, case.mask, rule, MAX_COMPLETION_LENGTH)

    return Spec({"kl_cov": {"coef": coef, "share": share}}, loss=loss, moves="logprobs")


def lp_selected(case: StepCase, share: float, scope: str) -> list[reference.Place]:
    given = (case.current.logprobs, case.old, case.log_kept_mass, case.kept, case.advantages, case.mask)
    return reference.lp_reg_selected(*given, case.microbatch_ids, share=share, scope=scope)


def lp_reg_spec(scope: str, kl: str, direction: str, coef: float = 0.7, share: float = 0.6) -> Spec:
    def loss(case: StepCase, live: Live, rule: str) -> float:
        selected = lp_selected(case, share, scope)
        values = reference.lp_reg_values(direction, live.logprobs, case.old, case.log_kept_mass, selected, case.mask)
        if kl == "exact_vocab":
            for b, t in selected:
                values[b][t] = reference.lp_reg_exact_loss(direction, live.support[b][t], case.proxy[b][t])
        return coef * reference.aggregate(values, case.mask, rule, MAX_COMPLETION_LENGTH)

    settings = {"coef": coef, "share": share, "scope": scope, "kl": kl, "direction": direction}
    return Spec({"lp_reg": settings}, loss=loss, moves="logprobs" if kl == "k3_token" else "support")


def siren_anchor(peak_quantile: float) -> float:
    case = step_case(ANCHOR_SEED)
    anchor = reference.peak_mean(
        case.current.nucleus, reference.siren_peaks(case.current.nucleus, case.mask, peak_quantile)
    )
    assert anchor is not None
    return anchor


def siren_spec(coef: float, peak_quantile: float) -> Spec:
    def loss(case: StepCase, live: Live, rule: str) -> float:
        peaks = reference.siren_peaks(case.current.nucleus, case.mask, peak_quantile)
        return reference.siren_loss(live.nucleus, peaks, siren_anchor(peak_quantile), coef)

    settings = {"coef": coef, "peak_quantile": peak_quantile}
    return Spec({"siren": settings}, loss=loss, moves="nucleus", moved=False)


SPECS: dict[str, Spec] = {
    "entropy": entropy_spec(0.3),
    "entropy_schedule": entropy_spec({2: 0.1, 7: 0.6}),
    "top_entropy": top_entropy_spec(0.35),
    "top_entropy_all": top_entropy_spec(1.0),
    "mastered": mastered_spec(0.2, 2.0),
    "mastered_few": mastered_spec(0.15, 1.5),
    "clip_cov": clip_cov_spec(0.02, 0.6),
    "clip_cov_negative": clip_cov_spec(-0.5, 0.1),
    "kl_cov": kl_cov_spec(0.7, 0.3),
    "kl_cov_one": kl_cov_spec(1.3, 0.0002),
    "siren": siren_spec(0.9, 0.5),
    "siren_high": siren_spec(2.0, 0.8),
    **{
        f"lp_reg {scope} {kl} {direction}": lp_reg_spec(scope, kl, direction)
        for scope in ("batch_all", "microbatch_neg")
        for kl in ("k3_token", "exact_vocab")
        for direction in ("forward", "reverse")
    },
}


def flat_leaf(live: Live, leaf: str) -> list[float]:
    if leaf == "support":
        return [value for row in live.support for entry in row for value in entry]
    return flatten(getattr(live, leaf))


def with_leaf(live: Live, leaf: str, flat: list[float]) -> Live:
    """The inverse of `flat_leaf`."""
    if leaf != "support":
        return replace(live, **{leaf: reshape(flat, COLUMNS)})
    values = iter(flat)
    return replace(live, support=[[[next(values) for _ in entry] for entry in row] for row in live.support])


def flat_gradient(leaves: Leaves, case: StepCase, leaf: str) -> torch.Tensor:
    """In the order of `flat_leaf`; asserts that padding of the support gets nothing."""
    gradient = leaves.gradient(leaf)
    if leaf != "support":
        return gradient.flatten()
    width = gradient.shape[2]
    inside = torch.tensor([[[i < len(entry) for i in range(width)] for entry in row] for row in case.live.support])
    assert not gradient[~inside].any()
    return gradient[inside]


def check(spec: Spec, case: StepCase, outcome: Outcome, rule: str) -> None:
    """Asserts value, tokens and gradients."""
    if spec.stays is not None:
        assert outcome.stays == spec.stays(case)
    else:
        assert outcome.stays is None
    if spec.loss is None:
        assert outcome.loss == 0.0
        assert not any(outcome.leaves.gradient(leaf).any() for leaf in LEAVES)
        return
    loss = spec.loss
    close(tensor([outcome.loss]), [loss(case, case.live, rule)])
    for leaf in LEAVES:
        if leaf != spec.moves:
            assert not outcome.leaves.gradient(leaf).any(), leaf
    point = flat_leaf(case.live, spec.moves)
    slopes = numerical_gradient(lambda flat: loss(case, with_leaf(case.live, spec.moves, flat), rule), point)
    close_gradient(flat_gradient(outcome.leaves, case, spec.moves), slopes)
