"""The regularizers section: merging with a preset, schedules, and the one line that every mistake gets."""

from pathlib import Path

import pytest

from rlvr.config import resolved_yaml
from rlvr.config.regularizers import RegularizersConfig
from rlvr.objectives.regularizers import REGULARIZERS, build_regularizers
from rlvr.schedule import value_at
from tests.unit.config_text import QUICKSTART, error_of, load

COEF = "it must be a number of at least 0, or a mapping {step: number}"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_regularizers_of_preset_and_recipe_are_merged() -> None:
    overrides = ("algorithm.preset=siren", "regularizers.siren.coef={0: 0.1, 10: 0}", "regularizers.lp_reg={}")
    loaded = load(QUICKSTART, *overrides)
    assert loaded.regularizers.siren is not None
    assert loaded.regularizers.siren.coef == {0: 0.1, 10: 0.0}
    assert loaded.regularizers.siren.nucleus_p == 0.8
    assert loaded.regularizers.lp_reg is not None
    assert loaded.regularizers.entropy is None
    assert load(resolved_yaml(loaded)).regularizers == loaded.regularizers


def test_null_takes_a_regularizer_of_the_preset_away() -> None:
    loaded = load(QUICKSTART, "algorithm.preset=lp_reg", "regularizers.lp_reg=null")
    assert loaded.regularizers == RegularizersConfig()
    assert load(resolved_yaml(loaded)).regularizers == RegularizersConfig()
    assert load(QUICKSTART, "algorithm.preset=lp_reg").regularizers.lp_reg is not None


def test_every_key_of_the_section_is_built() -> None:
    assert list(RegularizersConfig.model_fields) == list(REGULARIZERS)
    built = build_regularizers(RegularizersConfig.model_validate({name: {} for name in REGULARIZERS}))
    assert [each.name for each in built] == list(REGULARIZERS)
    assert build_regularizers(RegularizersConfig()) == []


def test_schedules_are_lines_between_knots() -> None:
    schedule = {10: 0.0, 20: 1.0, 40: 0.5}
    found = [value_at(schedule, step) for step in (0, 10, 15, 20, 30, 40, 99)]
    assert found == pytest.approx([0.0, 0.0, 0.5, 1.0, 0.75, 0.5, 0.5])
    assert value_at(0.3, 7) == 0.3


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{lpreg: {}}", "lpreg: unknown key; did you mean 'lp_reg'?"),
        ("{lp_reg: {shar: 0.1}}", "lp_reg.shar: unknown key; did you mean 'share'?"),
        ("{lp_reg: {share: 0}}", "lp_reg.share: 0 is not valid; it must be greater than 0.0"),
        ("{siren: {peak_quantile: 1.0}}", "siren.peak_quantile: 1.0 is not valid; it must be less than 1.0"),
        ("{siren: {nucleus: own}}", "siren.nucleus: 'own' is not valid; it must be 'standard' or 'paper_code'"),
        ("{clip_cov: {low: 5.0}}", "clip_cov.low: 5.0 is not below high=5.0; no covariance lies between them"),
        ("{entropy: {coef: -1}}", f"entropy.coef: -1 is not valid; {COEF}"),
        ("{entropy: {coef: often}}", f"entropy.coef: 'often' is not valid; {COEF}"),
        ("{entropy: {coef: true}}", f"entropy.coef: true is not valid; {COEF}"),
        ("{entropy: {coef: .inf}}", f"entropy.coef: inf is not valid; {COEF}"),
        ("{entropy: {coef: {}}}", f"entropy.coef: {{}} is not valid; {COEF}"),
        ("{entropy: {coef: {soon: 1}}}", f"entropy.coef: {{'soon': 1}} is not valid; {COEF}"),
        ("{entropy: {coef: {-1: 1}}}", f"entropy.coef: {{-1: 1}} is not valid; {COEF}"),
        ("{entropy: {coef_max: 0.5}}", "entropy.coef_max: has no effect without a target; set target, or remove it"),
        (
            "{entropy: {target: 0.2, coef: {0: 0.1}}}",
            "entropy.coef: is a schedule, which an adapting coefficient cannot follow; remove target or give a number",
        ),
        ("{entropy: {target: 0.2, coef: 2.0}}", "entropy.coef: 2.0 is not between coef_min=0.0 and coef_max=1.0"),
    ],
)
def test_mistakes_in_regularizers(section: str, message: str) -> None:
    assert error_of(f"{QUICKSTART}regularizers: {section}\n") == f"r.yaml: regularizers.{message}"


def test_a_list_names_the_keys_there_are() -> None:
    assert error_of(f"{QUICKSTART}regularizers: [lp_reg]\n") == (
        f"r.yaml: regularizers: ['lp_reg'] is not valid; it must be a mapping with the keys {', '.join(REGULARIZERS)}"
    )


def test_a_contradiction_with_the_regularizers_of_a_preset_is_found() -> None:
    message = error_of(QUICKSTART, "algorithm.preset=siren", "regularizers.siren.coef=-1")
    assert message == f"r.yaml: regularizers.siren.coef: -1 is not valid; {COEF}"


def test_k3_ratio_is_no_value_for_a_reward() -> None:
    assert error_of(QUICKSTART, "algorithm.kl_placement=reward", "algorithm.kl_estimator=k3_ratio") == (
        "r.yaml: algorithm.kl_estimator: 'k3_ratio' reweighs a term of the loss; in the reward use 'k1'"
    )
