"""Counts of the four habits by phrases, and by any other count."""

import pytest

from rlvr.evaluation.habits import HABITS, PHRASES, mean_habits, phrase_counts


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("3 + 4 = 7", (0, 0, 0, 0)),
        ("Let's check: 3 + 4 = 7. Let me verify that 7 is right.", (2, 0, 0, 0)),
        ("Double-check whether it holds, plugging it back in.", (2, 0, 0, 0)),
        ("Wait, that’s wrong. Let's try again.", (0, 3, 0, 0)),
        ("This does not work; let me start over.", (0, 2, 0, 0)),
        ("First, we add. Next, we halve. Step 3: done.", (0, 0, 3, 0)),
        ("Working backwards from 24. To reach 24, we need 8 and 3.", (0, 0, 0, 2)),
        ("the waiter awaits the first prize", (0, 0, 0, 0)),
    ],
)
def test_phrases_are_counted(text: str, counts: tuple[int, ...]) -> None:
    assert tuple(phrase_counts(text).values()) == counts


def test_every_habit_has_phrases() -> None:
    assert tuple(PHRASES) == HABITS


def test_means_are_over_completions_and_then_over_prompts() -> None:
    found = mean_habits([["wait", "wait wait", "no"], ["no"]], seed=0)
    assert {habit: each.value for habit, each in found.items()} == {
        "verification": 0.0,
        "backtracking": 0.5,
        "subgoal_setting": 0.0,
        "backward_chaining": 0.0,
    }
    assert (found["backtracking"].low, found["backtracking"].high) == (0.0, 1.0)


def test_another_count_may_stand_in() -> None:
    found = mean_habits([["a"], ["bb"]], lambda text: dict.fromkeys(HABITS, len(text)), seed=0)
    assert found["backtracking"].value == 1.5
