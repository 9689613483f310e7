"""Where a model lies: `builtin://starter`, the tiny policy inside the package, a local folder, or the Hub."""

from importlib.resources import files
from pathlib import Path

from rlvr.errors import UserError
from rlvr.run_directory import ADAPTER

BUILTIN = {"builtin://starter": "starter"}
LOCAL_PREFIXES = ("/", "./", "../", "~")
WHERE = "model.path"  # the key of a recipe


def resolve_model_path(path: str, where: str = WHERE) -> str:
    """The folder of a built-in model, a local folder, or a Hub id; `where` opens every message.

    Raises UserError when a local folder is missing.
    """
    if path in BUILTIN:
        return str(files("rlvr") / BUILTIN[path])
    if path.startswith("builtin://"):
        raise UserError(f"{where}: there is no built-in model {path!r}; valid: {', '.join(sorted(BUILTIN))}.")
    local = Path(path).expanduser()
    if local.exists():
        if not (local / "config.json").exists() and not is_adapter(path):
            raise UserError(f"{where}: {path!r} is a folder without a config.json; give the folder of a saved model.")
        return str(local)
    if path.startswith(LOCAL_PREFIXES) or path.count("/") > 1:
        raise UserError(f"{where}: the folder {path!r} does not exist; give a saved model's folder or a Hub id.")
    return path


def is_adapter(path: str) -> bool:
    """Whether this is the folder of a saved adapter."""
    return (Path(path).expanduser() / ADAPTER).is_file()
