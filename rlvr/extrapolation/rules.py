"""Which tensors an operation is for, and which are copied from the tuned model."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.view import TensorInfo, WeightView

# Group and patterns, which are compared with the name in lower case.
DEFAULT_COPIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("norms", ("*norm*", "*ln_*")),
    ("embeddings", ("*embed*", "*wte*", "*wpe*")),
    ("head", ("*lm_head*", "output.weight")),
)
INTEGERS, REST, POOR_FIT = "integers", "rest", "R^2 below the gate"


@dataclass(frozen=True)
class Rules:
    """What is copied, and alphas that differ from the rest's, by patterns as of file names (`fnmatch`).

    The first that matches wins, in this order: `alphas`, `copies`, and with `default_copies` norms, embeddings and the
    head. Norms and embeddings move less linearly than the rest (arXiv 2601.04537), so a line does not predict them.
    The head belongs with the embeddings: often it is the same tensor, and one that is only tied in some models should
    not be treated by whether it is. A tied tensor is matched by any of its names and is one tensor still.

    Integers and booleans are always copied.
    """

    copies: tuple[str, ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()
    default_copies: bool = True


@dataclass(frozen=True)
class Treatment:
    """What becomes of a tensor: copied from the tuned model or not, with the operation's alpha or one of its own."""

    group: str
    copied: bool
    alpha: float | None = None


def treatments(tuned: WeightView, rules: Rules) -> dict[str, Treatment]:
    """The treatment of each of the names. Raises ExtrapolationError for a pattern of the user's that matches none."""
    names = {name: [name] for name in tuned.names()}
    for alias, name in tuned.aliases().items():
        names[name].append(alias)
    return treatments_of(names, {name: tuned.info(name).dtype for name in names}, rules, str(tuned.path))


def treatments_of(
    names: Mapping[str, Collection[str]], dtypes: Mapping[str, torch.dtype], rules: Rules, holder: str
) -> dict[str, Treatment]:
    """The same for tensors with all of their names, by the first of these; `holder` is what errors say has them."""
    for pattern in (*rules.copies, *(pattern for pattern, _ in rules.alphas)):
        if not any(_matches(each, pattern) for each in names.values()):
            raise ExtrapolationError(
                f"The pattern {pattern!r} matches none of the {len(names)} tensors of {holder}, such as"
                f" {next(iter(names), 'none at all')}; correct it, with * for any characters."
            )
    return {name: _treatment(each, dtypes[name], rules) for name, each in names.items()}


def _treatment(names: Collection[str], dtype: torch.dtype, rules: Rules) -> Treatment:
    if not (dtype.is_floating_point or dtype.is_complex):
        return Treatment(INTEGERS, copied=True)
    for pattern, alpha in rules.alphas:
        if _matches(names, pattern):
            return Treatment(pattern, copied=False, alpha=alpha)
    for pattern in rules.copies:
        if _matches(names, pattern):
            return Treatment(pattern, copied=True)
    for group, patterns in DEFAULT_COPIES if rules.default_copies else ():
        if any(_matches([name.lower() for name in names], pattern) for pattern in patterns):
            return Treatment(group, copied=True)
    return Treatment(REST, copied=False)


def _matches(names: Collection[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def numbers_of(groups: Mapping[str, Treatment], infos: Mapping[str, TensorInfo]) -> dict[Treatment, tuple[int, int]]:
    """By treatment, how many tensors and how many values have it; in the order of first appearance."""
    found: dict[Treatment, tuple[int, int]] = {}
    for name, treatment in groups.items():
        tensors, values = found.get(treatment, (0, 0))
        found[treatment] = tensors + 1, values + infos[name].numel
    return found
