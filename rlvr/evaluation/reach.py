"""The reach of a tuned model beside that of its base, from which samples of each prompt are right."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from rlvr.evaluation.comparison import Comparison, compare
from rlvr.evaluation.curves import Curves, pass_at_k_curves_of
from rlvr.evaluation.difficulty import DifficultyRow, difficulty_table
from rlvr.evaluation.support import Bools, Support, SupportMetrics, detectable_pass_rate, support_metrics, support_of
from rlvr.evaluation.verdict import curve_verdict


@dataclass(frozen=True)
class Reach:
    """The tuned against the base model on the same prompts, all of whose samples have a verdict.

    Support depends on how many samples there are; it takes the first `num_compared` of each model.
    """

    num_prompts: int
    num_compared: int
    verdict: str
    curves: Curves
    pass_at_1: Comparison
    support: Support
    metrics: SupportMetrics
    detectable_pass_rate: float  # a problem that is solved less often may well count as unsolved
    difficulty: tuple[DifficultyRow, ...]  # empty with one sample of the base model per prompt


def reach_of(base: Bools, tuned: Bools, *, ids: Sequence[int], clusters: Sequence[Hashable], seed: int) -> Reach:
    """From whether each sample [N, n] of the base and [N, m] of the tuned model is right.

    `clusters`, such as the texts of the prompts, are resampled as wholes.
    """
    num_compared = min(base.shape[1], tuned.shape[1])
    first = (base[:, :num_compared], tuned[:, :num_compared])
    curves = pass_at_k_curves_of(base, tuned, seed=seed, clusters=clusters)
    is_enough = base.shape[1] > 1
    return Reach(
        num_prompts=len(ids),
        num_compared=num_compared,
        verdict=curve_verdict(curves),
        curves=curves,
        pass_at_1=compare(
            dict(zip(ids, tuned.mean(axis=1).tolist(), strict=True)),
            dict(zip(ids, base.mean(axis=1).tolist(), strict=True)),
            seed=seed,
            clusters=dict(zip(ids, clusters, strict=True)),
        ),
        support=support_of(*first),
        metrics=support_metrics(*first, seed=seed, clusters=clusters),
        detectable_pass_rate=detectable_pass_rate(num_compared),
        difficulty=tuple(difficulty_table(base, tuned, seed=seed, clusters=clusters) if is_enough else ()),
    )
