"""The policy in training as a model that rewards score texts with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rewards._models import max_tokens
from rewards._scorer import encoded
from rlvr.frozen import FrozenPass
from rlvr.types import TrainRow
from rlvr.verification import RewardFunction, takes


class PolicyScorer:
    """Log-probabilities of texts under the policy as it is at the moment of asking: a `TokenScorer` of the rewards.

    `model` gives the model to run, in the wrapper that holds its weights. Every rank has to call `score_tokens` equally
    often, be it without texts: each call may gather weights that are sharded over ranks.
    """

    def __init__(
        self,
        model: Callable[[], torch.nn.Module],
        tokenizer: PreTrainedTokenizerBase,
        frozen: FrozenPass,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.template_options = model, tokenizer, template_options or {}
        self.frozen = replace(frozen, temperature=1.0)

    def render(self, prompt: Any) -> str:
        """The prompt as the policy samples from it: text as it is, messages by the tokenizer's chat template."""
        if isinstance(prompt, str):
            return prompt
        return str(
            self.tokenizer.apply_chat_template(
                prompt, tokenize=False, add_generation_prompt=True, **self.template_options
            )
        )

    def score_tokens(self, texts: Sequence[str], targets: Sequence[str]) -> list[list[float]]:
        """As `TokenScorer` says, without gradient and without dropout.

        Text and target are tokenised apart; a text that leaves no room for its target loses its beginning.
        """
        model = self.model()
        room = max_tokens(self.frozen.accelerator.unwrap_model(model))
        pairs = [
            encoded(self.tokenizer, text, target, room, self.tokenizer.pad_token_id, special=self._is_bare(text))
            for text, target in zip(texts, targets, strict=True)
        ]
        rows = [TrainRow(before, after, [True] * len(after), 0.0) for before, after in pairs if after]
        was_training = model.training
        model.eval()
        try:
            logprobs = iter(self.frozen.logprobs(model, rows))
        finally:
            model.train(was_training)
        return [next(logprobs).tolist() if after else [] for _, after in pairs]

    def _is_bare(self, text: str) -> bool:
        """Whether the tokenizer has to add its special tokens: a chat template has written them itself."""
        beginning = self.tokenizer.bos_token
        return beginning is None or not text.startswith(beginning)


def scorer_offer(functions: Sequence[RewardFunction], scorer: PolicyScorer) -> dict[str, PolicyScorer]:
    """What `verify` is to offer beside the columns: the policy as `scorer` where a function takes one, else nothing."""
    return {"scorer": scorer} if any(takes(each.function, "scorer") for each in functions) else {}
