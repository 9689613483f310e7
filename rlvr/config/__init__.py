"""Recipes: what they may say, what they mean once every default is written out. Imports neither torch nor TRL."""

from rlvr.config.load import LoadedRecipe, load_recipe, resolved_yaml
from rlvr.config.presets import PRESETS, Algorithm, Preset
from rlvr.config.schema import (
    AlgorithmConfig,
    DataConfig,
    DataSource,
    EvaluationConfig,
    ModelConfig,
    Recipe,
    ReportConfig,
    RewardFunctionConfig,
    RewardsConfig,
)
from rlvr.config.trainer_defaults import TRAINER_DEFAULTS

__all__ = [
    "PRESETS",
    "TRAINER_DEFAULTS",
    "Algorithm",
    "AlgorithmConfig",
    "DataConfig",
    "DataSource",
    "EvaluationConfig",
    "LoadedRecipe",
    "ModelConfig",
    "Preset",
    "Recipe",
    "ReportConfig",
    "RewardFunctionConfig",
    "RewardsConfig",
    "load_recipe",
    "resolved_yaml",
]
