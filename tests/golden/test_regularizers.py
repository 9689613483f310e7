"""Every regulariser against the scalar reference: value and gradient, and the laws that hold for all of them."""

import math
from dataclasses import replace

import pytest
import torch

from rlvr.objectives.regularizers import REGULARIZERS
from tests.golden.cases import close, tensor
from tests.golden.regularizer_cases import STEP, apply, on_two_ranks, one_of, rows_of, step_case
from tests.golden.regularizer_specs import LEAVES, RULES, SEEDS, SPECS, check, lp_selected, siren_anchor
from tests.reference import regularizers as reference

EVERY_SPEC = pytest.mark.parametrize("name", SPECS)


def test_every_regulariser_is_tested() -> None:
    assert {next(iter(spec.settings)) for spec in SPECS.values()} == set(REGULARIZERS)


@pytest.mark.parametrize("seed", SEEDS)
@EVERY_SPEC
def test_specs_do_something(name: str, seed: int) -> None:
    # Or the comparisons below could not fail. Several micro-batches have a part in it, not every token has.
    spec = SPECS[name]
    case = spec.case(seed)
    if spec.loss is not None:
        assert abs(spec.loss(case, case.live, "token_mean")) > 1e-4
    if spec.stays is not None and name != "top_entropy_all":
        left = len(reference.places(case.mask)) - len(reference.places(spec.stays(case)))
        assert 2 <= left <= len(reference.places(case.mask)) - 2
    if name.startswith("lp_reg"):
        rows = {case.microbatch_ids[b] for b, _ in lp_selected(case, 0.6, name.split()[1])}
        assert {0, 2} <= rows


@pytest.mark.parametrize(("rule", "seed"), [*((rule, 1) for rule in RULES), ("token_mean", 2)])
@EVERY_SPEC
def test_value_tokens_and_gradient_equal_reference(name: str, rule: str, seed: int) -> None:
    spec = SPECS[name]
    case = spec.case(seed)
    check(spec, case, apply(spec.make(), case, rule=rule), rule)


SPLITTABLE = pytest.mark.parametrize("name", [name for name in SPECS if "microbatch" not in name])


@pytest.mark.parametrize("sizes", [(9,), (2, 2, 2, 3), (1,) * 9], ids=str)
@SPLITTABLE
def test_split_into_micro_batches_changes_nothing(name: str, sizes: tuple[int, ...]) -> None:
    spec = SPECS[name]
    case = spec.case(1)
    ids = [number for number, size in enumerate(sizes) for _ in range(size)]
    check(spec, case, apply(spec.make(), replace(case, microbatch_ids=ids), rule="sequence_mean"), "sequence_mean")


@EVERY_SPEC
def test_micro_batches_are_those_of_the_step(name: str) -> None:
    # Another split is another step for the scope microbatch_neg, and the reference follows it.
    spec = SPECS[name]
    case = replace(spec.case(1), microbatch_ids=[0, 0, 1, 1, 1, 1, 2, 2, 2])
    check(spec, case, apply(spec.make(), case), "token_mean")


@pytest.mark.parametrize("first", [[0, 1, 2, 3], [3], [0, 1, 2, 3, 4]], ids=["even", "empty", "uneven"])
@EVERY_SPEC
def test_two_ranks_are_one(name: str, first: list[int]) -> None:
    # Rank 0 with row 3 alone has no loss token at all.
    spec = SPECS[name]
    case = spec.case(1)
    others = [row for row in range(len(case.mask)) if row not in first]
    joined = rows_of(case, first + others)
    # A micro-batch is on one rank.
    ids = [3 + number if row in first else number for row, number in enumerate(case.microbatch_ids)]
    case, joined = replace(case, microbatch_ids=ids), rows_of(replace(case, microbatch_ids=ids), first + others)
    one, other = on_two_ranks(spec.make, case, first)
    if spec.stays is not None:
        assert (one.stays or []) + (other.stays or []) == spec.stays(joined)
    if spec.loss is not None:
        close(tensor([one.loss + other.loss]), [spec.loss(joined, joined.live, "token_mean")])
        whole = apply(spec.make(), joined)
        gradient = torch.cat([outcome.leaves.gradient(spec.moves).flatten(0, 1) for outcome in (one, other)])
        expected = whole.leaves.gradient(spec.moves).flatten(0, 1)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
        assert expected.any()
    assert one.prepared.metrics == pytest.approx(other.prepared.metrics, nan_ok=True)


