"""Runs inside a sandbox: calls one function of the program and writes what it returns, as JSON.

The expected value never enters the sandbox, so a program that takes over this process can only return another value.
"""

import inspect
import json
import os
import sys
import types
from typing import Any


def load(source: str) -> types.ModuleType:
    """The program as a module of its own, whose `if __name__ == "__main__"` part does not run."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    exec(compile(source, "solution.py", "exec"), module.__dict__)
    return module


def find(module: types.ModuleType, name: str) -> Any:
    """The function of that name; of `Class.method` the method of an instance made without arguments."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found() if inspect.isclass(found) else found, part)
    return found


def main() -> None:
    task = json.load(sys.stdin)
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the program prints is not its result
    value = find(load(task["program"]), task["function"])(*task["args"])
    results.write(task["nonce"] + json.dumps(value) + task["nonce"])
    results.close()


if __name__ == "__main__":
    main()
