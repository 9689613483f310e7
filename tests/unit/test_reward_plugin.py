"""The template of a plug-in package builds, installs, and is found through its entry points."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PLUGIN = ROOT / "examples" / "reward-plugin"
NAMES = ("even_number", "shorter_than_group")


def run(*command: str, path: Path | None = None, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    paths = [str(ROOT), *([str(path)] if path else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=environment, cwd=cwd, timeout=120
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the plug-in as a wheel installs it. Nothing is downloaded."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    offline = ["--no-index", "--no-deps", "--disable-pip-version-check", "--quiet"]
    built = run(
        "pip", "wheel", str(folder / "source"), "--no-build-isolation", "--wheel-dir", str(folder / "wheels"), *offline
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = (folder / "wheels").glob("*.whl")
    done = run("pip", "install", str(wheel), "--target", str(folder / "installed"), *offline)
    assert done.returncode == 0, done.stderr
    return folder / "installed"


def test_list_names_its_rewards(installed: Path) -> None:
    done = run("rlvr.cli", "rewards", "list", path=installed)
    assert done.returncode == 0, done.stderr
    assert set(NAMES) <= {line.split()[0] for line in done.stdout.splitlines()}


def test_check_finds_and_passes_the_item_reward(installed: Path) -> None:
    done = run("rlvr.cli", "rewards", "check", "even_number", path=installed)
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_finds_the_batch_reward(installed: Path) -> None:
    """Its verdicts depend on the batch, so that only finding it is asked for."""
    done = run("rlvr.cli", "rewards", "check", "shorter_than_group", path=installed)
    assert "shorter_than_group" in done.stdout
    assert done.returncode in (0, 1), done.stderr


def test_unknown_without_it() -> None:
    done = run("rlvr.cli", "rewards", "check", "even_number")
    assert done.returncode == 2
    assert "unknown reward 'even_number'" in done.stderr


def test_its_own_tests_pass(installed: Path) -> None:
    done = run("pytest", "-q", "-p", "no:cacheprovider", str(PLUGIN / "tests"), path=installed)
    assert done.returncode == 0, done.stdout
