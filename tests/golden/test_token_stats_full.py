"""Every statistic of the tiled head against full float64 logits and a plain loop over ranks, in value and gradient."""

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvr.ops.nucleus import SORTED_VOCABULARY
from rlvr.ops.token_stats import StatsRequest, TokenStats, token_stats

SMALL, LARGE = 11, SORTED_VOCABULARY + 1500  # below and above the size from which rows are no longer sorted whole
RULES = ("standard", "paper_code")
HEADS: dict[str, dict[str, float]] = {
    "plain": {"temperature": 1.0},
    "warm": {"temperature": 1.7},
    "scaled": {"temperature": 0.6, "logit_scale": 0.25},
    "capped": {"temperature": 0.8, "logit_scale": 1.5, "softcap": 2.0},
}
DIFFERENTIABLE = ("logprobs", "entropy", "nucleus_entropy")


def head(seed: int, vocab_size: int, tokens: int = 7, sharpness: float = 2.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden, weight, bias, targets), float64 leaves."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*size, generator=generator, dtype=torch.float64)).requires_grad_()

    weight, bias = normal(vocab_size, 4, scale=sharpness / 2), normal(vocab_size, scale=0.5)
    return normal(tokens, 4), weight, bias, torch.randint(vocab_size, (tokens,), generator=generator)


def nucleus_columns(probs: list[float], p: float, rule: str) -> list[int]:
    """The definition, rank by rank."""
    chosen: list[int] = []
    mass = 0.0
    for column in sorted(range(len(probs)), key=lambda column: (-probs[column], column)):
        mass += probs[column]
        if mass < p or rule == "standard":
            chosen.append(column)
        if mass >= p:
            break
    return chosen


def reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    request: StatsRequest,
    temperature: float,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> dict[str, Tensor]:
    logits = (hidden @ weight.T + (0.0 if bias is None else bias)) * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_probs = torch.log_softmax(logits / temperature, dim=-1)
    stats: dict[str, list[Tensor]] = {field.name: [] for field in fields(TokenStats)}
    for row, target in zip(log_probs, targets.tolist(), strict=True):
        probs = row.exp()
        stats["logprobs"].append(row[target])
        stats["entropy"].append(-(probs * row).sum())
        if request.nucleus_p is not None:
            columns = nucleus_columns(probs.tolist(), request.nucleus_p, request.nucleus_rule)
            inside = torch.log_softmax(row[columns], dim=0)
            stats["nucleus_entropy"].append(-(inside.exp() * inside).sum() if columns else 0.0 * row[0])
        if request.min_p is not None:
            stats["max_prob"].append(probs.max().detach())
        if request.min_p is not None or request.fixed_p is not None:
            probs = probs.detach()
            is_kept = probs > request.fixed_p if request.min_p is None else probs >= request.min_p * probs.max()
            stats["log_kept_mass"].append(probs[is_kept].sum().log())
            stats["kept"].append(is_kept[target])
    return {name: torch.stack(values) for name, values in stats.items() if values}


def same(actual: TokenStats, expected: dict[str, Tensor], rtol: float = 1e-9, atol: float = 1e-12) -> None:
    for field in fields(TokenStats):
        value = getattr(actual, field.name)
        if field.name in expected:
            torch.testing.assert_close(value.detach(), expected[field.name].detach(), rtol=rtol, atol=atol)
        else:
            assert value is None, field.name


def of_probs(probs: list[list[float]], request: StatsRequest, targets: list[int] | None = None) -> TokenStats:
    """The statistics of given distributions: the identity as head, their logarithms as hidden states."""
    hidden = torch.tensor(probs, dtype=torch.float64).log().clamp(min=-1e4).requires_grad_()
    identity = torch.eye(hidden.shape[1], dtype=torch.float64)
    targets_or_first = torch.tensor(targets or [0] * len(probs))
    return token_stats(hidden, identity, None, targets_or_first, temperature=1.0, tile_tokens=2, request=request)


REQUESTS: dict[str, StatsRequest] = {
    "min_p": StatsRequest(nucleus_p=0.8, min_p=0.02),
    "fixed_p": StatsRequest(nucleus_p=0.5, nucleus_rule="paper_code", fixed_p=1e-3),
    "whole_nucleus": StatsRequest(nucleus_p=1.0, min_p=0.0),
}


