"""Procedural warm-start data for `builtin://starter`: worked solutions, hasty guesses, hints.

Every row is a (prompt, completion) pair of text. The text formats below are the contract of the starter:

    solve        solve 6 + 3 - 2 =                       -> <think> 6 + 3 = 9 ; 9 - 2 = 7 </think> <answer> 7 </answer>
    with a hint  solve 6 + 3 - 2 = hint 9 - 2            -> <think> 9 - 2 = 7 </think> <answer> 7 </answer>
    write a hint level 2 hint for 6 + 3 - 2 answer 7 =   -> <think> 7 + 2 = 9 </think> <hint> 9 - 2 </hint>

A chain-sum hint is the sum that is left: the running total followed by the last terms. The writer finds it backwards
from the gold answer, so it needs no skill that solving needs. Level L leaves 5 - L terms after the running total: level
1 says little, level 3 nearly everything. An equation's hint is the product that is left.
"""

import random
from dataclasses import dataclass

TERM_WEIGHTS = {2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 4, 8: 4}  # lengths solved without a hint: longer ones are never shown
HINTED_TERMS = (4, 12)
HINT_LEVELS = (1, 2, 3)


@dataclass(frozen=True)
class Style:
    """How the solutions of one training phase are written: shares in [0, 1]."""

    careful: float  # worked steps; the others guess the answer, right about one time in eight
    flawed_format: float  # the answer is not wrapped in <answer> ... </answer>


@dataclass(frozen=True)
class ChainSum:
    terms: tuple[int, ...]  # signed: 6 + 3 - 2 is (6, 3, -2)

    @property
    def text(self) -> str:
        return " ".join([str(self.terms[0]), *(signed(t) for t in self.terms[1:])])

    @property
    def answer(self) -> int:
        return sum(self.terms)

    def steps(self) -> list[str]:
        total, lines = self.terms[0], []
        for term in self.terms[1:]:
            lines.append(f"{total} {signed(term)} = {total + term}")
            total += term
        return lines

    def rest(self, kept: int) -> "ChainSum":
        """The same sum with all but its last `kept` terms already added up."""
        return ChainSum((sum(self.terms[:-kept]), *self.terms[-kept:]))

    def backward_steps(self, kept: int) -> list[str]:
        """The running total before the last `kept` terms, worked back from the answer."""
        total, lines = self.answer, []
        for term in reversed(self.terms[-kept:]):
            lines.append(f"{total} {signed(-term)} = {total - term}")
            total -= term
        return lines


@dataclass(frozen=True)
class Equation:
    """coef * x + const = result, or const - coef * x = result, in the spelling of reasoning-gym."""

    coef: int
    const: int
    minus: bool  # the term with x is subtracted
    solution: int
    variable: str = "x"

    @property
    def result(self) -> int:
        return self.const + (-1 if self.minus else 1) * self.coef * self.solution

    @property
    def text(self) -> str:
        term = self.variable if self.coef == 1 else f"{self.coef}*{self.variable}"
        if self.minus:
            return f"{self.const} - {term} = {self.result}" if self.const else f"-{term} = {self.result}"
        return f"{term} {signed(self.const)} = {self.result}" if self.const else f"{term} = {self.result}"

    @property
    def product(self) -> int:
        return self.coef * self.solution

    @property
    def isolate(self) -> str:
        """The step that finds the product coef * x."""
        if self.minus:
            return f"{self.const} {signed(-self.result)} = {self.product}"
        return f"{self.result} {signed(-self.const)} = {self.product}"

    @property
    def hint(self) -> str:
        return f"{self.coef} * {self.variable} = {self.product}"


def signed(value: int) -> str:
    return f"+ {value}" if value >= 0 else f"- {-value}"


def sample_chain_sum(rng: random.Random, num_terms: int) -> ChainSum:
    """Single-digit operands, as reasoning-gym's chain_sum with max_digits=1 draws them."""
    first, *others = (rng.randint(0, 9) for _ in range(num_terms))
    return ChainSum((first, *(t if rng.random() < 0.5 else -t for t in others)))


