"""`provenance.json`: what a computed checkpoint was made of, and how."""

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlvr.extrapolation.rules import Treatment, numbers_of
from rlvr.extrapolation.sources import Sources
from rlvr.extrapolation.view import WeightView
from rlvr.run_directory import installed_version

PACKAGES = ("rlvr", "torch", "safetensors", "transformers")
FINGERPRINT = (
    "sha256 over the sorted lines 'path<TAB>bytes<TAB>mtime in ns<TAB>content' of all files, where content is the"
    " sha256 of whole .json files and of the headers of .safetensors files, and empty for others"
)


def provenance_of(sources: Sources, treatments: Mapping[str, Treatment], notes: Mapping[str, Any]) -> dict[str, Any]:
    """The record: sources with their steps and fingerprints, numbers of tensors by treatment, versions, and `notes`."""
    groups = [
        {"group": each.group, "copied": each.copied, "alpha": each.alpha, "tensors": tensors, "values": values}
        for each, (tensors, values) in numbers_of(treatments, sources.infos).items()
    ]
    versions = {name: found for name in PACKAGES if (found := installed_version(name))}
    return {
        **notes,
        "sources": [_source(view) for view in sources.views],
        "fingerprint": FINGERPRINT,
        "groups": groups,
        "versions": {"python": platform.python_version(), **versions},
    }


def _source(view: WeightView) -> dict[str, Any]:
    files = sorted(_files(view.path))
    lines = "".join(f"{line}\n" for line in (_line(file, view.path) for file in files))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    return {"path": str(view.path.absolute()), "step": view.step, "files": len(files), "fingerprint": digest}


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _line(file: Path, root: Path) -> str:
    facts = file.stat()
    return f"{file.relative_to(root)}\t{facts.st_size}\t{facts.st_mtime_ns}\t{_content(file)}"


def _content(file: Path) -> str:
    if file.suffix == ".json":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    if file.suffix != ".safetensors":
        return ""
    with file.open("rb") as opened:
        start = opened.read(8)
        return hashlib.sha256(start + opened.read(int.from_bytes(start, "little"))).hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
