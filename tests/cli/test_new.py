"""`recipe new`: folders for models that nobody listed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from runner.cli import run_command

Capture = pytest.CaptureFixture[str]


def new(*arguments: str) -> int:
    return run_command(["new", "--offline", *arguments])


def info_of(folder: Path) -> dict[str, object]:
    data: dict[str, object] = yaml.safe_load((folder / "info.yml").read_text(encoding="utf-8"))
    return data


@pytest.mark.parametrize(
    ("model", "flags", "home", "variants"),
    [
        ("ibm-granite/granite-3.3-2b-instruct", "--target cpu --precision int4", "granite", ["cpu-int4"]),
        (
            "allenai/OLMo-2-0425-1B-Instruct",
            "--target cpu,cuda,dml --precision int4,fp16",
            "olmo",
            ["cpu-int4", "cuda-int4", "cuda-fp16", "dml-int4", "dml-fp16"],
        ),
        ("FacebookAI/roberta-base", "--precision int8", "roberta", ["cpu-int8-dynamic"]),
        ("facebook/deit-base-patch16-224", "--precision int8-static --precision fp32", "vit", ["cpu-int8-static", "cpu-fp32"]),
        ("BAAI/bge-small-en-v1.5", "--target dml --precision fp16", "bert", ["dml-fp16"]),
        ("distilbert/distilbert-base-uncased", "", "distilbert", ["cpu-int8-dynamic"]),
        ("google/gemma-2-2b", "--target cuda --precision int4", "gemma", ["cuda-int4-bf16"]),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" in value else "",
)
def test_a_model_that_nobody_listed_lints_and_plans(
    small_clone: Path, capsys: Capture, model: str, flags: str, home: str, variants: list[str]
) -> None:
    assert new("--model", model, *flags.split()) == 0
    name = model.rpartition("/")[2].lower()
    folder = small_clone / "recipes" / home / name
    info = info_of(folder)
    assert [variant["name"] for variant in info["recipes"]] == variants  # type: ignore[attr-defined]
    assert info["lifecycle"] == {"status": "draft"}
    assert "checked" not in json.dumps(info["model"])
    assert run_command(["lint", name]) == 0
    capsys.readouterr()
    for variant in variants:
        assert run_command(["run", f"{name}/{variant}", "--smoke", "--dry-run", "--trust"]) == 0
        assert "tiny random-weight" in capsys.readouterr().out


def test_what_was_decided_is_told_with_its_reason(small_clone: Path, capsys: Capture) -> None:
    assert new("--model", "ibm-granite/granite-3.3-2b-instruct", "--precision", "int4") == 0
    told = capsys.readouterr().out
    assert "2,533,531,648" in told
    assert "counted on the architecture's shapes" in told
    assert "recipe check granite-3.3-2b-instruct" in told


def test_pictures_are_calibrated_as_the_model_takes_them(small_clone: Path) -> None:
    """DeiT is a ViT by architecture, and scales its pictures otherwise than Google's ViT."""
    assert new("--model", "facebook/deit-base-patch16-224", "--precision", "int8-static") == 0
    folder = small_clone / "recipes" / "vit" / "deit-base-patch16-224"
    config = json.loads((folder / "olive_config.json").read_text(encoding="utf-8"))
    prepared = config["data_configs"][0]["pre_process_data_config"]
    assert (prepared["crop"], prepared["mean"]) == (0.875, [0.485, 0.456, 0.406])
    assert (folder / "user_script.py").is_file()
    assert (folder / "sample_data" / "calibration").is_dir()


def test_one_smoke_run_of_a_scaffold(small_clone: Path) -> None:
    assert new("--model", "BAAI/bge-small-en-v1.5", "--precision", "int8") == 0
    assert run_command(["check", "bge-small-en-v1.5"]) == 0


