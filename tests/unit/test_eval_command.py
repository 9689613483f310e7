"""`rlvr eval`: samples are kept, gone on from and judged again; models are compared; mistakes end with one sentence."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch.distributions import Categorical
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from rlvr.cli import app
from rlvr.evaluation.estimators import Estimate
from rlvr.evaluation.pictures import draw_by_step, draw_pass_at_k
from rlvr.evaluation.sampled import answer_texts
from rlvr.evaluation.samples import read_samples
from tests.conftest import WORDS, sharp, tiny_model, tiny_tokenizer

METRICS = {"pass@1", "pass@4", "avg@4", "maj@4", "greedy", "length", "truncated", "answer_entropy", "token_entropy"}
ROWS = [{"prompt": f"{a} {b}", "answer": a} for a in WORDS[3:8] for b in WORDS[3:8]]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe with ten held-out prompts, of which the training data has two, and two models."""
    for name, seed in (("base", 0), ("tuned", 1)):
        sharp(tiny_model(seed)).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS[8:])))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, ROWS[:10])))
    (tmp_path / "my_reward.py").write_text(
        "from rewards._item import graded, item_reward\n"
        "@item_reward\ndef near(text, answer):\n    return graded(float(answer in text.split()))\n"
        "@item_reward\ndef never(text, answer):\n    return graded(0.0)\n"
        "def even(completions, prompt_id, **_):\n    return [float(each % 2 == 0) for each in prompt_id]\n"
    )
    content: dict[str, Any] = {
        "model": str(tmp_path / "base"),
        "data": {"train": {"dataset": "train.jsonl"}},
        "rewards": {"functions": ["./my_reward.py:near"], "workers": 1},
        "trainer": {"num_generations": 4, "max_completion_length": 4},
        "evaluation": {
            "sets": {"held": {"dataset": "test.jsonl"}},
            "num_samples": 4,
            "k": [1, 4],
            "batch_size": 12,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def evaluate(recipe: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["eval", str(recipe), "--output", str(recipe.parent / "out"), *arguments])


def results(recipe: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((recipe.parent / "out" / "results.json").read_text())
    return found


def parts(recipe: Path) -> list[Path]:
    return sorted((recipe.parent / "out").rglob("*.parquet"))


def test_model_against_its_base(recipe: Path) -> None:
    tuned = str(recipe.parent / "tuned")
    result = evaluate(recipe, "--model", tuned, "--base", str(recipe.parent / "base"))
    assert result.exit_code == 0, result.output + repr(result.exception)
    found = results(recipe)
    assert list(found["models"]) == [str(recipe.parent / "base"), tuned]
    for each in found["models"].values():
        assert set(each["held"]) == METRICS
        assert each["held"]["pass@1"]["value"] == pytest.approx(each["held"]["avg@4"]["value"])
    values = [each["held"]["pass@1"]["value"] for each in found["models"].values()]
    assert 0 < min(values) < max(values) < 1
    difference = found["comparisons"]["held"]["pass_at_1"]["difference"]
    assert difference["value"] == pytest.approx(values[1] - values[0])
    assert found["comparisons"]["held"]["verdict"] in result.output.replace("\n", " ")
    assert "by how often the base model is right" in result.output
    assert imread(recipe.parent / "out" / "pass_at_k.png").std() > 0
    assert found["contamination"]["held"]["num_equal"] == 2
    assert "2 of 10 prompts of held overlap with training prompts" in result.output


def test_token_entropies_are_those_of_the_model_that_sampled(recipe: Path) -> None:
    """Against the logits of a plain forward pass in float64, at the temperature of the set."""
    assert evaluate(recipe, "evaluation.temperatures.held=0.7").exit_code == 0
    kept = read_samples(parts(recipe)[0].parent)
    model = AutoModelForCausalLM.from_pretrained(recipe.parent / "base").double()
    tokenizer = tiny_tokenizer()
    for each in kept[:12]:
        before = tokenizer(each.prompt)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([before + list(each.completion_ids)])).logits[0, len(before) - 1 : -1]
        expected = Categorical(logits=logits / 0.7).entropy().mean()
        assert each.token_entropy == pytest.approx(float(expected), rel=1e-4)
    assert {each.token_entropy is None for each in kept if each.is_greedy} == {True}
    (model_results,) = results(recipe)["models"].values()
    weights = [len(each.completion_ids) for each in kept if not each.is_greedy]
    values = [each.token_entropy for each in kept if not each.is_greedy]
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)  # type: ignore[operator]
    assert model_results["held"]["token_entropy"]["value"] == pytest.approx(mean)


def test_what_is_kept_is_not_sampled_again(recipe: Path) -> None:
    assert evaluate(recipe).exit_code == 0
    whole, samples = parts(recipe), read_samples(parts(recipe)[0].parent)
    assert len(whole) == 4  # three prompts at a time
    assert len(samples) == 10 * 5
    first = results(recipe)
    whole[1].unlink()  # as if it had been interrupted
    kept = {path: path.stat().st_mtime_ns for path in parts(recipe)}
    assert evaluate(recipe).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    again = read_samples(whole[0].parent)
    assert sorted(again, key=str) == sorted(samples, key=str)
    assert results(recipe) == first


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.seed=5", "samples with seed = 0, not 5; evaluate into another folder"),
        ("evaluation.temperatures.held=0.5", "samples with temperatures = {}, not {'held': 0.5}"),
        ("evaluation.batch_size=4", "samples with batch_size = 12, not 4"),
        ("evaluation.sets.held.limit=5", "samples with sets = {'held': "),
        ("trainer.generation_kwargs={suppress_tokens: [5]}", "samples with generation_kwargs = None, not {"),
        ("trainer.chat_template_kwargs={enable_thinking: false}", "samples with chat_template_kwargs = None, not {"),
        ("model.dtype=bfloat16", "samples with dtype = 'auto', not 'bfloat16'"),
        ("data.template='{prompt} {answer}'", "has samples of prompt 0 of held, whose row is no longer in the set"),
    ],
)
def test_samples_of_other_settings_or_prompts_do_not_mix(recipe: Path, override: str, message: str) -> None:
    assert evaluate(recipe, "evaluation.num_samples=1", "evaluation.k=[1]", "evaluation.greedy=false").exit_code == 0
    result = evaluate(recipe, "evaluation.num_samples=1", "evaluation.k=[1]", "evaluation.greedy=false", override)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert message in " ".join(result.stderr.split())


