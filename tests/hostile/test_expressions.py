"""Mathematical answers made to hang, to crash or to fill a verifier: each costs a worker no more than its limits."""

import time
from collections.abc import Iterator

import pytest

from rewards._item import Status
from rewards.math_answer import math
from rlvr.verification.judging import Judge
from rlvr.verification.tasks import Limits

LIMITS = Limits(timeout_s=5.0, cpu_s=0.4, memory_mb=1024)
DEADLINE_S = 20.0  # for each: what a busy machine makes of the limits

EXPRESSIONS = {
    "parens": "(" * 2000 + "1" + ")" * 2000,
    "parens left": r"\left(" * 500 + "x" + r"\right)" * 500,
    "braces": "{" * 2000 + "1" + "}" * 2000,
    "frac": r"\frac{1}{1+" * 200 + "x" + "}" * 200,
    "frac num": r"\frac{1}{1+" * 60 + "1" + "}" * 60,
    "sqrt": r"\sqrt{1+" * 100 + "2" + "}" * 100,
    "sqrt10": r"\sqrt{1+" * 12 + "2" + "}" * 12,
    "tower": "9^{9^{9^9}}",
    "tower minus": "9^{9^9}-9^{9^9}+3",
    "tower x": "9^{9^9}x",
    "tower2": "2^{9^{9}}x",
    "tower2b": "2^{10^{12}}x",
    "tower2c": "2^{2^{2^{9}}}x",
    "fact": "(10^8)!",
    "factx": "(10^8)!x",
    "fact fact": "((9!)!)!",
    "fact3": "9!!!",
    "binom": r"\binom{10^9}{5\cdot 10^8}",
    "integral": r"\int_0^1 e^{-x^2}\sin(x^3)\ln(1+x) dx",
    "integral2": r"\int \frac{\sqrt{x^5+x+1}}{\sin(x)+x^7} dx",
    "integral3": r"\int_0^{\infty} \frac{x^{a-1}}{1+x^b+\sin x} dx",
    "sum": r"\sum_{n=1}^{10^9} \frac{1}{n^2}",
    "sum2": r"\sum_{n=1}^{\infty} \frac{\sin(n^2)}{n!}",
    "prod": r"\prod_{n=1}^{10^6} (1+\frac{x}{n})",
    "lim": r"\lim_{x \to 0} \frac{\sin(\tan x)-\tan(\sin x)}{x^{7}}",
    "expand": "(x+y+z+w)^{300}",
    "expand2": "(x+1)^{100000}",
    "expand3": "(x+y)^{10^6}-1",
    "poly big": "+".join(f"{i}x^{{{i}}}" for i in range(3000)),
    "long sum": "+".join(str(i) for i in range(20000)),
    "long mul": r"\cdot ".join(["x"] * 5000),
    "set": r"\{" + ",".join(f"\\sqrt{{{i}}}" for i in range(500)) + r"\}",
    "matrix": r"\begin{pmatrix}"
    + r"\\".join("&".join(str(i * j) for i in range(40)) for j in range(40))
    + r"\end{pmatrix}",
    "radicals": "+".join(f"\\sqrt[{i}]{{{i + 1}+\\sqrt{{{i + 2}}}}}" for i in range(2, 12)),
    "trig": r"\sin^{20}(x)\cos^{30}(x)\tan^{40}(x)",
    "trig nest": r"\sin(\cos(" * 20 + "x" + "))" * 20,
    "log": r"\log_{2}(\log_{2}(" * 8 + "10^{10^{5}}" + "))" * 8,
    "mod": r"7^{10^{9}} \mod 13",
    "exp exp": "e^{e^{e^{e^{e}}}}",
    "pi tower": r"\pi^{\pi^{\pi^{\pi}}}",
    "pi tower2": r"\lfloor \pi^{\pi^{\pi^{\pi}}} \rfloor",
    "bigdec": "0." + "3" * 100000,
    "bigint": "9" * 100000,
    "bigint ops": "9" * 4000 + "^{" + "9" * 5 + "}",
    "commas": ",".join(["1"] * 20000),
    "eqs": "x=1, " * 3000,
    "caret": "2^" * 3000 + "2",
    "under": "x_{" * 1000 + "1" + "}" * 1000,
    "text": r"\text{" * 2000 + "3" + "}" * 2000,
    "boxes in a box": r"\boxed{" * 500 + "3" + "}" * 500,
    "def": r"\def\a{\a\a}\a",
    "newcommand": r"\newcommand{\x}{\x\x\x}\x",
    "pm": r"\pm " * 14 + "1",
    "pm2": r"1 \pm 2 \pm 3 \pm 4 \pm 5 \pm 6 \pm 7 \pm 8 \pm 9 \pm 10 \pm 11 \pm 12",
    "ineq": r"x < \frac{1}{x^{50}+\sin x}",
    "ineq2": r"x^5+x^3-7x^2+\sin(x) \le 10",
    "and": r"x=\sin x \text{ and } y = e^{y}",
    "root of": "x^7+x^6-3x^2+x+11=0",
    "deriv": r"\frac{d^{50}}{dx^{50}} \sin(x)^{50}",
    "abs": r"|" * 300 + "x" + "|" * 300,
    "percent": "%" * 5000,
    "nul": "\0" * 1000,
    "rtl": "\u202e3\u202c",
    "surrogate": "\ud8003",
    "units": r"3\text{ cm}" * 500,
    "neg": "-" * 5000 + "1",
    "dec tower": "1.5^{9^{9^{9}}}x",
    "frac tower": r"(\frac{3}{2})^{9^{9}}x",
    "mixed": r"3\frac{1}{2}" * 300,
    "union": r"\cup ".join(f"[{i},{i + 1})" for i in range(0, 400, 2)),
    "degrees": "^\\circ" * 2000,
}
RIGHT = {"boxes in a box", "units"}  # of 3


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    made = Judge(1, LIMITS)
    yield made
    made.close()


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_hostile_expression_scores_nothing_within_its_limits(judge: Judge, name: str) -> None:
    for gold in ("3", "x+3"):
        started = time.monotonic()
        texts = [f"So \\boxed{{{EXPRESSIONS[name]}}}", "\\boxed{3+x}"]
        hostile, harmless = (each.judgement for each in judge.judge(math, {}, [(t, {"answer": gold}) for t in texts]))
        assert time.monotonic() - started < DEADLINE_S
        if name not in RIGHT:
            assert hostile.value == 0.0
            assert hostile.status in (Status.WRONG, Status.NO_ANSWER, Status.TIMEOUT, Status.ERROR)
        assert harmless.value == float(gold == "x+3")
