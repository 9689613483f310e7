"""`rlvr linearity`: what it finds in run directories of known motion, what it writes, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlvr.errors import ExtrapolationError
from rlvr.extrapolation import linearity_measure, linearity_report
from rlvr.extrapolation.checkpoints import open_checkpoint
from rlvr.extrapolation.linearity_measure import (
    RunCheckpoints,
    SampleRule,
    WeightTraces,
    layer_of,
    measure_weights,
    module_of,
    sampled_places,
)
from tests.conftest import tiny_model
from tests.reference import linearity as reference
from tests.unit.extrapolation_cases import COUNTER, MLP, save, tensors_of
from tests.unit.linearity_cases import STEPS, call, direction, make_run, on_a_line, report_of

PICTURES = ("r2_histogram.png", "r2_by_module_and_layer.png", "cosines.png", "trajectories.png")
NORM = "model.layers.1.post_attention_layernorm.weight"
RULE = SampleRule(share=0.001, least=50, min_range=1e-4, min_distinct=4, seed=0)


@pytest.fixture(scope="module")
def line_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that moved on a line from its base model on."""
    return make_run(tmp_path_factory.mktemp("line"))


def traces_of(run: Path, rule: SampleRule = RULE) -> WeightTraces:
    paths = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    steps = tuple(int(path.name.rpartition("-")[2]) for path in paths)
    views = tuple(open_checkpoint(path) for path in paths)
    return measure_weights(run, RunCheckpoints(steps, views, None, {}), rule, lambda values: None)


# ---- what it finds ---------------------------------------------------------------------------------------------------


def test_a_run_on_a_line(line_run: Path) -> None:
    report = report_of(line_run, "--no-logprobs")
    assert report["steps"] == [0, *STEPS]
    assert report["checkpoints"][0].endswith("base")
    assert report["checkpoints"][-1].endswith("checkpoint-500")  # of step 500 there is the policy as well
    weights = report["weights"]
    assert weights["all"]["kept_fraction"] > 0.99
    assert weights["all"]["q25_r2"] > 0.999
    assert weights["all"]["share_above_0.7"] == 1.0
    assert sum(weights["histogram"]) == weights["all"]["kept"] == weights["histogram"][-1]
    assert [each for row in report["windows"]["cosines"] for each in row] == pytest.approx([1.0] * 25, abs=1e-5)
    assert report["windows"]["steps"] == [[0, 100], [100, 200], [200, 300], [300, 400], [400, 500]]
    moves = [direction(name, each).double() for name, each in tiny_model().named_parameters()]
    length = 0.2 * sum(float(each.square().sum()) for each in moves) ** 0.5
    assert report["windows"]["lengths"] == pytest.approx([length] * 5, rel=1e-5)
    assert report["logprobs"] is None
    assert report["warnings"] == []


