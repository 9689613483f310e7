"""The log-probabilities of `rlvr linearity`: which completions, and what every checkpoint says of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlvr.config import load_recipe
from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.checkpoints import open_checkpoint
from rlvr.extrapolation.linearity_logprobs import (
    Completion,
    base_policy,
    base_tokenizer,
    load_weights,
    measure_logprobs,
    plan_completions,
    sample_completions,
    token_batches,
    token_label,
    token_logprobs,
)
from tests.conftest import sharp, tiny_model, tiny_tokenizer
from tests.reference import linearity as reference
from tests.unit.linearity_cases import STEPS, call, make_base, make_recipe, make_run, report_of

EOS = 1
SMALL = ("--prompts", "4", "--samples", "3")


@pytest.fixture(scope="module")
def line_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("line"))


def kept(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "linearity/completions.json").read_text())
    return content


def of_transformers(folder: Path, completion: dict[str, Any]) -> list[float]:
    """Log-probabilities of a completion's tokens, from all logits of the saved model, without padding."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    context, ids = completion["context_ids"], completion["completion_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([context + ids])).logits[0].log_softmax(dim=-1)
    return [float(logits[len(context) - 1 + place, token]) for place, token in enumerate(ids)]


def test_log_probabilities_of_a_run(line_run: Path) -> None:
    report = report_of(line_run, *SMALL)
    completions = kept(line_run)["completions"]
    folders = [line_run.parent / "base", *(line_run / f"checkpoint-{step}" for step in STEPS)]
    expected = [[each for completion in completions for each in of_transformers(f, completion)] for f in folders]
    tokens = list(zip(*expected, strict=True))
    moved = [each for each in tokens if abs(each[-1] - each[0]) > 0.2]
    found = report["logprobs"]["all"]
    assert found["sampled"] == len(tokens)
    assert found["kept"] == len(moved)
    assert 0 < len(moved) < len(tokens)
    r2 = [reference.r_squared(list(each), report["steps"]) for each in moved]
    assert found["median_r2"] == pytest.approx(reference.quantile(r2, 0.5), rel=1e-4)
    assert found["share_above_0.7"] == pytest.approx(sum(each > 0.7 for each in r2) / len(r2))
    assert sum(report["logprobs"]["histogram"]) == len(moved)
    for example in report["logprobs"]["examples"]:
        nearest = min(
            moved, key=lambda each: abs(each[0] - example["values"][0]) + abs(each[-1] - example["values"][-1])
        )
        assert example["values"] == pytest.approx(nearest, abs=1e-4)
        assert example["r2"] == pytest.approx(reference.r_squared(example["values"], report["steps"]), rel=1e-9)
    assert report["settings"]["prompts"] == 4
    assert report["settings"]["sampling"]["max_completion_length"] == 6


def test_completions_are_sampled_by_the_base_policy(line_run: Path) -> None:
    report_of(line_run, *SMALL)
    content = kept(line_run)
    completions, tokenizer = content["completions"], tiny_tokenizer()
    assert len(completions) == 12
    assert len({each["prompt_id"] for each in completions}) == 4
    rows = [json.loads(line) for line in (line_run.parent / "heldout.jsonl").read_text().splitlines()]
    for each in completions:
        ids = each["completion_ids"]
        assert each["source"] == "evaluation.sets.heldout"
        assert each["context_ids"] == tokenizer(rows[each["prompt_id"]]["prompt"])["input_ids"]
        assert each["text"] == tokenizer.decode(ids, skip_special_tokens=True)
        assert EOS not in ids[:-1]
        assert len(ids) == 6 or ids[-1] == EOS
    assert len({tuple(each["completion_ids"]) for each in completions}) > 6


def test_completions_are_used_again(line_run: Path) -> None:
    first = report_of(line_run, *SMALL)
    file = line_run / "linearity/completions.json"
    content = kept(line_run)
    content["completions"] = content["completions"][:5]
    file.write_text(json.dumps(content))
    again = report_of(line_run, *SMALL)
    assert len(kept(line_run)["completions"]) == 5
    assert again["logprobs"]["all"]["sampled"] < first["logprobs"]["all"]["sampled"]
    report_of(line_run, *SMALL, "--seed", "1")
    assert len(kept(line_run)["completions"]) == 12
    file.write_text("{}")
    result = call(line_run, *SMALL)
    assert result.exit_code == 2
    assert "completions.json does not hold completions; remove it" in result.stderr
    file.unlink()
    assert report_of(line_run, *SMALL)["logprobs"] == first["logprobs"]


def test_sampling_follows_the_policy(tmp_path: Path) -> None:
    """Of many samples of one token, each has the share that the policy gives it."""
    make_base(tmp_path)
    run = make_recipe(tmp_path)
    loaded = load_recipe(run / "recipe.yaml", ["trainer.max_completion_length=1", "evaluation.batch_size=1000"])
    tokenizer, model = base_tokenizer(loaded, tmp_path / "base"), base_policy(loaded, tmp_path / "base")
    plan = plan_completions(loaded, tokenizer, 2, 1500, seed=3)
    state = torch.random.get_rng_state()
    counted: list[int] = []
    completions = sample_completions(model, tokenizer, plan, counted.append)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert counted == [1000, 1000, 1000]
    assert sample_completions(model, tokenizer, plan, counted.append) == completions
    for number, prompt in enumerate(plan.prompts):
        mine = completions[number * 1500 : (number + 1) * 1500]
        shares = torch.bincount(torch.tensor([each.completion_ids[0] for each in mine]), minlength=16) / 1500
        with torch.no_grad():
            expected = model(torch.tensor([prompt.context_ids])).logits[0, -1].softmax(dim=-1)
        assert float((shares - expected).abs().max()) < 0.05


