"""The guide stage inside the trainer: what the loss conditions on, ratios, metrics and resumed runs."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvr.config.guidance import GuidanceConfig
from rlvr.guidance import stage as stage_module
from rlvr.guidance.hints import HintStore
from rlvr.guidance.prompting import with_help
from rlvr.guidance.rules import RULES
from rlvr.guidance.stage import Guidance
from rlvr.guidance.teacher import TeacherGuidance
from rlvr.guidance.tools import Guide, Guided
from rlvr.plugins import PLUGINS_FILE
from rlvr.tools import Tools
from rlvr.trainer import RLVRTrainer
from rlvr.types import Microbatch, ScoredRollouts
from rlvr.verification import Verdicts
from tests.conftest import MakeTrainer, letter_dataset, sharp, tiny_model
from tests.unit.guide_script import changed_rows, never

TEMPLATE = "{prompt}\n\nHint: {hint}"
OFF_POLICY = {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 5}
RULE_OPTIONS: list[dict[str, Any]] = [
    {"rule": "nurl"},
    {"rule": "nurl", "plain_rollout": "resample"},
    {"rule": "guide", "retries": 1},
    {"rule": "sage"},
    {"rule": "sage", "schedule": "light"},
    {"rule": "exemplar"},
]
CONDITIONINGS = ["keep", "drop_with_ratio", "drop_plain"]


def early_letter_reward(completions: list[str], **_: Any) -> list[float]:
    """1 when the first word is among the first six letters: an untrained policy does it in half of all cases."""
    return [float(c.split()[:1] != [] and c.split()[0] in "abcdef") for c in completions]


def rare_letter_reward(completions: list[str], **_: Any) -> list[float]:
    """1 when the first word is an a or a b, so that many groups fail."""
    return [float(c.split()[:1] != [] and c.split()[0] in "ab") for c in completions]


def always_right(completions: list[str], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def guidance(rule: str, **config: Any) -> Callable[[Tools], Guide]:
    def build(tools: Tools) -> Guide:
        checked = GuidanceConfig.model_validate({"rule": rule, **config})
        chosen, ahead = RULES[rule](checked), {each: ("d e f", "g", "h i") for each in range(32)}
        store = HintStore(checked.hints, ahead, never, tools, lambda _: None) if chosen.uses_hints else None
        return Guidance(checked, chosen, store, tools, max_prompt_length=30, seed=0)

    return build


def guided_rows(trainer: RLVRTrainer, failed: Sequence[int] = (0, 1, 2, 3)) -> tuple[ScoredRollouts, ScoredRollouts]:
    """Four groups of four, of which `failed` are scored as all wrong whatever they are, before and after the stage."""
    torch.manual_seed(5)
    rollouts = trainer.rollout([row for _ in range(4) for row in letter_dataset(4)])
    outcomes = [float(group not in failed) for group in rollouts.group_ids]
    before = ScoredRollouts(rollouts, Verdicts(("reward",), [[o] for o in outcomes], list(outcomes), list(outcomes)))
    return before, trainer.guide(before)


ADVANTAGES = [1.5, -0.5, -1.0, 0.25] * 4


def by_row(batches: Sequence[Microbatch]) -> dict[int, tuple[Microbatch, int]]:
    """Where each row of the generation batch is."""
    return {int(row): (batch, place) for batch in batches for place, row in enumerate(batch.row_ids)}


def real_ids(batch: Microbatch, place: int) -> list[int]:
    ids: list[int] = batch.input_ids[place][batch.attention_mask[place].bool()].tolist()
    return ids


def direct_logprobs(trainer: RLVRTrainer, context: list[int], completion: list[int]) -> torch.Tensor:
    """[T] by one forward pass of this row alone."""
    with torch.no_grad():
        logits = trainer.model(torch.tensor([context + completion])).logits[0] / trainer.temperature
    places = range(len(context) - 1, len(context) + len(completion) - 1)
    return torch.stack([logits[place].log_softmax(-1)[token] for place, token in zip(places, completion, strict=True)])


def gradient(trainer: RLVRTrainer, batches: Sequence[Microbatch]) -> dict[str, torch.Tensor]:
    trainer.accelerator.gradient_state._set_sync_gradients(False)
    for batch in batches:
        trainer._compute_loss(trainer.model, batch).backward()
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    return found


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize(
    ("options", "sizes"), [*((options, {"max_steps": 3}) for options in RULE_OPTIONS), ({"rule": "nurl"}, OFF_POLICY)]
)
def test_trains_and_helps(
    make_trainer: MakeTrainer, options: dict[str, Any], conditioning: str, sizes: dict[str, int]
) -> None:
    build = guidance(**options, hint_conditioning=conditioning)
    trainer = make_trainer(reward=rare_letter_reward, guidance=build, **sizes)
    trainer.train()
    for parameter in trainer.model.parameters():
        assert torch.isfinite(parameter).all()
    logs = [log for log in trainer.state.log_history if "guidance/helped_frac" in log]
    assert sum(log["guidance/extra_rollouts"] for log in logs) > 0
    assert any(log.get("guidance/success_frac", 0) > 0 for log in logs)
    assert all(log["guidance/signal_frac"] >= log["guidance/signal_plain_frac"] for log in logs)
    assert any("guidance/gamma" in log for log in logs) == (conditioning == "drop_with_ratio")


def test_a_verifier_that_is_always_right_makes_the_stage_do_nothing(make_trainer: MakeTrainer) -> None:
    """Not even a random number is drawn."""
    runs = []
    for build in (None, guidance("guide"), guidance("exemplar")):
        completions: list[list[str]] = []

        def always(completions: list[str], seen: list[list[str]] = completions, **_: Any) -> list[float]:
            seen.append(list(completions))
            return [1.0 + 0.1 * (len(c) % 3) for c in completions]

        trainer = make_trainer(reward=always, guidance=build, max_steps=3)
        trainer.train()
        logs = [
            {k: v for k, v in log.items() if not k.startswith(("guidance/", "time/", "train_", "step_time"))}
            for log in (trainer.state.log_history)
        ]
        runs.append((completions, logs, [p.detach().clone() for p in trainer.model.parameters()]))
    for other in runs[1:]:
        assert other[0] == runs[0][0]
        assert [set(log) for log in other[1]] == [set(log) for log in runs[0][1]]
        for mine, theirs in zip(other[1], runs[0][1], strict=True):
            assert mine == pytest.approx(theirs, nan_ok=True, abs=0)
        assert all(torch.equal(*pair) for pair in zip(other[2], runs[0][2], strict=True))
    assert runs[0][1][0]["loss/policy"] is not None


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "exemplar"},
        {"rule": "sage", "schedule": "light"},
        {"rule": "guide", "start": "plateau", "plateau_steps": 2},
    ],
    ids=lambda options: options["rule"],
)
def test_resumed_run_equals_the_uninterrupted_one(
    make_trainer: MakeTrainer, tmp_path: Path, options: dict[str, Any]
) -> None:
    sizes = {"save_strategy": "steps", "save_steps": 1, "max_steps": 5, "reward": rare_letter_reward}
    whole = make_trainer(guidance=guidance(**options), **sizes)
    whole.train()
    resumed = make_trainer(guidance=guidance(**options), **sizes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    kept = json.loads((tmp_path / "checkpoint-3" / PLUGINS_FILE).read_text())["guidance"]
    assert whole.guidance is not None
    assert resumed.guidance is not None
    assert kept["rule"] or kept["start"]["waited"]
    assert kept != whole.guidance.state_dict()
    assert resumed.guidance.state_dict() == whole.guidance.state_dict()
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, dict(resumed.model.named_parameters())[name]), name
    first, second = (
        [{k: v for k, v in log.items() if k.startswith("guidance/")} for log in trainer.state.log_history]
        for trainer in (whole, resumed)
    )
    assert first == second


# ---- what the loss conditions on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("options", RULE_OPTIONS[:5], ids=str)
def test_microbatches_hold_the_context_of_the_conditioning(
    make_trainer: MakeTrainer, options: dict[str, Any], conditioning: str
) -> None:
    build = guidance(**options, hint_conditioning=conditioning)
    trainer = make_trainer(reward=early_letter_reward, guidance=build)
    before, guided = guided_rows(trainer, failed=(0, 1, 2))
    rollouts = guided.rollouts
    hinted = [row for row, hint in enumerate(rollouts.hints) if hint is not None]
    assert hinted
    rows = by_row(trainer.microbatches(rollouts, ADVANTAGES))
    assert len(rows) == 16
    for row, (batch, place) in rows.items():
        prompt, context = rollouts.prompts[row], rollouts.prompt_ids[row]
        if row in hinted:
            assert rollouts.hints[row] in ("d e f", "g", "h i")
            sampled_from = with_help(prompt, TEMPLATE, str(rollouts.hints[row]))
            assert trainer.processing_class(sampled_from)["input_ids"] == rollouts.context_ids[row]
            context = rollouts.context_ids[row] if conditioning == "keep" else context
        assert trainer.processing_class(prompt)["input_ids"] == rollouts.prompt_ids[row]
        assert real_ids(batch, place) == context + rollouts.completion_ids[row]
        is_shaped = row in hinted and conditioning == "drop_with_ratio"
        assert (batch.gammas is not None and not batch.gammas[place].isnan().item()) == is_shaped
        assert batch.advantages[place, 0].item() == ADVANTAGES[row]
    assert not {row for row in changed_rows(before, Guided(guided, {})) if rollouts.group_ids[row] == 3}


@pytest.mark.parametrize("sizes", [{}, {"steps_per_generation": 4, "num_iterations": 2}], ids=["on", "off"])
def test_keep_mode_trains_on_the_probabilities_that_were_sampled_from(
    make_trainer: MakeTrainer, sizes: dict[str, int]
) -> None:
    trainer = make_trainer(
        reward=early_letter_reward, guidance=guidance("sage"), model=sharp(tiny_model()), temperature=0.7, **sizes
    )
    _, guided = guided_rows(trainer)
    rollouts, batches = guided.rollouts, trainer.microbatches(guided.rollouts, ADVANTAGES)
    assert all((batch.old_logprobs is not None) == bool(sizes) for batch in batches)
    for row, (batch, place) in by_row(batches).items():
        expected = direct_logprobs(trainer, rollouts.context_ids[row], rollouts.completion_ids[row])
        if batch.old_logprobs is not None:
            found = batch.old_logprobs[place, : len(expected)]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ---- ratios ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantile", [0.9, 0.5])
@pytest.mark.parametrize("options", [{"rule": "guide"}, {"rule": "nurl"}], ids=str)
def test_gamma_is_the_quantile_of_the_ratios_of_hinted_tokens(
    make_trainer: MakeTrainer, options: dict[str, Any], quantile: float
) -> None:
    build = guidance(**options, hint_conditioning="drop_with_ratio", shaping_quantile=quantile)
    trainer = make_trainer(reward=early_letter_reward, guidance=build, model=sharp(tiny_model()), temperature=0.7)
    _, guided = guided_rows(trainer)
    rollouts = guided.rollouts
    masks = [[t != 1 for t in range(len(ids))] for ids in rollouts.completion_ids]  # tokens of tools do not count
    rollouts = replace(rollouts, generated_masks=masks)
    log_ratios: list[float] = []
    rows = by_row(trainer.microbatches(rollouts, ADVANTAGES))
    for row, (batch, place) in rows.items():
        completion = rollouts.completion_ids[row]
        if rollouts.hints[row] is None:
            continue
        sampled = direct_logprobs(trainer, rollouts.context_ids[row], completion)
        trained = direct_logprobs(trainer, rollouts.prompt_ids[row], completion)
        assert batch.behaviour_logprobs is not None
        found = batch.behaviour_logprobs[place, : len(completion)]
        torch.testing.assert_close(found, sampled, rtol=1e-4, atol=1e-5)
        log_ratios += (trained - sampled)[torch.tensor(masks[row])].tolist()
    expected = np.quantile(np.exp(log_ratios), quantile)
    assert abs(expected - 1) > 1e-3
    gammas = {
        float(b.gammas[p]) for r, (b, p) in rows.items() if rollouts.hints[r] is not None and b.gammas is not None
    }
    assert list(gammas) == [pytest.approx(expected, rel=1e-4)]
    metrics = trainer._metrics["train"]
    assert metrics["guidance/gamma"] == [pytest.approx(expected, rel=1e-4)]
    assert metrics["guidance/ratio_p50"] == [pytest.approx(np.quantile(np.exp(log_ratios), 0.5), rel=1e-4)]


def test_a_hint_that_adds_nothing_has_ratio_1_and_a_quarter_of_the_gradient(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_module, "with_help", lambda prompt, template, help: prompt)
    found = []
    for conditioning in ("keep", "drop_with_ratio"):
        build = guidance("sage", hint_conditioning=conditioning, hints={"refuse_sufficient": False})
        trainer = make_trainer(reward=always_right, guidance=build, model=sharp(tiny_model()))
        _, guided = guided_rows(trainer)
        rollouts = guided.rollouts
        assert None not in rollouts.hints
        assert rollouts.context_ids == rollouts.prompt_ids
        batches = trainer.microbatches(rollouts, ADVANTAGES)
        if conditioning == "drop_with_ratio":
            for batch in batches:
                assert batch.gammas is not None
                torch.testing.assert_close(batch.gammas, torch.ones(len(batch.gammas)), rtol=1e-5, atol=0)
            for name in ("gamma", "ratio_p10", "ratio_p50", "ratio_p90"):
                assert trainer._metrics["train"][f"guidance/{name}"] == [pytest.approx(1, rel=1e-5)]
        found.append(gradient(trainer, batches))
    for name, whole in found[0].items():
        torch.testing.assert_close(found[1][name], whole / 4, rtol=1e-3, atol=1e-6)


def test_a_teachers_rows_are_certain_in_the_loss(make_trainer: MakeTrainer) -> None:
    class Scorer:
        def render(self, prompt: str) -> str:
            return prompt

        def score_tokens(self, texts: Sequence[str], targets: Sequence[str]) -> list[list[float]]:
            return [[-1.0] for _ in texts]

    def build(tools: Tools) -> Guide:
        settings = {"column": "solution", "gamma": 0.3}
        config = GuidanceConfig.model_validate({"rule": "teacher", "teacher": settings})
        assert config.teacher is not None
        pool = {each: ["a b c", "m a", "b a b c d e f g"] for each in range(32)}
        return TeacherGuidance(config, config.teacher, pool, replace(tools, scorer=Scorer()), seed=0)

    trainer = make_trainer(reward=rare_letter_reward, guidance=build)
    before, guided = guided_rows(trainer, failed=(0, 1))
    changed = changed_rows(before, Guided(guided, {}))
    assert len(changed) == 2
    for row, (batch, place) in by_row(trainer.microbatches(guided.rollouts, ADVANTAGES)).items():
        assert real_ids(batch, place) == before.rollouts.prompt_ids[row] + guided.rollouts.completion_ids[row]
        if row in changed:
            assert guided.rollouts.completion_ids[row] == [3, 4, 5, 1]  # a b c and the end
            assert batch.gammas is not None
            assert batch.behaviour_logprobs is not None
            assert batch.gammas[place].item() == pytest.approx(0.3)
            assert batch.behaviour_logprobs[place].tolist() == [0.0] * batch.completion_ids.shape[1]
        elif batch.gammas is not None:
            assert batch.gammas[place].isnan()
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert max(log.get("guidance/replaced", 0) for log in trainer.state.log_history) > 0


# ---- metrics and tools ----------------------------------------------------------------------------------------------


def test_pass_rates_are_of_the_rollouts_without_help(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(reward=early_letter_reward, guidance=guidance("sage"))
    before, guided = guided_rows(trainer)
    trainer.advantages(guided)
    metrics = trainer._metrics["train"]
    assert sum(outcome == 1 for outcome in guided.verdicts.outcomes) > 0
    assert metrics["outcome/pass_rate"] == [0.0]
    assert metrics["groups/unsolved_frac"] == [1.0]
    assert metrics["reward/mean"] == [pytest.approx(np.mean(guided.verdicts.rewards))]
    assert guided.unhelped.verdicts == before.verdicts
    assert trainer.latest_completions["hint"] == guided.rollouts.hints
    assert trainer.latest_completions["completion"] == guided.rollouts.completions


def test_hinted_samples_leave_the_metrics_of_the_rollouts_and_the_trainer_alone(make_trainer: MakeTrainer) -> None:
    found = []
    for build in (None, guidance("nurl", retries=2)):
        trainer = make_trainer(guidance=build)
        guided_rows(trainer)
        metrics = trainer._metrics["train"]
        found.append({name: list(values) for name, values in metrics.items() if name.startswith("completions/")})
        assert all(len(values) == 1 for name, values in metrics.items())
        assert trainer.num_generations == 4
        assert trainer.model.training
    assert found[0] == found[1]
    assert found[0]


def test_tools_count_and_encode_as_the_trainer_does(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    tools = trainer._tools()
    assert tools.count_tokens("a b c") == 3
    assert tools.encode("a b c") == [3, 4, 5, 1]
    assert tools.encode("a b c d e") == [3, 4, 5, 6, 7, 1]
    assert tools.encode("a b c d e f") is None  # with its end, more than the six that may be sampled
    sampled = tools.sample(["a b", "c"])
    assert [each.context_ids for each in sampled] == [[3, 4], [5]]
    assert tools.sample([]) == []
