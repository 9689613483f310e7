"""Reads recipes: YAML, then overrides, then validation, then every default written out."""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rlvr.config.checkpoints import check_saves
from rlvr.config.extrapolation import check_trainer
from rlvr.config.presets import PRESETS, Algorithm
from rlvr.config.problems import Problem, dotted, first_problem, model_at, shown
from rlvr.config.regularizers import RegularizersConfig
from rlvr.config.rollout import check_engine_settings
from rlvr.config.sampler import check_sampler
from rlvr.config.schema import SHORTHANDS, Recipe
from rlvr.config.section import Section
from rlvr.config.trainer_defaults import merged_trainer
from rlvr.config.watch import check_skipping
from rlvr.errors import RecipeError

LOCAL_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that validates, and what it means."""

    recipe: Recipe
    path: Path
    algorithm: Algorithm
    regularizers: RegularizersConfig  # the preset's and the recipe's own
    trainer: dict[str, Any]  # fields of GRPOConfig, our defaults merged in
    base_dir: Path  # relative paths of the recipe are looked up here first, then in the working directory
    output_dir: Path


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe in a YAML file, after overrides such as `trainer.max_steps=5` or `rewards.functions.0.weight=2`.

    Raises RecipeError, one line of "<file>: <dotted.key>: <what is wrong>; <what is allowed>".
    """
    path = Path(path)
    try:
        content = _parsed(_text(path))
        for override in overrides:
            _apply(content, override)
        recipe = Recipe.model_validate(content)
        trainer = _trainer(recipe, path)
        regularizers = _regularizers(recipe)
    except ValidationError as error:
        problem = first_problem(error, Recipe, SHORTHANDS)
        raise RecipeError(f"{path}: {problem}") from error
    except Problem as problem:
        raise RecipeError(f"{path}: {problem}") from problem
    return LoadedRecipe(
        recipe=recipe,
        path=path,
        algorithm=recipe.algorithm.resolved(),
        regularizers=regularizers,
        trainer=trainer,
        base_dir=path.absolute().parent,
        output_dir=Path(trainer["output_dir"]),
    )


def resolved_yaml(loaded: LoadedRecipe) -> str:
    """The recipe with every default, switch and label written out; loads to the same run from any folder.

    Local data and reward files are written with their absolute paths.
    """
    content = loaded.recipe.model_dump() | {
        "algorithm": asdict(loaded.algorithm),
        "regularizers": loaded.regularizers.model_dump(),
        "trainer": loaded.trainer,
    }
    rewards = loaded.recipe.rewards
    content["rewards"]["verifier"] = rewards.verifier_name
    for function, dumped in zip(rewards.functions, content["rewards"]["functions"], strict=True):
        file, colon, name = function.use.rpartition(":")
        use = _anchored(file, loaded.base_dir) + colon + name if file.endswith(".py") else function.use
        dumped |= {"name": function.label, "use": use}
    held_out = content["evaluation"]["sets"] | content["evaluation"]["validation"]
    for source in (content["data"]["train"], *held_out.values()):
        if source["dataset"].endswith(LOCAL_SUFFIXES):
            source["dataset"] = _anchored(source["dataset"], loaded.base_dir)
    if content["guidance"] is not None:
        for section in (content["guidance"]["hints"], content["guidance"]["teacher"]):
            if section is not None and section["file"] is not None:
                section["file"] = _anchored(section["file"], loaded.base_dir)
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _anchored(file: str, base_dir: Path) -> str:
    """The absolute path of a file in the recipe's folder or the working directory; as it is when in neither."""
    found = [folder / file for folder in (base_dir, Path.cwd()) if (folder / file).is_file()]
    return str(found[0].resolve()) if found else file


def _trainer(recipe: Recipe, path: Path) -> dict[str, Any]:
    with _below("trainer"):
        trainer = merged_trainer(recipe.trainer, default_output_dir=f"runs/{path.stem}")
        check_engine_settings(trainer)
    with _below("sampler"):
        check_sampler(recipe.sampler, trainer)
    with _below("checkpoints"):
        check_saves(recipe.checkpoints, recipe.evaluation.every, trainer)
    if recipe.extrapolation is not None:
        with _below("extrapolation"):
            check_trainer(recipe.extrapolation, trainer, int(os.environ.get("WORLD_SIZE", "1")))
    with _below("watch"):
        check_skipping(recipe.watch, trainer)
    return trainer