def test_rows_that_changed_in_their_file_are_not_taken_for_those_of_before(recipe: Path) -> None:
    assert evaluate(recipe).exit_code == 0
    before = results(recipe)
    for rows in (ROWS[10:20], ROWS[:9]):
        (recipe.parent / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for options in ([], ["--rescore"]):
            result = evaluate(recipe, *options)
            assert result.exit_code == 2, result.output + repr(result.exception)
            assert "is no longer in the set, or has another prompt" in " ".join(result.stderr.split())
    assert results(recipe) == before


def test_rescoring_takes_the_answers_as_they_are_now(recipe: Path) -> None:
    assert evaluate(recipe).exit_code == 0
    rows = [{**each, "answer": "nothing", "note": 1} for each in ROWS[:10]]
    (recipe.parent / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sampling = evaluate(recipe)
    assert sampling.exit_code == 2
    assert "where only columns differ, --rescore judges by the new ones" in " ".join(sampling.stderr.split())
    assert evaluate(recipe, "--rescore").exit_code == 0
    (found,) = results(recipe)["models"].values()
    assert found["held"]["pass@4"]["value"] == 0.0


def test_another_model_under_the_same_path_is_not_taken_for_the_one_of_before(recipe: Path) -> None:
    assert evaluate(recipe).exit_code == 0
    sharp(tiny_model(7)).save_pretrained(recipe.parent / "base")
    result = evaluate(recipe)
    assert result.exit_code == 2
    assert "samples with weights = 'files " in " ".join(result.stderr.split())
    assert evaluate(recipe, "--rescore").exit_code == 0  # which says nothing of the model that is there now


def test_rescoring_judges_what_is_kept(recipe: Path) -> None:
    assert evaluate(recipe).exit_code == 0
    before = {path: path.read_bytes() for path in parts(recipe)}
    result = evaluate(recipe, "--rescore", "rewards.functions.0=./my_reward.py:never")
    assert result.exit_code == 0, result.output + repr(result.exception)
    (found,) = results(recipe)["models"].values()
    assert found["held"]["pass@4"]["value"] == 0.0
    assert {path: path.read_bytes() for path in parts(recipe)} == before
    nothing = evaluate(recipe, "--rescore", "--model", "elsewhere")
    assert nothing.exit_code == 2
    assert "holds no samples to judge again" in nothing.stderr


def test_rescoring_asks_for_all_samples_of_that_model(recipe: Path) -> None:
    assert evaluate(recipe).exit_code == 0
    elsewhere = evaluate(recipe, "--rescore", "--model", f"{recipe.parent}_base")  # whose folder has the same name
    assert elsewhere.exit_code == 2, elsewhere.output
    assert "samples with model = " in elsewhere.stderr
    another = evaluate(recipe, "--rescore", "evaluation.sets.more={dataset: train.jsonl}")
    assert another.exit_code == 2, another.output + repr(another.exception)
    assert "lacks samples of 17 of the 17 prompts of more" in " ".join(another.stderr.split())
    parts(recipe)[1].unlink()  # as if it had been interrupted
    part = evaluate(recipe, "--rescore")
    assert part.exit_code == 2, part.output
    assert "lacks samples of 3 of the 10 prompts of held; evaluate without --rescore" in " ".join(part.stderr.split())


def test_sets_have_temperatures_of_their_own(recipe: Path) -> None:
    result = evaluate(recipe, "evaluation.temperatures.held=0.01")
    assert result.exit_code == 0, result.output + repr(result.exception)
    rows = [row for path in parts(recipe) for row in pq.read_table(path).to_pylist()]
    drawn = {row["temperature"] for row in rows if not row["is_greedy"]}
    assert drawn == {0.01}
    by_prompt: dict[int, set[str]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_id"], set()).add(row["completion"])
    assert all(len(texts) == 1 for texts in by_prompt.values())  # nearly greedy
    wrong = evaluate(recipe, "evaluation.temperatures.hold=1.0")
    assert wrong.exit_code == 2
    assert "evaluation.temperatures.hold: there is no such set; did you mean 'held'" in wrong.stderr


def test_each_batch_set_and_seed_draws_for_itself(recipe: Path) -> None:
    """One prompt, six times in each of two sets, three to a batch: only the random numbers tell the draws apart."""
    (recipe.parent / "same.jsonl").write_text("\n".join([json.dumps(ROWS[0])] * 6))
    sets = "evaluation.sets={one: {dataset: same.jsonl}, two: {dataset: same.jsonl}}"
    draws: dict[tuple[int, str, bool], list[tuple[int, ...]]] = {}
    for seed in (0, 5):
        output = recipe.parent / "out" / str(seed)
        options = [sets, "evaluation.greedy=false", "evaluation.k=[1,2]", f"evaluation.seed={seed}"]
        for more in ([], ["--rescore"]):
            result = evaluate(recipe, *options, *more, "--output", str(output))
            assert result.exit_code == 0, result.output + repr(result.exception)
            (found,) = json.loads((output / "results.json").read_text())["models"].values()
            assert set(found) == {"one", "two"}
            expected = METRICS - {"greedy", "pass@4"} | {"pass@2", "maj@2"}
            assert [set(each) for each in found.values()] == [expected] * 2
        for each in read_samples(next(output.rglob("*.parquet")).parent):
            draws.setdefault((seed, each.set_name, each.prompt_id < 3), []).append(each.completion_ids)
    assert [len(each) for each in draws.values()] == [12] * 8
    assert len({tuple(each) for each in draws.values()}) == 8


def test_both_kinds_of_sets_are_kept_apart(recipe: Path) -> None:
    (recipe.parent / "dev.jsonl").write_text("\n".join(map(json.dumps, ROWS[12:18])))
    for kind, name, num_equal in (("test", "held", 2), ("validation", "dev", 6), ("test", "held", 2)):
        result = evaluate(recipe, "evaluation.validation={dev: {dataset: dev.jsonl}}", "--on", kind)
        assert result.exit_code == 0, result.output + repr(result.exception)
        found = results(recipe)
        assert found["kind"] == kind
        assert [list(each) for each in found["models"].values()] == [[name]]
        assert found["contamination"][name]["num_equal"] == num_equal


def test_chats_are_gone_on_with(recipe: Path) -> None:
    chat = tiny_tokenizer()
    chat.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    chat.save_pretrained(recipe.parent / "base")
    for more in ([], [], ["--rescore"]):
        result = evaluate(recipe, "data.system=be brief", *more)
        assert result.exit_code == 0, result.output + repr(result.exception)
        assert results(recipe)["contamination"]["held"]["num_equal"] == 2
    assert len(parts(recipe)) == 4
    assert all(each.is_chat for each in read_samples(parts(recipe)[0].parent))


def test_rewards_see_the_id_of_the_prompt(recipe: Path) -> None:
    assert evaluate(recipe, "rewards.functions.0=./my_reward.py:even").exit_code == 0
    kept = read_samples(parts(recipe)[0].parent)
    assert [each.outcome for each in kept] == [float(each.prompt_id % 2 == 0) for each in kept]


def test_answers_in_tags_come_before_those_in_boxes() -> None:
    texts = ["\\boxed{2} <answer>1</answer>", "so \\boxed{3}", "4"]
    assert answer_texts(texts) == ["1", "3", ""]


def test_pictures_show_each_model_at_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    models = {
        name: {"held": {f"pass@{k}": Estimate(value, value - 0.1, value + 0.1) for k, value in curve.items()}}
        for name, curve in (("base", {1: 0.1, 2: 0.2}), ("tuned", {1: 0.3, 2: 0.4}))
    }
    assert draw_pass_at_k(models, tmp_path / "k.png")
    assert draw_by_step(models, [10, 20], tmp_path / "steps.png")
    lines = [{line.get_label(): line.get_xydata().tolist() for line in each.axes[0].lines} for each in figures]
    assert lines == [
        {"base": [[1, 0.1], [2, 0.2]], "tuned": [[1, 0.3], [2, 0.4]]},
        {"held": [[10, 0.1], [20, 0.3]]},
    ]


def test_checkpoints_of_a_run(recipe: Path) -> None:
    run = recipe.parent / "run"
    sizes = ["trainer.max_steps=2", "trainer.save_steps=1", "trainer.per_device_train_batch_size=8"]
    options = [f"trainer.output_dir={run}", "evaluation.sets={}", "report.to=[none]", "trainer.use_cpu=true"]
    trained = CliRunner().invoke(app, ["train", str(recipe), *sizes, *options])
    assert trained.exit_code == 0, trained.output + repr(trained.exception)
    result = evaluate(recipe, "--checkpoints", str(run))
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert list(results(recipe)["models"]) == ["checkpoint-1", "checkpoint-2"]
    assert imread(recipe.parent / "out" / "by_step.png").std() > 0
    assert evaluate(recipe, "--checkpoints", str(recipe.parent / "base")).exit_code == 2
    (run / "checkpoint-2" / "model.safetensors").write_bytes(b"")  # as a full disk leaves it
    assert evaluate(recipe, "--checkpoints", str(run)).exit_code == 0
    assert list(results(recipe)["models"]) == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on", "validation"], "evaluation.validation names no set"),
        (["evaluation.k=[8]"], "pass@8 cannot be estimated"),
        (["--model", "./nowhere"], "--model: the folder './nowhere' does not exist"),
        (["--model", "x", "--checkpoints", "y"], "--checkpoints takes the models of a run"),
    ],
)
def test_mistakes(arguments: list[str], message: str, recipe: Path) -> None:
    result = evaluate(recipe, *arguments)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert message in result.stderr
