"""Rendering: errors with their line, a sandbox, and files that are compared to the letter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from runner.errors import InvalidRecipe
from runner.passes.record import settings_digest
from runner.passes.table import get
from runner.recipe.info import Info, Variant, read_info
from runner.targets.target import TARGETS
from runner.templating.clone import Clone, clone_of, read_pins
from runner.templating.environment import PAGE_WIDTH, pretty_json, render
from runner.templating.pipeline import render_config
from runner.templating.recipe import Rendering, packages_of, render_recipe, targets_of
from runner.templating.results import figure, results_table
from runner.templating.sample_data import sample_files

ROOT = Path(__file__).resolve().parents[2]
MINILM = ROOT / "recipes" / "minilm" / "all-minilm-l6-v2"


@pytest.mark.parametrize(
    ("template", "line", "cause"),
    [
        ("one\n{{ nowhere }}\n", 2, "'nowhere' is undefined"),
        ("one\ntwo\n{% if %}\n", 3, "Expected an expression"),
        ("{{ known.missing }}", 1, "no attribute 'missing'"),
        ("a\n\n\n{{ ''.__class__.__mro__ }}", 4, "unsafe"),
        ("{{ 1 / 0 }}", 1, "division"),
        ("{% include 'gone.j2' %}", None, "there is no template 'gone.j2'"),
    ],
)
def test_errors_tell_file_and_line(tmp_path: Path, template: str, line: int | None, cause: str) -> None:
    (tmp_path / "x.j2").write_text(template, encoding="utf-8")
    with pytest.raises(InvalidRecipe) as caught:
        render(tmp_path, "x.j2", {"known": {}})
    problem = caught.value.problems[0]
    assert cause in problem.cause
    assert problem.place is not None and problem.place.line == line
    if line:
        assert problem.place.file.endswith("x.j2")


def test_pretty_json_is_json_and_keeps_to_the_page() -> None:
    value = {"a": {"b": [{"c": number, "text": "ä" * 20} for number in range(5)], "short": [1, 2]}, "empty": {}}
    text = pretty_json(value)
    assert json.loads(text) == value
    assert max(map(len, text.splitlines())) <= PAGE_WIDTH
    assert '"short": [1, 2]' in text


def test_pipeline_that_gives_no_json_is_an_error(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "templates", tmp_path / "templates")
    (tmp_path / "templates" / "pipelines" / "encoder-cpu-fp32.json.j2").write_text('{"a": 1,}', encoding="utf-8")
    info, _ = read_info(MINILM / "info.yml")
    with pytest.raises(InvalidRecipe, match="bad-rendering") as caught:
        render_config(info, info.recipes[0], Clone(tmp_path))
    assert "encoder-cpu-fp32.json.j2" in str(caught.value)


def test_rendering_tells_its_difference(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "a.txt"
    rendering = Rendering(path, b"one\ntwo\n")
    assert rendering.difference() == f"{path}: missing\n"
    rendering.write()
    assert rendering.difference() is None
    path.write_bytes(b"one\n2\n")
    assert "-2\n+two\n" in str(rendering.difference())
    assert "not the same" in str(Rendering(path, b"\xff\xfe").difference())


def _static(**settings: object) -> tuple[Info, Variant]:
    info, _ = read_info(MINILM / "info.yml")
    static = next(variant for variant in info.recipes if variant.name == "cpu-int8-static-qdq")
    return info, static.model_copy(update={"settings": settings})


def test_settings_lie_over_the_pipeline() -> None:
    info, variant = _static(
        quantize={"calibrate_method": "Entropy", "reduce_range": None, "extra_options": {"WeightSymmetric": True}},
        calibration={"pre_process_data_config": {"max_length": 64}},
    )
    config = json.loads(render_config(info, variant, clone_of(MINILM)))
    quantize = config["passes"]["quantize"]
    assert quantize["calibrate_method"] == "Entropy"
    assert "reduce_range" not in quantize
    assert quantize["per_channel"] is True
    assert quantize["extra_options"] == {"OpTypesToExcludeOutputQuantization": ["MatMul"], "WeightSymmetric": True}
    assert config["data_configs"][0]["pre_process_data_config"]["max_length"] == 64
    assert config["data_configs"][0]["load_dataset_config"]["data_name"] == "text"


@pytest.mark.parametrize(("folder", "quantised"), [("phi/phi-4", True), ("qwen/qwen3-4b", False)])
def test_an_embedding_that_is_not_tied_is_quantised_apart(folder: str, quantised: bool) -> None:
    path = ROOT / "recipes" / folder
    info, _ = read_info(path / "info.yml")
    variant = info.variant("cpu-int4")
    assert variant is not None
    build = json.loads(render_config(info, variant, clone_of(path)))["passes"]["build"]
    assert build.get("embedding_bits") == (8 if quantised else None)


def test_a_setting_of_null_takes_a_pass_away() -> None:
    info, variant = _static(quantize=None, calibration=None)
    config = json.loads(render_config(info, variant, clone_of(MINILM)))
    assert list(config["passes"]) == ["convert"]
    assert config["data_configs"] == []


@pytest.mark.parametrize(
    ("settings", "rule", "cause"),
    [
        ({"quantise": {}}, "unknown-setting", "no pass or data config 'quantise'"),
        ({"quantize": 8}, "bad-value", "'quantize' must map options to values"),
    ],
)
def test_a_setting_that_reaches_nothing_is_an_error(settings: dict[str, object], rule: str, cause: str) -> None:
    info, variant = _static(**settings)
    with pytest.raises(InvalidRecipe, match=rule) as caught:
        render_config(info, variant, clone_of(MINILM))
    assert cause in str(caught.value)


def _packages(folder: Path, target: str) -> set[str]:
    info, _ = read_info(folder / "info.yml")
    clone = clone_of(folder)
    configs = {variant.file: render_config(info, variant, clone) for variant in info.recipes}
    return set(packages_of(info, TARGETS[target], configs))


def test_requirements_name_what_the_variants_of_a_target_need() -> None:
    smollm = ROOT / "recipes" / "smollm" / "smollm2-135m-instruct"
    assert {"onnxruntime-genai", "gguf", "accelerate", "datasets"} <= _packages(smollm, "cpu")
    assert not {"onnxruntime-genai", "gguf"} & _packages(MINILM, "cpu")
    cuda = _packages(ROOT / "recipes" / "qwen" / "qwen3-0.6b", "cuda")
    assert {"onnxruntime-gpu", "onnxruntime-genai-cuda"} <= cuda
    assert not {"onnxruntime", "onnxruntime-genai"} & cuda


def test_each_target_has_requirements_of_its_own() -> None:
    folder = ROOT / "recipes" / "qwen" / "qwen3-0.6b"
    info, _ = read_info(folder / "info.yml")
    assert [target.name for target in targets_of(info)] == ["cpu", "cuda", "directml"]
    names = {rendering.path.name for rendering in render_recipe(folder, "qwen", info, clone_of(folder))}
    assert {"requirements.txt", "requirements.cuda.txt", "requirements.directml.txt"} <= names


def test_pins_are_read_without_their_markers() -> None:
    assert read_pins('# head\nA_b==1.0\nc==2.1; sys_platform == "win32"\n') == {"a-b": "1.0", "c": "2.1"}


def test_sets_of_sample_data_are_copied_with_their_sources() -> None:
    files = dict(sample_files(["prose", "prose-calibration"], clone_of(MINILM)))
    assert set(files) == {"held_out.txt", "calibration.txt", "README.md"}
    sheet = files["README.md"].decode()
    assert sheet.index("`held_out.txt`") < sheet.index("`calibration.txt`")
    assert "public domain" in sheet
    with pytest.raises(InvalidRecipe, match="did you mean 'prose'"):
        list(sample_files(["prosa"], clone_of(MINILM)))


def test_recipe_without_pipeline_is_kept_by_hand(tmp_path: Path) -> None:
    info, _ = read_info(MINILM / "info.yml")
    by_hand = info.model_copy(update={"recipes": [one.model_copy(update={"pipeline": None}) for one in info.recipes]})
    assert render_recipe(MINILM, "minilm", by_hand, clone_of(MINILM)) == []


RESULTS: dict[str, Any] = {
    "variant": "cpu-int8",
    "host": "epyc-2c",
    "threads": 2,
    "date": "2026-01-31T10:00:00Z",
    "smoke": False,
    "environment": {"cpu": "A processor", "flags": ["AVX2"], "packages": {"onnxruntime": "1.2.3", "torch": "4.5.6"}},
    "rows": [
        {"name": "latency", "unit": "ms", "optimised": {"value": 12.34}, "ratio": {"value": 0.5}},
        {"name": "cosine", "unit": "", "optimised": {"value": 0.99312}, "ratio": None},
        {"name": "size", "unit": "bytes", "optimised": {"value": 22_500_000}, "ratio": {"value": 0.25}},
    ],
}


def test_results_become_a_table(tmp_path: Path) -> None:
    assert results_table(tmp_path, {"cpu-int8": None}) is None
    (tmp_path / "results").mkdir()
    for variant, smoke in (("cpu-int8", False), ("cpu-fp32", True), ("gone", False)):
        content = {**RESULTS, "variant": variant, "smoke": smoke}
        (tmp_path / "results" / f"epyc-2c.{variant}.json").write_text(json.dumps(content), encoding="utf-8")
    table = results_table(tmp_path, {"cpu-fp32": None, "cpu-int8": None})
    assert table is not None
    assert "A processor, 2 threads (AVX2); onnxruntime 1.2.3, torch 4.5.6; 2026-01-31" in table
    assert "|  | `cpu-int8` |" in table
    assert "| latency | 12.3 ms (0.50x) |" in table
    assert "| cosine | 0.9931 |" in table
    assert "| size on disk | 22 MB (0.25x) |" in table
    assert "| measured with | unknown passes |" in table
    assert "revision" not in table
    assert "nodes on" not in table


def _measured(folder: Path, variant: str, **changes: object) -> None:
    (folder / "results").mkdir(exist_ok=True)
    path = folder / "results" / f"card.{variant}.json"
    path.write_text(json.dumps({**RESULTS, "variant": variant, "target": "cuda", **changes}), encoding="utf-8")


def test_results_of_passes_that_have_changed_since_say_so(tmp_path: Path) -> None:
    config = {"passes": {"convert": {"type": "OnnxConversion", "target_opset": 20}}}
    now = get("OnnxConversion").version
    digest = settings_digest(config)
    environment = {**RESULTS["environment"], "revision": "0123abc-dirty"}
    _measured(tmp_path, "a", passes={"OnnxConversion": now}, settings=digest, environment=environment)
    table = results_table(tmp_path, {"a": config})
    assert table is not None
    assert "measured with" not in table
    assert "| revision | 0123abc-dirty |" in table
    _measured(tmp_path, "b", passes={"OnnxConversion": now - 1, "Gone": 3}, settings=digest)
    _measured(tmp_path, "c", passes={"OnnxConversion": now}, settings=digest)
    _measured(tmp_path, "d", passes={"OnnxConversion": now}, settings=None)
    other = {"passes": {"convert": {"type": "OnnxConversion", "target_opset": 21}}}
    table = results_table(tmp_path, {"a": config, "b": config, "c": other, "d": other, "e": None})
    assert table is not None
    older = f"OnnxConversion {now - 1} (now {now}), Gone 3 (gone)"
    assert f"| measured with | today's passes | {older} | other options | today's passes |" in table


def test_data_that_passes_name_belongs_to_their_settings() -> None:
    def digest(samples: int, judged: int) -> str:
        data = [{"name": "calibration", "max_samples": samples}, {"name": "judged", "max_samples": judged}]
        return settings_digest({"passes": {"gptq": {"type": "Gptq", "data_config": "calibration"}}, "data_configs": data})

    assert digest(1, 1) == digest(1, 2) != digest(2, 1)


def test_a_multiple_of_eager_pytorch_on_a_card_is_marked_unless_a_compiled_original_stands_beside_it(tmp_path: Path) -> None:
    environment = {**RESULTS["environment"], "card": {"name": "Card", "driver": "1", "cuda": "13"}}
    placement = {
        "nodes": {"CUDAExecutionProvider": 3, "CPUExecutionProvider": 1},
        "seconds": {"CUDAExecutionProvider": 0.9, "CPUExecutionProvider": 0.1},
    }
    _measured(tmp_path, "a", environment=environment, placement=placement)
    table = results_table(tmp_path, {"a": None})
    assert table is not None
    assert "| latency | 12.3 ms (0.50x†) |" in table
    assert "| size on disk | 22 MB (0.25x) |" in table
    assert "\n\n† Against eager PyTorch" in table
    assert "| nodes on CUDA | 3 of 4 (75.0 %), 90.0 % of the time |" in table
    peer = {"form": "PyTorch fp16, compiled", "value": 15.0, "ratio": {"value": 0.8}}
    _measured(tmp_path, "a", environment=environment, rows=[{**RESULTS["rows"][0], "peers": [peer]}])
    table = results_table(tmp_path, {"a": None})
    assert table is not None
    assert "| latency | 12.3 ms (0.50x; 0.80x of PyTorch fp16, compiled) |" in table
    assert "†" not in table


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(174.6, "tokens/s", "175 tokens/s"), (0.00123, "s", "0.00123 s"), (20.3811, "", "20.38"), (1.2e9, "bytes", "1,200 MB")],
)
def test_figures_are_readable(value: float, unit: str, text: str) -> None:
    assert figure(value, unit) == text
