"""Every recipe in the tree parses, resolves, and resolves to itself."""

from pathlib import Path

import pytest

from rlvr.cli import _recipe_files
from rlvr.config import load_recipe, resolved_yaml
from tests.conftest import ROOT

RECIPES = _recipe_files(ROOT / "recipes")


def test_there_are_recipes() -> None:
    assert ROOT / "recipes" / "quickstart.yaml" in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_resolves_to_itself(path: Path, tmp_path: Path) -> None:
    resolved = resolved_yaml(load_recipe(path))
    (tmp_path / path.name).write_text(resolved)
    assert resolved_yaml(load_recipe(tmp_path / path.name)) == resolved
