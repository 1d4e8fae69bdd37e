"""`recipe copy` and `recipe diff`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from runner.cli import run_command
from runner.recipe.yaml_text import with_value

Capture = pytest.CaptureFixture[str]


def info_text(folder: Path) -> str:
    return (folder / "info.yml").read_text(encoding="utf-8")


@pytest.fixture
def copied(small_clone: Path, capsys: Capture) -> Path:
    """A copy of all-minilm-l6-v2 for another model."""
    assert run_command(["copy", "all-minilm-l6-v2", "my-model", "--model", "acme/Mine-v1"]) == 0
    assert "a copy of all-minilm-l6-v2" in capsys.readouterr().out
    return small_clone / "recipes" / "minilm" / "my-model"


def test_a_copy_lints_and_plans_and_keeps_the_comments(copied: Path, capsys: Capture) -> None:
    text, info = info_text(copied), yaml.safe_load(info_text(copied))
    assert "# The output layers that stay in fp32" in text
    assert (info["name"], info["model"]["id"], info["model"]["sources"]) == (
        "my-model",
        "acme/Mine-v1",
        [{"hub": "acme/Mine-v1"}],
    )
    assert info["origin"]["recipe"] == "all-minilm-l6-v2"
    assert info["lifecycle"] == {"status": "draft"}
    assert "checked" not in json.dumps(info["model"], default=str)
    assert not (copied / "results").exists()
    assert "acme/Mine-v1" in (copied / "olive_config.json").read_text(encoding="utf-8")
    assert run_command(["lint", "my-model"]) == 0
    capsys.readouterr()
    assert run_command(["run", "my-model", "--smoke", "--dry-run"]) == 0
    assert "tiny random-weight bert" in capsys.readouterr().out


def test_a_copy_outside_of_the_clone_lints(
    small_clone: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Capture
) -> None:
    into = tmp_path_factory.mktemp("elsewhere")
    assert run_command(["copy", "all-minilm-l6-v2", "my-model", "--into", str(into)]) == 0
    readme = (into / "my-model" / "README.md").read_text(encoding="utf-8")
    assert "recipe try my-model" in readme
    assert "recipe run all-minilm-l6-v2" not in readme
    capsys.readouterr()
    assert run_command(["lint", str(into / "my-model")]) == 0, capsys.readouterr().out


def test_a_variant_is_not_copied_alone(small_clone: Path, capsys: Capture) -> None:
    assert run_command(["copy", "all-minilm-l6-v2/cpu-fp32", "mine"]) == 2
    assert "a recipe is copied whole" in capsys.readouterr().err
    assert not (small_clone / "recipes" / "minilm" / "mine").exists()


def test_a_copy_is_in_the_overview_at_once(copied: Path, capsys: Capture) -> None:
    assert "my-model" in (copied.parents[1] / "README.md").read_text(encoding="utf-8")


def test_without_another_model_the_weights_stay(small_clone: Path) -> None:
    assert run_command(["copy", "all-minilm-l6-v2", "mine"]) == 0
    ours = yaml.safe_load(info_text(small_clone / "recipes" / "minilm" / "mine"))
    theirs = yaml.safe_load(info_text(small_clone / "recipes" / "minilm" / "all-minilm-l6-v2"))
    assert ours["model"] == theirs["model"]


def test_diff_tells_what_was_changed(copied: Path, capsys: Capture) -> None:
    path = copied / "info.yml"
    path.write_text(with_value(info_text(copied), ("recipes", 1, "gates", "cosine"), ">= 0.5"), encoding="utf-8")
    (copied / "user_script.py").write_text("ANSWER = 42\n", encoding="utf-8")
    capsys.readouterr()
    assert run_command(["diff", "my-model"]) == 0
    told = capsys.readouterr().out
    assert "all-minilm-l6-v2 -> my-model" in told
    assert 'model.id: "sentence-transformers/all-MiniLM-L6-v2" -> "acme/Mine-v1"' in told
    assert "  recipes[cpu-int8-dynamic].gates.cosine: " in told and '-> ">= 0.5"' in told
    assert "user_script.py" in told
    assert "has changed since" not in told


def test_diff_says_when_the_origin_has_moved_on(copied: Path, capsys: Capture) -> None:
    origin = copied.parent / "all-minilm-l6-v2"
    (origin / "README.md").write_text("results of another machine", encoding="utf-8")
    assert run_command(["diff", "my-model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["origin_changed"] is False
    (origin / "info.yml").write_text(with_value(info_text(origin), ("title",), "Other"), encoding="utf-8")
    assert run_command(["diff", "my-model"]) == 0
    assert "all-minilm-l6-v2 has changed since it was copied" in capsys.readouterr().out


def test_diff_of_two_recipes_and_of_one_with_itself(small_clone: Path, capsys: Capture) -> None:
    assert run_command(["diff", "resnet-50", "vit-base-patch16-224"]) == 0
    assert 'arch: "vit" -> "resnet"' in capsys.readouterr().out
    assert run_command(["diff", "resnet-50", "resnet-50"]) == 0
    assert "no difference" in capsys.readouterr().out


def test_a_recipe_without_origin_says_so(small_clone: Path, capsys: Capture) -> None:
    assert run_command(["diff", "resnet-50"]) == 2
    told = capsys.readouterr().err
    assert "no-origin" in told and "recipe diff resnet-50 OTHER" in told


def test_a_copy_outside_of_the_clone_runs_alone(small_clone: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run_command(["copy", "resnet-50", "mine", "--into", str(tmp_path / "elsewhere")]) == 0
    assert "README.md" in capsys.readouterr().out
    folder = tmp_path / "elsewhere" / "mine"
    assert '"models/mine-cpu-fp32"' in (folder / "olive_config.json").read_text(encoding="utf-8")
    assert run_command(["run", str(folder), "--smoke", "--dry-run", "--trust"]) == 0
    assert run_command(["diff", str(folder)]) == 0


def test_configs_that_are_kept_by_hand_are_copied_with_the_new_names(small_clone: Path) -> None:
    folder = small_clone / "recipes" / "resnet" / "resnet-50"
    lines = [line for line in info_text(folder).splitlines(keepends=True) if "pipeline:" not in line]
    (folder / "info.yml").write_text("".join(lines), encoding="utf-8")
    assert run_command(["copy", "resnet-50", "mine", "--model", "acme/resnet-mine"]) == 0
    config = json.loads((folder.parent / "mine" / "olive_config.json").read_text(encoding="utf-8"))
    assert config["input_model"]["model_path"] == "acme/resnet-mine"
    assert config["output_dir"] == "models/mine-cpu-fp32"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["resnet-50", "../up"], "bad-name"),
        (["resnet-50", "Mine"], "bad-name"),
        (["resnet-50", "bert-base-uncased"], "name-taken"),
        (["resnet-51", "mine"], "resnet-50"),
        (["resnet-50", "mine", "--model", "nonsense"], "bad-model-id"),
    ],
)
def test_what_cannot_be_copied_is_refused(small_clone: Path, capsys: Capture, arguments: list[str], told: str) -> None:
    before = sorted(small_clone.rglob("*"))
    assert run_command(["copy", *arguments]) == 2
    assert told in capsys.readouterr().err
    assert sorted(small_clone.rglob("*")) == before
