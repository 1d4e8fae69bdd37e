"""Facts against the hub's answers: real `ModelInfo` objects, as the hub sends them, behind a hub that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.hf_api import ModelInfo

from runner.catalog.lint import online, subject_of
from runner.catalog.lint.online import HubFacts, Silent, Unreachable, compare_with_hub, facts_of
from runner.catalog.lint.subject import Catalogue, Subject
from runner.cli import cli, run_command

INFO = """\
name: {name}
arch: llama
model:
  id: {id}
  task: text-generation
  parameters: {parameters}
  context_length: {context}
  licence: {licence}
  gated: {gated}
  download_mb: {download}
recipes:
  - name: cpu-int4
    file: olive_config.json
    device: cpu
    ep: CPUExecutionProvider
"""
LINES = {"parameters": 6, "context_length": 7, "licence": 8, "gated": 9, "download_mb": 10}


def _answer(
    weights: Mapping[str, int] | None = None, licence: str = "llama3.2", gated: str | bool = "manual", **card: Any
) -> ModelInfo:
    """Returns what `HfApi.model_info` makes of the hub's JSON."""
    files = weights or {"model.safetensors": 2_471_645_608, "original/consolidated.00.pth": 2_471_678_226, "config.json": 843}
    return ModelInfo(
        id="meta-llama/Llama-3.2-1B-Instruct",
        private=False,
        downloads=1,
        likes=1,
        tags=[f"license:{licence}"],
        gated=gated,
        cardData={"license": licence, **card},
        safetensors={"parameters": {"BF16": 1_235_814_400}, "total": 1_235_814_400},
        siblings=[{"rfilename": name, "size": size} for name, size in files.items()],
    )


@dataclass
class RecordedHub:
    """Answers from what was put in; what was not is not there."""

    answers: Mapping[str, HubFacts | Unreachable]
    asked: list[str] = field(default_factory=list)

    def facts(self, model: str) -> HubFacts | None:
        """Returns the recorded answer."""
        self.asked.append(model)
        answer = self.answers.get(model)
        if isinstance(answer, Unreachable):
            raise answer
        return answer


def _subject(tmp_path: Path, name: str = "llama-3.2-1b-instruct", **facts: Any) -> Subject:
    told = {
        "id": "meta-llama/Llama-3.2-1B-Instruct", "parameters": 1_235_814_400, "context": 131072, "licence": "Llama-3.2",
        "gated": "true", "download": 2471.6, **facts,
    }  # fmt: skip
    file = tmp_path / "recipes" / name / "info.yml"
    file.parent.mkdir(parents=True)
    file.write_text(INFO.format(name=name, **told), encoding="utf-8")
    return subject_of(Catalogue.at(tmp_path / "recipes", cli), file)


def _hub(answer: HubFacts | Unreachable) -> RecordedHub:
    return RecordedHub({"meta-llama/Llama-3.2-1B-Instruct": answer})


def test_facts_that_are_the_hubs(tmp_path: Path) -> None:
    hub = _hub(facts_of(_answer(), {"max_position_embeddings": 131072}))
    compared = compare_with_hub([_subject(tmp_path)], hub)
    assert (compared.findings, compared.reached, compared.unreached) == ([], 1, {})


@pytest.mark.parametrize(
    ("facts", "key", "cause"),
    [
        ({"parameters": 1_000_000_000}, "parameters", "parameters is 1,000,000,000 in info.yml, 1,235,814,400 on the hub"),
        ({"context": 8192}, "context_length", "context_length is 8,192 in info.yml, 131,072 on the hub"),
        ({"licence": "Apache-2.0"}, "licence", "licence is 'Apache-2.0' in info.yml, 'llama3.2' on the hub"),
        ({"licence": "Llama-3.1"}, "licence", "licence is 'Llama-3.1' in info.yml, 'llama3.2' on the hub"),
        ({"gated": "false"}, "gated", "gated is false in info.yml, true on the hub"),
        ({"download": 4943.3}, "download_mb", "download_mb is 4,943.3 in info.yml, 2,471.645608 on the hub"),
    ],
)
def test_fact_that_differs_is_told_with_both_values(tmp_path: Path, facts: dict[str, Any], key: str, cause: str) -> None:
    subject = _subject(tmp_path, **facts)
    compared = compare_with_hub([subject], _hub(facts_of(_answer(), {"max_position_embeddings": 131072})))
    ((severity, problem),) = [(one.severity, one.problem) for one in compared.findings]
    assert (severity, problem.cause) == ("must", cause)
    assert str(problem.place) == f"{subject.file}:{LINES[key]}"


