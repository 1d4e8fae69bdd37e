"""info.yml: facts and variants, in our spelling and in that of olive-recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import InvalidRecipe
from runner.recipe.info import Gate, HubSource, PackageSource, read_info

TEXT = """\
name: tiny
arch: llama
keywords: word
model:
  id: Org/Tiny
  task: text-generation
  parameters: 10
  licence: MIT
  download_mb: 0.1
  sources:
    - hub: Org/Tiny
    - package: tiny-weights==1.0
      format: gguf
      licence: MIT
recipes:
  - name: cpu-int4
    file: olive_config.json
    devices: cpu
    eps: [CPUExecutionProvider]
    gates:
      perplexity: "<= 1.05x"
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "info.yml"
    file.write_text(text)
    return file


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(InvalidRecipe) as caught:
        read_info(write(tmp_path, text), "info.yml")
    return [str(problem) for problem in caught.value.problems]


def test_both_spellings_are_read(tmp_path: Path) -> None:
    info, _ = read_info(write(tmp_path, TEXT))
    assert info.keywords == ["word"]
    assert (info.recipes[0].device, info.recipes[0].ep) == ("cpu", "CPUExecutionProvider")
    assert info.model.sources == [
        HubSource(hub="Org/Tiny"),
        PackageSource(package="tiny-weights==1.0", format="gguf", licence="MIT"),
    ]
    assert info.variant(None) is info.variant("cpu-int4")
    assert info.variant("other") is None


def test_every_typo_is_told_once_at_its_line(tmp_path: Path) -> None:
    text = (
        TEXT.replace("task:", "tsk:")
        .replace("format: gguf", "formt: gguf")
        .replace("file:", "fiel:")
        .replace('"<= 1.05x"', '"< 2"')
    )
    found = problems(tmp_path, text)
    expected = {
        "info.yml:6: unknown-key": "task", "info.yml:13: unknown-key": "format", "info.yml:17: unknown-key": "file",
        "info.yml:20: bad-value": "1.05x",
    }  # fmt: skip
    for place, words in expected.items():
        assert [words in problem for problem in found if problem.startswith(place)] == [True]
    assert not any("HubSource" in problem for problem in found)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("parameters: 10", "parameters: 0"),
        ("tiny-weights==1.0", "tiny-weights>=1.0"),
        ("CPUExecutionProvider", "CpuProvider"),
        ("name: tiny\n", ""),
        ("recipes:", "recipes: []\nmore:"),
    ],
)
def test_facts_that_cannot_be_are_refused(tmp_path: Path, old: str, new: str) -> None:
    assert problems(tmp_path, TEXT.replace(old, new))


def test_two_variants_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = TEXT + "  - {name: cpu-int4, file: b.json, device: cpu, ep: CPUExecutionProvider}\n"
    assert "duplicate-variant" in problems(tmp_path, twice)[0]


@given(
    bar=st.floats(0, 1e6), at_most=st.booleans(), relative=st.booleans(), value=st.floats(0, 1e6), baseline=st.floats(0.1, 1e3)
)
def test_gates_judge_what_they_say(bar: float, at_most: bool, relative: bool, value: float, baseline: float) -> None:
    gate = Gate.parse("m", f"{'<=' if at_most else '>='} {bar:.3f}{'x' if relative else ''}")
    limit = float(f"{bar:.3f}") * (baseline if relative else 1)
    assert gate.met(value, baseline) == (value <= limit if at_most else value >= limit)
    assert Gate.parse("m", str(gate).removeprefix("m ")).at_most == at_most


def test_a_relative_gate_needs_a_baseline() -> None:
    assert not Gate.parse("m", "<= 1.05x").met(1.0, None)
