"""Evaluates a policy on held-out prompts: n samples and one greedy answer per prompt, with intervals over prompts."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol

from rlvr.config.schema import EvaluationConfig, RewardsConfig
from rlvr.errors import RewardError
from rlvr.evaluation.estimators import Estimate, estimate, pass_at_k
from rlvr.evaluation.outcomes import Outcomes, outcomes_of
from rlvr.evaluation.records import PromptRecord
from rlvr.types import Rollouts
from rlvr.verification import RewardFunction, Verdicts, verify

NOTHING: Mapping[str, Any] = MappingProxyType({})
Row = Mapping[str, Any]


class Sampler(Protocol):
    """Samples one completion per row; temperature 0 is greedy."""

    def __call__(self, rows: Sequence[Row], *, temperature: float) -> Rollouts: ...


@dataclass(frozen=True)
class EvaluationResult:
    """One data set. `num_unscored` prompts had a completion without a verdict and count in no estimate."""

    name: str
    num_prompts: int
    num_samples: int
    num_unscored: int
    estimates: dict[str, Estimate]  # pass@1, pass@8, greedy, ...
    mean_length: float  # completion tokens of the samples
    truncated_frac: float
    mean_reward: float | None  # None when no completion has a reward
    role: Literal["test", "validation"] = "test"  # nothing is chosen by a test set
    outcomes: Outcomes | None = None  # by prompt; None where the prompts were not at hand

    def to_json(self) -> dict[str, Any]:
        """As it comes back from a JSON file: lists, no tuples."""
        outcomes = None if self.outcomes is None else {name: list(each) for name, each in vars(self.outcomes).items()}
        return {**asdict(self), "outcomes": outcomes}


def results_text(results: Sequence[EvaluationResult]) -> str:
    """The JSON of a file of results: a list with a line per set."""
    lines = ",\n".join(json.dumps(result.to_json()) for result in results)
    return f"[\n{lines}\n]\n"


def evaluate_rows(
    rows: Sequence[Row],
    sample: Sampler,
    functions: Sequence[RewardFunction],
    rewards: RewardsConfig,
    config: EvaluationConfig,
    advance: Callable[[int], None],
    offers: Mapping[str, Any] = NOTHING,
) -> list[PromptRecord]:
    """Samples and verifies the rows of this rank; `advance` is told how many completions are done.

    `offers` are arguments that reward functions may take beside the columns.
    """
    records = []
    prompts_each = max(1, config.batch_size // config.num_samples)
    for first in range(0, len(rows), prompts_each):
        chunk = rows[first : first + prompts_each]
        repeated = [row for row in chunk for _ in range(config.num_samples)]
        rollouts = sample(repeated, temperature=config.temperature)
        verdicts = _judge(rollouts, functions, rewards, offers)
        advance(len(repeated))
        greedy: Sequence[float | None] = [None] * len(chunk)
        if config.greedy:
            greedy = _judge(sample(chunk, temperature=0.0), functions, rewards, offers).outcomes
            advance(len(chunk))
        for index, row in enumerate(chunk):
            mine = slice(index * config.num_samples, (index + 1) * config.num_samples)
            records.append(
                PromptRecord(
                    prompt_id=row["prompt_id"],
                    outcomes=tuple(verdicts.outcomes[mine]),
                    greedy_outcome=greedy[index],
                    rewards=tuple(verdicts.rewards[mine]),
                    lengths=tuple(len(ids) for ids in rollouts.completion_ids[mine]),
                    num_truncated=sum(rollouts.truncated[mine]),
                )
            )
    return records


def summarise(
    name: str,
    records: Sequence[PromptRecord],
    config: EvaluationConfig,
    role: Literal["test", "validation"] = "test",
    keys: Mapping[int, str] | None = None,
) -> EvaluationResult:
    """The estimates over all prompts; prompts are the unit of resampling, because samples of one prompt are alike.

    `keys` are equal where prompts are, by prompt (see `prompt_keys`): equal prompts are resampled together, and the
    outcomes are part of the result.
    """
    if not records:
        raise ValueError(f"the evaluation set {name!r} has no prompts")
    scored = [r for r in records if None not in r.outcomes and not (config.greedy and r.greedy_outcome is None)]
    values: dict[str, list[float]] = {}
    for k in config.k:
        values[f"pass@{k}"] = [pass_at_k(len(r.outcomes), sum(o == 1.0 for o in r.outcomes), k) for r in scored]
    if config.greedy:
        values["greedy"] = [float(r.greedy_outcome == 1.0) for r in scored]
    clusters = None if keys is None else [keys[each.prompt_id] for each in scored]
    lengths = [length for record in records for length in record.lengths]
    all_rewards = [reward for record in records for reward in record.rewards if reward is not None]
    return EvaluationResult(
        name=name,
        num_prompts=len(records),
        num_samples=config.num_samples,
        num_unscored=len(records) - len(scored),
        estimates={
            metric: estimate(each, seed=config.seed, clusters=clusters) for metric, each in values.items() if each
        },
        mean_length=sum(lengths) / len(lengths),
        truncated_frac=sum(record.num_truncated for record in records) / len(lengths),
        mean_reward=sum(all_rewards) / len(all_rewards) if all_rewards else None,
        role=role,
        outcomes=None if keys is None else outcomes_of(records, keys, config.greedy),
    )


def mean_pass_rate(records: Mapping[str, Sequence[PromptRecord]]) -> float:
    """The mean over sets of the mean over prompts of pass@1; prompts with a completion without a verdict are left out.

    Raises RewardError for a set of which that leaves nothing.
    """
    means = []
    for name, each in records.items():
        rates = [r.outcomes.count(1.0) / len(r.outcomes) for r in each if None not in r.outcomes]
        if not rates:
            raise RewardError(
                f"The verifier gave no prompt of the set {name!r} a verdict on all of its completions; try it by rlvr"
                " rewards check."
            )
        means.append(sum(rates) / len(rates))
    return sum(means) / len(means)


def _judge(
    rollouts: Rollouts, functions: Sequence[RewardFunction], rewards: RewardsConfig, offers: Mapping[str, Any]
) -> Verdicts:
    return verify(
        functions,
        rewards,
        prompts=rollouts.prompts,
        completions=rollouts.completions,
        completion_ids=rollouts.completion_ids,
        columns=rollouts.columns,
        prompt_ids=rollouts.group_ids,
        **offers,
    )
