"""What the kept samples of one model on one set amount to."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from rlvr.errors import EvaluationError
from rlvr.evaluation.entropy import mean_answer_entropy, mean_token_entropy
from rlvr.evaluation.estimators import Estimate, Floats, estimate, pass_at_k_curves
from rlvr.evaluation.majority import majority_at_k
from rlvr.evaluation.samples import Sample


@dataclass(frozen=True)
class PromptSamples:
    """The samples of one prompt; `drawn` are those that are not greedy."""

    prompt_id: int
    prompt: str
    drawn: tuple[Sample, ...]
    greedy: Sample | None

    @property
    def is_scored(self) -> bool:
        """Whether every sample has a verdict."""
        every = self.drawn if self.greedy is None else (*self.drawn, self.greedy)
        return all(each.outcome is not None for each in every)

    @property
    def outcomes(self) -> list[float]:
        """[n] 1 for right, 0 for wrong or unscorable."""
        return [float(each.outcome == 1.0) for each in self.drawn]


def by_prompt(samples: Sequence[Sample]) -> dict[int, PromptSamples]:
    """The samples of one set by prompt.

    Raises EvaluationError where there is none, where they are of several sets, and where prompts have unlike numbers of
    samples.
    """
    names = sorted({each.set_name for each in samples})
    if len(names) != 1:
        raise EvaluationError(
            "There are no samples to summarise; evaluate first."
            if not names
            else f"The samples are of the sets {', '.join(names)}; summarise one set at a time."
        )
    drawn: dict[int, list[Sample]] = {}
    greedy: dict[int, Sample] = {}
    for each in samples:
        mine = drawn.setdefault(each.prompt_id, [])
        if each.is_greedy:
            greedy[each.prompt_id] = each
        else:
            mine.append(each)
    found = {
        prompt_id: PromptSamples(prompt_id, (each or [greedy[prompt_id]])[0].prompt, tuple(each), greedy.get(prompt_id))
        for prompt_id, each in drawn.items()
    }
    most = max(len(each.drawn) for each in found.values())
    for prompt_id, prompt in found.items():
        if len(prompt.drawn) != most or (prompt.greedy is None) != (not greedy):
            raise EvaluationError(
                f"Prompt {prompt_id} of {names[0]} lacks samples that others have; finish the evaluation first."
            )
    return found


def sample_estimates(
    samples: Sequence[Sample], *, k: Sequence[int], majority_k: Sequence[int] = (), seed: int
) -> dict[str, Estimate]:
    """pass@k, avg@n, maj@k, greedy, mean length in tokens, truncated share and entropies, of the n samples of one set.

    Prompts with equal text are resampled together. The first four are over the prompts all of whose samples have a
    verdict, and missing where there is none; the others over all prompts. `answer_entropy` is that of a prompt's final
    answers, `token_entropy` the mean over tokens, missing where samples do not have it; both in nats. Raises
    EvaluationError as `by_prompt`, and for a k above n.
    """
    prompts = list(by_prompt(samples).values())
    scored = [each for each in prompts if each.is_scored]
    values: dict[str, Floats] = {}
    num_drawn = len(prompts[0].drawn)
    if num_drawn and scored:
        outcomes = np.array([each.outcomes for each in scored])
        curves = pass_at_k_curves(num_drawn, outcomes.sum(axis=1), k)
        values |= {f"pass@{each}": curves[:, place] for place, each in enumerate(k)}
        values[f"avg@{num_drawn}"] = outcomes.mean(axis=1)
        for each in majority_k:
            votes = (majority_at_k([s.answer for s in p.drawn], p.outcomes, each) for p in scored)
            values[f"maj@{each}"] = np.fromiter(votes, dtype=np.float64)
    if prompts[0].greedy and scored:
        values["greedy"] = np.array([float(p.greedy is not None and p.greedy.outcome == 1.0) for p in scored])
    texts = [each.prompt for each in scored]
    found = {name: estimate(each, seed=seed, clusters=texts) for name, each in values.items()}
    if num_drawn:
        everyone = [each.prompt for each in prompts]
        lengths = [float(np.mean([len(s.completion_ids) for s in p.drawn])) for p in prompts]
        truncated = [float(np.mean([s.truncated for s in p.drawn])) for p in prompts]
        found["length"] = estimate(lengths, seed=seed, clusters=everyone)
        found["truncated"] = estimate(truncated, seed=seed, clusters=everyone)
        answers = [[s.answer for s in p.drawn] for p in prompts]
        found["answer_entropy"] = mean_answer_entropy(answers, seed=seed, clusters=everyone)
        entropy = token_entropy_of(prompts, seed=seed, clusters=everyone)
        if entropy is not None:
            found["token_entropy"] = entropy
    return found


def token_entropy_of(
    prompts: Sequence[PromptSamples], *, seed: int, clusters: Sequence[Hashable] | None = None
) -> Estimate | None:
    """The mean entropy per token of the drawn samples; see `mean_token_entropy`."""
    return mean_token_entropy(
        [[s.token_entropy for s in p.drawn] for p in prompts],
        [[len(s.completion_ids) for s in p.drawn] for p in prompts],
        seed=seed,
        clusters=clusters,
    )
