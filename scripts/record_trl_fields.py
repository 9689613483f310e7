"""Records the fields of the installed TRL's GRPOConfig, so that recipes are checked without importing it.

Run it after a TRL upgrade: `python scripts/record_trl_fields.py`.
"""

import dataclasses
import enum
import json
import types
import typing
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "rlvr" / "config" / "trl_fields.json"


def trl_fields() -> dict[str, dict[str, Any]]:
    """Type, default and, for an enumeration, the choices of every field of GRPOConfig that its constructor takes."""
    from trl.trainer.grpo_config import GRPOConfig

    hints = typing.get_type_hints(GRPOConfig)
    return {field.name: _entry(field, hints[field.name]) for field in dataclasses.fields(GRPOConfig) if field.init}


def dumped(table: dict[str, dict[str, Any]]) -> str:
    """The table as JSON, one field per line so that an upgrade reads well as a diff."""
    lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in table.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _entry(field: "dataclasses.Field[Any]", hint: Any) -> dict[str, Any]:
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    entry = {
        "type": " | ".join(dict.fromkeys(_type_name(member) for member in members)),
        "default": default.value if isinstance(default, enum.Enum) else default,
    }
    enumerations = [member for member in members if isinstance(member, type) and issubclass(member, enum.Enum)]
    choices = [each.value for kind in enumerations for each in kind]
    return entry | ({"choices": choices} if choices else {})


def _type_name(member: Any) -> str:
    """The type that a YAML value has: an enumeration and its values are strings, type arguments do not matter."""
    if member is types.NoneType:
        return "None"
    if isinstance(member, enum.EnumMeta):
        return "str"
    if typing.get_origin(member) is typing.Literal:
        return type(typing.get_args(member)[0]).__name__
    return str((typing.get_origin(member) or member).__name__)


if __name__ == "__main__":
    TABLE.write_text(dumped(trl_fields()), encoding="utf-8")
