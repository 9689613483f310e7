"""Which solved problems are shown: the most similar ones, never the prompt's own, always the same."""

import json
import random
import time

import pytest

from rlvr.guidance.retrieval import Solved, similarity


def filled(*texts: str, capacity: int = 100) -> Solved:
    """Prompts 0, 1, ... with completions c0, c1, ..."""
    solved = Solved(capacity)
    for index, text in enumerate(texts):
        solved.add(index, text, f"c{index}")
    return solved


def completions(solved: Solved, text: str, count: int, prompt_id: int = -1) -> list[str]:
    return [completion for _, completion in solved.nearest(prompt_id, text, count)]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("a b", "A, b!", 1.0),
        ("a a b b", "b a", 1.0),
        ("a", "b", 0.0),
        ("a b", "a c", 0.5),
        ("a a b", "a", 2 / 5**0.5),
        ("", "a", 0.0),
        ("", "", 0.0),
        ("?!", "?!", 0.0),
        ("STRASSE", "straße", 1.0),
        ("\ud800 \0 ١٢ \u202ex", "١٢ x", 1.0),
        ("x" * 2**20, "x" * 2**20, 1.0),
        ("x " * 2**19, "x", 1.0),
    ],
)
def test_similarity_is_the_cosine_of_word_counts(a: str, b: str, expected: float) -> None:
    assert similarity(a, b) == pytest.approx(expected)
    assert similarity(b, a) == similarity(a, b)


def test_nearest_come_first_with_their_completions() -> None:
    solved = filled("red green", "red blue blue", "blue", "yellow")
    assert solved.nearest(-1, "Blue!", 2) == [("blue", "c2"), ("red blue blue", "c1")]


def test_the_prompt_itself_is_never_shown_and_there_may_be_fewer() -> None:
    solved = filled("a", "a", "b")
    assert completions(solved, "a", 9, prompt_id=1) == ["c0", "c2"]
    assert completions(solved, "a", 1, prompt_id=1) == ["c0"]
    assert completions(filled("a"), "a", 3, prompt_id=0) == []
    assert completions(Solved(), "a", 3) == []
    assert completions(solved, "a", 0) == []


def test_newest_of_equally_similar_ones_come_first() -> None:
    solved = filled("a b", "c", "b a", "a  B")
    assert completions(solved, "a", 4) == ["c3", "c2", "c0", "c1"]
    solved.add(0, "a b", "again")
    assert completions(solved, "a", 3) == ["again", "c3", "c2"]
    assert completions(solved, "nothing alike", 2) == ["again", "c3"]


def test_a_newer_success_of_a_prompt_takes_the_place_of_the_older() -> None:
    solved = filled("a", "b")
    solved.add(0, "c c", "new")
    assert len(solved) == 2
    assert solved.nearest(-1, "c", 1) == [("c c", "new")]
    assert completions(solved, "a", 2) == ["new", "c1"]


def test_the_prompt_added_longest_ago_is_dropped() -> None:
    solved = filled("a", "b", "c", capacity=3)
    solved.add(0, "a", "again")
    solved.add(3, "d", "c3")
    assert len(solved) == 3
    assert completions(solved, "b", 9) == ["c3", "again", "c2"]
    assert completions(solved, "c", 1) == ["c2"]


def test_after_many_changes_it_agrees_with_comparing_everything() -> None:
    rng = random.Random(0)
    solved, entries = Solved(40), {}
    for step in range(400):
        prompt_id, text = rng.randrange(60), " ".join(rng.choices("abcdefghij", k=rng.randrange(7)))
        entries.pop(prompt_id, None)
        entries[prompt_id] = (text, str(step))
        entries = dict(list(entries.items())[-40:])
        solved.add(prompt_id, text, str(step))
        query, own = " ".join(rng.choices("abcdefghijk", k=4)), rng.randrange(60)
        others = [entry for key, entry in reversed(entries.items()) if key != own]
        expected = sorted(others, key=lambda entry: -round(similarity(query, entry[0]), 9))[:5]  # stable: newest first
        found = solved.nearest(own, query, 5)
        close = [pytest.approx(similarity(query, text)) for text, _ in expected]
        assert [similarity(query, text) for text, _ in found] == close
        assert len(solved) == len(entries)
        assert set(found) <= set(others)
        assert found[0][1] == expected[0][1] or similarity(query, found[0][0]) == close[0]


def test_state_survives_json_and_goes_on_the_same() -> None:
    solved = filled("a", "b \0\u202e", "\ud800 c", "a", capacity=3)
    state = json.loads(json.dumps(solved.state_dict()))
    other = filled("old", "older", capacity=3)
    other.load_state_dict(state)
    for each in (solved, other):
        each.add(1, "a", "new")
        each.add(9, "z", "c9")
    assert other.state_dict() == solved.state_dict()
    assert other.nearest(-1, "a", 9) == solved.nearest(-1, "a", 9) == [("a", "new"), ("a", "c3"), ("z", "c9")]


def test_state_of_a_larger_store_leaves_the_newest() -> None:
    solved = Solved(2)
    solved.load_state_dict(filled("a", "b", "c").state_dict())
    assert completions(solved, "x", 9) == ["c2", "c1"]


def test_huge_texts() -> None:
    solved = filled("x " * 2**19, "y" * 2**20, "")
    assert completions(solved, "x" + " y" * 2**19, 1) == ["c0"]
    assert completions(solved, "y" * 2**20, 1) == ["c1"]


def test_a_query_of_a_full_store_takes_milliseconds() -> None:
    rng = random.Random(0)
    frame = " ".join(f"word{i}" for i in range(20))
    solved = Solved()
    for index in range(10_000):
        solved.add(index, f"{frame} {rng.random()} {rng.randrange(100)}", "c")
    start = time.process_time()
    for index in range(100):
        assert len(solved.nearest(index, f"{frame} {index}", 3)) == 3
    assert time.process_time() - start < 1.0
