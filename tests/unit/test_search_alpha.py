"""`rlvr extrapolate search` on real models: what it evaluates and when, what it leaves, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from rlvr.cli import app
from rlvr.config import load_recipe
from rlvr.config.schema import ModelConfig
from rlvr.evaluation.standalone import evaluate_records, load_evaluation
from rlvr.extrapolation import search_running
from rlvr.extrapolation.search import findings, scores_of
from rlvr.extrapolation.search_cache import kept_records
from rlvr.model import load_policy
from rlvr.model_paths import resolve_model_path
from tests.conftest import WORDS, sharp, tiny_model, tiny_tokenizer
from tests.unit.extrapolation_cases import load, same

LETTERS = WORDS[3:]
TEST = [{"prompt": f"{a} {b}", "answer": a} for a in LETTERS[:3] for b in LETTERS[:3]]
VALIDATION = [{"prompt": f"{a} {b}", "answer": b} for a in LETTERS[3:6] for b in LETTERS[:4]]
SPY = """
import json, pathlib
HERE = pathlib.Path(__file__).parent

def scored(completions, prompts, **_):
    with (HERE / "seen.jsonl").open("a") as file:
        file.write(json.dumps([sorted(set(prompts)), len(list(HERE.glob('out/model')))]) + "\\n")
    if (HERE / "stop_at").exists() and len(seen()) > int((HERE / "stop_at").read_text()):
        raise KeyboardInterrupt
    return [len(set(text.split())) / 5 for text in completions]

