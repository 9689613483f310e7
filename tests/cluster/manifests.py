"""What is in `recipes/cluster/`, read for the tests."""

import copy
import functools
import json
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from scripts.launch import parser
from tests.conftest import ROOT

CLUSTER = ROOT / "recipes" / "cluster"
SCHEMAS = Path(__file__).parent / "schemas"


def documents(name: str) -> list[dict[str, Any]]:
    """Those of one file, for the caller to change."""
    return copy.deepcopy(_documents(name))


@functools.cache
def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def document(name: str, kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents(name) if document["kind"] == kind]
    return found


def schema(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((SCHEMAS / name).read_text())
    return read


def launched(command: Sequence[str], variables: Mapping[str, str]) -> Namespace:
    """The options of scripts/launch.py as a container's command gives them; its files must exist here."""
    assert list(command[:2]) == ["python", "scripts/launch.py"]
    words = list(command[2:])
    for name, value in variables.items():
        words = [word.replace(f"$({name})", value) for word in words]
    options = parser().parse_args(words)
    for file in (options.config, options.recipe):
        assert (ROOT / file).is_file(), file
    return options


def keys_and_values(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from keys_and_values(value)
    elif isinstance(node, list):
        for value in node:
            yield from keys_and_values(value)
