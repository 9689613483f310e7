"""`rlvr rewards check`: whether a reward keeps what a run expects of every reward."""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table
from rich.text import Text

from rewards import REGISTRY
from rewards._item import ItemReward, Status
from rlvr.config.schema import RewardFunctionConfig, RewardsConfig
from rlvr.errors import DataError, RewardError
from rlvr.verification.asking import Afresh, Answer, ask, told
from rlvr.verification.calling import RewardFunction
from rlvr.verification.examples import EXAMPLES, OWN, Example
from rlvr.verification.judging import gold_text, limits_of
from rlvr.verification.loading import load_reward
from rlvr.verification.tasks import one_line, spec_of

HUGE = 2**20  # characters
TIMED = 20  # judgements whose median time is told
TIMED_SECONDS = 3.0  # after which no other one begins
TOLERANCE = 1e-9

TROUBLE = {
    "NUL": "<answer>\0</answer>",
    "surrogate": "<answer>\ud800 \\boxed{\udfff}</answer>",
    "right-to-left": "<answer>\u202e42\u202c ١٢</answer>",
    "huge": "<answer>9(" * (HUGE // 10),
}


@dataclass(frozen=True)
class Check:
    """A line of the table; `passed` is None where the check does not apply."""

    name: str
    passed: bool | None
    detail: str


def check_reward(use: str, args: Mapping[str, Any], row: Path | None, base_dir: Path) -> list[Check]:
    """The checks in the order of the table. The rows of the file `row` take the place of the built-in one.

    A row may hold its right answer as `completion`. Raises UserError for what is a mistake of the user: an unknown
    reward or argument, a missing column, and a contract that is broken already for the right answer.
    """
    rows = None if row is None else jsonl_rows(row, "--row")
    example = EXAMPLES.get(use, OWN)
    option = example.needs.partition(":")[0]
    if option and option not in args:
        raise RewardError(f"reward {use!r} cannot be tried without a model; give --args '{{{example.needs}}}'")
    options = {**(example.options if rows is None else {}), **args}
    subject = _Subject(use, load_reward(use, options, base_dir), rows, example)
    try:
        return list(subject.checks())
    finally:
        subject.judge.close()


def jsonl_rows(path: Path, where: str) -> list[dict[str, Any]]:
    """The rows of a .jsonl file that the option or argument `where` names. Raises DataError."""
    from rlvr.data.sources import READERS  # imports datasets

    if not path.is_file():
        raise DataError(f"{where}: {path} is not a file; give a .jsonl file")
    rows = READERS[".jsonl"](path, f"{where}: {path}")
    if not rows:
        raise DataError(f"{where}: {path} is empty; give it at least one row")
    return rows


def parse_args(text: str) -> dict[str, Any]:
    """The value of `--args`, a mapping as in a recipe. Raises RewardError."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RewardError(f"--args {text!r} is not YAML; write it like '{{tag: null}}'") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise RewardError(f"--args {text!r} is not a mapping of names to values; write it like '{{tag: null}}'")
    return found


def table_of(name: str, checks: Sequence[Check]) -> Table:
    """check | result | detail."""
    table = Table(title=name)
    for heading in ("check", "result", "detail"):
        table.add_column(heading, no_wrap=heading != "detail")
    marks = {True: "pass", False: "FAIL", None: "-"}
    for each in checks:
        table.add_row(each.name, marks[each.passed], Text(each.detail.encode("utf-8", "replace").decode()))
    return table


class _Subject:
    """A reward with the rows that it is tried on."""

    def __init__(
        self, use: str, function: Callable[..., Any], rows: Sequence[Mapping[str, Any]] | None, example: Example
    ) -> None:
        self.name = RewardFunctionConfig(use=use).label
        limits = limits_of(RewardsConfig.model_validate({"functions": [use]}))
        self.timeout_s = limits.timeout_s
        self.judge = Afresh(1, limits)
        self.function = RewardFunction(self.name, 1.0, function)
        self.reward: Any = function
        self.options: Mapping[str, Any] = {}
        if isinstance(function, partial):
            self.reward, self.options = function.func, function.keywords
        self.rows = [example.row] if rows is None else list(rows)
        self.companions = example.companions if rows is None else ()
        self.example, self.shipped, self.own_rows = example, use in REGISTRY, rows is not None
        self.golds = [self._gold(row) for row in self.rows]

    def checks(self) -> Iterator[Check]:
        """In the order of the table. The first may raise RewardError; later ones fail in its place."""
        yield self._gold_check()
        yield self._empty_check()
        yield self._messages_check()
        for kind, text in TROUBLE.items():
            yield self._trouble_check(kind, text)
        yield self._picklable_check()
        yield self._same_check("deterministic", lambda texts: texts)
        yield self._same_check("in another order", lambda texts: texts[::-1])
        yield self._time_check()

    # ---- asking ------------------------------------------------------------------------------------------------------

    def _gold(self, row: Mapping[str, Any]) -> str:
        if "completion" in row:
            return str(row["completion"])
        if self.example.gold is not None and self.shipped and not self.own_rows:
            return self.example.gold
        answer = row.get("answer")
        text = gold_text(self.reward, self.options, {"answer": answer}) if isinstance(self.reward, ItemReward) else None
        if text is not None:
            return text
        if answer is None:
            raise RewardError(
                f"reward {self.name!r}: a row of --row has neither `completion` nor `answer`; give the right answer as"
                " `completion`"
            )
        return f"<answer>{answer}</answer>"

    def _ask(self, completions: Sequence[Any], row: Mapping[str, Any]) -> list[Answer]:
        """One answer per completion, all about the same row."""
        beside = [each["completion"] for each in self.companions]
        rows = [*[row] * len(completions), *self.companions]
        return ask(self.function, [*completions, *beside], rows, self.judge)[: len(completions)]

    def _try(self, completions: Sequence[Any], row: Mapping[str, Any] | None = None) -> list[Answer]:
        """As `_ask`, where whatever goes wrong is the answer to all of them."""
        try:
            return self._ask(completions, self.rows[0] if row is None else row)
        except Exception as error:  # noqa: BLE001 - what the reward raises is what is to be found out
            return [Answer(None, Status.ERROR, one_line(error))] * len(completions)

    # ---- checks ------------------------------------------------------------------------------------------------------

    def _gold_check(self) -> Check:
        right = 0
        for number, (row, gold) in enumerate(zip(self.rows, self.golds, strict=True), start=1):
            try:
                (answer,) = self._ask([gold], row)
            except RewardError:
                raise
            except Exception as error:  # noqa: BLE001 - see `_try`
                answer = Answer(None, Status.ERROR, one_line(error))
            if not self._is_top(answer.value):
                where = f"row {number}: " if len(self.rows) > 1 else ""
                wanted = "a number" if self.example.top is None else f"{self._top():g}"
                return Check("gold", False, f"{where}{_shown(gold)} gets {told(answer)}, not {wanted}")
            right += 1
        if len(self.rows) > 1:
            return Check("gold", True, f"{right} of {right} rows get the top score")
        return Check("gold", True, f"{_shown(self.golds[0])} gets {told(answer)}")

    def _top(self) -> float:
        assert self.example.top is not None
        return min(1.0, self.example.top) if self.own_rows else self.example.top

    def _is_top(self, value: float | None) -> bool:
        if value is None or self.example.top is None:
            return value is not None
        return value >= self._top() - TOLERANCE

    def _empty_check(self) -> Check:
        wanted = self.example.empty
        if self.own_rows and self.example.top != 1.0:
            wanted = None  # it depends on the options
        for text in ("", " \n"):
            (answer,) = self._try([text])
            if answer.value is None or (wanted is not None and abs(answer.value - wanted) > TOLERANCE):
                return Check(
                    "empty", False, f"{text!r} gets {told(answer)}, not {'a number' if wanted is None else wanted}"
                )
        return Check("empty", True, f"gets {answer.value:g}")

    def _messages_check(self) -> Check:
        gold, row = self.golds[0], self.rows[0]
        as_messages = [{"role": "assistant", "content": gold}]
        plain, messages, silent, none = (
            self._try([each], row)[0] for each in (gold, as_messages, [{"role": "assistant", "content": None}], [])
        )
        for each, answer in (("messages", messages), ("a message without content", silent), ("no message", none)):
            if answer.value is None:
                return Check("messages", False, f"{each}: {told(answer)}")
        if messages.value != plain.value:
            return Check("messages", False, f"as text {told(plain)}, as messages {told(messages)}")
        return Check("messages", True, f"as text and as messages {told(messages)}")

    def _trouble_check(self, kind: str, text: str) -> Check:
        start = time.perf_counter()
        (answer,) = self._try([text])
        seconds = time.perf_counter() - start
        if kind == "huge" and answer.status is Status.TIMEOUT:  # no completion has a million characters
            return Check(kind, True, f"stopped, which scores 0: {answer.reason}")
        if answer.value is None:
            return Check(kind, False, told(answer))
        return Check(kind, True, f"gets {answer.value:g} in {_seconds(seconds)}")

    def _picklable_check(self) -> Check:
        if not isinstance(self.reward, ItemReward):
            return Check("picklable", None, "a plain function runs in the process of the run; @item_reward isolates it")
        try:
            spec = spec_of(self.reward)
        except RewardError as error:
            return Check("picklable", False, str(error))
        return Check("picklable", True, f"found as {spec.file or spec.module}:{spec.name}")

    def _same_check(self, name: str, ordered: Callable[[list[Any]], list[Any]]) -> Check:
        texts = [self.golds[0], "", "<answer>7</answer>", "\\boxed{7}", "no answer", TROUBLE["NUL"], self.golds[0]]
        first, second = self._try(texts), ordered(self._try(ordered(texts)))
        for text, one, two in zip(texts, first, second, strict=True):
            if one.value != two.value or one.value is None:
                return Check(name, False, f"{_shown(text)} gets {told(one)}, then {told(two)}")
        return Check(name, True, f"{len(texts)} completions get the same again")

    def _time_check(self) -> Check:
        taken: list[float] = []
        begin = time.perf_counter()
        while len(taken) < TIMED and time.perf_counter() - begin < TIMED_SECONDS:
            start = time.perf_counter()
            (answer,) = self._try([self.golds[0]])
            taken.append(time.perf_counter() - start)
        median = statistics.median(taken)
        where = "in a worker" if isinstance(self.reward, ItemReward) else "in this process"
        enough = answer.value is not None and median < self.timeout_s
        return Check("time", enough, f"{_seconds(median)} per completion {where}, median of {len(taken)}")


def _shown(text: Any) -> str:
    shown = json.dumps(text, ensure_ascii=True)
    return shown if len(shown) <= 60 else f"{shown[:56]}..."


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
