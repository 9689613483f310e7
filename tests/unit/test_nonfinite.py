"""A loss or gradient that is not finite: the run stops with the batch saved, or the step leaves no trace."""

import json
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen3ForCausalLM, TrainerCallback

from rlvr.config.watch import WatchConfig
from rlvr.errors import RunAborted
from rlvr.trainer import RLVRTrainer
from rlvr.watching.watch import Watch
from tests.conftest import WORDS, MakeTrainer, tiny_model
from tests.unit.nonfinite_cases import FAULTS, break_loss

Weights = dict[str, Tensor]
TERMS = {"loss": "the loss (loss/policy)", "gradient": "the gradient"}


class States(TrainerCallback):
    """Notes weights, the optimiser's state and the learning rate after each step."""

    def __init__(self) -> None:
        self.weights: list[Weights] = []
        self.moments: list[list[Tensor]] = []
        self.rates: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights.append({n: p.detach().clone() for n, p in kwargs["model"].named_parameters()})
        states = kwargs["optimizer"].state.values()
        self.moments.append([value.clone() for each in states for value in each.values() if torch.is_tensor(value)])
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])


MakeBroken = Callable[..., tuple[RLVRTrainer, States]]


@pytest.fixture
def make_broken(make_trainer: MakeTrainer) -> MakeBroken:
    """A trainer at whose steps `at`, counted from 1, something is not finite."""

    def make(fault: str, at: Collection[int], watch: dict[str, Any] | None = None, **changes: Any) -> Any:
        model, states = tiny_model(), States()
        trainer = make_trainer(model=model, watch=Watch(WatchConfig.model_validate(watch or {})), **changes)
        FAULTS[fault](model, lambda: trainer.state.global_step + 1 in at)
        trainer.add_callback(states)
        return trainer, states

    return make


def skip(**settings: Any) -> dict[str, Any]:
    return {"on_nonfinite": "skip", **settings}


# ---- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_the_run_stops_before_the_step_is_taken(make_broken: MakeBroken, tmp_path: Path, fault: str) -> None:
    trainer, states = make_broken(fault, {2}, max_steps=3, save_strategy="steps", save_steps=1)
    with pytest.raises(RunAborted) as caught:
        trainer.train()
    folder = tmp_path / "nonfinite/step-2-rank-0"
    text = str(caught.value)
    assert text.startswith(f"Step 2: {TERMS[fault]} is not finite; its batch is in {tmp_path}/nonfinite/step-2-rank-*.")
    assert caught.value.exit_code == 1
    assert (
        json.loads((tmp_path / "checkpoint-1/plugins.json").read_text()) == {}
    )  # nothing to remember without skipping
    assert "watch/skipped_steps" not in trainer.state.log_history[0]
    assert len(states.weights) == 1
    assert all(torch.equal(p, states.weights[0][n]) for n, p in trainer.model.named_parameters())
    assert [path.name for path in (tmp_path / "nonfinite").iterdir()] == [folder.name]
    report = json.loads((folder / "report.json").read_text())
    assert (report["step"], report["rank"], report["not_finite"]) == (2, 0, TERMS[fault])
    assert report.get("terms") == ({"loss/policy": "nan"} if fault == "loss" else None)
    assert report.get("grad_norm") == ("nan" if fault == "gradient" else None)
    assert [each["terms"] for each in report["microbatches"]] == [report.get("terms", {})] * 2
    assert all(len(each["rows"]) == (8 if fault == "loss" else 0) for each in report["microbatches"])


