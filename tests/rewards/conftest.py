"""Models for the rewards that need one."""

import pytest

from tests.rewards.tiny_models import saved


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("classifier"), "LlamaForSequenceClassification")


@pytest.fixture(scope="session")
def classifier_of_three(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("three"), "LlamaForSequenceClassification", num_labels=3)


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("lm"), "LlamaForCausalLM")