def test_prompts_are_those_of_the_training_data_where_nothing_is_held_out(tmp_path: Path) -> None:
    make_base(tmp_path)
    run = make_recipe(tmp_path)
    loaded = load_recipe(run / "recipe.yaml", ["evaluation.sets={}"])
    plan = plan_completions(loaded, tiny_tokenizer(), 100, 1, seed=0)
    assert [prompt.prompt_id for prompt in plan.prompts] == list(range(9))
    assert {prompt.source for prompt in plan.prompts} == {"data.train"}
    drawn = [plan_completions(loaded, tiny_tokenizer(), 4, 1, seed=seed).prompts for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({prompt.prompt_id for prompt in drawn[0]}) == 4


def test_batches_hold_every_completion_once() -> None:
    lengths = [3, 9, 1, 4, 4, 20, 2]
    completions = [Completion("s", 0, [5], [5] * (length - 1) + [EOS], "") for length in lengths]
    batches = token_batches(completions, 12)
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    for batch in batches:
        longest = max(1 + lengths[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= 12
    assert max(map(len, batches)) > 1


def test_batching_changes_nothing(line_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_recipe(line_run / "recipe.yaml")
    base = line_run.parent / "base"
    tokenizer, model = base_tokenizer(loaded, base), base_policy(loaded, base)
    completions = sample_completions(model, tokenizer, plan_completions(loaded, tokenizer, 5, 2, 0), lambda done: None)
    views = [open_checkpoint(line_run / "checkpoint-300"), open_checkpoint(base)]
    whole = measure_logprobs(model, views, completions, 0, lambda done: None)
    one_by_one = [token_logprobs(model, [each], 0, lambda done: None) for each in completions]
    assert torch.allclose(torch.cat(one_by_one), whole[1], atol=1e-5)
    monkeypatch.setattr("rlvr.extrapolation.linearity_logprobs.TOKENS_AT_ONCE", 1)
    counted: list[int] = []
    alone = measure_logprobs(model, views, completions, 0, counted.append)
    assert torch.allclose(alone, whole, atol=1e-5)
    assert counted == [1] * 20
    assert whole.shape == (2, sum(len(each.completion_ids) for each in completions))
    assert not torch.allclose(whole[0], whole[1], atol=0.1)


def test_labels() -> None:
    tokenizer = tiny_tokenizer()
    completions = [Completion("s", 7, [3], [3, 4, EOS], ""), Completion("s", 8, [3], [5, EOS], "")]
    labels = [token_label(completions, tokenizer, index) for index in range(5)]
    assert labels[1] == "'b', prompt 7, token 2"
    assert labels[3] == "'c', prompt 8, token 1"
    with pytest.raises(IndexError):
        token_label(completions, tokenizer, 5)


def test_a_model_that_memory_names_otherwise(line_run: Path) -> None:
    other = tiny_model()
    del other.model.layers[1]
    with pytest.raises(ExtrapolationError, match=r"differ in 11 names of tensors, such as .*; give --no-logprobs"):
        load_weights(other, open_checkpoint(line_run / "checkpoint-300"))


def test_adapters(tmp_path: Path) -> None:
    """What counts is the product B A: it is on a line when only B is, and a parabola when both are."""
    base = make_base(tmp_path)
    run = make_recipe(tmp_path)
    for step in STEPS:
        policy = get_peft_model(
            sharp(tiny_model()), LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "up_proj"])
        )
        policy.peft_config["default"].base_model_name_or_path = str(base)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_" in name:
                    factor: Tensor = torch.randn(parameter.shape, generator=generator)
                    moves = "lora_B" in name or "up_proj" in name
                    parameter.copy_(factor * (step / 500 if moves else 1.0))
        policy.save_pretrained(run / f"checkpoint-{step}")
    report = report_of(run, *SMALL)
    assert report["steps"] == [0, *STEPS]
    groups = report["weights"]["by_module"]
    parabola = reference.r_squared([float(step) ** 2 for step in report["steps"]], report["steps"])
    assert groups["q_proj"]["median_r2"] == pytest.approx(1.0, abs=1e-4)
    assert groups["up_proj"]["median_r2"] == pytest.approx(parabola, abs=1e-4)
    assert groups["q_proj"]["effective_rank"] <= 3
    assert {name for name, each in groups.items() if each["kept"]} == {"q_proj", "up_proj"}
    assert report["logprobs"]["all"]["kept"] > 0
    # The recipe's base serves where the one that the adapters name is gone.
    for file in run.glob("checkpoint-*/adapter_config.json"):
        file.write_text(file.read_text().replace(str(base), str(tmp_path / "gone")))
    shutil.rmtree(run / "linearity")
    assert report_of(run, *SMALL)["weights"]["all"] == report["weights"]["all"]
