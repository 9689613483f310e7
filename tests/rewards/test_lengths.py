"""Rewards of length and repetition against values worked out by hand or in the papers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.cosine_length import cosine_length
from rewards.format_length import format_length_surrogate, length_shape
from rewards.process import clip, clip_delta, delta, refine
from rewards.repetition import repeated_share, repetition
from rewards.soft_overlong import soft_overlong
from rlvr.errors import RewardError


def ids(*lengths: int) -> list[list[int]]:
    return [[0] * length for length in lengths]


# ---- soft_overlong --------------------------------------------------------------------------------------------------


def test_soft_overlong_falls_linearly_within_the_cache() -> None:
    lengths = ids(0, 16384, 16385, 18432, 20480, 20481, 30000)
    got = soft_overlong([""] * 7, lengths, max_length=20480, cache=4096)
    assert got == [0.0, 0.0, -1 / 4096, -0.5, -1.0, -1.0, -1.0]


@pytest.mark.parametrize(("max_length", "cache"), [(10, 0), (10, 11), (0, 1), (10, 1.5), ("10", 1)])
def test_soft_overlong_names_the_option_that_makes_no_sense(max_length: int, cache: int) -> None:
    with pytest.raises((RewardError, TypeError), match=r"cache|max_length|'<='"):
        soft_overlong([""], ids(3), max_length=max_length, cache=cache)


# ---- cosine_length --------------------------------------------------------------------------------------------------


def test_cosine_length_has_the_values_of_the_paper() -> None:
    lengths = ids(0, 250, 500, 900)
    right = cosine_length([""] * 4, lengths, [1.0] * 4, max_length=1000)
    wrong = cosine_length([""] * 4, lengths, [0.0] * 4, max_length=1000)
    assert right == pytest.approx([2, 1.8536, 1.5, 1.0245], abs=5e-5)
    assert wrong == pytest.approx([-10, -8.5355, -5, -0.2447], abs=5e-5)


def test_cosine_length_at_the_limit_is_exceed_whatever_the_answer() -> None:
    lengths = ids(983, 984, 2000, 984)
    got = cosine_length([""] * 4, lengths, [1.0, 1.0, 1.0, 0.0], max_length=1000, exceed=-7.0)
    assert got[0] == pytest.approx(1 + 0.5 * (1 + math.cos(math.pi * 0.983)))
    assert got[1:] == [-7.0, -7.0, -7.0]


def test_cosine_length_asks_a_verifier_and_passes_on_its_silence() -> None:
    completions = ["<a>3</a>", "<a>4</a>", "<a>4</a>"]
    got = cosine_length(
        completions,
        ids(0, 0, 0),
        max_length=100,
        verifier="numeric",
        verifier_args={"tag": "a", "tolerance": 0.5},
        answer=["3.5", "3", "none"],
    )
    assert got == [2.0, -10.0, None]


def test_cosine_length_without_a_verifier_says_how_to_name_one() -> None:
    with pytest.raises(RewardError, match=r"verifier: \.\.\.}` to one of .*exact"):
        cosine_length([""], ids(1), max_length=10)
    with pytest.raises(RewardError, match="which completions are right"):
        cosine_length([""], ids(1), max_length=10, verifier="exakt", answer=["3"])


# ---- repetition -----------------------------------------------------------------------------------------------------


def test_repetition_is_the_share_of_repeated_ngrams() -> None:
    # "a b c a b c": abc bca cab abc, three of four are distinct.
    assert repetition(["a b c A B c", "a b", "", "a b c d"], max_penalty=-2.0) == [-0.5, 0.0, 0.0, 0.0]
    assert repetition(["a a a a"], ngram=2, max_penalty=-3.0) == [pytest.approx(-2.0)]


def test_repetition_of_wrong_answers_only() -> None:
    got = repetition(["a a", "a a", "a a"], [1.0, 0.0, None], ngram=1, only_wrong=True)
    assert got == [0.0, -0.5, None]


@pytest.mark.parametrize("options", [{"ngram": 0}, {"max_penalty": 0.5}])
def test_repetition_refuses_options_that_would_reward_it(options: dict[str, float]) -> None:
    with pytest.raises(RewardError, match="at least 1 and max_penalty at most 0"):
        repetition(["a"], **options)


@given(st.lists(st.sampled_from("ab"), max_size=12), st.integers(1, 5))
def test_repeated_share_counts_as_written_out(words: list[str], ngram: int) -> None:
    grams = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]
    expected = sum(gram in grams[:i] for i, gram in enumerate(grams)) / len(grams) if grams else 0.0
    assert repeated_share(" ".join(words), ngram) == pytest.approx(expected)


# ---- format_length_surrogate ----------------------------------------------------------------------------------------


def test_length_shape_has_the_values_of_the_paper() -> None:
    assert [length_shape(u, 0.5) for u in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx([0, 0.75, 1, 0.5, -1])


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("\\boxed{3}", 50, 2.0),
        ("\\boxed{3}", 100, 0.0),
        ("\\boxed{3}", 25, 1.75),
        ("\\boxed{2} \\boxed{3}", 50, 1.75),
        ("{ \\boxed{3}", 50, 1.75),
        ("{ \\boxed{2} \\boxed{3}", 50, 1.5),
        ("3", 50, 0.0),
        ("3", 100, -1.0),
        ("\\boxed{}", 50, 0.0),
        ("\\boxed{3", 50, 0.0),
        ("\\boxed{3} \\boxed{4", 50, 1.5),
        ("\\boxed{!!!}", 50, 0.0),
    ],
)
def test_format_length_surrogate(text: str, length: int, expected: float) -> None:
    assert format_length_surrogate([text], completion_ids=ids(length), max_length=100) == [pytest.approx(expected)]


# ---- steps ----------------------------------------------------------------------------------------------------------

Q = [0.9, 0.8, 0.7, 0.95, 0.6]


def test_step_refinements_have_the_values_of_the_paper() -> None:
    assert clip(Q, 0.8) == pytest.approx([0, 0, -0.1, 0, -0.2])
    assert delta(Q) == pytest.approx([0.1, 0.1, -0.25, 0.95, 0])
    assert clip_delta(Q, 0.8) == pytest.approx([0, 0.1, -0.1, 0, 0])


def test_refine_goes_by_name() -> None:
    names = ("none", "clip", "delta", "clip_delta")
    assert [refine(Q, name, 0.8) for name in names] == [Q, clip(Q, 0.8), delta(Q), clip_delta(Q, 0.8)]


@given(st.lists(st.floats(-1, 1), max_size=8))
def test_delta_telescopes(scores: list[float]) -> None:
    rewards = delta(scores)
    assert len(rewards) == len(scores)
    for k in range(len(scores) - 1):
        assert sum(rewards[k:]) == pytest.approx(scores[k], abs=1e-9)
