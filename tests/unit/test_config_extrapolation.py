"""The extrapolation section: defaults, and the one line that every mistake gets."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlvr.cli import app
from rlvr.config import resolved_yaml
from rlvr.config.extrapolation import ExtrapolationConfig
from tests.unit.config_text import MINIMAL, QUICKSTART, error_of, load

SECTION = "extrapolation={train_steps: 20, skip_steps: 10}"
UNJUDGED = "extrapolation={train_steps: 20, skip_steps: 10, validate: false}"
VALIDATION = "evaluation.validation.dev.dataset=reasoning_gym://chain_sum?seed=3&size=20"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_the_section_there_are_no_jumps() -> None:
    assert load(QUICKSTART).recipe.extrapolation is None
    assert load(resolved_yaml(load(QUICKSTART))).recipe.extrapolation is None


def test_jumps_are_judged_and_moments_kept_unless_the_recipe_says_otherwise() -> None:
    config = load(QUICKSTART, SECTION, VALIDATION).recipe.extrapolation
    assert config == ExtrapolationConfig(train_steps=20, skip_steps=10)
    assert config is not None
    assert (config.mode, config.validate, config.moments) == ("periodic", True, "keep")
    assert (config.copies, config.default_copies) == ([], True)
    assert config.beta == 1.5


def test_the_resolved_recipe_loads_to_the_same_section() -> None:
    loaded = load(QUICKSTART, UNJUDGED, "extrapolation.moments=rescale", "extrapolation.copies=['*.mlp.*']")
    assert "validate: false" in resolved_yaml(loaded)
    assert load(resolved_yaml(loaded)).recipe.extrapolation == loaded.recipe.extrapolation


def test_explain_names_every_key() -> None:
    result = CliRunner().invoke(app, ["recipes", "explain", "extrapolation"])
    assert result.exit_code == 0
    assert "2601.04537" in result.output
    keys = {line.split()[0] for line in result.output.splitlines() if line.startswith("  ")}
    assert keys == set(ExtrapolationConfig.model_fields)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([SECTION], "validate: true needs held-out prompts by which jumps are judged; give evaluation.validation some"),
        (["extrapolation={train_steps: 20}"], "skip_steps: required key is missing"),
        ([UNJUDGED, "extrapolation.valdate=true"], "valdate: unknown key; did you mean 'validate'?"),
        ([UNJUDGED, "extrapolation.validate=0"], "validate: 0 is not valid; it must be true or false"),
        ([UNJUDGED, "extrapolation.train_steps=0"], "train_steps: 0 is not valid; it must be at least 1"),
        ([UNJUDGED, "extrapolation.skip_steps=-1"], "skip_steps: -1 is not valid; it must be at least 0"),
        ([UNJUDGED, "extrapolation.mode=linear"], "mode: 'linear' is not valid; it must be 'periodic'"),
        ([UNJUDGED, "extrapolation.moments=zero"], "moments: 'zero' is not valid; it must be 'keep', 'reset' or"),
        ([UNJUDGED, "trainer.max_steps=19"], "train_steps: 20 steps end no phase of a run with trainer.max_steps=19"),
        ([UNJUDGED, "trainer.num_iterations=3"], "train_steps: 20 is no multiple of the 3 optimiser steps that"),
        ([UNJUDGED, "trainer.steps_per_generation=12"], "train_steps: 20 is no multiple of the 3 optimiser steps that"),
        (
            [UNJUDGED, "trainer.generation_batch_size=768"],
            "train_steps: 20 is no multiple of the 3 optimiser steps that",
        ),
        (
            [UNJUDGED, "extrapolation.moments=reset", "trainer.optim=sgd"],
            "moments: 'reset' is for Adam, and trainer.optim is 'sgd'; set moments to 'keep', or",
        ),
    ],
)
def test_mistakes_are_named_with_a_remedy(overrides: list[str], message: str) -> None:
    error = error_of(QUICKSTART, *overrides)
    assert error.startswith("r.yaml: extrapolation.")
    assert message in error


def test_sizes_that_fit_are_accepted() -> None:
    load(QUICKSTART, UNJUDGED, "trainer.num_iterations=4")
    load(QUICKSTART, UNJUDGED, "trainer.steps_per_generation=8")
    load(QUICKSTART, UNJUDGED, "trainer.generation_batch_size=512")
    load(QUICKSTART, UNJUDGED, "trainer.max_steps=20")
    load(QUICKSTART, UNJUDGED, "trainer.optim=sgd")
    load(MINIMAL, UNJUDGED, "extrapolation.skip_steps=0")


def test_processes_count_in_the_size_of_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """384 rows are 6 micro-batches of one process, which are no whole number of steps, and 3 of each of two."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    sizes = ["trainer.generation_batch_size=384", "trainer.gradient_accumulation_steps=1"]
    assert "no multiple of the 3 optimiser steps" in error_of(QUICKSTART, UNJUDGED, *sizes)
    load(QUICKSTART, UNJUDGED, *sizes, "extrapolation.train_steps=21")
