"""Log-probability and entropy of the output head: values and gradients against the scalar reference."""

import math

import pytest
import torch

from rlvr.ops.token_stats import TokenStats, token_stats
from tests.golden.cases import HeadCase, close, close_gradient, head_case, tensor
from tests.reference import objectives as reference

SEEDS = [0, 1, 2]
TEMPERATURES = [1.0, 0.6, 1.7]
# Weights of the outputs in the scalar whose gradient is compared: each output alone, then both with different signs.
MIXES = {"logprobs": (1.0, 0.0), "entropy": (0.0, 1.0), "both": (0.8, -1.3)}


def stats_of(case: HeadCase, temperature: float, tile_tokens: int, with_bias: bool = True) -> TokenStats:
    return token_stats(
        tensor(case.hidden),
        tensor(case.weight),
        tensor(case.bias) if with_bias else None,
        torch.tensor(case.targets),
        temperature=temperature,
        tile_tokens=tile_tokens,
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_equal_reference(seed: int, temperature: float, with_bias: bool) -> None:
    case = head_case(seed)
    actual = stats_of(case, temperature, tile_tokens=2, with_bias=with_bias)
    bias = case.bias if with_bias else None
    logprobs, entropies = reference.token_stats(case.hidden, case.weight, bias, case.targets, temperature)
    close(actual.logprobs, logprobs)
    close(actual.entropy, entropies)


def mixed_reference(case: HeadCase, temperature: float, mix: tuple[float, float], token_weights: list[float]) -> float:
    logprobs, entropies = reference.token_stats(case.hidden, case.weight, case.bias, case.targets, temperature)
    return math.fsum(
        scale * (mix[0] * logprob + mix[1] * entropy)
        for scale, logprob, entropy in zip(token_weights, logprobs, entropies, strict=True)
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("mix", list(MIXES))
@pytest.mark.parametrize("tile_tokens", [2, 64])
def test_gradients_equal_finite_differences(seed: int, temperature: float, mix: str, tile_tokens: int) -> None:
    case = head_case(seed)
    # A different upstream gradient at every token, so that a mixed-up order of tiles shows.
    token_weights = [0.5, -1.0, 2.0, 0.25, -0.75]
    hidden, weight, bias = (tensor(values, requires_grad=True) for values in (case.hidden, case.weight, case.bias))
    stats = token_stats(
        hidden, weight, bias, torch.tensor(case.targets), temperature=temperature, tile_tokens=tile_tokens
    )
    scale = tensor(token_weights)
    if MIXES[mix][0]:
        (MIXES[mix][0] * scale * stats.logprobs).sum().backward(retain_graph=True)
    if MIXES[mix][1]:
        (MIXES[mix][1] * scale * stats.entropy).sum().backward()

    def of_hidden(flat: list[float]) -> float:
        moved = HeadCase(reference.reshape(flat, 6), case.weight, case.bias, case.targets)
        return mixed_reference(moved, temperature, MIXES[mix], token_weights)

    def of_weight(flat: list[float]) -> float:
        moved = HeadCase(case.hidden, reference.reshape(flat, 6), case.bias, case.targets)
        return mixed_reference(moved, temperature, MIXES[mix], token_weights)

    def of_bias(flat: list[float]) -> float:
        moved = HeadCase(case.hidden, case.weight, flat, case.targets)
        return mixed_reference(moved, temperature, MIXES[mix], token_weights)

    close_gradient(hidden.grad, reference.numerical_gradient(of_hidden, reference.flatten(case.hidden)))
    close_gradient(weight.grad, reference.numerical_gradient(of_weight, reference.flatten(case.weight)))
    close_gradient(bias.grad, reference.numerical_gradient(of_bias, case.bias))


def test_gradients_of_a_joint_backward_add_up() -> None:
    case = head_case(4, tokens=7)
    grads = []
    for parts in (("logprobs",), ("entropy",), ("logprobs", "entropy")):
        hidden = tensor(case.hidden, requires_grad=True)
        stats = token_stats(
            hidden, tensor(case.weight), None, torch.tensor(case.targets), temperature=0.8, tile_tokens=3
        )
        sum(getattr(stats, part).sum() for part in parts).backward()
        grads.append(hidden.grad)
    close(grads[0] + grads[1], grads[2].tolist())


@pytest.mark.parametrize("tile_tokens", [1, 2, 3, 7, 8, 1000])
def test_results_do_not_depend_on_the_tile(tile_tokens: int) -> None:
    case = head_case(5, tokens=7)
    whole, tiled = stats_of(case, 0.9, tile_tokens=7), stats_of(case, 0.9, tile_tokens=tile_tokens)
    close(tiled.logprobs, whole.logprobs.tolist(), rtol=1e-12)
    close(tiled.entropy, whole.entropy.tolist(), rtol=1e-12)


@pytest.mark.parametrize("tile_tokens", [1, 3, 1000])
def test_gradients_do_not_depend_on_the_tile(tile_tokens: int) -> None:
    case = head_case(6, tokens=7)
    grads = []
    for tile in (7, tile_tokens):
        hidden, weight = tensor(case.hidden, requires_grad=True), tensor(case.weight, requires_grad=True)
        stats = token_stats(hidden, weight, None, torch.tensor(case.targets), temperature=1.3, tile_tokens=tile)
        (stats.logprobs.square().sum() + stats.entropy.square().sum()).backward()
        grads.append((hidden.grad, weight.grad))
    close(grads[1][0], grads[0][0].tolist(), rtol=1e-11)
    close(grads[1][1], grads[0][1].tolist(), rtol=1e-11)


def test_several_tiles_keep_no_logits_for_the_backward_pass() -> None:
    case = head_case(3, tokens=64, width=3, vocabulary=50)
    saved = []

    def pack(kept: torch.Tensor) -> torch.Tensor:
        saved.append(kept.numel())
        return kept

    hidden, weight = tensor(case.hidden, requires_grad=True), tensor(case.weight, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        stats = token_stats(hidden, weight, None, torch.tensor(case.targets), temperature=1.0, tile_tokens=4)
    assert sum(saved) < 64 * 50
    stats.entropy.sum().backward()
    assert weight.grad.abs().sum() > 0


def test_frozen_head_still_passes_the_gradient_to_hidden() -> None:
    case = head_case(2)
    hidden, weight = tensor(case.hidden, requires_grad=True), tensor(case.weight)
    stats = token_stats(hidden, weight, None, torch.tensor(case.targets), temperature=1.0, tile_tokens=2)
    stats.logprobs.sum().backward()
    assert hidden.grad.abs().sum() > 0
    assert weight.grad is None


def test_two_token_vocabulary_by_hand() -> None:
    # Logits 0 and log 3: probabilities 1/4 and 3/4. At temperature 1/2 they are 1/10 and 9/10.
    hidden, weight = tensor([[1.0], [1.0]]), tensor([[0.0], [math.log(3)]])
    targets = torch.tensor([0, 1])
    stats = token_stats(hidden, weight, None, targets, temperature=1.0, tile_tokens=1)
    close(stats.logprobs, [math.log(1 / 4), math.log(3 / 4)])
    close(stats.entropy, [0.25 * math.log(4) + 0.75 * math.log(4 / 3)] * 2)
    stats = token_stats(hidden, weight, None, targets, temperature=0.5, tile_tokens=1)
    close(stats.logprobs, [math.log(1 / 10), math.log(9 / 10)])
    close(stats.entropy, [0.1 * math.log(10) + 0.9 * math.log(10 / 9)] * 2)


def test_uniform_logits_have_the_entropy_of_the_vocabulary() -> None:
    stats = token_stats(
        torch.zeros(3, 6, dtype=torch.float64),
        tensor(head_case(0).weight),
        None,
        torch.tensor([0, 4, 10]),
        temperature=0.7,
        tile_tokens=2,
    )
    close(stats.logprobs, [-math.log(11)] * 3)
    close(stats.entropy, [math.log(11)] * 3)


def test_extreme_logits_stay_finite() -> None:
    # Logits of +-5000: a normaliser without the maximum taken out overflows, and p log p needs 0 x -10000 = 0.
    hidden = torch.tensor([[1.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    weight = tensor([[5000.0], [-5000.0], [0.0]])
    stats = token_stats(hidden, weight, None, torch.tensor([0, 2]), temperature=1.0, tile_tokens=1)
    close(stats.logprobs, [0.0, -5000.0])
    close(stats.entropy, [0.0, 0.0])
    (stats.logprobs.sum() + stats.entropy.sum()).backward()
    # d log p(target) / d hidden = w_target - w_highest.
    close(hidden.grad, [[0.0], [5000.0]])
