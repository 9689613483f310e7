"""The held-out prompts of a recipe: test sets, and validation sets that share no prompt with them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rlvr.building import read_dataset
from rlvr.config import LoadedRecipe
from rlvr.config.schema import DataSource
from rlvr.errors import DataError

SetKind = Literal["test", "validation"]
SHOWN_CHARACTERS = 60
KEY_BYTES = 6  # of a prompt's hash


@dataclass(frozen=True)
class EvaluationSets:
    """`test` sets are only reported; what is chosen is chosen by `validation` sets. No name is in both."""

    test: Mapping[str, Dataset] = field(default_factory=dict)
    validation: Mapping[str, Dataset] = field(default_factory=dict)

    def of(self, kind: SetKind) -> Mapping[str, Dataset]:
        return self.test if kind == "test" else self.validation


def load_sets(loaded: LoadedRecipe, tokenizer: PreTrainedTokenizerBase) -> EvaluationSets:
    """Reads `evaluation.sets` and `evaluation.validation`.

    Raises DataError for rows that cannot be used, and where a validation set has a prompt of a test set: what was
    chosen by it would have been chosen by the test.
    """
    evaluation = loaded.recipe.evaluation

    def read(sources: Mapping[str, DataSource], key: str) -> dict[str, Dataset]:
        return {
            name: read_dataset(loaded, source, tokenizer, f"evaluation.{key}.{name}")
            for name, source in sources.items()
        }

    sets = EvaluationSets(read(evaluation.sets, "sets"), read(evaluation.validation, "validation"))
    check_disjoint(sets)
    return sets


def check_disjoint(sets: EvaluationSets) -> None:
    """Raises DataError where a prompt, as the policy is given it, is in a validation set and in a test set."""
    tested = {name: {_key(prompt) for prompt in data["prompt"]} for name, data in sets.test.items()}
    for name, data in sets.validation.items():
        prompts = {_key(prompt): prompt for prompt in data["prompt"]}
        for test_name, keys in tested.items():
            shared = [prompt for key, prompt in prompts.items() if key in keys]
            if shared:
                raise DataError(
                    f"evaluation.validation.{name} has {len(shared)} of its {len(prompts)} prompts in common with the"
                    f" test set evaluation.sets.{test_name}, such as {_shown(shared[0])}; give it other rows, as of"
                    " another split or seed"
                )


def prompt_keys(data: Dataset) -> dict[int, str]:
    """A short hash of each prompt by its id, equal where the prompts are."""
    return {
        prompt_id: hashlib.blake2b(_key(prompt).encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).hexdigest()
        for prompt_id, prompt in zip(data["prompt_id"], data["prompt"], strict=True)
    }


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def _shown(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...")
