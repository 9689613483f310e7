"""Overlap of evaluation with training prompts against comparison of word slices, and its rules for short prompts."""

import random
import re

import pytest

from rlvr.evaluation.contamination import NUM_OFFENDERS, TEMPLATE_PROMPTS, WORD, contamination
from tests.reference import beyond as reference


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{index}" for index in range(start, start + count))


def test_overlaps_equal_the_comparison_of_slices() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choice("abc") for _ in range(rng.randint(0, 14))) for _ in range(80)]
    prompts, training = texts[:20], texts[20 : 20 + TEMPLATE_PROMPTS]  # so few have no template
    for n in (1, 3, 5):
        found = contamination(prompts, training, n)
        split = [text.split() for text in training]
        for prompt, overlap in zip(prompts, found.overlaps, strict=True):
            shared, count = reference.shared_ngrams(prompt.split(), split, n)
            expected = 1.0 if prompt.split() in split else shared / count if count else 0.0
            assert overlap == pytest.approx(expected)
        assert found.num_overlapping == sum(each > 0 for each in found.overlaps)
        assert found.share == found.num_overlapping / 20


def test_long_prompts_overlap_by_13_words() -> None:
    training = [words(13) + " and more", "something else"]
    assert contamination([f"so {words(13)}?"], training).num_overlapping == 1
    assert contamination([f"so {words(12)} w99?"], training).num_overlapping == 0
    assert contamination([f"so {words(12)}"], training, n=12).num_overlapping == 1


def test_an_ngram_does_not_run_from_one_prompt_into_the_next() -> None:
    assert contamination([words(13)], [words(6), words(7, start=6)]).num_overlapping == 0
    assert contamination([words(6), words(7, start=6)], [words(13)]).num_overlapping == 0


def test_short_prompts_overlap_only_when_equal() -> None:
    training = ["3 + 4", "12 + 3 + 4 =", "7 - 2"]
    found = contamination(["3+4", "3 + 4 =", "7 + 2", "12 + 3", " 7 -  2 "], training)
    assert found.overlaps == (1.0, 0.0, 0.0, 0.0, 1.0)
    assert (found.num_equal, found.num_overlapping) == (2, 2)
    assert [(each.prompt, each.training_prompt, each.is_equal) for each in found.offenders] == [
        (0, 0, True),
        (4, 2, True),
    ]


def test_case_and_blanks_do_not_count() -> None:
    assert contamination(["What\nIS  the Sum"], ["what is the sum"]).num_equal == 1


TEMPLATE = "Work out the value of the expression {} and give nothing but the number between the answer tags please now."


def test_a_template_is_no_overlap() -> None:
    rng = random.Random(1)

    def expressions(count: int) -> list[str]:
        return [" + ".join(str(rng.randint(1, 9)) for _ in range(6)) for _ in range(count)]

    training, held_out = expressions(300), expressions(40)
    found = contamination([TEMPLATE.format(each) for each in held_out], [TEMPLATE.format(each) for each in training])
    assert found.num_overlapping == found.num_equal == len([each for each in held_out if each in training])
    copied = contamination([TEMPLATE.format(training[7])], [TEMPLATE.format(each) for each in training])
    assert (copied.num_equal, copied.offenders[0].training_prompt) == (1, 7)


def test_words_of_training_prompts_alone_are_no_template() -> None:
    training = [f"Please add {index} + {index + 1}" for index in range(TEMPLATE_PROMPTS + 5)]
    assert contamination(["Never add 3 + 4"], training).num_overlapping == 0
    assert contamination(["Please add 3 + 4"], training).num_equal == 1


def test_a_template_of_some_of_the_training_prompts_is_no_overlap() -> None:
    rng = random.Random(2)
    others = [" ".join(f"v{rng.randint(0, 10**6)}" for _ in range(20)) for _ in range(100)]
    training = [f"{words(15)} {index} {index + 1}" for index in range(TEMPLATE_PROMPTS + 1)] + others
    assert contamination([f"{words(15)} 77 79"], training).num_overlapping == 0
    # Of the n-grams that are no template, those that end with 7 and with 8 are found, that with x is not.
    assert contamination([f"{words(15)} 7 8 x"], training).overlaps == (pytest.approx(2 / 3),)
    # One prompt less, and it might be chance.
    assert contamination([f"{words(15)} 77 79"], training[1:]).num_overlapping == 1


def test_a_template_of_few_words_is_a_share_of_the_training_prompts() -> None:
    many = [f"{words(13)} u{index}" for index in range(25)] + [f"x{i} y{i}" for i in range(2500)]
    assert contamination([f"{words(13)} end"], many).num_overlapping == 1  # 25 are no more than 1% of them
    assert contamination([f"{words(13)} end"], many[:-100]).num_overlapping == 0


def test_the_worst_come_first_with_the_prompt_they_share_most_with() -> None:
    training = [f"{words(30)} a", f"{words(14)} b", f"c {words(26, start=4)}"]
    found = contamination([f"z {words(15)}", words(26, start=4), "nothing in common at all"], training)
    assert [(each.prompt, each.training_prompt) for each in found.offenders] == [(1, 0), (0, 0)]
    assert found.offenders[0].overlap == 1.0
    assert found.offenders[1].overlap == pytest.approx(3 / 4)
    assert not found.offenders[0].is_equal


def test_no_more_than_the_worst_are_named() -> None:
    prompts = [f"{index} + 1" for index in range(30)]
    found = contamination(prompts, prompts)
    assert found.num_overlapping == 30
    assert len(found.offenders) == NUM_OFFENDERS
    assert all(each.prompt == each.training_prompt for each in found.offenders)


def test_order_does_not_matter() -> None:
    rng = random.Random(3)
    texts = [" ".join(rng.choice("ab") for _ in range(6)) for _ in range(50)]
    prompts, training = texts[:20], texts[20:40]
    found = contamination(prompts, training, 4)
    places = list(range(20))
    rng.shuffle(places)
    shuffled = contamination([prompts[place] for place in places], training[::-1], 4)
    assert shuffled.overlaps == tuple(found.overlaps[place] for place in places)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)
    texts = [" ".join(rng.choice("ab") for _ in range(8)) for _ in range(120)]
    whole = contamination(texts[:40], texts[40:], 6)
    monkeypatch.setattr("rlvr.evaluation.contamination.CHUNK", 7)
    assert contamination(texts[:40], texts[40:], 6) == whole


def test_edges() -> None:
    assert contamination(["a b"], []).num_overlapping == 0
    assert contamination([""], ["a"]).num_overlapping == 0
    for prompts, n in (([], 13), (["a"], 0)):
        with pytest.raises(ValueError, match="at least one"):
            contamination(prompts, ["a"], n)
    assert re.findall(WORD, "3+4=x_1 é!") == ["3", "+", "4", "=", "x_1", "é", "!"]
