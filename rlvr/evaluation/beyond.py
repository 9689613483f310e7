"""Beyond the base model? All that the samples of a base and a tuned model on one set say about it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlvr.errors import EvaluationError
from rlvr.evaluation.comparison import check_same_prompts
from rlvr.evaluation.entropy import mean_answer_entropy
from rlvr.evaluation.estimators import Estimate
from rlvr.evaluation.reach import Reach, reach_of
from rlvr.evaluation.samples import Sample
from rlvr.evaluation.summary import PromptSamples, by_prompt, token_entropy_of
from rlvr.evaluation.support import Bools


@dataclass(frozen=True)
class Variety:
    """Mean entropies in nats."""

    answer_entropy: Estimate
    token_entropy: Estimate | None  # None: the samples do not have it


@dataclass(frozen=True)
class Beyond(Reach):
    """All of it; answer entropy, like support, takes the first `num_compared` samples of each model."""

    num_unscored: int  # prompts left out
    base: Variety
    tuned: Variety


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
    reach = reach_of(_outcomes(base_prompts), _outcomes(tuned_prompts), ids=ids, clusters=texts, seed=seed)
    return Beyond(
        **vars(reach),
        num_unscored=len(theirs) - len(ids),
        base=_variety(base_prompts, reach.num_compared, seed, texts),
        tuned=_variety(tuned_prompts, reach.num_compared, seed, texts),
    )


def _drawn(samples: Sequence[Sample]) -> list[Sample]:
    return [each for each in samples if not each.is_greedy]


def _outcomes(prompts: Sequence[PromptSamples]) -> Bools:
    """[N, n] whether each sample is right."""
    return np.array([each.outcomes for each in prompts]) == 1.0


def _variety(prompts: Sequence[PromptSamples], num_compared: int, seed: int, texts: Sequence[str]) -> Variety:
    return Variety(
        mean_answer_entropy([[s.answer for s in p.drawn[:num_compared]] for p in prompts], seed=seed, clusters=texts),
        token_entropy_of(prompts, seed=seed, clusters=texts),
    )
