"""How unsure a model was of the tokens that it sampled."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from rlvr.errors import UserError
from rlvr.evaluation.standalone import Evaluation, frozen_pass, token_stats_of
from rlvr.frozen import SPARE, FrozenPass
from rlvr.ops.token_stats import StatsRequest
from rlvr.types import Rollouts, TrainRow

ENTROPY = StatsRequest(entropy=True)


@dataclass(frozen=True)
class EntropyReader:
    """Mean entropies of completions under the model, which is asked in eval mode."""

    model: PreTrainedModel
    frozen: FrozenPass

    def __call__(self, rollouts: Rollouts, temperature: float) -> list[float | None]:
        """By completion, the mean over its tokens of the next token's entropy over the whole vocabulary, in nats.

        At the temperature it was sampled with, before top-p, top-k and min-p. None for a completion without tokens.
        """
        parts = zip(rollouts.context_ids, rollouts.completion_ids, strict=True)
        rows = [TrainRow(context, ids, [True] * len(ids), 0.0) if ids else SPARE for context, ids in parts]
        spares = [SPARE] * (-len(rows) % self.frozen.batch_size)
        was_training = self.model.training
        self.model.eval()
        try:
            found = replace(self.frozen, temperature=temperature)(self.model, [*rows, *spares], ENTROPY)
        finally:
            self.model.train(was_training)
        means = []
        for (stats, _), ids in zip(found, rollouts.completion_ids, strict=False):  # the spare rows come last
            assert stats.entropy is not None
            means.append(float(stats.entropy.float().mean()) if ids else None)
        return means


@contextmanager
def entropy_reader(evaluation: Evaluation, model: PreTrainedModel) -> Iterator[EntropyReader | None]:
    """Reads the model within it; None for one whose head `attach_token_stats` refuses."""
    with ExitStack() as stack:
        try:
            stack.enter_context(token_stats_of(model))
        except UserError:
            reader = None
        else:
            reader = EntropyReader(model, frozen_pass(evaluation, model))
        yield reader