@pytest.mark.parametrize("head_rule", HEADS)
@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("vocab_size", [SMALL, LARGE])
def test_values_equal_full_logits(head_rule: str, name: str, vocab_size: int) -> None:
    inputs, request = head(1, vocab_size), REQUESTS[name]
    actual = token_stats(*inputs, tile_tokens=3, request=request, **HEADS[head_rule])
    same(actual, reference(*inputs, request=request, **HEADS[head_rule]))


@pytest.mark.parametrize("p", [0.05, 0.3, 0.8, 0.99])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sharpness", [0.0, 0.01, 1.0, 8.0])
@pytest.mark.parametrize("vocab_size", [SMALL, LARGE])
def test_nucleus_of_flat_and_peaked_rows(p: float, rule: Any, sharpness: float, vocab_size: int) -> None:
    hidden, weight, _, targets = head(2, vocab_size, tokens=3, sharpness=sharpness)
    request = StatsRequest(nucleus_p=p, nucleus_rule=rule)
    actual = token_stats(hidden, weight, None, targets, temperature=1.0, tile_tokens=2, request=request)
    expected = reference(hidden, weight, None, targets, request, 1.0)
    same(actual, expected)
    gradients = [
        torch.autograd.grad(stats.square().sum(), (hidden, weight))
        for stats in (actual.nucleus_entropy, expected["nucleus_entropy"])
        if stats is not None
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("head_rule", HEADS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("outputs", [("logprobs",), ("entropy",), ("nucleus_entropy",), DIFFERENTIABLE])
@pytest.mark.parametrize("vocab_size", [SMALL, LARGE])
def test_gradients_equal_autograd(head_rule: str, rule: Any, outputs: tuple[str, ...], vocab_size: int) -> None:
    *leaves, targets = head(3, vocab_size)
    request = StatsRequest(nucleus_p=0.8, nucleus_rule=rule, min_p=0.02)
    upstream = torch.linspace(-1.0, 2.0, len(targets), dtype=torch.float64)
    actual = token_stats(*leaves, targets, tile_tokens=3, request=request, **HEADS[head_rule])
    expected = reference(*leaves, targets, request=request, **HEADS[head_rule])
    loss = sum((upstream * getattr(actual, name)).sum() * (index + 1) for index, name in enumerate(outputs))
    reference_loss = sum((upstream * expected[name]).sum() * (index + 1) for index, name in enumerate(outputs))
    for ours, theirs in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(reference_loss, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("head_rule", HEADS)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_equal_finite_differences(head_rule: str, rule: Any) -> None:
    *leaves, targets = head(4, SMALL, tokens=3)
    request = StatsRequest(nucleus_p=0.7, nucleus_rule=rule)

    def outputs(*moved: Tensor) -> tuple[Tensor, ...]:
        stats = token_stats(*moved, targets, tile_tokens=2, request=request, **HEADS[head_rule])
        return tuple(getattr(stats, name) for name in DIFFERENTIABLE)

    assert torch.autograd.gradcheck(outputs, leaves, eps=1e-6, atol=1e-7, rtol=1e-6)


def test_nucleus_by_hand() -> None:
    # p = .8 of (.5, .4, .1): .5 falls short and .9 reaches it. (5/9, 4/9) have entropy .687, a single token has none.
    expected = -(5 / 9 * math.log(5 / 9) + 4 / 9 * math.log(4 / 9))
    standard = of_probs([[0.5, 0.4, 0.1], [0.1, 0.5, 0.4]], StatsRequest(nucleus_p=0.8))
    assert standard.nucleus_entropy is not None
    assert standard.nucleus_entropy.tolist() == pytest.approx([expected] * 2)
    assert expected == pytest.approx(0.687, abs=1e-3)
    paper = of_probs([[0.5, 0.4, 0.1]], StatsRequest(nucleus_p=0.8, nucleus_rule="paper_code"))
    assert paper.nucleus_entropy is not None
    assert paper.nucleus_entropy.tolist() == [0.0]


def test_empty_nucleus_of_the_papers_code_has_no_entropy_and_no_gradient() -> None:
    hidden, weight, bias, targets = head(5, SMALL, tokens=2, sharpness=0.1)
    with torch.no_grad():
        bias[3] += 50.0
    request = StatsRequest(nucleus_p=0.9, nucleus_rule="paper_code")
    stats = token_stats(hidden, weight, bias, targets, temperature=1.0, tile_tokens=1, request=request)
    assert stats.nucleus_entropy is not None
    assert stats.nucleus_entropy.tolist() == [0.0, 0.0]
    for gradient in torch.autograd.grad(stats.nucleus_entropy.sum(), (hidden, weight, bias)):
        assert not gradient.any()


@pytest.mark.parametrize("vocab_size", [8, LARGE])
@pytest.mark.parametrize(("rule", "members"), [("standard", [0, 1, 2, 4]), ("paper_code", [0, 1, 2])])
def test_split_ties_go_to_the_lower_index(vocab_size: int, rule: Any, members: list[int]) -> None:
    # Token 0 and six equal tokens hold nearly everything; the third of the equal ones, token 4, crosses one half.
    bias = torch.full((vocab_size,), -60.0, dtype=torch.float64)
    bias[[1, 2, 4, 5, 6, 7]] = 0.0
    bias[0] = 0.2
    bias.requires_grad_()
    hidden, weight = torch.ones(2, 1, dtype=torch.float64), torch.zeros(vocab_size, 1, dtype=torch.float64)
    targets, request = torch.tensor([0, 1]), StatsRequest(nucleus_p=0.5, nucleus_rule=rule)
    stats = token_stats(hidden, weight, bias, targets, temperature=1.0, tile_tokens=2, request=request)
    expected = reference(hidden, weight, bias, targets, request, 1.0)
    same(stats, expected)
    assert stats.nucleus_entropy is not None
    (ours,) = torch.autograd.grad(stats.nucleus_entropy.sum(), bias)
    (theirs,) = torch.autograd.grad(expected["nucleus_entropy"].sum(), bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)
    assert ours.nonzero().flatten().tolist() == members


def test_one_hot_keeps_everything() -> None:
    stats = of_probs([[0.0, 1.0, 0.0]], StatsRequest(nucleus_p=0.8, min_p=0.02), targets=[1])
    assert stats.log_kept_mass is not None
    assert stats.kept is not None
    assert stats.max_prob is not None
    assert stats.log_kept_mass.tolist() == [0.0]
    assert stats.kept.tolist() == [True]
    assert stats.max_prob.tolist() == [1.0]


def test_kept_tokens_by_hand() -> None:
    probs = [[0.6, 0.3, 0.09, 0.01]] * 4
    stats = of_probs(probs, StatsRequest(min_p=0.1), targets=[0, 1, 2, 3])  # 0.1 of the largest is .06
    assert stats.kept is not None
    assert stats.log_kept_mass is not None
    assert stats.kept.tolist() == [True, True, True, False]
    assert stats.log_kept_mass.exp().tolist() == pytest.approx([0.99] * 4)
    fixed = of_probs(probs, StatsRequest(fixed_p=0.1), targets=[0, 1, 2, 3])
    assert fixed.kept is not None
    assert fixed.log_kept_mass is not None
    assert fixed.kept.tolist() == [True, True, False, False]
    assert fixed.log_kept_mass.exp().tolist() == pytest.approx([0.9] * 4)
    assert fixed.max_prob is None
    none_kept = of_probs([[0.5, 0.5]], StatsRequest(fixed_p=0.5))
    assert none_kept.log_kept_mass is not None
    assert none_kept.log_kept_mass.tolist() == [-math.inf]


def test_thresholds_act_after_the_temperature() -> None:
    hidden, identity = torch.tensor([[0.75, 0.25]]).double().log(), torch.eye(2, dtype=torch.float64)
    for temperature, kept in ((1.0, True), (0.5, False)):  # p ratio 1/3, and 1/9 at temperature 1/2
        stats = token_stats(
            hidden,
            identity,
            None,
            torch.tensor([1]),
            temperature=temperature,
            tile_tokens=1,
            request=StatsRequest(min_p=0.2),
        )
        assert stats.kept is not None
        assert stats.kept.tolist() == [kept]


def test_only_the_requested_statistics_are_computed_and_only_three_carry_a_gradient() -> None:
    inputs = head(6, SMALL)
    bare = token_stats(*inputs, temperature=1.0, tile_tokens=3, request=StatsRequest(entropy=False))
    assert [field.name for field in fields(bare) if getattr(bare, field.name) is not None] == ["logprobs"]
    full = token_stats(*inputs, temperature=1.0, tile_tokens=3, request=StatsRequest(nucleus_p=0.8, min_p=0.02))
    assert {field.name for field in fields(full) if getattr(full, field.name).requires_grad} == set(DIFFERENTIABLE)


@pytest.mark.parametrize("vocab_size", [SMALL, LARGE])
@pytest.mark.parametrize("tile_tokens", [1, 2, 5, 1000])
def test_nothing_depends_on_the_tile(vocab_size: int, tile_tokens: int) -> None:
    *leaves, targets = head(7, vocab_size)
    request = StatsRequest(nucleus_p=0.8, min_p=0.02)
    results = []
    for tile in (len(targets), tile_tokens):
        stats = token_stats(*leaves, targets, temperature=0.9, tile_tokens=tile, request=request)
        loss = sum(getattr(stats, name).square().sum() for name in DIFFERENTIABLE)
        results.append((stats, torch.autograd.grad(loss, leaves)))
    (whole, whole_gradients), (tiled, gradients) = results
    same(tiled, {field.name: getattr(whole, field.name) for field in fields(whole)}, rtol=1e-11)
    for ours, theirs in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("vocab_size", [SMALL, LARGE])
def test_no_tokens(vocab_size: int) -> None:
    *leaves, targets = head(8, vocab_size, tokens=0)
    request = StatsRequest(nucleus_p=0.8, min_p=0.02)
    stats = token_stats(*leaves, targets, temperature=1.0, tile_tokens=4, request=request)
    assert all(getattr(stats, field.name).shape == (0,) for field in fields(stats))
    for gradient in torch.autograd.grad(stats.logprobs.sum(), leaves):
        assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_is_close_to_float32(dtype: torch.dtype, autocast: bool) -> None:
    *leaves, targets = head(9, LARGE, sharpness=1.0)
    request = StatsRequest(nucleus_p=0.8, min_p=0.02)
    results = []
    for low in (False, True):
        inputs = [leaf.detach().to(dtype).float() for leaf in leaves]
        if low and not autocast:
            inputs = [value.to(dtype) for value in inputs]
        inputs = [value.requires_grad_() for value in inputs]
        with torch.autocast("cpu", dtype=dtype, enabled=low and autocast):
            stats = token_stats(*inputs, targets, temperature=0.9, tile_tokens=3, request=request)
        loss = sum(getattr(stats, name).sum() for name in DIFFERENTIABLE)
        results.append((stats, torch.autograd.grad(loss, inputs)))
    (exact, exact_gradients), (rounded, gradients) = results
    for name in (*DIFFERENTIABLE, "log_kept_mass", "max_prob"):
        assert getattr(rounded, name).dtype == torch.float32
        torch.testing.assert_close(getattr(rounded, name), getattr(exact, name), rtol=0.02, atol=0.05)
    assert (rounded.logprobs - exact.logprobs).any()  # the product did run in the narrow type
    for ours, theirs in zip(gradients, exact_gradients, strict=True):
        assert ours.dtype == (torch.float32 if autocast else dtype)
        assert (ours.float() - theirs).norm() < 0.03 * theirs.norm()


def test_weight_gradient_is_summed_in_float32() -> None:
    # 4096 equal tokens in tiles of one: a bfloat16 sum would stop growing after a few hundred of them.
    tokens = 4096
    hidden, weight = torch.ones(tokens, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    weight.requires_grad_()
    stats = token_stats(hidden, weight, None, torch.zeros(tokens, dtype=torch.long), temperature=1.0, tile_tokens=1)
    (gradient,) = torch.autograd.grad(stats.logprobs.sum(), weight)
    assert gradient.flatten().tolist() == [tokens / 2, -tokens / 2]


@pytest.mark.parametrize(
    "arguments",
    [{"min_p": 0.1, "fixed_p": 0.1}, {"nucleus_p": 0.0}, {"nucleus_p": 1.1}, {"min_p": -0.1}, {"fixed_p": 2.0}],
)
def test_requests_without_a_meaning_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="_p"):
        StatsRequest(**arguments)  # type: ignore[arg-type]


def test_one_token_reaches_p() -> None:
    """Rows in which the likeliest token is the crossing one, with and without another as likely, beside one that is
    searched.
    """
    rows = [[0.9, 0.06, 0.04], [0.1, 0.5, 0.4], [0.06, 0.04, 0.9]]
    found = of_probs(rows, StatsRequest(nucleus_p=0.8)).nucleus_entropy
    assert found is not None
    pair = -(5 / 9 * math.log(5 / 9) + 4 / 9 * math.log(4 / 9))
    assert found.tolist() == pytest.approx([0.0, pair, 0.0], abs=1e-12)
    tied = of_probs([[0.4, 0.4, 0.2]], StatsRequest(nucleus_p=0.4)).nucleus_entropy
    assert tied is not None
    assert tied.tolist() == pytest.approx([0.0], abs=1e-12)  # the first of the two alone reaches p
