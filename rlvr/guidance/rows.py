"""What the loss sees of rows that were sampled with help."""

from collections.abc import Mapping
from dataclasses import replace

from rlvr.config.guidance import Conditioning
from rlvr.rollout.rows import put, take
from rlvr.types import OffPolicy, Rollouts


def conditioned(rollouts: Rollouts, hints: Mapping[int, str], how: Conditioning) -> Rollouts:
    """What the loss sees of the rows that were sampled with a hint.

    `keep`: the context with the hint. `drop_with_ratio`: the hint-free prompt, and the ratio to the sampler with the
    hint. `drop_plain`: the hint-free prompt, as if it had been sampled from; what an engine reported of these rows is
    then of other probabilities, and left out.
    """
    rows = sorted(hints)
    changed = replace(take(rollouts, rows), hints=[hints[row] for row in rows])
    if how != "keep":
        changed = replace(changed, loss_context_ids=changed.prompt_ids)
    if how == "drop_with_ratio":
        changed = replace(changed, off_policy=[OffPolicy()] * len(rows))
    if how == "drop_plain" and changed.sampling_logprobs is not None:
        unknown = [[float("nan")] * len(ids) for ids in changed.completion_ids]
        changed = replace(changed, sampling_logprobs=unknown)
    return put(rollouts, rows, changed)