@SPLITTABLE
def test_order_of_rows_changes_nothing(name: str) -> None:
    spec, order = SPECS[name], [5, 8, 0, 3, 7, 1, 6, 4, 2]
    case = spec.case(1)
    plain, moved = apply(spec.make(), case), apply(spec.make(), rows_of(case, order))
    close(tensor([moved.loss]), [plain.loss])
    if plain.stays is not None:
        assert moved.stays == [plain.stays[row] for row in order]
    for leaf in LEAVES:
        expected = plain.leaves.gradient(leaf)[order]
        torch.testing.assert_close(moved.leaves.gradient(leaf), expected, rtol=1e-9, atol=1e-12)


@EVERY_SPEC
def test_nothing_of_a_loss_is_written_twice(name: str) -> None:
    # Preparing and contributing again gives the same; no state moves but in `start` and `finish`.
    spec = SPECS[name]
    case, regularizer = spec.case(1), spec.make()
    first, second = apply(regularizer, case), apply(regularizer, case)
    assert (first.loss, first.stays) == (second.loss, second.stays)


@EVERY_SPEC
def test_metrics_are_detached_scalars(name: str) -> None:
    spec = SPECS[name]
    outcome = apply(spec.make(), spec.case(1))
    for part in outcome.parts:
        for value in part.metrics.values():
            assert value.dim() == 0
            assert not value.requires_grad
            assert math.isfinite(value.item())
    assert all(isinstance(value, float) for value in outcome.prepared.metrics.values())
    assert all(math.isfinite(value) for value in outcome.prepared.metrics.values())
    assert all(not value.requires_grad for value in outcome.prepared.tokens.values())


def test_metrics_of_a_step_equal_their_definitions() -> None:
    case = step_case(1)
    mask, chosen = case.mask, reference.places(case.mask)

    def metrics(name: str) -> dict[str, float]:
        return apply(SPECS[name].make(), case).prepared.metrics

    entropies = reference.at(case.current.entropy, chosen)
    stays = len(reference.places(reference.top_entropy_stays(case.current.entropy, mask, 0.35)))
    assert metrics("top_entropy") == pytest.approx(
        {
            "top_entropy_mask/threshold": reference.quantile(entropies, 0.65),
            "top_entropy_mask/kept_frac": stays / len(chosen),
        }
    )
    covariances = reference.covariances(case.current.logprobs, case.advantages, mask)
    candidates = reference.clip_cov_candidates(case.current.logprobs, case.advantages, case.clipped, mask, 0.02, 0.6)
    count = float(len(candidates))
    assert metrics("clip_cov") == {"clip_cov/candidates": count, "clip_cov/dropped": count}
    rare = one_of({"clip_cov": {"share": 0.07, "low": 0.02, "high": 0.6}})
    assert apply(rare, case).prepared.metrics == {"clip_cov/candidates": count, "clip_cov/dropped": 2.0}
    assert metrics("kl_cov_one") == pytest.approx({"kl_cov/threshold": max(covariances.values())})
    peaks = reference.siren_peaks(case.current.nucleus, mask, 0.5)
    value = reference.peak_mean(case.current.nucleus, peaks)
    assert value is not None
    gap = value - siren_anchor(0.5)
    assert metrics("siren") == pytest.approx({"siren/peak_entropy": value, "siren/anchor_gap": gap})


