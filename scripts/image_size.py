"""The size of the container image, estimated: the packages that the Dockerfile installs, as the index says.

    python scripts/image_size.py --extras deepspeed

pip resolves the project with its lock, for this machine's Python and with plain settings, so on Linux with the CUDA
build of torch. Nothing is installed. A wheel's size is what is downloaded and about what a layer of the image takes;
unpacked is what its list of files adds up to. The base image and its Debian packages are not counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
TAIL = 4 * 2**20  # of a wheel: holds its list of files, some MB long in the largest ones


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    download: int  # bytes
    unpacked: int | None  # bytes; None for a source distribution, which is built first


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimates the size of the container image.")
    parser.add_argument("--extras", default="deepspeed", help="as the build argument EXTRAS")
    parser.add_argument("--rows", type=int, default=15, help="of the table; the others are added up")
    options = parser.parse_args()
    console = Console()
    found = resolved(options.extras)
    with httpx.Client(follow_redirects=True, timeout=60) as client:
        packages = [measured(client, each) for each in track(found, "asking for sizes", console=console)]
    packages.sort(key=lambda package: package.download, reverse=True)
    console.print(table(packages, options.rows, options.extras))


def resolved(extras: str) -> list[dict[str, Any]]:
    """What pip would install, from its report."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    plain |= {"PIP_CONFIG_FILE": os.devnull}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--disable-pip-version-check", "--report", str(report), "-c", str(ROOT / "requirements.lock")]
        if subprocess.run([*command, f"{ROOT}[{extras}]"], env=plain, check=False).returncode:
            sys.exit(f"error: pip found no versions for the extras {extras} that fit the lock; see above.")
        found: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return [each for each in found if not each["download_info"]["url"].startswith("file:")]


def measured(client: httpx.Client, found: Mapping[str, Any]) -> Package:
    url, metadata = found["download_info"]["url"], found["metadata"]
    answer = client.head(url)
    answer.raise_for_status()
    size = int(answer.headers["content-length"])
    unpacked = None
    if url.endswith(".whl"):
        answer = client.get(url, headers={"Range": f"bytes={max(size - TAIL, 0)}-{size - 1}"})
        answer.raise_for_status()
        unpacked = sum(each.file_size for each in listed(answer.content, size))
    return Package(metadata["name"], metadata["version"], size, unpacked)


def listed(tail: bytes, size: int) -> Iterator[zipfile.ZipInfo]:
    """The files of an archive by its end: what comes before is not read, and stands as zeros in a sparse file."""
    with tempfile.TemporaryFile() as file:
        file.seek(size - len(tail))
        file.write(tail)
        with zipfile.ZipFile(file) as archive:
            yield from archive.infolist()


def table(packages: list[Package], rows: int, extras: str) -> Table:
    sources = [package for package in packages if package.unpacked is None]
    shown = Table("package", "version", "download, MB", "unpacked, MB", title=f"estimate, EXTRAS={extras}")
    for package in packages[:rows]:
        shown.add_row(package.name, package.version, megabytes(package.download), megabytes(package.unpacked))
    for name, group in ((f"{len(packages) - rows} others", packages[rows:]), (f"{len(packages)} packages", packages)):
        unpacked = sum(package.unpacked or 0 for package in group)
        shown.add_row(name, "", megabytes(sum(package.download for package in group)), megabytes(unpacked))
    names = ", ".join(package.name for package in sources)
    shown.caption = f"not in the last column, as they are built from source: {names or 'none'}"
    return shown


def megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.1f}"


if __name__ == "__main__":
    main()
