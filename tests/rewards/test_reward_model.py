"""The reward model against one forward pass at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rewards.process import clip_delta
from rewards.reward_model import rm
from rlvr.errors import RewardError
from tests.rewards.tiny_models import POSITIONS, saved

PROMPTS = ["What is 1 + 2? ", "Say a long sentence about the sea. ", "?"]
COMPLETIONS = ["It is 3.", "The sea is wide, and deep, and mostly water.", ""]


def logits(path: str, text: str) -> list[float]:
    """Of one text, without padding, by nothing but transformers."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    ids = transformers.AutoTokenizer.from_pretrained(path)(text)["input_ids"]
    with torch.no_grad():
        result: list[float] = model(input_ids=torch.tensor([ids])).logits[0].tolist()
    return result


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_score_is_the_logit_whatever_shares_the_batch(classifier: str, batch_size: int) -> None:
    expected = [logits(classifier, prompt + text)[0] for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)]
    got = rm(COMPLETIONS, PROMPTS, model=classifier, batch_size=batch_size)
    assert got == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) == 3


def test_several_labels_need_a_choice(classifier_of_three: str) -> None:
    expected = logits(classifier_of_three, PROMPTS[0] + COMPLETIONS[0])
    for label, value in enumerate(expected):
        assert rm(COMPLETIONS[:1], PROMPTS[:1], model=classifier_of_three, label=label) == pytest.approx(
            [value], abs=1e-5
        )
    with pytest.raises(RewardError, match=r"has 3 labels; choose one with `args: {label: 0}`"):
        rm(COMPLETIONS, PROMPTS, model=classifier_of_three)
    with pytest.raises(RewardError, match="`label` is 3"):
        rm(COMPLETIONS, PROMPTS, model=classifier_of_three, label=3)


def test_long_text_loses_its_beginning(classifier: str) -> None:
    long = "x" * 1000 + "the end"
    assert rm([long], ["p"], model=classifier) == pytest.approx(logits(classifier, long[-POSITIONS:]), abs=1e-5)
    assert rm([long], ["p"], model=classifier, max_length=7) == pytest.approx(logits(classifier, "the end"), abs=1e-5)


def test_steps_are_scored_up_to_their_end_and_refined(classifier: str) -> None:
    text, eta = "one\n\ntwo\n\n \n\nthree\n\n", 0.25
    prefixes = ["one", "one\n\ntwo", "one\n\ntwo\n\n \n\nthree"]
    scores = [logits(classifier, "p" + prefix)[0] for prefix in prefixes]

    def score(**options: Any) -> list[float | None]:
        return rm([text, ""], ["p", "p"], model=classifier, step_separator="\n\n", eta=eta, **options)

    assert score(refinement="none") == pytest.approx([sum(scores), 0.0], abs=1e-5)
    assert score() == pytest.approx([sum(clip_delta(scores, eta)), 0.0], abs=1e-5)


def test_chat_template_writes_the_text_where_there_is_one(tmp_path: Path) -> None:
    path = saved(tmp_path, "LlamaForSequenceClassification")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(path)
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    chat = logits(path, "[system]s[user]q[assistant]a")
    assert rm([[{"role": "assistant", "content": "a"}]], [prompt], model=path) == pytest.approx(chat, abs=1e-5)
    assert rm(["a"], [prompt], model=path) == pytest.approx(chat, abs=1e-5)
    assert rm(["a"], ["q"], model=path, template="plain") == pytest.approx(logits(path, "qa"), abs=1e-5)


def test_score_that_is_no_number_is_no_verdict(tmp_path: Path) -> None:
    path = saved(tmp_path, "LlamaForSequenceClassification")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    torch.nn.init.constant_(model.score.weight, float("nan"))
    model.save_pretrained(path)
    assert rm(["a"], ["q"], model=path) == [None]


def test_mistakes_are_named(classifier: str, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"cannot be loaded; name a folder"):
        rm(["a"], ["q"], model=str(tmp_path / "nothing"))
    with pytest.raises(RewardError, match="write `template: plain`"):
        rm(["a"], ["q"], model=classifier, template="chat")
    with pytest.raises(RewardError, match="not one of none, clip"):
        rm(["a"], ["q"], model=classifier, refinement="sum")
    with pytest.raises(RewardError, match="`step_separator`"):
        rm(["a"], ["q"], model=classifier, step_separator="")
    with pytest.raises(RewardError, match="batch_size is 0"):
        rm(["a"], ["q"], model=classifier, batch_size=0)
    with pytest.raises(RewardError, match="`model` is list"):
        rm(["a"], ["q"], model=["m"])  # type: ignore[arg-type]
