"""Beyond the base model? All that the samples of a base and a tuned model on one set say about it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlvr.errors import EvaluationError
from rlvr.evaluation.comparison import Comparison, check_same_prompts, compare
from rlvr.evaluation.curves import Curves, pass_at_k_curves_of
from rlvr.evaluation.difficulty import DifficultyRow, difficulty_table
from rlvr.evaluation.entropy import mean_answer_entropy, mean_token_entropy
from rlvr.evaluation.estimators import Estimate
from rlvr.evaluation.samples import Sample
from rlvr.evaluation.summary import PromptSamples, by_prompt
from rlvr.evaluation.support import Bools, Support, SupportMetrics, detectable_pass_rate, support_metrics, support_of
from rlvr.evaluation.verdict import curve_verdict


@dataclass(frozen=True)
class Variety:
    """Mean entropies in nats."""

    answer_entropy: Estimate
    token_entropy: Estimate | None  # None: the samples do not have it


@dataclass(frozen=True)
class Beyond:
    """The tuned against the base model on the prompts all of whose samples have a verdict.

    Support and answer entropy depend on how many samples there are; they take the first `num_compared` of each model.
    """

    num_prompts: int
    num_unscored: int  # prompts left out
    num_compared: int
    verdict: str
    curves: Curves
    pass_at_1: Comparison
    support: Support
    metrics: SupportMetrics
    detectable_pass_rate: float  # a problem that is solved less often may well count as unsolved
    base: Variety
    tuned: Variety
    difficulty: tuple[DifficultyRow, ...]  # empty with one sample of the base model per prompt


def beyond_base(base: Sequence[Sample], tuned: Sequence[Sample], *, seed: int) -> Beyond:
    """Compares the samples of one set; prompts with equal text are resampled together, greedy samples not looked at.

    Raises EvaluationError that says what is wrong with the samples: prompts that one model lacks, unlike texts under
    one id, unlike numbers of samples, none, or none with verdicts.
    """
    theirs, ours = by_prompt(_drawn(base)), by_prompt(_drawn(tuned))
    check_same_prompts(ours, theirs)
    for prompt_id, each in theirs.items():
        if each.prompt != ours[prompt_id].prompt:
            raise EvaluationError(
                f"Prompt {prompt_id} is not the same text for both models; compare samples of the same data set."
            )
    ids = [prompt_id for prompt_id, each in theirs.items() if each.is_scored and ours[prompt_id].is_scored]
    if not ids:
        raise EvaluationError("No prompt has a verdict on all samples of both models; check the verifier.")
    base_prompts, tuned_prompts = [theirs[each] for each in ids], [ours[each] for each in ids]
    texts = [each.prompt for each in base_prompts]
    base_right, tuned_right = _outcomes(base_prompts), _outcomes(tuned_prompts)
    num_compared = min(base_right.shape[1], tuned_right.shape[1])
    first = (base_right[:, :num_compared], tuned_right[:, :num_compared])
    curves = pass_at_k_curves_of(base_right, tuned_right, seed=seed, clusters=texts)
    is_enough = base_right.shape[1] > 1
    return Beyond(
        num_prompts=len(ids),
        num_unscored=len(theirs) - len(ids),
        num_compared=num_compared,
        verdict=curve_verdict(curves),
        curves=curves,
        pass_at_1=compare(
            dict(zip(ids, tuned_right.mean(axis=1).tolist(), strict=True)),
            dict(zip(ids, base_right.mean(axis=1).tolist(), strict=True)),
            seed=seed,
            clusters=dict(zip(ids, texts, strict=True)),
        ),
        support=support_of(*first),
        metrics=support_metrics(*first, seed=seed, clusters=texts),
        detectable_pass_rate=detectable_pass_rate(num_compared),
        base=_variety(base_prompts, num_compared, seed, texts),
        tuned=_variety(tuned_prompts, num_compared, seed, texts),
        difficulty=tuple(difficulty_table(base_right, tuned_right, seed=seed, clusters=texts) if is_enough else ()),
    )


def _drawn(samples: Sequence[Sample]) -> list[Sample]:
    return [each for each in samples if not each.is_greedy]


def _outcomes(prompts: Sequence[PromptSamples]) -> Bools:
    """[N, n] whether each sample is right."""
    return np.array([each.outcomes for each in prompts]) == 1.0


def _variety(prompts: Sequence[PromptSamples], num_compared: int, seed: int, texts: Sequence[str]) -> Variety:
    return Variety(
        mean_answer_entropy([[s.answer for s in p.drawn[:num_compared]] for p in prompts], seed=seed, clusters=texts),
        mean_token_entropy(
            [[s.token_entropy for s in p.drawn] for p in prompts],
            [[len(s.completion_ids) for s in p.drawn] for p in prompts],
            seed=seed,
            clusters=texts,
        ),
    )