def test_the_saved_batch_says_which_rows_and_what_was_in_them(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")  # which the reference is loaded from
    model = Qwen3ForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    trainer = make_trainer(model=model, algorithm={"kl_coef": 0.1}, beta=0.1, num_iterations=2)
    calls = iter(range(100))
    break_loss(model, lambda: trainer.state.global_step == 1 and next(calls) == 1, row=3)
    with pytest.raises(RunAborted, match=r"the loss \(loss/kl, loss/policy\) is not finite"):
        trainer.train()
    folder = tmp_path / "nonfinite/step-2-rank-0"
    first, second = json.loads((folder / "report.json").read_text())["microbatches"]
    assert (first["terms"], first["rows"]) == ({}, [])
    assert second["terms"] == {"loss/policy": "nan", "loss/kl": "nan"}
    ((bad),) = second["rows"]
    assert (bad["row"], bad["values"]) == (3, ["logprobs", "entropy"])
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [(row["microbatch"], row["row"]) for row in rows] == [(i, r) for i in range(2) for r in range(8)]
    assert [row["row_id"] for row in rows if row["not_finite"]] == [bad["row_id"]]
    tensors, table = load_file(folder / "batch.safetensors"), trainer.latest_completions
    for row in rows:
        at = row["row_id"]
        assert row["prompt"] == table["prompt"][at]
        assert [word for word in row["completion"].split() if "<" not in word] == table["completion"][at].split()
        index, place, width = row["microbatch"], row["row"], len(row["advantages"])
        assert row["advantages"] == pytest.approx([table["advantage"][at]] * width)
        ids = tensors[f"{index}.completion_ids"][place, :width].tolist()
        assert row["completion"].split() == [WORDS[token] for token in ids]
        for name in ("old_logprobs", "ref_logprobs"):
            assert row[name] == pytest.approx(tensors[f"{index}.{name}"][place, :width].tolist())
        assert ("nan" in row["logprobs"]) == bool(row["not_finite"])
    assert tensors["1.logprobs"][3].isnan().any()
    assert tensors["0.input_ids"].shape == tensors["0.attention_mask"].shape


# ---- skipping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "optim"), [("loss", "adamw_torch"), ("gradient", "adamw_torch_fused"), ("gradient", "sgd")]
)
def test_a_skipped_step_leaves_no_trace(
    make_broken: MakeBroken, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str, optim: str
) -> None:
    settings = {"optim": optim, "weight_decay": 0.1, "lr_scheduler_type": "linear", "max_steps": 4}
    if optim == "sgd":
        settings["optim_args"] = "momentum=0.9"
    trainer, states = make_broken(fault, {2}, skip(), **settings)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    first, second, third, _ = states.weights
    assert all(torch.equal(second[name], first[name]) for name in first)
    assert not all(torch.equal(third[name], second[name]) for name in first)
    assert all(torch.equal(*pair) for pair in zip(states.moments[0], states.moments[1], strict=True))
    assert states.moments[0]
    assert all(value.isfinite().all() for value in (*third.values(), *states.moments[3]))
    assert states.rates == pytest.approx([0.75e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    logs = trainer.state.log_history
    assert [log["watch/skipped_steps"] for log in logs[:4]] == [0.0, 1.0, 1.0, 1.0]
    assert [log["step"] for log in logs[:4]] == [1, 2, 3, 4]
    assert [path.name for path in (tmp_path / "nonfinite").iterdir()] == ["step-2-rank-0"]
    (record,) = (record for record in caplog.records if record.name == "rlvr.watching.watch")
    assert record.getMessage().startswith(f"step 2: {TERMS[fault]} is not finite; the step is skipped, see ")


def test_regularisers_do_not_see_a_skipped_loss(make_broken: MakeBroken) -> None:
    regularizers = {"entropy": {"coef": 0.01, "target": 0.5}}
    trainer, _ = make_broken("loss", {2}, skip(), max_steps=2, regularizers=regularizers)
    remembered = []
    (regularizer,) = trainer.regularizers
    original = regularizer.finish
    regularizer.finish = lambda metrics: (original(metrics), remembered.append(regularizer.state_dict()))  # type: ignore[method-assign]
    trainer.train()
    assert remembered == [regularizer.state_dict()]
    assert all(torch.tensor(list(remembered[0].values())).isfinite())


def test_steps_in_a_row_stop_the_run_in_the_end(make_broken: MakeBroken, tmp_path: Path) -> None:
    trainer, states = make_broken("gradient", {1, 3, 4, 5}, skip(max_skipped=3), max_steps=6)
    with pytest.raises(RunAborted) as caught:
        trainer.train()
    assert str(caught.value).startswith(
        "Step 5: the gradient is not finite, as it was in all of the last 3 steps (watch.max_skipped); the batch of the"
        f" first is in {tmp_path}/nonfinite/step-3-rank-*."
    )
    assert len(states.weights) == 4
    assert {path.name for path in (tmp_path / "nonfinite").iterdir()} == {"step-1-rank-0", "step-3-rank-0"}


def test_the_count_outlives_the_process(make_broken: MakeBroken, tmp_path: Path) -> None:
    saves = {"save_strategy": "steps", "save_steps": 1}
    whole, states = make_broken("loss", {1, 3}, skip(max_skipped=2), max_steps=4, **saves)
    whole.train()
    checkpoint = str(tmp_path / "checkpoint-3")
    resumed, again = make_broken("loss", set(), skip(max_skipped=2), max_steps=4, **saves)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.state.log_history[3]["watch/skipped_steps"] == 2.0
    assert all(torch.equal(again.weights[-1][name], value) for name, value in states.weights[-1].items())
    second_in_a_row, _ = make_broken("loss", {4}, skip(max_skipped=2), max_steps=4, **saves)
    with pytest.raises(RunAborted, match="in all of the last 2 steps"):
        second_in_a_row.train(resume_from_checkpoint=checkpoint)


# ---- the norm that an engine tells ----------------------------------------------------------------------------------


def test_norms_that_are_not_finite(make_broken: MakeBroken, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed tells infinity for a gradient that it did not use, and -1 where it did not look."""
    trainer, _ = make_broken("loss", set(), max_steps=1)
    trainer.train()
    for norm in (float("nan"), float("inf"), -1.0, torch.tensor(float("nan"))):
        with pytest.raises(RunAborted, match="the gradient is not finite"):
            trainer.watch.check_gradient(norm)
    assert trainer.watch.check_gradient(None) == {}
    assert trainer.watch.check_gradient(0.0) == {}
    monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", "fp16")  # which itself needs a GPU
    assert trainer.watch.check_gradient(float("inf")) == {}
    with pytest.raises(RunAborted, match=r"the loss \(loss/kl\) is not finite"):
        trainer.watch.check_loss({"loss/kl": float("-inf"), "kl/k3_ref": float("inf")})
