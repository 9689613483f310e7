"""What the curves of two models come to in words, for every way in which they can lie."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from rlvr.evaluation.curves import Crossing, Curves, Point, pass_at_k_curves_of
from rlvr.evaluation.estimators import Estimate
from rlvr.evaluation.verdict import MIN_DIFFERING, curve_verdict

KS = (1, 2, 4, 8, 16)
ANY = Estimate(0.5, 0.4, 0.6)
SIGNS = {"+": Estimate(0.2, 0.1, 0.3), "-": Estimate(-0.2, -0.3, -0.1), "0": Estimate(0.01, -0.1, 0.1)}
NO_CROSSING = Crossing(math.inf, math.inf, math.inf)


def curves(
    signs: str, crossing: Crossing = NO_CROSSING, num_differing: int = 40, ks: Sequence[int] = KS, num_prompts: int = 90
) -> Curves:
    points = tuple(Point(k, ANY, ANY, SIGNS[sign], num_differing) for k, sign in zip(ks, signs, strict=False))
    return Curves(points, crossing, num_prompts)


@pytest.mark.parametrize(
    ("signs", "crossing", "sentence"),
    [
        (
            "++++0",
            Crossing(12.0, 6.04, math.inf),
            "RL wins up to k = 8; above that the base model is not worse. The curves cross at about k = 12 (95%"
            " interval: k = 6.0 to beyond k = 16).",
        ),
        (
            "+++00",
            Crossing(math.inf, 5.0, math.inf),
            "RL wins up to k = 4; above that the base model is not worse. RL's curve is still the higher one at k = 16,"
            " but a crossing from k = 5.0 on is not ruled out.",
        ),
        ("+++00", NO_CROSSING, "RL wins up to k = 4; above that the base model is not worse."),
        ("+++++", NO_CROSSING, "RL wins at every k up to 16. If the curves cross, they do so above k = 16."),
        (
            "++---",
            Crossing(2.6, 2.1, 3.3),
            "RL wins up to k = 2; from k = 4 on the base model wins. The curves cross at about k = 2.6 (95% interval:"
            " k = 2.1 to k = 3.3).",
        ),
        (
            "+0---",
            Crossing(2.0, 0.0, 3.5),
            "RL wins up to k = 1; above that the base model is not worse, and from k = 4 on it wins. The curves cross"
            " at about k = 2.0 (95% interval: below k = 1 to k = 3.5).",
        ),
        ("-----", Crossing(0.0, 0.0, 0.0), "The base model wins at every k up to 16."),
        ("--000", Crossing(0.0, 0.0, 9.0), "The base model wins up to k = 2; above that RL is not worse."),
        ("--+++", NO_CROSSING, "The base model wins up to k = 2; from k = 4 on RL wins."),
        (
            "-0+++",
            NO_CROSSING,
            "The base model wins up to k = 1; above that RL is not worse, and from k = 4 on it wins.",
        ),
        (
            "000--",
            Crossing(3.0, 0.0, 7.0),
            "RL wins at no k; from k = 8 up to the largest, 16, the base model wins.",
        ),
        ("000++", NO_CROSSING, "RL wins from k = 8 up to the largest k, 16; below that neither does."),
        ("0++00", NO_CROSSING, "RL wins at k = 2 to 4; elsewhere neither does."),
        ("0-0--", NO_CROSSING, "The base model wins at k = 2 and k = 8 to 16; elsewhere neither does."),
        (
            "+-0++",
            NO_CROSSING,
            "RL wins at k = 1 and k = 8 to 16, the base model wins at k = 2; elsewhere neither does.",
        ),
    ],
)
def test_every_case_has_its_sentence(signs: str, crossing: Crossing, sentence: str) -> None:
    assert curve_verdict(curves(signs, crossing)) == sentence


def test_curves_that_nothing_tells_apart() -> None:
    said = curve_verdict(curves("00000", Crossing(3.0, 0.0, math.inf)))
    assert said.startswith("These 90 prompts do not tell RL from the base model at any k up to 16;")
    assert "cross" not in said


def test_one_sample_per_prompt_says_nothing_about_larger_k() -> None:
    more = " More samples per prompt are needed to compare them at larger k."
    assert curve_verdict(curves("+", ks=[1])) == "RL wins at k = 1." + more
    assert curve_verdict(curves("-", ks=[1])) == "The base model wins at k = 1." + more
    expected = "At k = 1 these 90 prompts do not tell RL from the base model." + more
    assert curve_verdict(curves("0", ks=[1])) == expected


def test_too_few_prompts_prove_nothing() -> None:
    said = curve_verdict(curves("+++++", num_prompts=MIN_DIFFERING - 1))
    assert said.startswith("Too few prompts to tell RL from the base model: 5 cannot rule out chance")
    assert curve_verdict(curves("+++++", num_prompts=MIN_DIFFERING)).startswith("RL wins")


def test_few_prompts_that_differ_prove_nothing() -> None:
    """Five of 90 prompts that all got better: by chance one time in 16."""
    assert curve_verdict(curves("+++++", num_differing=MIN_DIFFERING - 1)).startswith("These 90 prompts do not tell")
    assert curve_verdict(curves("-----", num_differing=MIN_DIFFERING)).startswith("The base model wins")


# ---- from outcomes to words ------------------------------------------------------------------------------------------


def drawn(rates: Sequence[float], num_prompts: int, num_samples: int, seed: int) -> np.ndarray:
    """Outcomes of prompts with these pass rates in turn."""
    each = np.resize(np.asarray(rates), num_prompts)[:, None]
    return np.random.default_rng(seed).random((num_prompts, num_samples)) < each


@pytest.mark.parametrize(
    ("base", "tuned", "opening"),
    [
        ([0.2], [0.9, 0.9, 0.0], "RL wins up to k = "),  # it sharpens what it can, and loses a third
        ([0.2], [0.4], "RL wins at every k up to 8"),
        ([0.4], [0.05], "The base model wins at every k up to 8"),
        ([0.5], [0.5], "These 200 prompts do not tell RL from the base model at any k"),
        ([0.6, 0.6, 0.0], [0.2], "The base model wins up to k = "),  # it covers more than it did
    ],
)
def test_sampled_models_get_the_verdict_they_were_made_for(base: list[float], tuned: list[float], opening: str) -> None:
    found = pass_at_k_curves_of(drawn(base, 200, 8, 0), drawn(tuned, 200, 8, 1), seed=0)
    assert curve_verdict(found).startswith(opening)


def test_the_crossing_between_grid_points_is_named() -> None:
    found = pass_at_k_curves_of(drawn([0.2], 400, 16, 0), drawn([1.0, 0.0], 400, 16, 1), seed=0, ks=[1, 16])
    # 1 - 0.8^k is 1/2 at k = 3.1; the line in log k between 0.2 and 0.97 is lower and takes longer.
    assert 1 < found.crossing.low < found.crossing.k < found.crossing.high < 16
    assert "RL wins up to k = 1; from k = 16 on the base model wins. The curves cross at about k = " in curve_verdict(
        found
    )
