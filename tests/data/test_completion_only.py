"""Labels of the answer alone, from templates and from conversations."""

from __future__ import annotations

from typing import Any

import pytest

from runner.data.text_generation import IGNORED_LABEL, text_generation, text_generation_options
from runner.errors import DataUnavailable, InvalidRecipe
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_tokenizer

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
OPTIONS = {"strategy": "line-by-line", "completion_only_loss": True, "pad_to_max_len": False, "max_seq_len": 64}


def _answers(model: ModelHandle, rows: list[dict[str, Any]], **options: Any) -> list[str]:
    made = text_generation(rows, model, text_generation_options({**OPTIONS, **options}))
    tokenizer = load_tokenizer(model)
    return [tokenizer.decode([token for token in labels if token != IGNORED_LABEL]) for _, labels in made.items]


def _asked(model: ModelHandle, text: str) -> str:
    tokenizer = load_tokenizer(model)
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]))


def test_the_last_column_of_a_template_is_the_answer(tiny_llama: ModelHandle) -> None:
    rows = [{"q": "what is it", "a": "a small thing"}]
    (answer,) = _answers(tiny_llama, rows, text_template="{q} then {a}", add_special_tokens=False)
    assert answer.strip() == _asked(tiny_llama, "a small thing").strip()


@pytest.mark.parametrize("names", [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
def test_the_last_message_is_the_answer(tiny_llama: ModelHandle, names: tuple[str, str, str, str]) -> None:
    who, what, asks, tells = names
    rows = [{"messages": [{who: asks, what: "what is it"}, {who: tells, what: "a small thing"}]}]
    made = text_generation(rows, tiny_llama, text_generation_options({**OPTIONS, "chat_template": CHAT}))
    ((inputs, labels),) = list(made.items)
    asked = load_tokenizer(tiny_llama)("<user>what is it</s><assistant>", add_special_tokens=False)["input_ids"]
    assert (labels[: len(asked)] == IGNORED_LABEL).all()
    assert (labels[len(asked) :] == inputs["input_ids"][len(asked) :]).all()
    assert len(labels) > len(asked)


def test_rows_without_a_value_are_left_out(tiny_llama: ModelHandle) -> None:
    rows = [{"q": "one", "a": "two"}, {"q": "one", "a": None}, {"q": None, "a": None}]
    assert len(_answers(tiny_llama, rows, text_template="{q} {a}")) == 1
    assert len(_answers(tiny_llama, rows, text_cols="a", completion_only_loss=False)) == 1


def test_bad_rows_and_options_are_named(tiny_llama: ModelHandle) -> None:
    with pytest.raises(DataUnavailable, match="names 'qq'") as caught:
        _answers(tiny_llama, [{"q": "one", "a": "two"}], text_template="{qq} {a}")
    assert "q" in (caught.value.problems[0].remedy or "")
    with pytest.raises(DataUnavailable, match="no list of messages"):
        _answers(tiny_llama, [{"messages": "text"}], chat_template=CHAT)
    with pytest.raises(InvalidRecipe, match="line-by-line"):
        text_generation_options({"completion_only_loss": True, "text_template": "{a}"})