def test_groups(line_run: Path) -> None:
    weights = report_of(line_run, "--no-logprobs", "--share", "1")["weights"]
    modules = ["embed", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm"]
    assert list(weights["by_module"]) == modules  # the head is tied
    assert list(weights["by_layer"]) == ["0", "1", "none"]
    sizes = {name: parameter.numel() for name, parameter in tiny_model().named_parameters()}
    for groups in (weights["by_module"], weights["by_layer"]):
        assert sum(each["sampled"] for each in groups.values()) == sum(sizes.values())
    assert weights["by_layer"]["none"]["sampled"] == sizes["model.embed_tokens.weight"] + sizes["model.norm.weight"]
    assert weights["by_module"]["q_proj"]["sampled"] == 2 * sizes["model.layers.0.self_attn.q_proj.weight"]
    assert {each["name"]: each["sampled"] for each in weights["tensors"]} == sizes
    assert {each["name"] for each in weights["tensors"] if each["effective_rank"] is None} == {
        name for name in sizes if "norm" in name
    }
    assert len(weights["by_module_and_layer"]) == 2 * 8 + 2
    assert 10 < weights["by_module"]["q_proj"]["effective_rank"] <= 16
    assert weights["by_module"]["q_proj"]["effective_rank_share"] > 0.6


def test_r_squared_of_a_curve_is_the_reference(tmp_path: Path) -> None:
    """All weights move as the square of the step."""
    run = make_run(tmp_path, lambda step, name, weight: weight + (step / 500) ** 2 * direction(name, weight))
    report = report_of(run, "--no-logprobs")
    expected = reference.r_squared([float(step) ** 2 for step in (0, *STEPS)], [0, *STEPS])
    for each in report["weights"]["tensors"]:
        assert each["median_r2"] == pytest.approx(expected, abs=1e-4), each["name"]
    assert 0.9 < expected < 0.95


def test_what_is_kept_by_threshold_and_number_of_values(tmp_path: Path) -> None:
    """q_proj stands still, k_proj moves by too little, v_proj jumps once; o_proj goes on a line, up_proj at random."""

    def move(step: int, name: str, weight: Tensor) -> Tensor:
        drawn = direction(name, weight)
        random = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        changes = {
            "q_proj": 0.0 * drawn,
            "k_proj": 1e-4 * step / 500 * drawn.clamp(-0.9, 0.9),
            "v_proj": drawn * (step >= 300),
            "o_proj": drawn.sign() * step / 500,
            "up_proj": random,
        }
        return weight + changes.get(module_of(name), 0.0 * drawn)

    run = make_run(tmp_path, move)
    weights = report_of(run, "--no-logprobs")["weights"]
    kept = {name: each["kept_fraction"] for name, each in weights["by_module"].items() if each["kept_fraction"]}
    assert kept == {"o_proj": 1.0, "up_proj": 1.0}
    assert weights["by_module"]["o_proj"]["median_r2"] > 0.999
    assert weights["by_module"]["up_proj"]["median_r2"] < 0.4
    assert weights["by_module"]["q_proj"]["median_r2"] is None
    assert weights["by_module"]["q_proj"]["effective_rank"] is None
    loose = report_of(run, "--no-logprobs", "--min-range", "1e-9", "--min-distinct", "2")["weights"]["by_module"]
    assert {name for name, each in loose.items() if each["kept_fraction"]} == {
        *("k_proj", "v_proj", "o_proj", "up_proj")
    }
    assert loose["v_proj"]["kept_fraction"] == 1.0


def test_windows_that_turn_back(tmp_path: Path) -> None:
    """There and back again, and then nowhere."""
    places = {0: 0.0, 100: 1.0, 200: 0.0, 300: 0.0, 400: 1.0, 500: 1.0}
    run = make_run(tmp_path, lambda step, name, weight: weight + places[step] * direction(name, weight))
    cosines = report_of(run, "--no-logprobs")["windows"]["cosines"]
    rounded = [[None if each is None else round(each, 4) for each in row] for row in cosines]
    none = [None] * 5
    assert rounded == [[1, -1, None, 1, None], [-1, 1, None, -1, None], none, [1, -1, None, 1, None], none]


def test_effective_rank_of_a_move(tmp_path: Path) -> None:
    """In three directions up to step 400, in another one after it: what counts is the whole way."""

    def move(step: int, name: str, weight: Tensor) -> Tensor:
        if weight.dim() != 2:
            return weight
        generator = torch.Generator().manual_seed(1)
        left, right = (torch.randn(size, 4, generator=generator, dtype=torch.float64) for size in weight.shape)
        lengths = torch.tensor([min(step, 400) / 400] * 3 + [max(step - 400, 0) / 100])
        return (weight + left * lengths @ right.T).float()

    tensors = report_of(make_run(tmp_path, move), "--no-logprobs")["weights"]["tensors"]
    matrices = {each["effective_rank"] for each in tensors if len(each["shape"]) == 2}
    assert 4 in matrices <= {3, 4, 5}  # 5 where the rounding of float32 counts
    assert {each["effective_rank"] for each in tensors if len(each["shape"]) == 1} == {None}


# ---- how it reads ----------------------------------------------------------------------------------------------------


def test_blocks_change_nothing(line_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = traces_of(line_run)
    monkeypatch.setattr(linearity_measure, "VALUES_AT_ONCE", 5 * 70)
    parts = traces_of(line_run)
    assert torch.allclose(parts.products, whole.products, rtol=1e-12)
    for one, other in zip(parts.tensors, whole.tensors, strict=True):
        assert torch.equal(one.r2, other.r2)
        assert (one.name, one.rank, one.looked_at) == (other.name, other.rank, other.looked_at)
        assert one.examples == other.examples


def test_sampled_weights_are_those_of_the_checkpoints(line_run: Path) -> None:
    traces = traces_of(line_run)
    stored = [load_file(line_run / f"checkpoint-{step}/model.safetensors") for step in STEPS]
    for trace in traces.tensors:
        columns = torch.stack([each[trace.name].flatten() for each in stored])
        known = {tuple(column) for column in columns.double().T.tolist()}
        assert trace.examples
        for example in trace.examples:
            assert example.values in known
            assert example.r2 == pytest.approx(reference.r_squared(list(example.values), list(STEPS)), rel=1e-9)


def test_which_scalars_are_sampled() -> None:
    places = sampled_places("a", 100_000, RULE)
    assert len(places) == 100
    assert places.unique().tolist() == places.tolist()
    assert 0 <= int(places[0]) < 10_000
    assert 90_000 < int(places[-1]) < 100_000
    assert torch.equal(sampled_places("a", 100_000, RULE), places)
    assert not torch.equal(sampled_places("b", 100_000, RULE), places)
    assert len(sampled_places("a", 1_000, RULE)) == 50
    assert sampled_places("a", 7, RULE).tolist() == list(range(7))
    everything = SampleRule(share=1.0, least=50, min_range=0.0, min_distinct=2, seed=0)
    assert sampled_places("a", 1_000, everything).tolist() == list(range(1_000))
    other = SampleRule(share=0.001, least=50, min_range=0.0, min_distinct=2, seed=1)
    assert not torch.equal(sampled_places("a", 100_000, other), places)


@pytest.mark.parametrize(
    ("name", "module", "layer"),
    [
        ("model.layers.11.self_attn.q_proj.weight", "q_proj", 11),
        ("model.layers.0.self_attn.q_proj.bias", "bias", 0),
        ("model.layers.0.self_attn.q_norm.weight", "norm", 0),
        ("model.norm.weight", "norm", None),
        ("model.embed_tokens.weight", "embed", None),
        ("lm_head.weight", "head", None),
        ("model.layers.3.mlp.experts.17.down_proj.weight", "down_proj", 3),
        ("model.layers.3.mlp.experts.gate_up_proj", "gate_up_proj", 3),
        ("transformer.h.2.attn.c_attn.weight", "c_attn", 2),
        ("layers.5.mlp.up_proj.weight", "up_proj", 5),
        ("scale", "scale", None),
    ],
)
def test_names(name: str, module: str, layer: int | None) -> None:
    assert module_of(name) == module
    assert layer_of(name) == layer


def test_integers_are_not_looked_at(tmp_path: Path) -> None:
    for number, step in enumerate((10, 20, 30, 40)):
        save(tmp_path / f"checkpoint-{step}", tensors_of(number), step)
    report = report_of(tmp_path, "--no-logprobs", "--out", tmp_path / "linearity")
    assert report["weights"]["not_floating_point"] == [COUNTER]
    assert COUNTER not in {each["name"] for each in report["weights"]["tensors"]}
    assert {each["name"]: each["shape"] for each in report["weights"]["tensors"]}["model.scale"] == []


# ---- what it writes --------------------------------------------------------------------------------------------------


def test_files_and_tables(line_run: Path, tmp_path: Path) -> None:
    result = call(line_run, "--no-logprobs", "--out", tmp_path / "deep/out")
    assert result.exit_code == 0, result.output
    for words in ("R^2 with the step", "median", "kept", "q_proj", "layer 1", "eff. rank", "linearity.json"):
        assert words in result.output, words
    assert "tokens" not in result.output
    lines = result.output.splitlines()
    assert max(len(line) for line in lines if not line.startswith("written")) <= 80
    written = {path.name for path in (tmp_path / "deep/out").iterdir()}
    assert written == {"linearity.json", "linearity.md", *PICTURES}
    table = (tmp_path / "deep/out/linearity.md").read_text()
    assert "| q_proj |" in table
    assert "| 0 to 100 |" in table
    for name in PICTURES:
        picture = matplotlib.image.imread(tmp_path / "deep/out" / name)
        assert min(picture.shape[:2]) > 200
        assert picture[..., :3].std() > 0.02  # not one colour


def test_pictures_where_nothing_was_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path, lambda step, name, weight: weight, policy=False)
    report = report_of(run, "--prompts", "2", "--samples", "1")
    assert report["weights"]["all"]["kept"] == report["logprobs"]["all"]["kept"] == 0
    assert report["weights"]["all"]["median_r2"] is None
    assert report["windows"]["cosines"] == [[None] * 5] * 5
    assert all((run / "linearity" / name).stat().st_size > 5_000 for name in PICTURES)


def test_json_has_no_values_that_json_lacks(line_run: Path) -> None:
    report_of(line_run, "--no-logprobs")

    def refuse(text: str) -> None:
        raise AssertionError(text)

    json.loads((line_run / "linearity/linearity.json").read_text(), parse_constant=refuse)


def test_rows_show_the_kept_share_beside_every_figure(line_run: Path) -> None:
    report = report_of(line_run, "--no-logprobs")
    assert linearity_report.HEADINGS[:3] == ("sampled", "kept", "median")
    for rows in linearity_report.rows_of(report).values():
        assert all(cells[2].endswith("%") for cells in rows)


# ---- what it warns of and refuses ------------------------------------------------------------------------------------


def refused(run: Path, *arguments: str | Path) -> str:
    result = call(run, *arguments)
    assert result.exit_code == 2, result.output
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert not (run / "linearity/linearity.json").exists()
    return error


def test_few_checkpoints(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=STEPS[:1])
    error = refused(run, "--no-logprobs")
    assert "2 checkpoints that can be read" in error
    assert "smaller trainer.save_steps" in error
    shutil.copytree(run / "checkpoint-100", run / "checkpoint-200")
    report = report_of(run, "--no-logprobs", "--min-distinct", "2")
    assert len(report["warnings"]) == 1
    assert "3 checkpoints say little" in report["warnings"][0]
    result = call(run, "--no-logprobs")
    assert "warning: 3 checkpoints say little" in result.output
    assert "no weight can take 4 values at 3 checkpoints" in result.output


def test_no_checkpoints(tmp_path: Path) -> None:
    assert "has no checkpoint-N" in refused(tmp_path, "--no-logprobs")
    assert "is no folder" in refused(tmp_path / "nowhere", "--no-logprobs")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    run = make_run(tmp_path)
    file = run / "checkpoint-300/model.safetensors"
    weights = load_file(file)
    weights[NORM][3] = value
    save_file(weights, file, {"format": "pt"})
    error = refused(run, "--no-logprobs")
    assert NORM in error
    assert "checkpoint-300" in error
    assert "move that checkpoint out of" in error


def test_a_checkpoint_that_is_not_complete_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    file = run / "checkpoint-500/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    report = report_of(run, "--no-logprobs")
    assert list(report["left_out"]) == [str(run / "checkpoint-500")]
    assert report["checkpoints"][-1] == str(run / "policy")
    assert report["steps"] == [0, *STEPS]
    assert "checkpoint-500 is left out" in report["warnings"][0]


def test_checkpoints_of_another_model(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    other = tiny_model(hidden_size=32)
    other.save_pretrained(run / "checkpoint-300")
    assert "checkpoints of the same model" in refused(run, "--no-logprobs")


@pytest.mark.parametrize("share", ["0", "-1", "1.5", "nan"])
def test_a_share_that_is_none(line_run: Path, share: str, tmp_path: Path) -> None:
    assert "--share is" in refused(tmp_path, "--share", share)


def test_what_sampling_needs(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    shutil.move(tmp_path / "base", tmp_path / "moved")
    error = refused(run)
    assert "base" in error
    assert "give --no-logprobs" in error
    report = report_of(run, "--no-logprobs")
    assert report["steps"] == list(STEPS)
    assert "base" in report["warnings"][0]
    shutil.rmtree(run / "linearity")
    (run / "recipe.yaml").unlink()
    error = refused(run)
    assert "has no recipe.yaml" in error
    assert "give --no-logprobs" in error


def test_an_output_that_cannot_be_written(line_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = call(line_run, "--no-logprobs", "--out", tmp_path / "file")
    assert result.exit_code == 2, result.output
    assert "could not be written" in result.stderr


def test_the_error_for_unlike_checkpoints_is_ours(tmp_path: Path) -> None:
    for number, step in enumerate((10, 20, 30)):
        tensors = tensors_of(number)
        if step == 20:
            del tensors[MLP]
        save(tmp_path / f"checkpoint-{step}", tensors, step)
    views = tuple(open_checkpoint(tmp_path / f"checkpoint-{step}") for step in (10, 20, 30))
    with pytest.raises(ExtrapolationError, match=MLP):
        measure_weights(tmp_path, RunCheckpoints((10, 20, 30), views, None, {}), RULE, lambda values: None)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom rlvr.cli import app\ntry:\n    app(['linearity', '--help'])\n"
        "finally:\n    assert not {'torch', 'transformers', 'numpy', 'matplotlib'} & sys.modules.keys(), 'heavy'\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "heavy" not in shown.stderr
    assert "--no-logprobs" in shown.stdout


def test_lines_stay_lines(line_run: Path) -> None:
    """The cases move as they say."""
    weight = torch.zeros(2, 2)
    assert torch.allclose(on_a_line(400, "a", weight), 4 * on_a_line(100, "a", weight))
