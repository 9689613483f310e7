"""Periodic jumps inside the trainer: what they do to weights, moments and steps, going back, and resumed runs."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, Qwen3ForCausalLM, TrainerCallback

from rlvr.config.extrapolation import ExtrapolationConfig
from rlvr.errors import CheckpointError, ExtrapolationError
from rlvr.extrapolation.periodic import PeriodicJumps
from rlvr.trainer import RLVRTrainer
from tests.conftest import MakeTrainer, letter_dataset, tiny_model

HEAD, EMBEDDING, MLP = "lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"
ONE_BATCH = {"gradient_accumulation_steps": 1, "dataset": letter_dataset(64)}
Weights = dict[str, Tensor]


def jumps_of(validate: Any = None, **settings: Any) -> PeriodicJumps:
    config = ExtrapolationConfig.model_validate({"validate": validate is not None, **settings})
    return PeriodicJumps(config, Console(quiet=True), validate)


def weights_of(model: torch.nn.Module) -> Weights:
    return {name: each.detach().clone() for name, each in model.named_parameters()}


class WeightsByStep(TrainerCallback):
    """The weights before the first step and after each optimiser step."""

    def __init__(self) -> None:
        self.found: list[Weights] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        self.found.append(weights_of(model))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        self.found.append(weights_of(model))


def trained(make_trainer: MakeTrainer, **settings: Any) -> tuple[RLVRTrainer, list[Weights]]:
    """A trainer after its run, and the weights that each of its steps reached by itself."""
    trainer, steps = make_trainer(**(ONE_BATCH | settings)), WeightsByStep()
    trainer.add_callback(steps)
    trainer.train()
    return trainer, steps.found


def same(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def moves(name: str) -> bool:
    """Whether a tensor of the tiny model jumps by default: the matrices of its layers do, and nothing else."""
    return name.startswith("model.layers.") and name.endswith("_proj.weight")


def adam_of(trainer: RLVRTrainer) -> Iterator[dict[str, Tensor]]:
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            yield trainer.optimizer.state[parameter]


def jumped(before: Tensor, after: Tensor, train_steps: int, skip_steps: int) -> Tensor:
    """The same by one float at a time."""
    beta = (train_steps + skip_steps) / train_steps
    pairs = zip(before.flatten().tolist(), after.flatten().tolist(), strict=True)
    return torch.tensor([x + beta * (y - x) for x, y in pairs], dtype=torch.float64).view_as(before)


@pytest.mark.parametrize("skip_steps", [1, 3, 40])
def test_a_jump_goes_on_along_the_line_of_its_phase(make_trainer: MakeTrainer, skip_steps: int) -> None:
    plain, (start, _, end) = trained(make_trainer, max_steps=2)
    trainer, reached = trained(make_trainer, jumps=jumps_of(train_steps=2, skip_steps=skip_steps), max_steps=2)
    assert same(reached[-1], end)
    found = weights_of(trainer.model)
    for name, value in found.items():
        if moves(name):
            expected = jumped(start[name], end[name], 2, skip_steps)
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
            assert not torch.equal(value, end[name])
        else:
            assert torch.equal(value, end[name]), name
    assert any(moves(name) for name in found)
    assert {name for name in found if not moves(name)} >= {EMBEDDING, "model.norm.weight"}
    log = trainer.state.log_history[1]
    assert {name: log[f"extrapolation/{name}"] for name in ("jump", "beta", "undone")} == {
        "jump": 1.0,
        "beta": (2 + skip_steps) / 2,
        "undone": 0.0,
    }
    assert not any(name.startswith("extrapolation/") for name in trainer.state.log_history[0])
    assert not any(name.startswith("extrapolation/") for log in plain.state.log_history for name in log)


def test_each_phase_starts_from_the_last_jump(make_trainer: MakeTrainer) -> None:
    trainer, reached = trained(make_trainer, jumps=jumps_of(train_steps=2, skip_steps=2), max_steps=5)
    start, _, first, _, second, _ = reached
    landed = {n: jumped(start[n], w, 2, 2).float() if moves(n) else w for n, w in first.items()}
    expected = {n: jumped(landed[n], w, 2, 2).float() if moves(n) else w for n, w in second.items()}
    trainer_at_4, _ = trained(make_trainer, jumps=jumps_of(train_steps=2, skip_steps=2), max_steps=4)
    for name, value in weights_of(trainer_at_4.model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    jumps = [log["step"] for log in trainer.state.log_history if "extrapolation/jump" in log]
    assert jumps == [2, 4]
    assert trainer.state.global_step == 5  # max_steps counts real steps
    assert same(weights_of(trainer.model), reached[-1])  # a phase that the run does not finish does not jump


def test_rules_say_what_jumps(make_trainer: MakeTrainer) -> None:
    _, (_, end) = trained(make_trainer, max_steps=1)
    rules: dict[str, Any] = {"copies": ["*.mlp.*"], "default_copies": False}
    trainer, _ = trained(make_trainer, jumps=jumps_of(train_steps=1, skip_steps=5, **rules), max_steps=1)
    for name, value in weights_of(trainer.model).items():
        assert torch.equal(value, end[name]) == (".mlp." in name), name
    head = trainer.model.lm_head.weight
    assert head.data_ptr() == trainer.model.model.embed_tokens.weight.data_ptr()


def test_an_untied_head_stays_too(make_trainer: MakeTrainer) -> None:
    model = tiny_model()
    model.config.tie_word_embeddings = False
    torch.manual_seed(1)
    jumps = jumps_of(train_steps=1, skip_steps=5)
    trainer, (start, end) = trained(make_trainer, model=Qwen3ForCausalLM(model.config), jumps=jumps, max_steps=1)
    found = weights_of(trainer.model)
    assert torch.equal(found[HEAD], end[HEAD])
    assert not torch.equal(end[HEAD], start[HEAD])


def test_weights_that_are_not_trained_stay(make_trainer: MakeTrainer) -> None:
    model = tiny_model()
    model.model.layers[0].requires_grad_(False)
    before = weights_of(model)
    trainer, _ = trained(make_trainer, model=model, jumps=jumps_of(train_steps=1, skip_steps=5), max_steps=1)
    assert torch.equal(weights_of(trainer.model)[MLP], before[MLP])


def test_bfloat16_weights_are_calculated_in_float32_and_rounded_once(make_trainer: MakeTrainer) -> None:
    def model() -> PreTrainedModel:
        return tiny_model().to(torch.bfloat16)

    _, (start, end) = trained(make_trainer, model=model(), max_steps=1)
    trainer, _ = trained(make_trainer, model=model(), jumps=jumps_of(train_steps=1, skip_steps=2), max_steps=1)
    for name, value in weights_of(trainer.model).items():
        expected = jumped(start[name], end[name], 1, 2).float().bfloat16() if moves(name) else end[name]
        assert torch.equal(value, expected), name


def test_no_skipped_steps_are_plain_training(make_trainer: MakeTrainer) -> None:
    plain, _ = trained(make_trainer, max_steps=4)
    trainer, _ = trained(make_trainer, jumps=jumps_of(train_steps=2, skip_steps=0), max_steps=4)
    assert same(weights_of(trainer.model), weights_of(plain.model))


# ---- moments and the schedule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("moments", ["keep", "reset", "rescale"])
def test_moments_after_a_jump(make_trainer: MakeTrainer, moments: str) -> None:
    plain, _ = trained(make_trainer, max_steps=2, adam_beta1=0.8)
    jumps = jumps_of(train_steps=2, skip_steps=3, moments=moments)
    trainer, _ = trained(make_trainer, jumps=jumps, max_steps=2, adam_beta1=0.8)
    pairs = list(zip(adam_of(plain), adam_of(trainer), strict=True))
    assert len(pairs) == len(list(plain.model.parameters()))
    for before, after in pairs:
        if moments == "reset":
            assert [float(after[name].abs().max()) for name in ("exp_avg", "exp_avg_sq", "step")] == [0.0] * 3
            continue
        factor = 0.8**3 if moments == "rescale" else 1.0
        torch.testing.assert_close(after["exp_avg"].double(), before["exp_avg"].double() * factor, rtol=1e-6, atol=0)
        assert torch.equal(after["exp_avg_sq"], before["exp_avg_sq"])
        assert torch.equal(after["step"], before["step"])
    assert any(float(before["exp_avg"].abs().max()) > 0 for before, _ in pairs)


def test_a_reset_optimiser_is_a_new_one(make_trainer: MakeTrainer) -> None:
    """The first step of Adam is the sign of the gradient times the learning rate, whatever was before."""
    jumps = jumps_of(train_steps=2, skip_steps=0, moments="reset")
    _, reached = trained(make_trainer, jumps=jumps, max_steps=3)
    step = (reached[3][MLP] - reached[2][MLP]).abs()
    assert float(step.median()) == pytest.approx(1e-3, rel=1e-2)


def test_the_schedule_goes_by_real_steps(make_trainer: MakeTrainer) -> None:
    rates = []
    for jumps in (None, jumps_of(train_steps=1, skip_steps=9, moments="reset")):
        trainer, _ = trained(make_trainer, jumps=jumps, max_steps=4, lr_scheduler_type="linear")
        rates.append([log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log])
    assert len(rates[0]) == 4
    assert rates[0] == rates[1]


def test_moments_of_another_optimiser_are_not_touched(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(jumps=jumps_of(train_steps=1, skip_steps=1, moments="reset"), optim="sgd", **ONE_BATCH)
    with pytest.raises(ExtrapolationError, match=r"set extrapolation\.moments to 'keep'"):
        trainer.train()


# ---- going back ------------------------------------------------------------------------------------------------------


def judged_by(rates: list[float]) -> Any:
    remaining = iter(rates)
    return lambda moment, console: next(remaining)


@pytest.mark.parametrize("moments", ["keep", "reset"])
def test_an_undone_jump_leaves_no_trace(make_trainer: MakeTrainer, moments: str) -> None:
    plain, _ = trained(make_trainer, max_steps=5)
    jumps = jumps_of(judged_by([0.5, 0.4, 0.5, 0.1]), train_steps=2, skip_steps=50, moments=moments)
    trainer, _ = trained(make_trainer, jumps=jumps, max_steps=5)
    assert same(weights_of(trainer.model), weights_of(plain.model))
    found = [log for log in trainer.state.log_history if "extrapolation/undone" in log]
    assert [log["extrapolation/undone"] for log in found] == [1.0, 1.0]
    assert [log["extrapolation/validation_before"] for log in found] == [0.5, 0.5]
    assert [log["extrapolation/validation_after"] for log in found] == [0.4, 0.1]


def test_a_jump_that_is_as_good_stays_and_the_phase_after_an_undone_one_starts_where_it_went_back(
    make_trainer: MakeTrainer,
) -> None:
    jumps = jumps_of(judged_by([0.5, 0.4, 0.5, 0.5]), train_steps=1, skip_steps=1)
    trainer, (_, first, second) = trained(make_trainer, jumps=jumps, max_steps=2)
    for name, value in weights_of(trainer.model).items():
        expected = jumped(first[name], second[name], 1, 1).float() if moves(name) else second[name]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)


# ---- rollouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("with_jumps", "generations"), [(False, 2), (True, 4)])
def test_no_step_trains_on_completions_of_weights_before_a_jump(
    make_trainer: MakeTrainer, with_jumps: bool, generations: int
) -> None:
    """A recipe may not ask for jumps between two steps of a generation, but a resumed run can come to them."""
    jumps = jumps_of(train_steps=1, skip_steps=1) if with_jumps else None
    trainer = make_trainer(jumps=jumps, num_iterations=2, max_steps=4, **ONE_BATCH)
    sampled_at = []
    original = trainer.rollout

    def counted(rows: Any) -> Any:
        sampled_at.append(trainer.state.global_step)
        return original(rows)

    trainer.rollout = counted  # type: ignore[method-assign]
    trainer.train()
    assert len(sampled_at) == generations


def test_an_engine_with_weights_of_its_own_is_given_the_new_ones(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(jumps=jumps_of(train_steps=2, skip_steps=1), max_steps=2, **ONE_BATCH)
    trainer._last_loaded_step = 2  # as TRL notes when vLLM has the weights of step 2
    trainer.train()
    assert trainer._last_loaded_step != trainer.state.global_step


# ---- resumed runs ----------------------------------------------------------------------------------------------------


def resumable(make_trainer: MakeTrainer, moments: str = "rescale") -> RLVRTrainer:
    return make_trainer(
        jumps=jumps_of(train_steps=3, skip_steps=4, moments=moments),
        save_strategy="steps",
        save_steps=1,
        max_steps=7,
        **ONE_BATCH,
    )


@pytest.mark.parametrize("step", [2, 3, 4])
def test_resumed_run_equals_the_uninterrupted_one(make_trainer: MakeTrainer, tmp_path: Path, step: int) -> None:
    """Resumed within the first phase, at a jump, and within the second phase."""
    whole = resumable(make_trainer)
    whole.train()
    files = {path.parent.name for path in tmp_path.glob("checkpoint-*/phase-start-*")}
    assert files == {f"checkpoint-{each}" for each in (1, 2, 4, 5, 7)}
    assert not list(tmp_path.rglob("*.partial"))
    for later in range(step + 1, 8):
        shutil.rmtree(tmp_path / f"checkpoint-{later}")
    resumed = resumable(make_trainer)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert same(weights_of(resumed.model), weights_of(whole.model))
    for one, other in zip(adam_of(whole), adam_of(resumed), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    first, second = (
        [{k: v for k, v in log.items() if k.startswith(("extrapolation/", "reward/", "loss"))} for log in logs]
        for logs in (whole.state.log_history[step:7], resumed.state.log_history[step:7])
    )
    assert first == second


def test_start_of_a_phase_that_is_missing_damaged_or_of_another_model(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = resumable(make_trainer)
    trainer.args.max_steps = 4
    trainer.train()
    checkpoint = str(tmp_path / "checkpoint-4")
    (file,) = (tmp_path / "checkpoint-4").glob("phase-start-*")
    whole, tensors = file.read_bytes(), load_file(file)
    assert set(tensors) == {name for name in weights_of(trainer.model) if moves(name)}
    save_file({**tensors, MLP: torch.zeros(2, 2)}, file)
    with pytest.raises(CheckpointError, match="holds other shares"):
        resumable(make_trainer).train(resume_from_checkpoint=checkpoint)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="remove the checkpoint's folder"):
        resumable(make_trainer).train(resume_from_checkpoint=checkpoint)
    file.unlink()
    with pytest.raises(CheckpointError, match="remove the checkpoint's folder"):
        resumable(make_trainer).train(resume_from_checkpoint=checkpoint)


# ---- what cannot be extrapolated -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_adapters_are_refused(make_trainer: MakeTrainer) -> None:
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ExtrapolationError, match="A and B do not move on a line"):
        make_trainer(model=model, jumps=jumps_of(train_steps=1, skip_steps=1))


def test_rules_that_fit_nothing_or_leave_nothing_are_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ExtrapolationError, match=r"'\*\.mpl\.\*' matches none of the .* tensors of the policy"):
        make_trainer(jumps=jumps_of(train_steps=1, skip_steps=1, copies=["*.mpl.*"]))
    with pytest.raises(ExtrapolationError, match="leave no tensor"):
        make_trainer(jumps=jumps_of(train_steps=1, skip_steps=1, copies=["*"]))
