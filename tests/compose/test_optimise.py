"""What `recipe optimize` decides of a model, and the recipe that it leaves: nothing is run here."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from runner.compose.folder import overridden
from runner.compose.optimise import Decided, Wish, decide
from runner.compose.subject import subject_of
from runner.engine.run import plan_run
from runner.errors import DoesNotFit, InvalidRecipe, NotTrusted, StoreError, UsageError
from runner.models.handle import ModelHandle
from runner.passes.table import options_of
from runner.recipe.info import read_info
from runner.recipe.load import load_config
from runner.targets.target import TARGETS

ROOT = Path(__file__).resolve().parents[2]
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
SCRIPT = """
import torch

def _model_loader(path):
    return torch.nn.Linear(4, 2)

def _io_config(model):
    return {"input_names": ["x"], "input_shapes": [[1, 4]], "output_names": ["y"]}
"""


@pytest.fixture(autouse=True)
def _nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def wish(tmp_path: Path) -> Wish:
    return Wish(subject_of(SMOLLM), tmp_path / "made", catalog=ROOT / "recipes", command="recipe optimize", offline=True)


def passes(decided: Decided) -> list[str]:
    return [step.type for step in decided.request.config.passes.values()]


def test_a_known_model_gets_its_own_recipe(wish: Wish) -> None:
    decided = decide(wish)
    folder = decided.composed.folder
    assert decided.recipe == "smollm2-135m-instruct"
    assert folder.name == "made-recipe"
    own = json.loads((ROOT / "recipes/smollm/smollm2-135m-instruct/olive_config.json").read_text(encoding="utf-8"))
    made = json.loads((folder / "olive_config.json").read_text(encoding="utf-8"))
    assert made["passes"] == own["passes"]
    info, _ = read_info(folder / "info.yml")
    assert info.origin is not None
    assert info.origin.recipe == "smollm2-135m-instruct"
    assert [variant.name for variant in info.recipes] == ["cpu-int4"]
    assert {path.name for path in folder.iterdir()} >= {"README.md", "requirements.txt", "sample_data"}


def test_the_recipe_runs_by_itself(wish: Wish) -> None:
    folder = decide(replace(wish, smoke=True)).composed.folder
    loaded = load_config([folder / "olive_config.json"], options_of)
    assert loaded.notes == ()
    assert (folder / "sample_data" / "calibration.txt").is_file()


@pytest.mark.parametrize(
    ("trade", "precision", "expected"),
    [("size", None, "int4"), ("speed", None, "int4"), ("quality", None, "int8"), (None, "fp32", "fp32"), (None, None, "int4")],
)
def test_a_trade_decides_the_precision(wish: Wish, trade: str | None, precision: str | None, expected: str) -> None:
    decided = decide(replace(wish, trade=trade, precision=precision))
    assert decided.request.info is not None
    assert decided.request.info.recipes[0].precision == expected


@pytest.mark.parametrize("target", ["cuda", "directml"])
def test_a_target_that_the_recipe_lacks_is_served_by_the_pipelines_of_its_kind(wish: Wish, target: str) -> None:
    decided = decide(replace(wish, target=TARGETS[target], precision="int4", smoke=True))
    plan = plan_run(decided.request, lambda _: None, fetch=False)
    assert plan.target.name == target
    assert [step.pass_name for step in plan.steps][-1] == "ModelBuilder"


def test_memory_decides_where_the_precision_is_open(wish: Wish) -> None:
    big = replace(wish, subject=subject_of("meta-llama/Llama-3.1-8B-Instruct"), max_memory=2_000_000)
    with pytest.raises(DoesNotFit, match="--max-memory"):
        decide(big)


def test_a_folder_of_no_recipe_gets_the_pipeline_of_its_architecture(wish: Wish, tiny_llama: ModelHandle) -> None:
    decided = decide(replace(wish, subject=subject_of(str(tiny_llama.folder)), precision="int4"))
    assert decided.recipe is None
    assert "ModelBuilder" in passes(decided)
    info = yaml.safe_load((decided.composed.folder / "info.yml").read_text(encoding="utf-8"))
    assert info["model"]["licence"] == "unknown"
    plan_run(decided.request, lambda _: None)  # the folder is found


def test_an_encoders_folder_gets_an_encoders_pipeline(wish: Wish, tiny_bert: ModelHandle) -> None:
    decided = decide(replace(wish, subject=subject_of(str(tiny_bert.folder)), precision="int8"))
    assert passes(decided)[-1] == "OnnxDynamicQuantization"
    plan_run(decided.request, lambda _: None)


def test_a_copy_of_a_catalogued_model_is_known(wish: Wish, tiny_llama: ModelHandle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tiny_llama.folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "_name_or_path": SMOLLM}), encoding="utf-8")
    decided = decide(replace(wish, subject=subject_of(str(copy)), precision="fp32"))
    assert decided.recipe == "smollm2-135m-instruct"
    assert decided.request.config.input_model.model_path == str(copy)
    assert decided.composed.config["input_model"]["model_path"] == SMOLLM


def test_an_onnx_file_and_a_script_need_no_catalogue(wish: Wish, exported_bert: ModelHandle, tmp_path: Path) -> None:
    graph = decide(replace(wish, subject=subject_of(str(exported_bert.path)), precision="int8"))
    assert passes(graph) == ["OnnxDynamicQuantization"]
    script = tmp_path / "model.py"
    script.write_text(SCRIPT, encoding="utf-8")
    scripted = replace(wish, subject=subject_of(None, model_script=script), output=tmp_path / "scripted", precision="fp32")
    decided = decide(scripted)
    assert passes(decided) == ["OnnxConversion", "OnnxPeepholeOptimizer"]
    plan_run(decided.request, lambda _: None)


def test_options_that_are_set_stand_in_the_recipe(wish: Wish) -> None:
    decided = decide(replace(wish, overrides=("passes.gptq.group_size=64",)))
    assert decided.composed.config["passes"]["gptq"]["group_size"] == 64
    assert decided.request.config.passes["gptq"].options.group_size == 64
    info, _ = read_info(decided.composed.folder / "info.yml")
    assert info.recipes[0].pipeline is None


def test_a_recipe_that_was_changed_by_hand_is_kept(wish: Wish) -> None:
    folder = decide(wish).composed.folder
    decide(wish)  # what a command wrote is written over
    (folder / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="changed by hand"):
        decide(wish)
    assert (folder / "README.md").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"precision": "int9"}, "did you mean 'int8'"),
        ({"precision": "fp16"}, "there are: fp32"),
        ({"trade": "beauty"}, "size, speed, quality"),
        ({"overrides": ("passes.gptq.grup_size=64",)}, "group_size"),
    ],
)
def test_what_does_not_exist_is_told_with_what_does(wish: Wish, changes: dict[str, object], told: str) -> None:
    with pytest.raises((UsageError, InvalidRecipe), match=told):
        decide(replace(wish, **changes))


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("no/such/folder", "neither a folder"),
        ("weights.pt", "needs-script"),
        ("{empty}", "holds no model"),
        ("graph.onnx", "neither a folder"),
    ],
)
def test_a_word_that_names_no_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=told):
        subject_of(word.format(empty=tmp_path / "empty"))


def test_an_adapter_names_its_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": SMOLLM}), encoding="utf-8")
    with pytest.raises(UsageError, match=SMOLLM):
        subject_of(str(tmp_path))


def test_a_page_of_the_hub_names_a_model() -> None:
    assert subject_of(f"https://huggingface.co/{SMOLLM}/tree/main").word == SMOLLM


def test_an_override_changes_one_value_of_a_mapping() -> None:
    config = {"passes": {"train": {"type": "LoRA", "training_args": {"max_steps": 3, "seed": 1}}}}
    changed = overridden(config, ["passes.train.training_args.seed=2", "r=8"])
    assert changed["passes"]["train"] == {"type": "LoRA", "training_args": {"max_steps": 3, "seed": 2}, "r": 8}


def test_scripts_of_another_catalogue_are_not_trusted(wish: Wish, tmp_path: Path) -> None:
    foreign = tmp_path / "recipes" / "resnet" / "resnet-50"
    shutil.copytree(ROOT / "recipes/resnet/resnet-50", foreign)
    asked = replace(wish, subject=subject_of("microsoft/resnet-50"), precision="int8", smoke=True)
    plan_run(decide(asked).request, lambda _: None)
    elsewhere = replace(asked, catalog=tmp_path / "recipes", output=tmp_path / "elsewhere")
    with pytest.raises(NotTrusted):
        plan_run(decide(elsewhere).request, lambda _: None)


def test_nothing_is_written_beside_an_output_that_cannot_be(wish: Wish, tmp_path: Path) -> None:
    (tmp_path / "made").write_text("somebody's", encoding="utf-8")
    with pytest.raises(StoreError, match="made is a file; a folder was expected"):
        decide(wish)
    assert not (tmp_path / "made-recipe").exists()
