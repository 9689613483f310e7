"""Runs inside a sandbox, as two processes: one has the tests and the nonce, the other has the program.

In the tests, the program's names stand for what lives in the other process: a call sends its arguments and receives
plain data (None, numbers, texts, bytes, lists, tuples, sets, dicts) or a `Remote` that stands for any other object.
Arguments that the program changed in place are changed here too. So no code of the program runs where the tests are.
"""

import builtins
import ctypes
import importlib
import json
import os
import subprocess
import sys
import types
from collections import Counter, OrderedDict, defaultdict
from typing import Any, ClassVar

PR_SET_DUMPABLE = 4
SCALARS = (type(None), bool, int, float, str)
LISTS: dict[Any, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
FROM_LIST: dict[str, Any] = {tag: kind for kind, tag in LISTS.items()}
DICTS = (dict, OrderedDict, defaultdict, Counter)


class Unsupported(BaseException):
    """The tests do something that cannot be done across two processes."""


class Codec:
    """Plain data as JSON; every other object as a number that the process which owns it understands."""

    def number(self, value: Any) -> int:
        raise NotImplementedError

    def object(self, number: int) -> Any:
        raise NotImplementedError

    def encode(self, value: Any) -> Any:
        kind = type(value)
        if kind in SCALARS:
            return value
        if kind in LISTS:
            return {LISTS[kind]: [self.encode(each) for each in value]}
        if kind in DICTS:
            return {"dict": [[self.encode(key), self.encode(each)] for key, each in value.items()]}
        if kind in (bytes, bytearray):
            return {"bytes": value.hex()}
        if kind is complex:
            return {"complex": [value.real, value.imag]}
        return {"object": self.number(value)}

    def decode(self, coded: Any) -> Any:
        if not isinstance(coded, dict):
            return coded
        ((tag, content),) = coded.items()
        if tag in FROM_LIST:
            return FROM_LIST[tag](map(self.decode, content))
        if tag == "dict":
            return {self.decode(key): self.decode(each) for key, each in content}
        if tag == "bytes":
            return bytes.fromhex(content)
        if tag == "complex":
            return complex(*content)
        assert tag == "object"
        return self.object(content)


# ---- the process of the program -------------------------------------------------------------------------------------


class Host(Codec):
    """Runs the program and answers requests about its objects."""

    OPERATIONS: ClassVar[dict[str, Any]] = {
        "call": lambda function, args, kwargs: function(*args, **kwargs),
        "getattr": getattr,
        "setattr": setattr,
        "iter": iter,
        "next": next,
        "len": len,
        "str": str,
        "repr": repr,
        "getitem": lambda each, key: each[key],
        "setitem": lambda each, key, value: each.__setitem__(key, value),
        "contains": lambda each, item: item in each,
    }

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.requests = os.fdopen(os.dup(0), encoding="utf-8")
        self.replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(2, 1)

    def number(self, value: Any) -> int:
        self.objects.append(value)
        return len(self.objects) - 1

    def object(self, number: int) -> Any:
        return self.objects[number]

    def serve(self) -> None:
        module = types.ModuleType("solution")
        sys.modules["solution"] = module
        exec(compile(json.loads(self.requests.readline()), "solution.py", "exec"), module.__dict__)
        self.reply({name: self.describe(value) for name, value in list(vars(module).items()) if name[:1] != "_"})
        for line in self.requests:
            self.reply(self.answer(json.loads(line)))

    def describe(self, value: Any) -> Any:
        if isinstance(value, types.ModuleType):
            return {"module": value.__name__}
        if isinstance(value, type) and issubclass(value, Exception):
            return {"exception": [each.__name__ for each in value.__mro__]}
        return {"value": self.encode(value)}

    def answer(self, request: Any) -> Any:
        operation, number, coded = request
        arguments = self.decode(coded)
        try:
            value = self.OPERATIONS[operation](self.objects[number], *arguments)
            return {"value": self.encode(value), "arguments": self.encode(arguments[0] if arguments else None)}
        except Exception as error:  # noqa: BLE001 - whatever the program raises goes to the tests
            return {"raised": [each.__name__ for each in type(error).__mro__], "message": str(error)}

    def reply(self, content: Any) -> None:
        self.replies.write(json.dumps(content) + "\n")
        self.replies.flush()


# ---- the process of the tests ---------------------------------------------------------------------------------------


class Remote:
    """An object in the process of the program. It equals nothing but itself."""

    def __init__(self, client: "Client", number: int) -> None:
        self.__dict__.update(_client=client, _number=number)

    def _ask(self, operation: str, *arguments: Any) -> Any:
        return self._client.ask(operation, self._number, *arguments)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, value)

    def __iter__(self) -> Any:
        return self._ask("iter")

    def __next__(self) -> Any:
        return self._ask("next")

    def __len__(self) -> int:
        return int(self._ask("len"))

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return str(self._ask("str"))

    def __repr__(self) -> str:
        return str(self._ask("repr"))

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", key, value)

    def __contains__(self, item: Any) -> bool:
        return bool(self._ask("contains", item))


