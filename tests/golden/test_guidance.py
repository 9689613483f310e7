"""The loss and its gradient in a tabular policy with hinted and taught completions, against the scalar reference."""

import math
from dataclasses import replace

import pytest
import torch

from rlvr.objectives.objective import finish_metrics, objective
from tests.golden.cases import close, tensor
from tests.golden.guidance_cases import (
    ALGORITHMS,
    CONTEXTS,
    SCENARIOS,
    SHAPED,
    VOCABULARY,
    algorithm_of,
    batch_of,
    denominator_of,
    guidance_case,
    logits_of,
    rule_of,
    sampling_of,
    stats_of,
    table_of,
)
from tests.reference import guidance as reference
from tests.reference import switches
from tests.reference.guidance import DROP_PLAIN, DROP_WITH_RATIO, KEEP, LossRow, Policy
from tests.reference.objectives import Mask, Matrix, numerical_gradient

SEEDS = [0, 1]
EVERY_SCENARIO = pytest.mark.parametrize(("scenario", "mode"), SCENARIOS)
EVERY_ALGORITHM = pytest.mark.parametrize("name", ALGORITHMS)


def flattened(policy: Policy) -> list[float]:
    return [value for context in CONTEXTS for row in policy[context] for value in row]


def rebuilt(flat: list[float]) -> Policy:
    rows = [flat[start : start + VOCABULARY] for start in range(0, len(flat), VOCABULARY)]
    count = VOCABULARY + 1
    return {context: rows[index * count : (index + 1) * count] for index, context in enumerate(CONTEXTS)}


@EVERY_SCENARIO
@EVERY_ALGORITHM
def test_gradient_of_the_reference_is_that_of_its_loss(scenario: str, mode: str, name: str) -> None:
    case, algorithm = guidance_case(scenario, seed=4), algorithm_of(name)
    rows, rule = case.rows(algorithm, mode), rule_of(algorithm)

    def loss(flat: list[float]) -> float:
        return reference.batch_loss(rows, rebuilt(flat), case.policy, rule)

    numerical = numerical_gradient(loss, flattened(case.policy))
    close(tensor(flattened(reference.batch_gradient(rows, case.policy, rule))), numerical, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@EVERY_SCENARIO
@EVERY_ALGORITHM
@pytest.mark.parametrize("on_policy", [False, True])
def test_loss_and_gradient_equal_reference(scenario: str, mode: str, name: str, on_policy: bool, seed: int) -> None:
    case, algorithm = guidance_case(scenario, seed, on_policy), algorithm_of(name)
    rows, rule = case.rows(algorithm, mode), rule_of(algorithm)
    batch, logits = batch_of(rows, denominator_of(rows), with_old=not on_policy), logits_of(case.policy)
    step = objective(stats_of(batch, logits), batch, algorithm)
    close(step.loss.detach(), reference.batch_loss(rows, case.policy, case.policy, rule))
    step.loss.backward()
    close(logits.grad, table_of(reference.batch_gradient(rows, case.policy, rule)))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
@EVERY_SCENARIO
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if algorithm_of(name).policy_loss == "clip"])
def test_clip_metrics_equal_reference(scenario: str, mode: str, name: str, seed: int) -> None:
    case, algorithm = guidance_case(scenario, seed), algorithm_of(name)
    rows = case.rows(algorithm, mode)
    batch = batch_of(rows, denominator_of(rows))
    metrics = objective(stats_of(batch, logits_of(case.policy)), batch, algorithm).metrics
    low, high = reference.clip_fractions(rows, case.policy, rule_of(algorithm))
    assert metrics["clip/low_frac"].item() == pytest.approx(low, rel=1e-12)
    assert metrics["clip/high_frac"].item() == pytest.approx(high, rel=1e-12)


def sampler_metrics(rows: list[LossRow], sampling: Matrix, kept: Mask) -> dict[str, float]:
    """Of the tokens that the engine reported, but the share dropped of all loss tokens."""
    samplers = [row.behaviour or row.old for row in rows]
    measured = [
        [keep and not math.isnan(value) for keep, value in zip(row.keep, values, strict=True)]
        for row, values in zip(rows, sampling, strict=True)
    ]
    num_tokens = sum(sum(row.keep) for row in rows)
    share = 1.0 - sum(sum(row) for row in kept) / num_tokens
    return switches.mismatch_metrics(samplers, sampling, measured, kept) | {"sampler/masked_frac": share}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("scenario", "mode"), [*SHAPED, ("nurl", KEEP), ("guide", KEEP)])
@pytest.mark.parametrize("correction", ["token_tis", "sequence_tis", "icepop", "sequence_mask", "geometric"])
@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_correction_compares_within_the_context_of_the_sampler(
    scenario: str, mode: str, name: str, correction: str, seed: int
) -> None:
    case, algorithm = guidance_case(scenario, seed), algorithm_of(name, mismatch=correction)
    rows, rule = case.rows(algorithm, mode), rule_of(algorithm)
    sampling = sampling_of(rows, seed)
    weights, kept = reference.corrections_of(
        rows, sampling, correction, algorithm.mismatch_low, algorithm.mismatch_high
    )
    batch, logits = batch_of(rows, denominator_of(rows), sampling=sampling), logits_of(case.policy)
    step = objective(stats_of(batch, logits), batch, algorithm)
    close(step.loss.detach(), reference.batch_loss(rows, case.policy, case.policy, rule, weights))
    step.loss.backward()
    close(logits.grad, table_of(reference.batch_gradient(rows, case.policy, rule, weights)))  # type: ignore[arg-type]
    finished, expected = finish_metrics(step.metrics), sampler_metrics(rows, sampling, kept)
    for metric, value in expected.items():
        assert finished[metric] == pytest.approx(value, rel=1e-9, abs=1e-12), metric


