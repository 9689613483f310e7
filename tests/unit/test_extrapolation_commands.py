"""`rlvr extrapolate`: what its commands write and show, and what they refuse in one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from rlvr.cli import app
from rlvr.extrapolation.operations import average, extrapolate, line_fit, timber
from rlvr.model_paths import resolve_model_path
from tests.unit.extrapolation_cases import COUNTER, EMBEDDING, MLP, load, same, save, tensors_of


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three checkpoints of a run and one whose step is not known, in the folder where the commands are called."""
    for number, step in enumerate((100, 200, 400)):
        save(tmp_path / f"checkpoint-{step}", tensors_of(number), step)
    save(tmp_path / "base", tensors_of(7))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["extrapolate", *arguments], env={"COLUMNS": "160"})


PAIR = ("--base", "checkpoint-100", "--tuned", "checkpoint-200")
ALL = ("--no-default-copies",)


@pytest.mark.parametrize("how_far", [("--alpha", "1.5"), ("--at-step", "250")])
def test_weights(run_dir: Path, how_far: tuple[str, str]) -> None:
    result = call("weights", *PAIR, *how_far, "--out", "out/new")
    assert result.exit_code == 0, result.output
    base, tuned, out = load(run_dir / "checkpoint-100"), load(run_dir / "checkpoint-200"), load(run_dir / "out/new")
    assert torch.equal(out[MLP], extrapolate(base[MLP], tuned[MLP], 1.5))
    assert torch.equal(out[EMBEDDING], tuned[EMBEDDING])
    facts = json.loads((run_dir / "out/new/provenance.json").read_text())
    assert facts["operation"] == "extrapolate"
    assert facts["settings"] == {"alpha": 1.5}
    assert [each["step"] for each in facts["sources"]] == [100, 200]
    for words in ("rest", "alpha 1.5", "embeddings", "copied", "written", "1 file"):
        assert words in result.output, words


def test_model_that_the_run_began_from_is_of_step_0(run_dir: Path) -> None:
    (run_dir / "recipe.yaml").write_text(f"model: {{path: {run_dir / 'base'}}}\n")
    result = call("weights", "--base", "base", "--tuned", "checkpoint-200", "--at-step", "300", "--out", "out")
    assert result.exit_code == 0, result.output
    base, tuned, out = (load(run_dir / name) for name in ("base", "checkpoint-200", "out"))
    assert torch.equal(out[MLP], extrapolate(base[MLP], tuned[MLP], 1.5))
    result = call("weights", "--fit", "checkpoint-100", "checkpoint-200", "base", "--at-step", "300", "--out", "line")
    assert result.exit_code == 0, result.output
    assert json.loads((run_dir / "line/provenance.json").read_text())["settings"]["steps"] == [0, 100, 200]


@pytest.mark.parametrize("recipe", ["model: {path: somebody/else}", "model: base", "- {", "model: {path: ./gone}"])
def test_recipe_that_does_not_name_the_base_says_no_step(run_dir: Path, recipe: str) -> None:
    (run_dir / "recipe.yaml").write_text(recipe)
    result = call("weights", "--base", "base", "--tuned", "checkpoint-200", "--at-step", "300", "--out", "out")
    assert result.exit_code == 2
    assert "no recipe.yaml beside the other checkpoints says that their run began from it" in result.stderr


def test_built_in_model_by_its_name(run_dir: Path) -> None:
    starter = "builtin://starter"
    result = call("weights", "--base", starter, "--tuned", starter, "--alpha", "3", *ALL, "--out", "out")
    assert result.exit_code == 0, result.output
    assert same(load(run_dir / "out"), load(Path(resolve_model_path(starter))))


