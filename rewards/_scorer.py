"""Log-probabilities of given texts under a causal language model."""

from collections.abc import Sequence
from typing import Any, Protocol

from rewards._models import end_of, loaded, max_tokens, opened, pad_id


class TokenScorer(Protocol):
    """What a reward needs of a model that scores texts: of one on disk, or of the policy in the trainer."""

    def render(self, prompt: Any) -> str:
        """The prompt, text or messages, as the text that the model would go on from."""
        ...

    def score_tokens(self, texts: Sequence[str], targets: Sequence[str]) -> list[list[float]]:
        """Per text the log-probability of every token of its target, each given the text and the target before it."""
        ...


def encoded(
    tokenizer: Any, text: str, target: str, room: int, padding: int, *, special: bool
) -> tuple[list[int], list[int]]:
    """The tokens of a text and of its target, `room` together: the end of the text, `padding` where it has no token.

    `special` lets the tokenizer add its special tokens to the text.
    """
    before = tokenizer(end_of(text, room), add_special_tokens=special)["input_ids"]
    after = tokenizer(end_of(target, room), add_special_tokens=False)["input_ids"][: room - 1]
    return before[-(room - len(after)) :] or [padding], after


class ModelScorer:
    """A causal language model in a folder or on the Hub. Text and target are tokenised apart."""

    def __init__(self, path: str, device: str, dtype: str, batch_size: int, template: str) -> None:
        self.network, self.tokenizer = loaded("AutoModelForCausalLM", path, device, dtype)
        self.batch_size = batch_size
        self.template = template

    def render(self, prompt: Any) -> str:
        return opened(self.tokenizer, prompt, self.template)

    def score_tokens(self, texts: Sequence[str], targets: Sequence[str]) -> list[list[float]]:
        """A text that leaves no room for its target loses its beginning."""
        special = self.tokenizer.chat_template is None  # a chat template writes the special tokens itself
        room, padding = max_tokens(self.network), pad_id(self.network)
        pairs = [
            encoded(self.tokenizer, text, target, room, padding, special=special)
            for text, target in zip(texts, targets, strict=True)
        ]
        order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
        found: list[list[float]] = [[] for _ in pairs]
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            for i, values in zip(chosen, self._batch([pairs[i] for i in chosen]), strict=True):
                found[i] = values
        return found

    def _batch(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Padded on the left, so that all targets are at the end and only their logits are made."""
        import torch

        width = max(len(before) + len(after) for before, after in pairs)
        kept = max(len(after) for _, after in pairs) + 1
        padding = pad_id(self.network)
        rows = [[padding] * (width - len(before) - len(after)) + before + after for before, after in pairs]
        mask = torch.ones(len(pairs), width, dtype=torch.long, device=self.network.device)
        for row, (before, after) in zip(mask, pairs, strict=True):
            row[: width - len(before) - len(after)] = 0
        tokens = torch.tensor(rows, device=self.network.device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        with torch.no_grad():
            output = self.network(
                input_ids=tokens, attention_mask=mask, position_ids=positions, logits_to_keep=kept, use_cache=False
            )
        logprobs = output.logits[:, -kept:-1].float().log_softmax(dim=-1)
        chosen = logprobs.gather(2, tokens[:, width - kept + 1 :].unsqueeze(2)).squeeze(2)
        return [row[kept - 1 - len(after) :].tolist() for row, (_, after) in zip(chosen, pairs, strict=True)]
