"""Reward functions by name: the registry, entry points, `package.module:function`, `./file.py:function`."""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards import REGISTRY
from rewards._item import ItemReward
from rlvr.config.problems import nearest
from rlvr.errors import RewardError

ENTRY_POINT_GROUP = "rlvr.rewards"
GIVEN_BY_TRAINER = (
    "prompts",
    "completions",
    "completion_ids",
    "prompt_id",
    "outcomes",  # the verifier's, for the other functions
    "scorer",  # the policy, where a function takes it
    "trainer_state",
    "log_extra",
    "log_metric",
)

FILE_MODULE_PREFIX = "rlvr_reward_"

Reward = Callable[..., Any]


def load_reward(use: str, args: Mapping[str, Any], base_dir: Path) -> Reward:
    """The reward function that `use` names, with `args` bound to it.

    Files are relative to `base_dir`, then to the working directory. Raises RewardError; an error inside the user's own
    module is raised as it is.
    """
    function = _resolve(use, base_dir)
    if not callable(function):
        raise RewardError(f"reward {use!r} is a {type(function).__name__}, not a function; name a function")
    _check_args(use, function, args)
    return partial(function, **args) if args else function


def describe_rewards() -> dict[str, str]:
    """Every reward that has a name, with the first line of its docstring."""
    functions = {name: _from_module(target, name) for name, target in REGISTRY.items()}
    functions |= {name: entry.load() for name, entry in _plugins().items() if name not in functions}
    return {name: (inspect.getdoc(function) or "").partition("\n")[0] for name, function in functions.items()}


def _resolve(use: str, base_dir: Path) -> Any:
    target, colon, function = use.rpartition(":")
    if target.endswith(".py"):
        return _member(file_module(target, use, base_dir), function, use)
    if colon:
        return _from_module(use, use)
    if use.endswith(".py"):
        raise RewardError(f"reward {use!r} names a file without a function; write {use}:function")
    if use in REGISTRY:
        return _from_module(REGISTRY[use], use)
    plugins = _plugins()
    if use not in plugins:
        names = sorted({*REGISTRY, *plugins})
        meant = "".join(f"did you mean {name!r}? " for name in difflib.get_close_matches(use, names, n=1))
        forms = "or write package.module:function or ./file.py:function"
        raise RewardError(f"unknown reward {use!r}; {meant}names are {', '.join(names)}; {forms}")
    return plugins[use].load()


def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def _from_module(target: str, use: str) -> Any:
    name, _, function = target.rpartition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A dependency that the module itself lacks is another matter.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        remedy = "install the package that has it, or write ./file.py:function for a file"
        raise RewardError(f"reward {use!r}: there is no module {error.name!r}; {remedy}") from error
    return _member(module, function, use)


def file_module(file: str, use: str, base_dir: Path) -> ModuleType:
    """The module in a file, executed once per process. Raises RewardError when there is no such file."""
    candidates = [folder / Path(file).expanduser() for folder in (base_dir, Path.cwd())]
    found = [path.resolve() for path in candidates if path.is_file()]
    if not found:
        folders = " or ".join(dict.fromkeys(str(path.parent) for path in candidates))
        raise RewardError(f"reward {use!r}: there is no file {Path(file).name} in {folders}; check the path")
    # Two files of one name are two modules, and a file that two rewards use is loaded once.
    name = f"{FILE_MODULE_PREFIX}{found[0].stem}_{hashlib.sha256(str(found[0]).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, found[0])
    assert spec  # a .py file always has a loader
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _member(module: ModuleType, name: str, use: str) -> Any:
    members = vars(module)
    if name not in members:
        kinds = [each for each, value in members.items() if inspect.isfunction(value) or isinstance(value, ItemReward)]
        own = [each for each in kinds if members[each].__module__ == module.__name__ and not each.startswith("_")]
        advice = nearest(name, own, f"its functions are {', '.join(own)}") if own else "it defines no function"
        raise RewardError(f"reward {use!r}: the module has no function {name!r}; {advice}")
    return members[name]


def _check_args(use: str, function: Reward, args: Mapping[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    # `**_` takes the columns that a function has no use for; an argument that ends up there is a misspelt one.
    takes_any = any(each.kind is each.VAR_KEYWORD and not each.name.startswith("_") for each in parameters)
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    for name in args:
        if name in GIVEN_BY_TRAINER:
            raise RewardError(f"reward {use!r}: argument {name!r} is given by the trainer; remove it from `args`")
        if name not in names and not takes_any:
            options = [each for each in names if each not in GIVEN_BY_TRAINER]
            advice = nearest(name, options, f"arguments are {', '.join(options)}") if options else "it takes none"
            raise RewardError(f"reward {use!r} does not accept the argument {name!r}; {advice}")