@pytest.mark.parametrize(("alpha", "kept"), [("0", "checkpoint-100"), ("1", "checkpoint-200")])
def test_ends(run_dir: Path, alpha: str, kept: str) -> None:
    assert call("weights", *PAIR, *ALL, "--alpha", alpha, "--out", "out").exit_code == 0
    integers = {COUNTER: load(run_dir / "checkpoint-200")[COUNTER]}
    assert same(load(run_dir / "out"), load(run_dir / kept) | integers)


def test_rules_by_options(run_dir: Path) -> None:
    rules = ("--alpha-for", "*embed*=2", "--copy", "*mlp*", "--alpha-for", "*.scale=-1e0")
    result = call("weights", *PAIR, *rules, "--alpha", "1.5", "--dtype", "bfloat16", "--out", "out")
    assert result.exit_code == 0, result.output
    base, tuned, out = load(run_dir / "checkpoint-100"), load(run_dir / "checkpoint-200"), load(run_dir / "out")
    assert torch.equal(out[EMBEDDING], extrapolate(base[EMBEDDING], tuned[EMBEDDING], 2.0).bfloat16())
    assert torch.equal(out["model.scale"], extrapolate(base["model.scale"], tuned["model.scale"], -1.0).bfloat16())
    assert torch.equal(out[MLP], tuned[MLP].bfloat16())
    rules_kept = json.loads((run_dir / "out/provenance.json").read_text())["rules"]
    assert rules_kept == {
        "alphas": {"*embed*": 2.0, "*.scale": -1.0},
        "copies": ["*mlp*"],
        "default_copies": True,
    }


def test_several_files(run_dir: Path) -> None:
    result = call("weights", *PAIR, "--alpha", "2", "--max-shard-gb", "3e-7", "--out", "out")
    assert result.exit_code == 0, result.output
    assert len(list((run_dir / "out").glob("model-*-of-*.safetensors"))) > 1


def test_fit_goes_by_steps_not_by_order(run_dir: Path) -> None:
    folders = ("checkpoint-400", "checkpoint-100", "checkpoint-200")
    result = call("weights", "--fit", *folders, "--at-step", "500", "--out", "out")
    assert result.exit_code == 0, result.output
    models = [load(run_dir / f"checkpoint-{step}") for step in (100, 200, 400)]
    expected, fit = line_fit([model[MLP] for model in models], [100, 200, 400], at=500)
    out = load(run_dir / "out")
    assert torch.equal(out[MLP], expected.float())
    assert torch.equal(out[EMBEDDING], models[2][EMBEDDING])
    facts = json.loads((run_dir / "out/provenance.json").read_text())
    assert facts["r2"][MLP] == pytest.approx(fit)
    assert "median R^2" in result.output
    result = call("weights", "--fit", *folders, "--at-step", "500", "--min-r2", "0.999", "--out", "gated")
    assert "R^2 below the gate" in result.output
    assert torch.equal(load(run_dir / "gated")[MLP], models[2][MLP])


def test_average(run_dir: Path) -> None:
    folders = ("checkpoint-100", "checkpoint-200", "base")
    assert call("average", *folders, "--out", "equal").exit_code == 0
    result = call("average", *folders, "--weights", "0.5,0.25,0.25", "--out", "weighted")
    assert result.exit_code == 0, result.output
    models = [load(run_dir / folder) for folder in folders]
    for out, weights in (("equal", [1 / 3] * 3), ("weighted", [0.5, 0.25, 0.25])):
        written = load(run_dir / out)
        for name in (MLP, EMBEDDING):
            assert torch.equal(written[name], average([model[name] for model in models], weights))
        assert torch.equal(written[COUNTER], models[2][COUNTER])


def test_timber(run_dir: Path) -> None:
    pair = ("--base", "base", "--tuned", "checkpoint-200")
    result = call("timber", *pair, "--keep", "0.2", "--out", "out")
    assert result.exit_code == 0, result.output
    expected = timber(load(run_dir / "base")[MLP], load(run_dir / "checkpoint-200")[MLP], 0.2)
    assert torch.equal(load(run_dir / "out")[MLP], expected)
    assert "keep 0.2" in result.output