@contextmanager
def _below(section: str) -> Iterator[None]:
    """Puts the section before the key of a Problem."""
    try:
        yield
    except Problem as problem:
        raise Problem(dotted(section, problem.key), problem.text) from problem


def _regularizers(recipe: Recipe) -> RegularizersConfig:
    """The preset's regularisers with the recipe's own over them; what contradicts only once merged is found here."""
    try:
        return recipe.regularizers.over(PRESETS[recipe.algorithm.preset].regularizers)
    except ValidationError as error:
        problem = first_problem(error, RegularizersConfig, SHORTHANDS)
        raise Problem(dotted("regularizers", problem.key), problem.text) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        siblings = [each.name for each in sorted(path.parent.glob("*.y*ml"))]
        close = difflib.get_close_matches(path.name, siblings, n=1)
        advice = f"did you mean {str(path.parent / close[0])!r}?" if close else "give the path of a recipe"
        raise Problem("", f"there is no such file; {advice}") from error
    except UnicodeDecodeError as error:
        raise Problem("", f"is not UTF-8 at byte {error.start}; a recipe is a YAML text file") from error
    except OSError as error:
        raise Problem("", f"cannot be read ({error.strerror}); give the path of a recipe file") from error


def _yaml(text: str) -> Any:
    """The parsed value. Raises Problem with the line, for a duplicate key as well."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Problem(where, f"not valid YAML; {_one_line(error.problem or error.context or '')}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an explicit tag such as !!int on something else
        raise Problem("", f"not valid YAML; {_one_line(str(error))}") from error


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _parsed(text: str) -> dict[str, Any]:
    content = _yaml(text)
    if content is None:
        raise Problem("", f"is empty; a recipe has the sections {', '.join(Recipe.model_fields)}")
    if not isinstance(content, dict):
        sections = ", ".join(Recipe.model_fields)
        raise Problem("", f"is {_kind(content)}; a recipe is a mapping with the sections {sections}")
    return content


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else shown(value)


def _apply(content: dict[str, Any], override: str) -> None:
    """Sets the value of `a.b.0.c=value` in place, creating mappings on the way and writing shorthands out."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise Problem(f"override {override!r}", "has no key or no '='; write it as section.key=value")
    parts = key.strip().split(".")
    try:
        value = _yaml(text)
    except Problem as problem:
        raise Problem(f"override {override!r}", problem.text) from problem
    parent: Any = content
    for depth, part in enumerate(parts[:-1], start=1):
        index: Any = _index(parent, part, parts[: depth - 1])
        child = parent[index] if isinstance(parent, list) else parent.get(index)
        # A copy, as two places of the file may share one value through a YAML alias.
        parent[index] = _container(child, parts[:depth])
        parent = parent[index]
    parent[_index(parent, parts[-1], parts[:-1])] = value


def _container(value: Any, location: list[str]) -> Any:
    """A copy of the mapping or list at `location`, with a shorthand written out; an empty mapping where nothing is."""
    if isinstance(value, dict | list):
        return copy(value)
    section = model_at(Recipe, location)
    if isinstance(value, str) and section is not None and issubclass(section, Section) and section.shorthand:
        return {section.shorthand: value}
    if value is None:
        return {}
    raise Problem(dotted(*location), f"is {shown(value)}, which has no keys; override {dotted(*location)} itself")


def _index(parent: Any, part: str, location: list[str]) -> str | int:
    if not isinstance(parent, list):
        return part
    if not part.isdecimal() or int(part) >= len(parent):
        raise Problem(dotted(*location, part), f"there is no such item; indices are 0 to {len(parent) - 1}")
    return int(part)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `3e-5` is a number, a date is a string and a duplicate key is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in first:
                problem = f"the key {key.value!r} is already on line {first[key.value]}, so remove one of the two"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            first[key.value] = key.start_mark.line + 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that `_Loader` would read as numbers, and writes repeated values out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_TIMESTAMP, _FLOAT = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"
# YAML 1.1 wants a dot in the mantissa and a sign in the exponent.
_EXPONENT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))
_Loader.yaml_implicit_resolvers = {
    start: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for start, resolvers in _Loader.yaml_implicit_resolvers.items()
}
