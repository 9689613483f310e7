"""Seeded groups with hinted and taught completions, and the step from the scalar reference to a micro-batch."""

import math
import random
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rlvr.batching import collate
from rlvr.config.presets import Algorithm
from rlvr.config.schema import AlgorithmConfig
from rlvr.objectives.aggregation import Denominator
from rlvr.ops.token_stats import TokenStats
from rlvr.types import Microbatch, TrainRow
from tests.golden.cases import tensor
from tests.reference import guidance as reference
from tests.reference.guidance import DROP_PLAIN, DROP_WITH_RATIO, KEEP, Completion, LossRow, Policy, Rule
from tests.reference.objectives import Matrix
from tests.reference.switches import Bounds

VOCABULARY = 4
CONTEXTS = ("q", "q+h", "p")
MAX_COMPLETION_LENGTH = 7
QUANTILE = 0.9

# A teacher's completion is the same in every mode.
SCENARIOS = [
    ("nurl", KEEP),
    ("nurl", DROP_WITH_RATIO),
    ("nurl", DROP_PLAIN),
    ("guide", KEEP),
    ("guide", DROP_WITH_RATIO),
    ("guide", DROP_PLAIN),
    ("ampo", KEEP),
    ("mixed", DROP_WITH_RATIO),
]
SHAPED = [("nurl", DROP_WITH_RATIO), ("guide", DROP_WITH_RATIO), ("ampo", KEEP), ("mixed", DROP_WITH_RATIO)]
ALGORITHMS: dict[str, dict[str, Any]] = {
    **{preset: {"preset": preset} for preset in ("grpo", "dapo", "dr_grpo", "gspo", "cispo", "sapo", "gppo", "rloo")},
    "gspo_token": {"preset": "gspo", "ratio_level": "sequence_token", "clip_low": 0.1, "clip_high": 0.3},
    "narrow": {"preset": "dapo", "clip_low": 0.05, "clip_high": 0.6},
    "dr_dual": {"preset": "dr_grpo", "dual_clip": 1.5, "delta": 1.4},
    "ampo": {"preset": "grpo", "advantage": "centered", "dual_clip": 10.0},
}


def algorithm_of(name: str, **changes: Any) -> Algorithm:
    return AlgorithmConfig(**(ALGORITHMS[name] | changes)).resolved()


def rule_of(algorithm: Algorithm) -> Rule:
    """The same switches for the reference."""
    bounds = Bounds(**{each.name: getattr(algorithm, each.name) for each in fields(Bounds)})
    return Rule(algorithm.policy_loss, algorithm.ratio_level, bounds, algorithm.aggregation, MAX_COMPLETION_LENGTH)


@dataclass(frozen=True)
class GuidanceCase:
    """One step: the completions, the policy and the one that sampled (the policy itself: on-policy)."""

    completions: list[Completion]
    policy: Policy
    old_policy: Policy

    def rows(self, algorithm: Algorithm, mode: str) -> list[LossRow]:
        """What the loss sees, by the reference."""
        advantages = reference.advantages_of(
            self.completions, algorithm.advantage, algorithm.advantage_ddof, algorithm.advantage_eps
        )
        has_hint = any(each.context != each.prompt for each in self.completions)
        gamma = reference.hint_gamma(self.completions, self.policy, self.old_policy, QUANTILE) if has_hint else 0.0
        pairs = zip(self.completions, advantages, strict=True)
        return [reference.loss_row(each, advantage, self.old_policy, mode, gamma) for each, advantage in pairs]