def test_what_the_hub_does_not_say_is_not_compared(tmp_path: Path) -> None:
    compared = compare_with_hub([_subject(tmp_path, context=7)], _hub(facts_of(_answer(), None)))
    assert compared.findings == []


def test_model_that_the_hub_does_not_have(tmp_path: Path) -> None:
    subject = _subject(tmp_path)
    (finding,) = compare_with_hub([subject], RecordedHub({})).findings
    assert "the hub has no model" in finding.problem.cause
    assert str(finding.problem.place) == f"{subject.file}:4"


def test_models_that_cannot_be_reached_are_counted(tmp_path: Path) -> None:
    subjects = [_subject(tmp_path, name=f"r{number}", id=f"Org/m{number}") for number in range(3)]
    same = HubFacts(parameters=1_235_814_400)
    hub = RecordedHub({"Org/m0": Unreachable("gated"), "Org/m1": same, "Org/m2": same})
    compared = compare_with_hub(subjects, hub)
    assert (compared.reached, compared.unreached) == (2, {"Org/m0": "gated"})


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path: Path) -> None:
    subjects = [_subject(tmp_path, name=f"r{number}", id=f"Org/m{number}") for number in range(3)]
    hub = RecordedHub({f"Org/m{number}": Silent("no route") for number in range(3)})
    compared = compare_with_hub(subjects, hub)
    assert hub.asked == ["Org/m0"]
    assert (compared.reached, len(compared.unreached)) == (0, 3)


@pytest.mark.parametrize(
    ("answer", "config", "expected"),
    [
        (_answer(licence="other", license_name="deepseek"), {}, {"licence": "deepseek"}),
        (_answer(gated=False), {}, {"gated": False}),
        (_answer(), {"text_config": {"max_position_embeddings": 32768}}, {"context_length": 32768}),
        (_answer(), {"max_target_positions": 448}, {"context_length": 448}),
        (_answer({"pytorch_model.bin": 5_000_000, "onnx/model.onnx": 9_000_000}), {}, {"download_mb": 5.0}),
        (
            _answer({"a-1.safetensors": 3_000_000, "a-2.safetensors": 4_000_000, "pytorch_model.bin": 7_100_000}), {},
            {"download_mb": 7.0},
        ),
        (
            _answer(
                {
                    "model_index.json": 9, "unet/x.safetensors": 3_000_000, "unet/x.fp16.safetensors": 1_500_000,
                    "vae/y.safetensors": 1_000_000, "everything.safetensors": 4_000_000,
                }
            ),
            {}, {"download_mb": 4.0},
        ),
        (_answer({"config.json": 9}), {}, {"download_mb": None}),
    ],
    ids=["named licence", "open", "inner config", "speech", "bin", "shards", "diffusion", "no weights"],
)  # fmt: skip
def test_what_the_hubs_answer_says(answer: ModelInfo, config: dict[str, Any], expected: dict[str, Any]) -> None:
    facts = facts_of(answer, config)
    assert {key: getattr(facts, key) for key in expected} == expected


def test_offline_says_so_once_and_keeps_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _subject(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(online, "TIMEOUT", 0.5)
    monkeypatch.chdir(tmp_path)
    offline = run_command(["lint"])
    capsys.readouterr()
    assert run_command(["lint", "--online"]) == offline
    error = capsys.readouterr().err
    assert error.count("the hub cannot be reached") == 1
    assert "no fact was compared" in error
