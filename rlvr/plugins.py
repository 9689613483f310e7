"""What stateful plug-ins of the trainer remember, as a file of each checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

PLUGINS_FILE = "plugins.json"  # what regularisers, the group filter and guidance remember


class Stateful(Protocol):
    """A plug-in whose state is plain values."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def save_plugins(checkpoint: Path, plugins: Mapping[str, Stateful]) -> None:
    """Writes the states of all plug-ins into the folder of a checkpoint."""
    states = {name: each.state_dict() for name, each in plugins.items()}
    (checkpoint / PLUGINS_FILE).write_text(json.dumps(states) + "\n")


def load_plugins(checkpoint: Path, plugins: Mapping[str, Stateful]) -> None:
    """Gives each plug-in its state back."""
    if plugins:
        states = json.loads((checkpoint / PLUGINS_FILE).read_text())
        for name, each in plugins.items():
            each.load_state_dict(states[name])
