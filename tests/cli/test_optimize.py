"""The commands of Olive's guides, flag by flag, with tiny twins."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.cli import run_command
from runner.models.handle import ModelHandle

SMOLLM = (
    "auto-opt --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct --output_path {out} --device cpu "
    "--provider CPUExecutionProvider --use_ort_genai --precision int4 --log_level 1"
)
QWEN = (
    "auto-opt --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --output_path {out} "
    "--use_ort_genai --precision int4 --log_level 1"
)
FILES = {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json", "receipt.json"}


@pytest.fixture(autouse=True)
def _own(own_catalogue: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    yield


def test_the_guides_first_command_makes_a_folder_that_genai_loads(tmp_path: Path) -> None:
    out = tmp_path / "smolm2-optimized"
    assert run_command([*shlex.split(SMOLLM.format(out=out)), "--smoke", "--offline"]) == 0
    assert {path.name for path in out.iterdir()} >= FILES
    import onnxruntime_genai

    onnxruntime_genai.Model(str(out))
    assert (
        run_command(["run", str(tmp_path / "smolm2-optimized-recipe"), "--smoke", "--offline", "--output-dir", str(out)]) == 0
    )


@pytest.mark.parametrize(
    "flags",
    [
        "--device cpu --provider CPUExecutionProvider",
        "--device gpu --provider CUDAExecutionProvider",
        "--device gpu --provider DmlExecutionProvider",
    ],
)
def test_its_further_commands_are_taken_for_every_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str
) -> None:
    command = [*shlex.split(QWEN.format(out=tmp_path / "qwen")), *flags.split(), "--offline", "--dry-run", "--json"]
    assert run_command(command) == 0
    told = json.loads(capsys.readouterr().out)
    accelerator = told["config"]["systems"]["local_system"]["accelerators"][0]
    assert accelerator["execution_providers"] == [flags.rsplit(maxsplit=1)[-1]]
    assert (tmp_path / "qwen-recipe" / "olive_config.json").is_file()
    assert not (tmp_path / "qwen").exists()


def test_underscores_and_dashes_are_the_same(tmp_path: Path) -> None:
    dashed = "optimize --model-name-or-path HuggingFaceTB/SmolLM2-135M-Instruct --output-path {out} --dry_run --offline"
    assert run_command(shlex.split(dashed.format(out=tmp_path / "made"))) == 0


def test_a_device_and_a_provider_that_do_not_go_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = SMOLLM.format(out=tmp_path / "made").replace("--device cpu", "--device gpu")
    assert run_command(shlex.split(command)) == 2
    assert "do not go together" in capsys.readouterr().err


def test_a_task_that_the_architecture_does_not_serve_is_refused(
    tiny_bert: ModelHandle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "optimize",
        "-m",
        str(tiny_bert.folder),
        "--task",
        "image-classification",
        "-o",
        str(tmp_path / "out"),
        "--offline",
    ]
    assert run_command(asked) == 2
    assert "wrong-task" in capsys.readouterr().err
    assert tiny_bert.folder.is_dir()


@pytest.mark.parametrize(("task", "code"), [("image-classification", 2), ("text-classification", 0), ("text-generation", 0)])
def test_a_task_that_a_language_model_reads_nothing_of_is_refused_while_planning(
    task: str, code: int, tiny_llama: ModelHandle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, model in enumerate((str(tiny_llama.folder), "HuggingFaceTB/SmolLM2-135M-Instruct")):
        asked = ["optimize", "-m", model, "-t", task, "-o", str(tmp_path / f"out{number}"), "--offline", "--dry-run"]
        assert run_command(asked) == code
        told = capsys.readouterr().err
        assert ("wrong-task" in told and "it reads text" in told and "text-generation, or none" in told) == (code == 2)
        assert (tmp_path / f"out{number}-recipe").exists() == (code == 0)


@pytest.mark.parametrize(("text", "code"), [("8GB", 0), ("8", 0), ("7.5GiB", 0), ("0", 2), ("-1GB", 2), ("much", 2)])
def test_memory_is_gigabytes_or_a_size(text: str, code: int, tmp_path: Path) -> None:
    asked = ["optimize", "-m", "sentence-transformers/all-MiniLM-L6-v2", "-o", str(tmp_path / "out"), "--dry-run", "--offline"]
    assert run_command([*asked, "--smoke", "--max-memory", text]) == code


@pytest.mark.parametrize("verb", ["optimize", "search"])
def test_a_source_that_does_not_load_is_blamed_and_not_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    import onnx
    from onnx import TensorProto, helper

    axes = ("N", 4)
    value = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [0.5] * 16)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Ours", ["m"], ["y"], domain="my.domain")]
    told = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    graph = helper.make_graph(nodes, "g", told[:1], told[1:], [value])
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "ours.onnx")
    config = {
        "input_model": {"type": "ONNXModel", "model_path": "ours.onnx"},
        "passes": {"q": {"type": "OnnxDynamicQuantization", "per_channel": [True, False]}},
        "search_strategy": True,
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    how = ["-m", str(tmp_path / "ours.onnx"), "-o", str(tmp_path / "out")]
    assert run_command([verb, *(how if verb == "optimize" else ["--config", str(tmp_path / "config.json")])]) == 1
    shown = capsys.readouterr().err
    assert "model-damaged" in shown
    assert "ours.onnx" in shown
