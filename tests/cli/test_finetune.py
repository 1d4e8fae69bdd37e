"""`recipe finetune` on a tiny Llama: data, training, results, and what is told of bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runner.cli import run_command
from runner.models.handle import ModelHandle
from tests.conftest import WORDS

TEMPLATE = r"### Question: {instruction}\n### Answer: {response}"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twenty rows of questions and answers."""
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"instruction": f"what is {at}", "response": f"a number {at}"}) for at in range(20)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def _command(model: ModelHandle, output: Path, *further: str) -> list[str]:
    named = ["--model_name_or_path", str(model.folder), "--output_path", str(output)]
    return ["finetune", *named, "--max_seq_len", "64", *further]


def _piped(words: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, "-m", "runner", *words], {**os.environ, "RECIPE_CACHE": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _finetune(model: ModelHandle, output: Path, *further: str) -> int:
    return run_command(_command(model, output, *further))


@pytest.fixture(scope="module")
def trained(tiny_llama: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A training with everything that it may leave, its output piped: the folder, standard output and standard error."""
    folder = tmp_path_factory.mktemp("trained")
    lines = [json.dumps({"instruction": f"the {word} cat", "response": f"a {word} dog"}) for word in [*WORDS[:20], *WORDS[:20]]]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = ["--data_name", str(folder / "rows.jsonl"), "--text_template", TEMPLATE, "--eval_dataset_size", "4"]
    training = ["--max-steps", "30", "--learning_rate", "0.01", "--multi-lora", "--offline"]
    run = _piped(_command(tiny_llama, folder / "out", *data, *training), folder / "cache")
    assert run.returncode == 0, run.stderr
    return folder, run.stdout, run.stderr


def test_adapter_merged_model_and_recipe(trained: tuple[Path, str, str]) -> None:
    folder, told, _ = trained
    output = folder / "out"
    assert (output / "adapter" / "adapter_config.json").is_file()
    assert (output / "model" / "model.safetensors").is_file()
    assert (output / "model" / "receipt.json").is_file()
    config = json.loads((output / "onnx-recipe" / "olive_config.json").read_text())
    assert config["input_model"]["model_path"] == str(output / "model")
    assert "trained  30 steps" in told
    assert "held-out loss" in told
    training = json.loads((output / "model-recipe" / "olive_config.json").read_text())
    prepared = training["data_configs"][0]["pre_process_data_config"]
    assert prepared["text_template"] == "### Question: {instruction}\n### Answer: {response}"
    assert prepared["completion_only_loss"]
    assert not any((folder / "cache" / "kept").glob("*"))


def test_how_far_it_is_and_the_loss_are_lines_where_there_is_no_terminal(trained: tuple[Path, str, str]) -> None:
    lines = [line for line in trained[2].splitlines() if line.startswith("train: ")]
    assert lines[0] == "train: 0 of 30: the training begins"
    assert re.fullmatch(r"train: 30 of 30: loss [\d.]+, held-out loss [\d.]+", lines[-1])
    assert 10 <= len(lines) <= 23


def test_rows_that_stand_twice_are_not_trained_on_where_they_are_held_out(trained: tuple[Path, str, str]) -> None:
    told = json.loads((trained[0] / "out" / "adapter" / "adapter_training.json").read_text())
    assert told["left_out"] >= 1
    assert told["examples"] + told["left_out"] == 36
    assert f"{told['left_out']} more were left out" in trained[1]


def test_the_base_model_answers_with_the_adapter_as_the_merged_model_does(trained: tuple[Path, str, str]) -> None:
    import onnxruntime_genai as og
    import torch
    from transformers import AutoModelForCausalLM

    output = trained[0] / "out"
    base = og.Model(str(output / "multi-lora"))
    adapters = og.Adapters(base)
    adapters.load(str(output / "multi-lora" / "adapter_weights.onnx_adapter"), "trained")
    converted = trained[0] / "converted"
    folders = ["--adapter_path", str(output / "adapter"), "--base", str(output / "multi-lora")]
    assert run_command(["convert-adapters", *folders, "-o", str(converted)]) == 0
    adapters.load(f"{converted}.onnx_adapter", "converted")
    ids = np.array([[5, 6, 7, 8]], np.int32)

    def logits(adapter: str | None) -> np.ndarray:
        generator = og.Generator(base, og.GeneratorParams(base))
        if adapter:
            generator.set_active_adapter(adapters, adapter)
        generator.append_tokens(ids)
        return np.array(generator.get_output("logits"))[0, -1]

    with torch.inference_mode():
        merged = AutoModelForCausalLM.from_pretrained(output / "model")(input_ids=torch.from_numpy(ids).long())
    expected = merged.logits[0, -1].numpy()
    np.testing.assert_allclose(logits("trained"), expected, atol=1e-4)
    np.testing.assert_allclose(logits("converted"), expected, atol=1e-4)
    assert np.abs(logits(None) - expected).max() > 0.05


def test_a_bar_in_a_terminal_and_an_interrupted_training_that_goes_on(
    tiny_llama: ModelHandle, rows: Path, tmp_path: Path
) -> None:
    pexpect = pytest.importorskip("pexpect", reason="needs a pseudo-terminal")
    data = ["--data_name", str(rows), "--text_template", TEMPLATE, "--eval_fraction", "0"]
    command = _command(tiny_llama, tmp_path / "out", *data, "--max-steps", "50", "--offline")
    environment = {**os.environ, "RECIPE_CACHE": str(tmp_path / "cache")}
    words = ["-m", "runner", *command]
    shown = pexpect.spawn(sys.executable, words, encoding="utf-8", timeout=120, dimensions=(30, 120), env=environment)
    shown.expect(r"\d/50.*loss \d")
    shown.expect(r"(2[1-9]|3\d)/50.* left")
    shown.sendintr()
    shown.expect(pexpect.EOF)
    shown.close()
    assert shown.exitstatus == 130
    on = _piped(command, tmp_path / "cache")
    assert re.search(r"^train: (20|40) of 50: going on from step \1$", on.stderr, re.MULTILINE), on.stderr
    assert "train: 0 of 50" not in on.stderr
    again = _piped([*command, "--json"], tmp_path / "cache")
    assert json.loads(again.stdout)["steps"] == 50
    assert "train" not in again.stderr


@pytest.mark.parametrize(
    ("further", "rule"),
    [
        (("--data_files", "nowhere.jsonl"), "no-data"),
        ((), "no-data"),
        (("--data_name", "ROWS", "--method", "lorra"), "unknown-method"),
        (("--data_name", "ROWS", "--text_template", "{instruction", "--packing"), "bad-template"),
        (("--data_name", "ROWS", "--text_template", "{instruction} {respons}"), "did you mean 'response'?"),
        (("--data_name", "ROWS"), "has no column 'text' (--text_field)"),
        (("--data_name", "ROWS", "--chat_template", "--messages", "talk"), "has no column 'talk' (--messages)"),
        (("--data_name", "ROWS", "--text_field", "response", "--eval_split", "validation"), "unknown-split"),
        (("--data_name", "ROWS", "--text_field", "response", "--train_split", "trein[:50%]"), "'trein' was asked for"),
        (("--data_name", "ROWS", "--text_field", "response", "--method", "dora", "--multi_lora"), "multi-lora-unsupported"),
        (("--data_name", "ROWS", "--text_field", "response", "--multi_lora", "int4"), "'int4' is not one of"),
    ],
)
def test_bad_input_is_named_before_any_work(
    tiny_llama: ModelHandle, rows: Path, tmp_path: Path, further: tuple[str, ...], rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(rows) if word == "ROWS" else word for word in further]
    assert _finetune(tiny_llama, tmp_path / "out", *words) == 2
    assert rule in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_models_and_the_models_own_folder_are_refused(
    tiny_bert: ModelHandle, tiny_llama: ModelHandle, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data_name", str(rows), "--text_field", "response"]
    assert _finetune(tiny_bert, tmp_path / "out", *data) == 2
    assert "only language models are trained" in capsys.readouterr().err
    before = sorted(tiny_llama.folder.iterdir())
    assert _finetune(tiny_llama, tiny_llama.folder, *data) == 2
    assert "output-occupied" in capsys.readouterr().err
    assert sorted(tiny_llama.folder.iterdir()) == before


def test_adapters_as_inputs_are_refused_of_an_architecture_that_has_none(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "gpt2"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    command = ["finetune", "-m", str(model), "-d", str(rows), "--text_field", "response", "--multi_lora"]
    assert run_command([*command, "--offline", "-o", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "multi-lora-unsupported" in told
    assert "'gpt2'" in told
    assert not (tmp_path / "out").exists()


def test_what_conversations_need_is_checked_first(
    tiny_llama: ModelHandle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama.folder, model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    told = json.loads((model / "tokenizer_config.json").read_text())
    told.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(told))
    rows, nothing = tmp_path / "chats.jsonl", tmp_path / "nothing.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n' * 2)
    nothing.touch()
    asked = ["finetune", "-m", str(model), "-o", str(tmp_path / "out"), "--offline", "--chat_template", "--data_files"]
    assert run_command([*asked, str(rows)]) == 2
    assert "no-chat-template" in capsys.readouterr().err
    assert run_command([*asked, str(nothing)]) == 2
    assert "is empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