@pytest.mark.parametrize("scope", ["batch_all", "microbatch_neg"])
def test_metrics_of_lp_reg_equal_their_definitions(scope: str) -> None:
    case = step_case(1)
    selected = lp_selected(case, 0.6, scope)
    push = [1 / math.exp(case.log_kept_mass[b][t]) - 1 for b, t in selected]
    assert apply(SPECS[f"lp_reg {scope} k3_token forward"].make(), case).prepared.metrics == pytest.approx(
        {
            "lp_reg/selected": float(len(selected)),
            "lp_reg/push_median": reference.quantile(push, 0.5),
            "lp_reg/push_p90": reference.quantile(push, 0.9),
            "lp_reg/push_max": max(push),
            "lp_reg/push_mean": sum(push) / len(push),
        }
    )


@EVERY_SPEC
def test_micro_batch_without_a_loss_token_contributes_nothing(name: str) -> None:
    spec = SPECS[name]
    case = spec.case(1)
    alone = replace(case, microbatch_ids=[1 if row == 3 else 2 if row > 3 else 0 for row in range(len(case.mask))])
    check(spec, alone, apply(spec.make(), alone), "token_mean")
    part = apply(spec.make(), alone).parts[1]
    assert part.loss is None or part.loss.item() == 0.0


@EVERY_SPEC
def test_step_without_a_loss_token_has_no_loss(name: str) -> None:
    spec = SPECS[name]
    outcome = apply(spec.make(), rows_of(spec.case(1), [3]))
    assert outcome.loss == 0.0
    assert not any(outcome.leaves.gradient(leaf).any() for leaf in LEAVES)


@pytest.mark.parametrize("advantage", [1.3, -1.3, 0.0])
@EVERY_SPEC
def test_step_of_one_token(name: str, advantage: float) -> None:
    spec = SPECS[name]
    case = rows_of(spec.case(1), [4])
    case = replace(case, advantages=[[advantage, *case.advantages[0][1:]]])
    check(spec, case, apply(spec.make(), case), "token_mean")


@pytest.mark.parametrize("advantage", [0.8, -0.8, 0.0])
@EVERY_SPEC
def test_equal_advantages(name: str, advantage: float) -> None:
    spec = SPECS[name]
    case = spec.case(1)
    case = replace(case, advantages=[[advantage if keep else math.nan for keep in row] for row in case.mask])
    if name.startswith("kl_cov"):
        # Every covariance is 0 up to rounding: which tokens are taken is open, how many is not.
        outcome = apply(spec.make(), case)
        share = spec.settings["kl_cov"]["share"]
        chosen = reference.places(case.mask)
        limit = reference.count_of(share, len(chosen))
        assert torch.isfinite(outcome.leaves.gradient("logprobs")).all()
        assert outcome.leaves.gradient("logprobs").count_nonzero() <= limit
        return
    check(spec, case, apply(spec.make(), case), "token_mean")


@EVERY_SPEC
def test_coefficient_scales_the_loss(name: str) -> None:
    spec = SPECS[name]
    if spec.loss is None or name == "entropy_schedule":
        return
    (key, settings), case = next(iter(spec.settings.items())), spec.case(1)
    doubled = replace(spec, settings={key: settings | {"coef": {0: 0.0, 2 * STEP: 4 * settings["coef"]}}})
    close(tensor([apply(doubled.make(), case).loss]), [2 * apply(spec.make(), case).loss])
    assert doubled.make().coef_at(0) == 0.0
    assert doubled.make().coef_at(1000) == 4 * settings["coef"]


@pytest.mark.parametrize("step", [0, 2, 3, 5, 9, 10, 400])
@pytest.mark.parametrize("name", ["entropy", "kl_cov", "lp_reg", "siren"])
def test_scheduled_coefficient(name: str, step: int) -> None:
    schedule = {9: 0.25, 2: 1.0, 4: 0.0}
    assert one_of({name: {"coef": schedule}}).coef_at(step) == pytest.approx(reference.coefficient(schedule, step))
    assert one_of({name: {"coef": 0.75}}).coef_at(step) == 0.75


@pytest.mark.parametrize("name", ["top_entropy_mask", "clip_cov", "mastered_mask"])
def test_masks_have_no_coefficient(name: str) -> None:
    assert one_of({name: {}}).coef_at(3) == 1.0