@pytest.mark.parametrize(("scenario", "mode"), SHAPED)
def test_cases_bind_both_bounds_on_ordinary_rows_and_would_on_shaped_ones(scenario: str, mode: str) -> None:
    rule = rule_of(algorithm_of("grpo"))
    totals = [0.0] * 4
    for seed in SEEDS:
        case = guidance_case(scenario, seed)
        rows = case.rows(algorithm_of("grpo"), mode)
        as_clipped = [replace(row, old=row.behaviour or row.old, gamma=None) for row in rows]
        ordinary = [row for row in rows if row.gamma is None]
        found = (
            *reference.clip_fractions(ordinary, case.policy, rule),
            *(
                more - own
                for more, own in zip(
                    reference.clip_fractions(as_clipped, case.policy, rule),
                    reference.clip_fractions(rows, case.policy, rule),
                    strict=True,
                )
            ),
        )
        totals = [total + value for total, value in zip(totals, found, strict=True)]
    low, high, shaped_low, shaped_high = totals
    assert min(low, high) > 0
    # A teacher is never wrong, and its ratio never above 1.
    assert (shaped_low > 0) == (shaped_high > 0) == (scenario != "ampo")


@EVERY_SCENARIO
def test_gradient_reaches_the_contexts_of_the_loss_only(scenario: str, mode: str) -> None:
    case, algorithm = guidance_case(scenario, seed=2), algorithm_of("dapo", clip_high=9.0, clip_low=0.99)
    rows = case.rows(algorithm, mode)
    batch, logits = batch_of(rows, denominator_of(rows)), logits_of(case.policy)
    objective(stats_of(batch, logits), batch, algorithm).loss.backward()
    reached = {context for context, table in zip(CONTEXTS, logits.grad, strict=True) if table.any()}
    hinted_only = scenario == "guide" and mode == KEEP
    with_hint = mode == KEEP and scenario != "ampo"
    assert reached == {"p"} | (set() if hinted_only else {"q"}) | ({"q+h"} if with_hint else set())


def test_modes_differ() -> None:
    algorithm = algorithm_of("dapo")
    losses = set()
    for mode in (KEEP, DROP_WITH_RATIO, DROP_PLAIN):
        case = guidance_case("nurl", seed=0)
        rows = case.rows(algorithm, mode)
        batch = batch_of(rows, denominator_of(rows))
        losses.add(round(objective(stats_of(batch, logits_of(case.policy)), batch, algorithm).loss.item(), 6))
    assert len(losses) == 3


@pytest.mark.parametrize(
    ("scenario", "name", "expected"),
    [
        # Five members, two right: mean 0.4, sum of squares 2 x 0.36 + 3 x 0.16 = 1.2, variance 1.2 / 4.
        ("nurl", "grpo", [0.6 / (math.sqrt(0.3) + 1e-4), -0.4 / (math.sqrt(0.3) + 1e-4)]),
        # Four members, one right: mean 0.25, variance (0.5625 + 3 x 0.0625) / 3 = 0.25.
        ("guide", "grpo", [0.75 / 0.5001, -0.25 / 0.5001]),
        # Three failures and two teachers: no division.
        ("ampo", "ampo", [0.6, -0.4]),
    ],
)
def test_advantages_of_helped_groups_by_hand(scenario: str, name: str, expected: list[float]) -> None:
    case, algorithm = guidance_case(scenario, seed=0), algorithm_of(name)
    right, wrong = expected
    for completion, row in zip(case.completions, case.rows(algorithm, KEEP), strict=True):
        if completion.group == 1:
            assert row.advantage == pytest.approx(right if completion.reward else wrong, rel=1e-12)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("token_mean", -3.78 / 3), ("sequence_mean", -2.53 / 2), ("constant", -3.78 / 14), ("token_sum", -1.89)],
)
def test_clipped_and_shaped_row_by_hand(aggregation: str, expected: float) -> None:
    # Ratio 2 with A = 1 is clipped at 1.28. Shaped, g = 1, A = 2: r = 1 and 3 give f = 1/2 and 3/4, losses -1 and -1.5.
    uniform = {context: [[0.0] * VOCABULARY] * (VOCABULARY + 1) for context in CONTEXTS}
    quarter = math.log(0.25)
    rows = [
        LossRow("p", [1], [True], 1.0, [quarter - math.log(2)]),
        LossRow("q", [2, 0], [True, True], 2.0, [-1.0, -1.0], [quarter, quarter - math.log(3)], 1.0),
    ]
    algorithm = algorithm_of("dapo", aggregation=aggregation)
    batch, logits = batch_of(rows, denominator_of(rows)), logits_of(uniform)
    step = objective(stats_of(batch, logits), batch, algorithm)
    close(step.loss.detach(), expected)
    close(tensor([reference.batch_loss(rows, uniform, uniform, rule_of(algorithm))]), [expected])
    step.loss.backward()
    # A g r / (r + g)^2 = 2 x 1/4 and 2 x 3/16, through log softmax; the clipped row has none.
    weight = {"token_mean": 1 / 3, "sequence_mean": 1 / 4, "constant": 1 / 14, "token_sum": 1 / 2}[aggregation]
    gradient, one_hot = torch.zeros_like(logits), torch.eye(VOCABULARY, dtype=torch.float64)
    gradient[0, VOCABULARY] = -weight * 0.5 * (one_hot[2] - 0.25)
    gradient[0, 2] = -weight * 0.375 * (one_hot[0] - 0.25)
    close(logits.grad, gradient.tolist())
