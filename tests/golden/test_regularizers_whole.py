"""Regularisers within the recipe's whole loss: micro-batches, `step_tokens`, `prepare_step` and `objective`."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from rlvr.config.presets import Algorithm
from rlvr.config.regularizers import RegularizersConfig
from rlvr.config.schema import AlgorithmConfig
from rlvr.objectives.objective import objective
from rlvr.objectives.regularizers import Regularizer, all_needs, build_regularizers
from rlvr.objectives.regularizers.step import prepare_step, step_tokens
from rlvr.ops.support import SupportLogprobs
from rlvr.ops.token_stats import StatsRequest, TokenStats
from rlvr.types import Microbatch
from tests.golden.cases import CLIP_HIGH, CLIP_LOW, close, close_gradient, tensor
from tests.golden.regularizer_cases import (
    MAX_COMPLETION_LENGTH,
    SEED,
    STEP,
    Leaves,
    Live,
    StepCase,
    denominator_of,
    hand_case,
    leaves_of,
    one_of,
    own_gather,
    padded_cube,
    step_case,
    step_tokens_of,
)
from tests.golden.regularizer_specs import (
    ANCHOR_SEED,
    LEAVES,
    SPECS,
    Spec,
    flat_gradient,
    flat_leaf,
    lp_reg_spec,
    with_leaf,
)
from tests.reference import objectives
from tests.reference import regularizers as reference

Split = Sequence[Sequence[int]]
THREE: Split = ([0, 1, 2, 3], [4], [5, 6, 7, 8])  # those of the cases
SPLITS: dict[str, Split] = {"one": [list(range(9))], "permuted": ([8, 2, 4], [3], [7, 0, 1, 6], [5]), "three": THREE}


def algorithm_of(rule: str) -> Algorithm:
    settings = {"preset": "dapo", "aggregation": rule, "clip_low": CLIP_LOW, "clip_high": CLIP_HIGH}
    return AlgorithmConfig.model_validate(settings).resolved()


def without_bound(case: StepCase) -> StepCase:
    """The case with `clipped` as the objective finds it."""
    clipped = []
    for old, current, advantages in zip(case.old, case.current.logprobs, case.advantages, strict=True):
        ratios = [math.exp(lp - before) for lp, before in zip(current, old, strict=True)]
        clipped.append(
            [
                (ratio < 1 - CLIP_LOW and advantage < 0) or (ratio > 1 + CLIP_HIGH and advantage > 0)
                for ratio, advantage in zip(ratios, advantages, strict=True)
            ]
        )
    return replace(case, clipped=clipped)


def padded(values: torch.Tensor, extra: int) -> torch.Tensor:
    """Garbage columns behind: NaN, or False."""
    return torch.nn.functional.pad(values, (0, extra), value=math.nan if values.is_floating_point() else 0)


def microbatch(case: StepCase, rows: Sequence[int], width: int, extra: int, on_policy: bool) -> Microbatch:
    def cut(values: torch.Tensor) -> torch.Tensor:
        return padded(values[list(rows)][:, :width], extra)

    unread = torch.zeros(len(rows), width + extra, dtype=torch.int64)
    sampled = TokenStats(tensor(case.old), log_kept_mass=tensor(case.log_kept_mass), kept=torch.tensor(case.kept))
    return Microbatch(
        input_ids=unread,
        attention_mask=unread,
        completion_ids=unread,
        completion_mask=unread.bool(),
        predictor_index=unread,
        loss_mask=cut(torch.tensor(case.mask)),
        advantages=cut(tensor(case.advantages)),
        row_ids=torch.tensor(case.row_ids)[list(rows)],
        old_logprobs=None if on_policy else cut(tensor(case.old)),
        ref_logprobs=None,
        sampling_logprobs=None,
        denominator=denominator_of(case.mask),
        sampled=sampled.mapped(cut),
    )


def run_step(
    regularizers: list[Regularizer], case: StepCase, split: Split, rule: str, extra: int = 0, on_policy: bool = False
) -> tuple[float, Leaves, dict[str, float]]:
    """(loss, gradients in the leaves, metrics) of an optimiser step."""
    leaves, algorithm = leaves_of(case.live), algorithm_of(rule)
    widths = [
        max((t + 1 for row in rows for t, keep in enumerate(case.mask[row]) if keep), default=1) for rows in split
    ]
    batches = [microbatch(case, r, width, extra, on_policy) for r, width in zip(split, widths, strict=True)]

    def stats(matrices: Sequence[torch.Tensor], rows: Sequence[int], width: int) -> TokenStats:
        return TokenStats(*(padded(matrix[list(rows)][:, :width], extra) for matrix in matrices))

    before = [tensor(values) for values in (case.current.logprobs, case.current.entropy, case.current.nucleus)]
    currents = [stats(before, rows, width) for rows, width in zip(split, widths, strict=True)]
    tokens = step_tokens(batches, currents, algorithm=algorithm, step=STEP, seed=SEED, gather=own_gather)
    prepared, metrics = prepare_step(batches, regularizers, tokens)
    loss, totals = 0.0, dict(metrics)
    for rows, width, batch in zip(split, widths, prepared, strict=True):
        masks = [each.support_mask for each in batch.prepared.values() if each.support_mask is not None]
        support = None
        for mask in masks:
            chosen = mask[:, :width]
            assert not mask[:, width:].any()
            proxy = padded_cube(case.proxy, -math.inf)
            kept = [cube[list(rows)][:, :width][chosen] for cube in (leaves.support, proxy)]
            support = SupportLogprobs(policy=kept[0], proxy=kept[1])
        live = stats([leaves.logprobs, leaves.entropy, leaves.nucleus], rows, width)
        share = objective(live, batch, algorithm, regularizers, step=STEP, support=support)
        share.loss.backward()
        loss += share.loss.item()
        for name, value in share.metrics.items():
            totals[name] = totals.get(name, 0.0) + value.item()
    return loss, leaves, totals


def policy_part(specs: Sequence[Spec], case: StepCase, live: Live, rule: str) -> float:
    """The clipped loss of the tokens that every mask leaves in it."""
    values = objectives.clipped_policy_loss(live.logprobs, case.old, case.advantages, CLIP_LOW, CLIP_HIGH)
    for stays in (spec.stays(case) for spec in specs if spec.stays is not None):
        values = [[v if s else 0.0 for v, s in zip(*rows, strict=True)] for rows in zip(values, stays, strict=True)]
    return reference.aggregate(values, case.mask, rule, MAX_COMPLETION_LENGTH)


def total(specs: Sequence[Spec], case: StepCase, live: Live, rule: str) -> float:
    own = math.fsum(spec.loss(case, live, rule) for spec in specs if spec.loss is not None)
    return policy_part(specs, case, live, rule) + own


def check_whole(
    specs: Sequence[Spec], case: StepCase, result: tuple[float, Leaves, dict[str, float]], rule: str
) -> None:
    """Asserts the loss, every gradient and the metrics of the terms."""
    loss, leaves, metrics = result
    close(tensor([loss]), [total(specs, case, case.live, rule)])
    for leaf in LEAVES:
        if leaf != "logprobs" and not any(spec.moves == leaf for spec in specs):
            assert not leaves.gradient(leaf).any(), leaf
            continue

        def moved(flat: list[float], leaf: str = leaf) -> float:
            return total(specs, case, with_leaf(case.live, leaf, flat), rule)

        point = flat_leaf(case.live, leaf)
        close_gradient(flat_gradient(leaves, case, leaf), objectives.numerical_gradient(moved, point))
    assert metrics["loss/policy"] == pytest.approx(policy_part(specs, case, case.live, rule), rel=1e-9)
    for spec in specs:
        name = next(iter(spec.settings))
        if spec.loss is not None:
            assert metrics[f"loss/{name}"] == pytest.approx(spec.loss(case, case.live, rule), rel=1e-9)
        else:
            assert f"loss/{name}" not in metrics
    assert all(math.isfinite(value) for value in metrics.values()), metrics


def splits_of(name: str) -> list[str]:
    """Another split is another step for the scope microbatch_neg."""
    return ["three"] if "microbatch" in name else list(SPLITS)


@pytest.mark.parametrize(("name", "split"), [(name, split) for name in SPECS for split in splits_of(name)])
def test_loss_and_gradient_of_a_split_and_padded_step(name: str, split: str) -> None:
    spec, rule, extra = SPECS[name], "sequence_mean", 0 if split == "one" else 3
    case = without_bound(spec.case(1))
    check_whole([spec], case, run_step([spec.make()], case, SPLITS[split], rule, extra), rule)


@pytest.mark.parametrize("rule", ["token_mean", "constant", "token_sum"])
@pytest.mark.parametrize("name", ["entropy", "clip_cov", "kl_cov", "siren", "lp_reg batch_all k3_token reverse"])
def test_aggregation_is_that_of_the_policy_loss(name: str, rule: str) -> None:
    spec = SPECS[name]
    case = without_bound(spec.case(2))
    check_whole([spec], case, run_step([spec.make()], case, THREE, rule), rule)


@pytest.mark.parametrize("name", SPECS)
def test_on_policy_the_old_log_probs_are_the_current_ones(name: str) -> None:
    spec = SPECS[name]
    case = step_case(2, moved=False)
    # The rollouts' own statistics are those of the weights too.
    case = without_bound(replace(case, old=case.live.logprobs))
    check_whole([spec], case, run_step([spec.make()], case, THREE, "token_mean", on_policy=True), "token_mean")


def test_every_regulariser_at_once() -> None:
    chosen = ["entropy", "top_entropy", "mastered", "clip_cov", "kl_cov", "siren", "lp_reg batch_all k3_token forward"]
    specs = [SPECS[name] for name in chosen]
    settings = {name: value for spec in specs for name, value in spec.settings.items()}
    regularizers = build_regularizers(RegularizersConfig.model_validate(settings))
    for regularizer in regularizers:
        regularizer.start(step_tokens_of(step_case(ANCHOR_SEED)))
    case = without_bound(step_case(2, moved=False))
    check_whole(specs, case, run_step(regularizers, case, THREE, "token_mean"), "token_mean")
    for spec in specs:
        assert spec.stays is None or spec.stays(case) != case.mask


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_clipped_tokens_are_those_of_the_recipes_ratio(level: str) -> None:
    # Ratios 2 and 1/2: each is out of bounds as a token's, their geometric mean is 1. Then both are 2.
    case = hand_case(
        logprobs=[[-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]],
        old=[[-1.0 - math.log(2), -1.0 + math.log(2)], [-1.0 - math.log(2)] * 2, [-1.0 + math.log(2)] * 2],
        advantages=[[1.0, -1.0], [1.0, -1.0], [1.0, -1.0]],
    )
    algorithm = AlgorithmConfig(ratio_level=level).resolved()
    batches = [microbatch(case, [0, 1, 2], 2, 1, on_policy=False)]
    current = TokenStats(padded(tensor(case.live.logprobs), 1))
    tokens = step_tokens(batches, [current], algorithm=algorithm, step=0, seed=0, gather=own_gather)
    first = [True, True] if level == "token" else [False, False]
    assert (tokens.clipped & tokens.mask)[:, :2].tolist() == [first, [True, False], [False, True]]


def test_metrics_of_the_terms_are_handed_on() -> None:
    names = ["mastered", "kl_cov", "top_entropy"]
    settings = {name: value for spec in names for name, value in SPECS[spec].settings.items()}
    case = without_bound(step_case(1))
    regularizers = build_regularizers(RegularizersConfig.model_validate(settings))
    _, _, metrics = run_step(regularizers, case, THREE, "token_mean")
    chosen, stays = reference.places(case.mask), SPECS["mastered"].stays
    assert stays is not None
    expected = 1 - len(reference.places(stays(case))) / len(chosen)
    assert metrics["mastered_mask/dropped_frac"] == pytest.approx(expected, rel=1e-6)
    assert expected > 0
    assert {"kl_cov/threshold", "top_entropy_mask/threshold"} <= set(metrics)


def test_none_changes_nothing() -> None:
    case = without_bound(step_case(1))
    loss, leaves, metrics = run_step([], case, THREE, "token_mean")
    check_whole([], case, (loss, leaves, metrics), "token_mean")
    assert {name for name in metrics if name.startswith("loss/")} == {"loss/policy"}


@pytest.mark.parametrize("name", SPECS)
def test_step_without_a_loss_token(name: str) -> None:
    spec = SPECS[name]
    case = spec.case(1)
    case = replace(case, mask=reference.everywhere_false(case.mask))
    loss, leaves, metrics = run_step([spec.make()], case, THREE, "token_mean", extra=1)
    assert loss == 0.0
    assert not any(leaves.gradient(leaf).any() for leaf in LEAVES)
    assert all(math.isfinite(value) for key, value in metrics.items() if key.startswith("loss/"))


def test_denominators_count_the_tokens_that_a_mask_takes_out() -> None:
    # Two tokens of -r A = -1 each; the one of lower entropy leaves: -1 / 2, not -1.
    case = hand_case(logprobs=[[-1.0, -1.0]], advantages=[[1.0, 1.0]], entropy=[[0.2, 0.9]])
    for rule, expected in (("token_mean", -0.5), ("sequence_mean", -0.5), ("token_sum", -1.0), ("constant", -0.125)):
        loss, leaves, _ = run_step([one_of({"top_entropy_mask": {"share": 0.5}})], case, [[0]], rule)
        assert loss == pytest.approx(expected)
        close(leaves.logprobs.grad, [[0.0, expected]])


def test_statistics_that_each_asks_for() -> None:
    def needs(settings: dict[str, object]) -> object:
        return all_needs(build_regularizers(RegularizersConfig.model_validate(settings)))

    def wants(name: str, **settings: object) -> tuple[StatsRequest, StatsRequest | None, StatsRequest, bool]:
        own = one_of({name: settings}).needs
        return own.sampled, own.step, own.live, own.support

    nothing = StatsRequest(entropy=False)
    assert needs({}) == all_needs([])
    assert wants("entropy")[1] is None
    assert all_needs([one_of({"entropy": {}})]).live.entropy
    assert all_needs([one_of({"mastered_mask": {}})]).live.entropy
    top = wants("top_entropy_mask")[1]
    assert top is not None
    assert top.entropy
    for name in ("clip_cov", "kl_cov", "lp_reg"):
        assert wants(name)[1] is not None
    assert wants("lp_reg", proxy="min_p", threshold=0.07)[0] == replace(nothing, min_p=0.07)
    assert wants("lp_reg", proxy="fixed", threshold=0.07)[0] == replace(nothing, fixed_p=0.07)
    assert [wants("lp_reg", kl=kl)[3] for kl in ("k3_token", "exact_vocab")] == [False, True]
    _, step, live, _ = wants("siren", nucleus_p=0.6, nucleus="paper_code")
    for request in (step, live):
        assert request is not None
        assert (request.nucleus_p, request.nucleus_rule) == (0.6, "paper_code")


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_exact_vocabulary_beside_others(direction: str) -> None:
    specs = [lp_reg_spec("batch_all", "exact_vocab", direction), SPECS["entropy"], SPECS["kl_cov"]]
    settings = {name: value for spec in specs for name, value in spec.settings.items()}
    regularizers = build_regularizers(RegularizersConfig.model_validate(settings))
    case = without_bound(step_case(1))
    check_whole(specs, case, run_step(regularizers, case, SPLITS["permuted"], "token_sum", 2), "token_sum")