def test_a_local_folder_tells_its_own_facts(small_clone: Path, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path / "Own_Llama"
    folder.mkdir()
    facts = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps({**facts, "max_position_embeddings": 2048}), encoding="utf-8")
    save_file({"weight": np.zeros((8, 16), np.float32)}, folder / "model.safetensors")
    assert new("--model", str(folder), "--licence", "mit", "--precision", "int4") == 0
    info = info_of(small_clone / "recipes" / "llama" / "own_llama")
    model = info["model"]
    assert isinstance(model, dict)
    assert (model["parameters"], model["context_length"], model["licence"]) == (128, 2048, "MIT")
    assert model["provenance"]["parameters"] == {"source": "weights"}
    assert model["id"] == folder.as_posix()


def test_facts_that_nobody_knows_are_asked_for_by_name(small_clone: Path, capsys: Capture) -> None:
    wish = ("--model", "acme/llama-tune-7b", "--precision", "int4")
    assert new(*wish) == 2
    told = capsys.readouterr().err
    assert "--parameters N and --context-length N and --licence NAME" in told
    assert not list((small_clone / "recipes").glob("*/llama-tune-7b"))
    facts = ("--parameters", "7000000000", "--licence", "Apache-2.0", "--context-length", "8192")
    assert new(*wish, *facts) == 0
    assert "stands in for it" in capsys.readouterr().out


def test_an_architecture_without_pipeline_is_said_to_have_none(small_clone: Path, capsys: Capture) -> None:
    assert new("--model", "google-t5/t5-small") == 2
    told = capsys.readouterr().err
    assert "no pipeline serves text2text-generation of a t5" in told
    assert "--template" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "../../etc"], "bad-model-id"),
        (["--model", "microsoft/resnet-18", "--name", "../up"], "bad-name"),
        (["--model", "microsoft/resnet-18", "--family", "a/b"], "bad-name"),
        (["--model", "microsoft/resnet-18", "--target", "cpuu"], "did you mean 'cpu'"),
        (["--model", "microsoft/resnet-18", "--precision", "fp32,int9"], "there are cpu: fp32, int8-static"),
        (["--model", "microsoft/resnet-18", "--task", "image-clasification"], "did you mean 'image-classification'"),
        (["--model", "microsoft/resnet-18", "--template", "vison-cpu-fp32"], "did you mean 'vision-cpu-fp32'"),
        (["--model", "microsoft/resnet-18", "--template", "vision-cpu-fp32", "--target", "cuda"], "wrong-target"),
        (["--model", "microsoft/resnet-18", "--template", "vision-cpu-fp32", "--precision", "int8"], "wrong-precision"),
        (["--model", "nobody/knows-this"], "unknown-architecture"),
        (["--model", "microsoft/resnet-18", "--name", "bert-base-uncased", "--family", "other"], "name-taken"),
        (["--model", "microsoft/resnet-50"], "--force"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_with_a_remedy(small_clone: Path, capsys: Capture, arguments: list[str], told: str) -> None:
    before = sorted(small_clone.rglob("*"))
    assert new(*arguments) == 2
    assert told in capsys.readouterr().err
    assert sorted(small_clone.rglob("*")) == before


def test_force_takes_the_place_of_what_was_rendered(small_clone: Path) -> None:
    folder = small_clone / "recipes" / "resnet" / "resnet-50"
    (folder / "notes.md").write_text("mine", encoding="utf-8")
    shutil.rmtree(folder / "results", ignore_errors=True)  # of variants that the new one does not have
    assert new("--model", "microsoft/resnet-50", "--force") == 0
    assert info_of(folder)["lifecycle"] == {"status": "draft"}
    assert sorted(path.name for path in folder.glob("olive_config*")) == ["olive_config.json"]
    assert (folder / "notes.md").is_file()


def test_a_handle_in_gits_configuration_maintains_it(small_clone: Path) -> None:
    def call_me(name: str) -> None:
        subprocess.run(["git", "config", "--global", "user.name", name], check=True)

    call_me("Ada Lovelace")
    assert new("--model", "microsoft/resnet-18") == 0
    assert info_of(small_clone / "recipes" / "resnet" / "resnet-18")["maintainers"] == []
    call_me("ada-l")
    assert new("--model", "microsoft/resnet-34") == 0
    assert info_of(small_clone / "recipes" / "resnet" / "resnet-34")["maintainers"] == ["@ada-l"]