def sample_equation(rng: random.Random) -> Equation:
    """The equations of simple_equations with max_value=9, at most 3 terms and only + and - between them."""
    const = rng.choice([-1, 1]) * rng.randint(1, 9) + (
        rng.choice([-1, 1]) * rng.randint(1, 9) if rng.random() < 0.5 else 0
    )
    minus = rng.random() < 0.4
    return Equation(
        rng.randint(1, 9), const, minus and const > 0, rng.randint(1, 9), rng.choice("abcdefghijklmnopqrstuvwxyz")
    )


def solution(rng: random.Random, style: Style, steps: list[str], answer: int) -> str:
    """A completion in one of the two styles; a hasty one guesses near the answer."""
    if rng.random() >= style.careful:
        steps, answer = [], answer + round(rng.gauss(0.0, 3.0))
    thought = " ".join(["<think>", " ; ".join(steps), "</think>"]) if steps else "<think> </think>"
    if rng.random() < style.flawed_format:
        return f"{thought} {answer}" if rng.random() < 0.5 else f"{thought} <answer> {answer}"
    return f"{thought} <answer> {answer} </answer>"


def chain_sum_row(rng: random.Random, style: Style) -> tuple[str, str]:
    (num_terms,) = rng.choices(list(TERM_WEIGHTS), weights=list(TERM_WEIGHTS.values()))
    task = sample_chain_sum(rng, num_terms)
    return f"solve {task.text} =", solution(rng, style, task.steps(), task.answer)


def hinted_chain_sum_row(rng: random.Random, style: Style) -> tuple[str, str]:
    task = sample_chain_sum(rng, rng.randint(*HINTED_TERMS))
    rest = task.rest(min(5 - rng.choice(HINT_LEVELS), len(task.terms) - 2))
    return f"solve {task.text} = hint {rest.text}", solution(rng, style, rest.steps(), task.answer)


def hint_writing_row(rng: random.Random, style: Style) -> tuple[str, str]:
    task, level = sample_chain_sum(rng, rng.randint(*HINTED_TERMS)), rng.choice(HINT_LEVELS)
    kept = min(5 - level, len(task.terms) - 2)
    thought = " ; ".join(task.backward_steps(kept))
    prompt = f"level {level} hint for {task.text} answer {task.answer} ="
    return prompt, f"<think> {thought} </think> <hint> {task.rest(kept).text} </hint>"


def equation_row(rng: random.Random, style: Style) -> tuple[str, str]:
    task = sample_equation(rng)
    divide = f"{task.product} / {task.coef} = {task.solution}"
    if rng.random() < 0.2:
        return f"solve {task.text} hint {task.hint}", solution(rng, style, [divide], task.solution)
    return f"solve {task.text}", solution(rng, style, [task.isolate, divide], task.solution)


def equation_hint_row(rng: random.Random, style: Style) -> tuple[str, str]:
    task, level = sample_equation(rng), rng.choice(HINT_LEVELS)
    prompt = f"level {level} hint for {task.text} answer {task.solution} ="
    thought = f"{task.coef} * {task.solution} = {task.product}"
    return prompt, f"<think> {thought} </think> <hint> {task.hint} </hint>"


ROW_KINDS = {
    chain_sum_row: 66,
    hinted_chain_sum_row: 14,
    hint_writing_row: 8,
    equation_row: 10,
    equation_hint_row: 2,
}


def sample_rows(seed: int, step: int, num_rows: int, style: Style, excluded: frozenset[str]) -> list[tuple[str, str]]:
    """The rows of one training step: a function of (seed, step) alone, without any prompt in `excluded`."""
    rng = random.Random(f"{seed}/{step}")
    rows: list[tuple[str, str]] = []
    while len(rows) < num_rows:
        (kind,) = rng.choices(list(ROW_KINDS), weights=list(ROW_KINDS.values()))
        prompt, completion = kind(rng, style)
        if prompt not in excluded:
            rows.append((prompt, completion))
    return rows
