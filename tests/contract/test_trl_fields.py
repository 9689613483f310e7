"""The recorded fields of GRPOConfig are those of the installed TRL and transformers."""

import dataclasses
import inspect

import pytest

from rlvr.config.trainer_defaults import MINIMUM, OWNED, TRAINER_DEFAULTS, merged_trainer
from rlvr.config.trainer_defaults import trl_fields as recorded_fields
from scripts.record_trl_fields import dumped, trl_fields

ADVICE = (
    "run scripts/record_trl_fields.py, read its diff, and look in rlvr/config/trainer_defaults.py at OWNED (does a new"
    " field change the loss, the rewards or what is reported?) and TRAINER_DEFAULTS (does it decide a number?)"
)


def test_the_recorded_table_is_the_installed_one() -> None:
    installed, recorded = trl_fields(), recorded_fields()
    changed = {
        name: f"recorded {recorded.get(name)}, installed {installed.get(name)}"
        for name in recorded | installed
        if recorded.get(name) != installed.get(name)
    }
    assert not changed, f"GRPOConfig changed: {changed}; {ADVICE}"


def test_recording_reproduces_the_file() -> None:
    from scripts.record_trl_fields import TABLE

    assert TABLE.read_text(encoding="utf-8") == dumped(trl_fields()), ADVICE


def test_every_field_of_the_constructor_is_recorded() -> None:
    from trl import GRPOConfig

    assert set(recorded_fields()) == set(inspect.signature(GRPOConfig).parameters), ADVICE


@pytest.mark.parametrize("names", [OWNED, TRAINER_DEFAULTS, MINIMUM], ids=["OWNED", "TRAINER_DEFAULTS", "MINIMUM"])
def test_names_in_the_code_exist_in_trl(names: dict[str, object]) -> None:
    assert set(names) - set(recorded_fields()) == set(), ADVICE


def test_trl_accepts_the_defaults_and_keeps_their_values() -> None:
    from trl import GRPOConfig

    trainer = merged_trainer({"use_cpu": True}, default_output_dir="runs/contract")
    config = GRPOConfig(**trainer)
    kept = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name in trainer}
    assert kept == trainer