def seen():
    return (HERE / "seen.jsonl").read_text().splitlines()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, a tuned model whose every weight has moved, and a recipe that notes which prompts are judged."""
    base, tuned = sharp(tiny_model()), sharp(tiny_model())
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    for name, rows in (("test", TEST), ("validation", VALIDATION)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "spy.py").write_text(SPY)
    content: dict[str, Any] = {
        "model": str(tmp_path / "base"),
        "data": {"train": {"dataset": "test.jsonl"}},
        "rewards": {"functions": ["./spy.py:scored"], "correct_at": 0.6},
        "trainer": {"max_completion_length": 5, "use_cpu": True, "output_dir": "run"},
        "evaluation": {
            "num_samples": 4,
            "k": [1, 2],
            "sets": {"heldout": {"dataset": "test.jsonl"}},
            "validation": {"choosing": {"dataset": "validation.jsonl"}},
        },
        "report": {"to": ["none"]},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    options = ["--base", "base", "--tuned", "tuned", "--recipe", "recipe.yaml", "--out", "out"]
    return CliRunner().invoke(app, ["extrapolate", "search", *options, *arguments], env={"COLUMNS": "160"})


def seen(folder: Path) -> list[tuple[set[str], int]]:
    """The prompts of every call of the reward function, and whether the best model was written by then."""
    return [(set(prompts), written) for prompts, written in map(json.loads, (folder / "seen.jsonl").open())]


def facts(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "out" / "search.json").read_text()))


GRID = ("--alpha-grid", "2,0,1.5")


def test_search_writes_the_best_model_and_only_then_reads_the_tests(folder: Path) -> None:
    result = call(*GRID, "--metric", "pass@2")
    assert result.exit_code == 0, result.output + repr(result.exception)
    found = facts(folder)
    assert [each["alpha"] for each in found["alphas"]] == [0.0, 1.0, 1.5, 2.0]
    values = {each["alpha"]: each["mean"]["value"] for each in found["alphas"]}
    assert len(set(values.values())) > 2
    best = found["best_alpha"]
    assert values[best] == max(values.values())
    assert best != 1.0
    tests, chosen = ({row["prompt"] for row in rows} for rows in (TEST, VALIDATION))
    assert [written for prompts, written in seen(folder) if prompts & chosen] == [0] * 8  # samples and greedy, 4 alphas
    assert [written for prompts, written in seen(folder) if prompts & tests] == [1] * 4
    assert [each["alpha"] for each in found["test"]["alphas"]] == sorted([1.0, best])
    provenance = json.loads((folder / "out/model/provenance.json").read_text())
    assert provenance["settings"] == {"alpha": best}
    assert provenance["search"]["metric"] == "pass@2"
    assert provenance["search"]["means"] == {repr(alpha): value for alpha, value in values.items()}
    assert (folder / "out/search.png").stat().st_size > 5000
    for words in ("validation pass@2 by alpha", "test pass@2, by which nothing was chosen", *found["verdict"]):
        assert words in result.output, words
    assert not list((folder / "out").glob(".*"))


def test_numbers_are_those_of_the_written_models(folder: Path) -> None:
    assert call("--alpha-grid", "1.5", "--copy", "*mlp*").exit_code == 0
    pair = ("--base", "base", "--tuned", "tuned", "--copy", "*mlp*")
    loaded = load_recipe("recipe.yaml")
    for alpha in ("1", "1.5"):
        written = CliRunner().invoke(app, ["extrapolate", "weights", *pair, "--alpha", alpha, "--out", alpha])
        assert written.exit_code == 0, written.output
        records = evaluate_records(
            load_evaluation(loaded),
            load_policy(ModelConfig(path=alpha)),
            "validation",
            search_running.Console(quiet=True),
        )
        assert kept_records(folder / "out", "validation")[float(alpha)] == records
    best = facts(folder)["best_alpha"]
    assert same(load(folder / "out/model"), load(folder / f"{best:g}"))
    scored = {alpha: scores_of(each, "pass@1") for alpha, each in kept_records(folder / "out", "validation").items()}
    assert facts(folder)["alphas"][1]["difference_from_alpha_1"] == vars(findings(scored, 0).against_tuned[1.5])


def test_interrupted_search_goes_on(folder: Path) -> None:
    assert call(*GRID).exit_code == 0
    whole = facts(folder)
    (folder / "out").rename(folder / "whole")
    (folder / "seen.jsonl").unlink()
    (folder / "stop_at").write_text("5")  # within the third alpha
    result = call(*GRID)
    assert result.exit_code == 130, result.output
    assert sorted(path.name for path in (folder / "out" / "validation").iterdir()) == ["0.0.json", "1.0.json"]
    assert not (folder / "out" / "model").exists()
    (folder / "out" / ".alpha-left").mkdir()  # of a process that was killed
    (folder / "stop_at").unlink()
    result = call(*GRID)
    assert result.exit_code == 0, result.output
    assert "evaluated before: alpha = 0, 1" in result.output
    assert facts(folder) == whole
    assert same(load(folder / "out/model"), load(folder / "whole/model"))
    assert not (folder / "out" / ".alpha-left").exists()
    assert len(seen(folder)) == 8 + 4 + 2  # two calls were in vain
    # And once it has ended, nothing is evaluated anew, whatever the metric.
    assert call(*GRID).exit_code == 0
    assert len(seen(folder)) == 8 + 4 + 2
    assert call(*GRID, "--metric", "reward").exit_code == 0
    assert len([prompts for prompts, _ in seen(folder) if prompts & {row["prompt"] for row in VALIDATION}]) == 8 + 2


def test_more_alphas_may_give_another_best_model(folder: Path) -> None:
    assert call("--alpha-grid", "0").exit_code == 0
    first = facts(folder)["best_alpha"]
    result = call("--alpha-grid", "1.5,2,4")
    assert result.exit_code == 0, result.output
    second = facts(folder)
    assert [each["alpha"] for each in second["alphas"]] == [0.0, 1.0, 1.5, 2.0, 4.0]
    written = json.loads((folder / "out/model/provenance.json").read_text())["settings"]["alpha"]
    assert written == second["best_alpha"] != first
    assert f"of alpha = {first:g} gives way to alpha = {written:g}" in result.output


def test_adaptive_search(folder: Path) -> None:
    result = call("--adaptive", "--max-evaluations", "5")
    assert result.exit_code == 0, result.output
    alphas = [each["alpha"] for each in facts(folder)["alphas"]]
    assert 2 <= len(alphas) <= 5
    assert alphas[:1] == [1.0]
    assert json.loads((folder / "out/model/provenance.json").read_text())["search"]["adaptive"] is True


def test_without_test_sets_nothing_is_reported_of_them(folder: Path) -> None:
    result = call("--alpha-grid", "1.5", "evaluation.sets={}")
    assert result.exit_code == 0, result.output
    assert facts(folder)["test"] == {"alphas": [], "difference_of_best_from_alpha_1": {}}
    assert "test pass@1" not in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("evaluation.validation={}",),
            "recipe.yaml: evaluation.validation names no set, and alpha is never chosen by",
        ),
        (
            ("evaluation.validation.more.dataset=test.jsonl",),
            "9 of its 9 prompts in common with the test set evaluation",
        ),
        (("--adaptive", "--alpha-grid", "1,2"), "leave out --alpha-grid"),
        (("--max-evaluations", "4"), "--max-evaluations is how many alphas --adaptive may try"),
        (("--adaptive", "--max-evaluations", "1"), "give 2 or more"),
        (("--alpha-grid", "1"), "--alpha-grid has no alpha to compare with 1"),
        (("--alpha-grid", "1,nan"), "--alpha-grid is nan"),
        (("--alpha-grid", "1;2"), "is no number"),
        (("--metric", "pass@9"), "--metric pass@9 cannot be had from this recipe; give one of pass@1 to pass@4"),
        (("--dtype", "int8"), "--dtype int8 is not among"),
        (("--copy", "mlp"), "The pattern 'mlp' matches none"),
        (("--tuned", "nowhere"), "nowhere does not exist"),
        (("--recipe", "nowhere.yaml"), "nowhere.yaml"),
        (("evaluation.num_sample=3",), "evaluation.num_sample: unknown key"),
    ],
)
def test_refused_in_one_sentence(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert not (folder / "out").exists()


def test_weights_too_large_to_be_sampled_from_are_named(folder: Path) -> None:
    result = call("--alpha-grid", "1e25")
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert "At alpha = 1e+25 the logits of the model are NaN or infinite; leave such alphas out" in result.stderr
    assert not (folder / "out" / "model").exists()


def test_folder_of_something_else_is_refused(folder: Path) -> None:
    assert call("--alpha-grid", "1.5").exit_code == 0
    before = {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    for change, words in (
        (("evaluation.seed=1",), "a search with other settings in the recipe"),
        (("--copy", "*mlp*"), "a search with other rules"),
        (("--base", "tuned"), "a search with other checkpoints"),
        (("--dtype", "bfloat16"), "a search with other dtype"),
        (("--out", "base"), "base is not empty and holds no search"),
        (("--out", "recipe.yaml"), "recipe.yaml could not be written"),
    ):
        result = call("--alpha-grid", "1.5", *change)
        assert result.exit_code == 2, change
        assert words in result.stderr
    assert {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()} == before


def test_starter_and_a_perturbed_copy(tmp_path: Path) -> None:
    starter = resolve_model_path("builtin://starter")
    model = AutoModelForCausalLM.from_pretrained(starter)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(starter).save_pretrained(tmp_path / "tuned")
    rows = "reasoning_gym://chain_sum?min_terms=3&max_terms=3&max_digits=1&size=8&seed="
    content = {
        "model": "builtin://starter",
        "data": {"train": {"dataset": f"{rows}1"}, "template": "solve {metadata[expression]} ="},
        "rewards": {"functions": ["reasoning_gym"], "workers": 0},
        "trainer": {"max_completion_length": 32, "use_cpu": True, "output_dir": str(tmp_path / "run")},
        "evaluation": {
            "num_samples": 2,
            "k": [1],
            "sets": {"heldout": {"dataset": f"{rows}2"}},
            "validation": {"choosing": {"dataset": f"{rows}3"}},
        },
        "report": {"to": ["none"]},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    pair = ["--base", starter, "--tuned", str(tmp_path / "tuned"), "--recipe", str(tmp_path / "recipe.yaml")]
    options = [*pair, "--alpha-grid", "0,1.5,30", "--no-default-copies", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["extrapolate", "search", *options], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output + repr(result.exception)
    found = json.loads((tmp_path / "out" / "search.json").read_text())
    values = {each["alpha"]: each["mean"]["value"] for each in found["alphas"]}
    assert values[30.0] == 0.0  # noise
    assert found["over_extrapolated_from"] is not None
    assert found["best_alpha"] != 30.0
    assert values[found["best_alpha"]] > 0.2