def guidance_case(scenario: str, seed: int, on_policy: bool = False) -> GuidanceCase:
    """A helped group, and an ordinary one of another prompt whose last member has no loss token."""
    rng = random.Random(f"{scenario} {seed}")
    members = [("p", "p", False, reward) for reward in (1.0, 0.0, 0.0, 1.0)]
    if scenario == "nurl":  # G - 1 with the hint, and one of the failures without it
        members += [("q", "q+h", False, reward) for reward in (1.0, 0.0, 1.0, 0.0)] + [("q", "q", False, 0.0)]
    elif scenario == "guide":  # the whole group with the hint
        members += [("q", "q+h", False, reward) for reward in (0.0, 1.0, 0.0, 0.0)]
    elif scenario == "mixed":  # rows with a gamma of their own next to ones with the hint's
        members += [("q", "q", True, 1.0), ("q", "q+h", False, 0.0), ("q", "q", False, 1.0), ("q", "q+h", False, 1.0)]
    else:  # two of five failures replaced by a teacher's solutions
        members += [("q", "q", False, 0.0)] * 3 + [("q", "q", True, 1.0)] * 2
    completions = []
    for index, (prompt, context, by_teacher, reward) in enumerate(members):
        tokens = [rng.randrange(VOCABULARY) for _ in range(1 + (index + seed) % 5)]
        keep = [not (index % 3 == 1 and t == 1) for t in range(len(tokens))]
        if index == 3:
            keep = [False] * len(tokens)
        completions.append(Completion(tokens, keep, reward, int(prompt == "q"), prompt, context, by_teacher))
    policy = {context: [[rng.gauss(0, 1) for _ in range(VOCABULARY)] for _ in range(5)] for context in CONTEXTS}
    old_policy = {context: [[x + rng.gauss(0, 0.6) for x in row] for row in table] for context, table in policy.items()}
    return GuidanceCase(completions, policy, policy if on_policy else old_policy)


def logits_of(policy: Policy) -> Tensor:
    """[context, previous token, token], a leaf."""
    return tensor([policy[context] for context in CONTEXTS], requires_grad=True)  # type: ignore[arg-type]


def table_of(policy: Policy) -> list[list[list[float]]]:
    """The same as lists, to compare gradients with."""
    return [policy[context] for context in CONTEXTS]


def sampling_of(rows: list[LossRow], seed: int) -> Matrix:
    """What an engine would report: the sampler's log-probs and noise, in its own context; nothing of a teacher's."""
    rng = random.Random(seed)
    reported = []
    for row in rows:
        sampler = row.behaviour or row.old
        is_taught = not any(sampler)
        reported.append([math.nan if is_taught else value + rng.gauss(0, 0.7) for value in sampler])
    return reported


def train_rows(rows: list[LossRow], with_old: bool = True, sampling: Matrix | None = None) -> list[TrainRow]:
    """The context is one token beyond the vocabulary; without old log-probs the rollouts are of the current weights."""
    return [
        TrainRow(
            context_ids=[VOCABULARY + CONTEXTS.index(row.context)],
            completion_ids=row.tokens,
            loss_mask=row.keep,
            advantage=row.advantage,
            row_id=index,
            old_logprobs=tensor(row.old) if with_old else None,
            sampling_logprobs=None if sampling is None else tensor(sampling[index]),
            behaviour_logprobs=None if row.behaviour is None else tensor(row.behaviour),
            gamma=row.gamma,
        )
        for index, row in enumerate(rows)
    ]


def denominator_of(rows: list[LossRow]) -> Denominator:
    """Counts of a step that consists of these rows."""
    return Denominator(
        num_loss_tokens=float(sum(sum(row.keep) for row in rows)),
        num_sequences=float(sum(any(row.keep) for row in rows)),
        num_rows=float(len(rows)),
        max_completion_length=MAX_COMPLETION_LENGTH,
    )


def batch_of(
    rows: list[LossRow], denominator: Denominator, with_old: bool = True, sampling: Matrix | None = None
) -> Microbatch:
    """The rows as the trainer would collate them, but in float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return collate(train_rows(rows, with_old, sampling), denominator, 0, torch.device("cpu"))
    finally:
        torch.set_default_dtype(default)


def stats_of(batch: Microbatch, logits: Tensor) -> TokenStats:
    """What a forward pass of the tabular policy over the micro-batch's token ids gives."""
    context = batch.input_ids[:, :1] - VOCABULARY
    previous = batch.input_ids.gather(1, batch.predictor_index).clamp(max=VOCABULARY)
    table = logits[context, previous].log_softmax(dim=-1)
    logprobs = table.gather(-1, batch.completion_ids.unsqueeze(-1)).squeeze(-1)
    return TokenStats(logprobs, -(table.exp() * table).sum(dim=-1))