FIT = ("--fit", "checkpoint-100", "checkpoint-200", "checkpoint-400")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("weights", *PAIR), "give either --alpha or --at-step"),
        (("weights", *PAIR, "--alpha", "2", "--at-step", "300"), "give either --alpha or --at-step"),
        (("weights", *PAIR, "--alpha", "nan"), "--alpha is nan; give a finite number"),
        (("weights", *PAIR, "--alpha", "inf"), "--alpha is inf; give a finite number"),
        (("weights", *PAIR, "--at-step", "inf"), "--at-step is inf; give a finite number"),
        (("weights", *PAIR, "--alpha", "2", "--alpha-for", "*mlp*=nan"), "--alpha-for is nan"),
        (("weights", *PAIR, "--alpha", "2", "--alpha-for", "*mlp*"), "is no pattern with an alpha"),
        (("weights", *PAIR, "--alpha", "2", "--alpha-for", "*mlp*=x"), "'x' is no number"),
        (("weights", *PAIR, "--alpha", "2", "--alpha-for", "mlp=2"), "The pattern 'mlp' matches none of the 6 tensors"),
        (("weights", *PAIR, "--alpha", "2", "--copy", "mlp"), "The pattern 'mlp' matches none of the 6 tensors"),
        (("weights", *PAIR, "--alpha", "2", "--dtype", "int8"), "--dtype int8 is not among float32, bfloat16, float16"),
        (("weights", *PAIR, "--alpha", "2", "--max-shard-gb", "0"), "--max-shard-gb is 0"),
        (("weights", *PAIR, "--alpha", "2", "--min-r2", "0.5"), "leave it out without --fit"),
        (("weights", "--base", "base", "--alpha", "2"), "Which checkpoints is not clear"),
        (("weights", *PAIR, "base", "--alpha", "2"), "Which checkpoints is not clear"),
        (("weights", "--base", "base", "--tuned", "checkpoint-100", "--at-step", "300"), "step of base is not known"),
        (("weights", *PAIR[:3], "checkpoint-100", "--at-step", "300"), "both of step 100"),
        (("weights", *FIT), "give --at-step N"),
        (("weights", *FIT, "--at-step", "500", "--alpha", "2"), "none of --base, --tuned, --alpha"),
        (("weights", *FIT, "--at-step", "500", "--min-r2", "1.5"), "1 at most"),
        (("weights", *FIT[:3], "--at-step", "500"), "--fit needs 3 checkpoints or more, not 2"),
        (("weights", *FIT, "base", "--at-step", "500"), "The step of base is not known"),
        (("weights", *FIT, "checkpoint-100", "--at-step", "500"), "3 checkpoints of different steps"),
        (("average", "base", "checkpoint-100", "--weights", "0.5"), "2 checkpoints have 1 weights"),
        (("average", "base", "checkpoint-100", "--weights", "0.5,0.6"), "sum to 1.1; make them sum to 1"),
        (("average", "base", "checkpoint-100", "--weights", "0.5,nan"), "--weights is nan"),
        (("average", "base", "checkpoint-100", "--weights", "0.5;0.5"), "is no number"),
        (("timber", "--base", "base", "--tuned", "checkpoint-100", "--keep", "1.5"), "give a share from 0 to 1"),
        (("timber", "--base", "base", "--tuned", "checkpoint-100", "--keep", "nan"), "give a share from 0 to 1"),
    ],
)
def test_refused_in_one_sentence(run_dir: Path, arguments: tuple[str, ...], words: str) -> None:
    result = call(*arguments, "--out", "out")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert "out" not in {path.name.strip(".") for path in run_dir.iterdir()}


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom rlvr.cli import app\ntry:\n    app(['extrapolate', 'weights', '--help'])\n"
        "finally:\n    assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys(), 'heavy'\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "heavy" not in shown.stderr
    assert "--alpha-for" in shown.stdout
