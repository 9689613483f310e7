"""Rewards that do to their process whatever the completion says; imported by worker processes, so without torch."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewards._item import ItemReward, Judgement, Status, graded, item_reward, no_answer


def spin(_: str) -> None:
    while True:
        pass


def resist(_: str) -> None:
    while True:
        try:
            time.sleep(60)
        except Exception:  # noqa: BLE001 - what it is here for
            pass


def resist_and_spin(_: str) -> None:
    while True:
        try:
            spin("")
        except Exception:  # noqa: BLE001 - what it is here for
            pass


def burn(seconds: str) -> None:
    end = time.process_time() + float(seconds.split()[0])
    while time.process_time() < end:
        pass


def fail(_: str) -> None:
    raise ValueError("as told")


def start_child(file: str) -> None:
    Path(file).write_text(str(subprocess.Popen(["sleep", "60"]).pid))
    time.sleep(60)


def die_once(file: str) -> None:
    if not Path(file).exists():
        Path(file).write_text("died")
        os._exit(1)


COMMANDS: dict[str, Callable[[str], Any]] = {
    "sleep": lambda _: time.sleep(60),
    "spin": spin,
    "stubborn": lambda what: (resist_and_spin if what else resist)(""),
    "burn": burn,
    "doze": lambda seconds: time.sleep(float(seconds)),
    "C": lambda _: 9 ** (9**9),
    "exit": lambda _: os._exit(3),
    "crash": lambda _: ctypes.string_at(0),
    "bomb": lambda _: bytearray(2 << 30),
    "raise": fail,
    "leave": lambda _: sys.exit(1),
    "child": start_child,
    "once": die_once,
}


def obey(text: str) -> None:
    command, _, argument = text.partition(" ")
    COMMANDS.get(command, lambda _: None)(argument)


@item_reward
def obedient(text: str, answer: str) -> Judgement:
    """1 where the text is the answer, after doing what it says."""
    obey(text)
    return graded(float(text == answer)) if text else no_answer()


@item_reward
def tagged(text: str, answer: str, *, tag: str | None = "answer") -> Judgement:
    """Raises on any text without the tag."""
    assert tag is None or f"<{tag}>" in text, text
    return graded(0.0)


class Framed(ItemReward):
    """States its gold text."""

    def gold_text(self, answer: str, options: dict[str, str]) -> str:
        """In a frame."""
        return f"[{answer}]"


@Framed
def framed(text: str, answer: str, *, colour: str = "red") -> Judgement:
    """Raises on any text without the frame."""
    assert text.startswith("["), text
    return graded(1.0)


@item_reward
def counting(text: str, answer: str) -> Judgement:
    """Writes a line to the file `answer` for each judgement."""
    with Path(answer).open("a") as file:
        file.write(f"{text}\n")
    return Judgement(None, Status.ERROR) if text == "nothing" else graded(1.0)


@item_reward
def broken(text: str) -> Judgement:
    """Returns something else."""
    return 1.0  # type: ignore[return-value]


@item_reward
def loaded_torch(text: str) -> Judgement:
    """1 where this process has torch."""
    return graded(float("torch" in sys.modules))