class Client(Codec):
    """Starts the process of the program and asks it."""

    def __init__(self) -> None:
        flags = ["-I", "-S", "-B", "-X", "utf8"] if sys.flags.no_site else ["-B"]
        command = [sys.executable, *flags, os.path.abspath(__file__), "host"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        self.exceptions: dict[str, type[Exception]] = {}

    def number(self, value: Any) -> int:
        if not isinstance(value, Remote):
            raise Unsupported(f"the tests hand a {type(value).__name__} to the program, which is not plain data")
        return int(value._number)

    def object(self, number: int) -> Any:
        return Remote(self, number)

    def exchange(self, message: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the program ended")
        return json.loads(line)

    def ask(self, operation: str, number: int, *arguments: Any) -> Any:
        reply = self.exchange([operation, number, self.encode(list(arguments))])
        if "raised" in reply:
            raise self.exception(reply["raised"])(reply["message"])
        if operation == "call":
            for mine, after in zip(arguments[0], self.decode(reply["arguments"]), strict=True):
                change(mine, after)
        return self.decode(reply["value"])

    def exception(self, names: list[str]) -> type[Exception]:
        """The class that stands for the first of these that has one here."""
        for name in names:
            found = self.exceptions.get(name) or getattr(builtins, name, None)
            if isinstance(found, type) and issubclass(found, Exception):
                return found
        return RuntimeError

    def load(self, source: str, only: list[str] | None) -> dict[str, Any]:
        """The names of the program: those in `only`, or all that are not builtins."""
        names: dict[str, Any] = {}
        for name, described in self.exchange(source).items():
            if name.startswith("_") or (name not in only if only is not None else hasattr(builtins, name)):
                continue
            ((kind, content),) = described.items()
            if kind == "module":
                if content in sys.stdlib_module_names:
                    names[name] = importlib.import_module(content)
            elif kind == "exception":
                bases = (self.exception(content[1:]),)
                self.exceptions[content[0]] = names[name] = type(content[0], bases, {})
            else:
                names[name] = self.decode(content)
        return names


def change(mine: Any, after: Any) -> None:
    """What the program did to an argument in place."""
    if type(mine) is list and type(after) is list:
        mine[:] = after
    elif (type(mine) is dict and type(after) is dict) or (type(mine) is set and type(after) is set):
        mine.clear()
        mine.update(after)


def run_tests(task: dict[str, Any]) -> dict[str, str]:
    """Returns a verdict only where all tests passed, or could not be run through no fault of the program."""
    # Nobody else may read the memory of this process, as the program has the same user id.
    if ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        return {"failure": "the tests cannot be hidden from the program"}
    try:
        client = Client()
    except OSError as error:
        return {"failure": f"cannot start a process for the program: {error}"}
    try:
        names = client.load(task["program"], task["names"])
        names["__name__"] = "tests"
        exec(compile(task["tests"], "tests.py", "exec"), names)
    except Unsupported as error:
        return {"failure": str(error)}
    finally:
        client.process.kill()
    return {"passed": "all"}


def main() -> None:
    if sys.argv[1:] == ["host"]:
        Host().serve()
        return
    task = json.load(sys.stdin)
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.set_inheritable(results.fileno(), False)
    os.dup2(2, 1)
    verdict = run_tests(task)
    results.write(task["nonce"] + json.dumps(verdict) + task["nonce"])
    results.close()


if __name__ == "__main__":
    main()
