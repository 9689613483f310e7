"""Regularisers inside the trainer: of which weights their statistics are, and that splits and resumes do not matter."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvr.trainer import RLVRTrainer
from rlvr.types import Microbatch, Rollouts
from tests.conftest import MakeTrainer, letter_dataset, sharp, tiny_model

ALL = {
    "entropy": {"coef": 0.01},
    "top_entropy_mask": {"share": 0.5},
    "clip_cov": {"share": 0.1, "low": 0.01},
    "kl_cov": {"share": 0.1},
    "lp_reg": {"share": 0.5, "threshold": 0.3},
    "siren": {"coef": 0.5, "peak_quantile": 0.5},
    "mastered_mask": {"min_prob": 0.05, "max_entropy": 5.0},
}
EXACT = {"lp_reg": {"share": 1.0, "kl": "exact_vocab", "threshold": 0.3}}
ONE_BATCH = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
OFF_POLICY = {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 5}


def rows(trainer: RLVRTrainer) -> Rollouts:
    torch.manual_seed(5)
    return trainer.rollout([row for row in letter_dataset(4) for _ in range(4)])


ADVANTAGES = [1.5, -0.5, -1.0, 0.25] * 4


def trained_gradient(trainer: RLVRTrainer, batches: list[Microbatch]) -> dict[str, torch.Tensor]:
    """Gradient of one optimiser step over prepared micro-batches."""
    trainer._buffered_inputs = batches
    if trainer.needs.step is not None:
        trainer._prepare_step(0, weights_moved=True)
    trainer.accelerator.gradient_state._set_sync_gradients(False)
    for batch in trainer._buffered_inputs:
        trainer._compute_loss(trainer.model, batch).backward()
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    return found


@pytest.mark.parametrize("sizes", [{}, OFF_POLICY], ids=["on_policy", "off_policy"])
@pytest.mark.parametrize("chosen", [*({name: ALL[name]} for name in ALL), ALL, EXACT], ids=str)
def test_trains_and_differs_from_the_run_without(
    make_trainer: MakeTrainer, chosen: dict[str, Any], sizes: dict[str, int]
) -> None:
    weights = []
    for regularizers in ({}, chosen):
        trainer = make_trainer("dapo", regularizers=regularizers, model=sharp(tiny_model(seed=3)), **sizes)
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        assert torch.isfinite(weights[-1]).all()
    # On-policy the ratio is 1, where KL-Cov has no gradient.
    assert torch.equal(*weights) == (chosen.keys() == {"kl_cov"} and not sizes)
    logged = {name for log in trainer.state.log_history for name in log}
    for name in set(chosen) & {"entropy", "lp_reg", "siren", "kl_cov"}:
        assert {f"loss/{name}", f"coef/{name}"} <= logged


@pytest.mark.parametrize("chosen", [ALL, EXACT], ids=["all", "exact_vocab"])
def test_gradient_does_not_depend_on_the_number_of_microbatches(
    make_trainer: MakeTrainer, chosen: dict[str, Any]
) -> None:
    found = []
    for accumulation in (1, 2, 4):
        trainer = make_trainer(
            "dapo",
            regularizers=chosen,
            model=sharp(tiny_model()),
            per_device_train_batch_size=16 // accumulation,
            gradient_accumulation_steps=accumulation,
        )
        for regularizer in trainer.regularizers:
            regularizer.load_state_dict({"anchor": 2.0, "coef": 0.0, "last_entropy": 0.0})
        found.append(trained_gradient(trainer, trainer.microbatches(rows(trainer), ADVANTAGES)))
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_exact_vocabulary_penalty_equals_full_logits(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("dapo", regularizers=EXACT, model=sharp(tiny_model()), **ONE_BATCH)
    rollouts = rows(trainer)
    trainer._buffered_inputs = trainer.microbatches(rollouts, ADVANTAGES)
    trainer._prepare_step(0, weights_moved=False)
    (batch,) = trainer._buffered_inputs
    selected = batch.prepared["lp_reg"].support_mask
    assert selected is not None
    assert selected.sum() >= 3
    # Later weights, so that the current distribution is not the one that the proxy was made of.
    old_logits = trainer.model(batch.input_ids, attention_mask=batch.attention_mask).logits.detach()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.3)
    logits = trainer.model(batch.input_ids, attention_mask=batch.attention_mask).logits
    expected = 0.0
    for b, t in selected.nonzero().tolist():
        position = batch.predictor_index[b, t]
        old, new = old_logits[b, position].softmax(-1), logits[b, position].log_softmax(-1)
        kept = old >= 0.3 * old.max()
        proxy = old[kept] / old[kept].sum()
        expected = expected + (proxy * (proxy.log() - new[kept])).sum()
    expected = expected / batch.denominator.num_loss_tokens
    expected.backward()
    gradient = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()

    trainer.accelerator.gradient_state._set_sync_gradients(False)
    neutral = replace(batch, advantages=torch.zeros_like(batch.advantages))
    trainer._compute_loss(trainer.model, neutral).backward()
    assert trainer._step_sums._sums["loss/lp_reg"].item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradient[name], rtol=1e-3, atol=1e-7)


def test_kept_mass_is_of_the_policy_that_sampled(make_trainer: MakeTrainer) -> None:
    """Off-policy, the proxy stays where it was while the selection follows the current weights."""
    trainer = make_trainer("dapo", regularizers={"lp_reg": {"share": 1.0}}, **OFF_POLICY)
    batches = trainer.microbatches(rows(trainer), ADVANTAGES)
    trainer._buffered_inputs = batches
    trainer._prepare_step(0, weights_moved=True)
    before = trainer._buffered_inputs[0].prepared["lp_reg"].tokens
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(2.0)
    trainer._buffered_inputs = list(batches)
    trainer._prepare_step(0, weights_moved=True)
    after = trainer._buffered_inputs[0].prepared["lp_reg"].tokens
    assert torch.equal(before["proxy"], after["proxy"])
    assert not torch.equal(before["selected"], after["selected"])


def test_first_step_after_sampling_uses_the_statistics_of_the_sampler(make_trainer: MakeTrainer) -> None:
    """One pass serves both: the result is that of a pass of its own."""
    found = []
    for weights_moved in (True, False):
        trainer = make_trainer("dapo", regularizers=ALL, **OFF_POLICY)
        trainer._buffered_inputs = trainer.microbatches(rows(trainer), ADVANTAGES)
        trainer._prepare_step(0, weights_moved)
        found.append([batch.prepared for batch in trainer._buffered_inputs[:2]])
    for first, second in zip(*found, strict=True):
        for name in first:
            for key, values in first[name].tokens.items():
                torch.testing.assert_close(second[name].tokens[key], values, rtol=1e-5, atol=1e-6)


def test_anchor_is_of_the_first_rollouts_and_survives_a_resume(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    settings = {
        "regularizers": {"siren": {"coef": 0.5, "peak_quantile": 0.5}, "entropy": {"coef": 0.01, "target": 9.0}}
    }
    sizes = {"save_strategy": "steps", "save_steps": 1}
    whole = make_trainer("siren", max_steps=4, **settings, **sizes)
    whole.train()
    first = whole.state.log_history[0]
    assert first["loss/siren"] == pytest.approx(0.0, abs=1e-9)
    assert first["siren/anchor_gap"] == pytest.approx(0.0, abs=1e-6)
    assert abs(whole.state.log_history[-2]["siren/anchor_gap"]) > 1e-6
    states = json.loads((tmp_path / "checkpoint-2" / "plugins.json").read_text())
    assert states["siren"]["anchor"] == pytest.approx(first["siren/peak_entropy"])
    assert states["entropy"]["coef"] == pytest.approx(0.01 + 2 * 0.005)

    resumed = make_trainer("siren", max_steps=4, **settings, **sizes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    siren, entropy = (next(r for r in resumed.regularizers if r.name == name) for name in ("siren", "entropy"))
    assert siren.state_dict() == states["siren"]
    assert entropy.state_dict()["coef"] == pytest.approx(0.01 + 4 * 0.005)
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, dict(resumed.model.named_parameters())[name]), name


def test_temperature_reaches_every_pass(make_trainer: MakeTrainer) -> None:
    """The kept mass is that of the distribution that was sampled from: at a high temperature more is kept apart."""
    masses = []
    for temperature in (0.5, 2.0):
        trainer = make_trainer("dapo", regularizers={"lp_reg": {"threshold": 0.9}}, temperature=temperature)
        rollouts = rows(make_trainer("dapo"))
        (batch, _) = trainer.microbatches(rollouts, ADVANTAGES)
        logits = trainer.model(batch.input_ids, attention_mask=batch.attention_mask).logits / temperature
        probs = logits[0, batch.predictor_index[0, 0]].softmax(-1)
        mass = probs[probs >= 0.9 * probs.max()].sum().item()
        assert batch.sampled is not None
        assert batch.sampled.log_kept_mass is not None
        assert batch.sampled.log_kept_mass[0, 0].item() == pytest.approx(math.log(mass), rel=1e-4)
        masses.append(mass)
    assert masses[0] != pytest.approx(masses[1], rel=1e-3)
