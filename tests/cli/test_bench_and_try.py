"""`recipe bench` and `recipe try` from the command line, on a tiny model in a folder of its own."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import onnx
import pytest

from runner import benchmark
from runner.bench.results import read_results
from runner.cli import run_command
from runner.errors import TargetUnavailable
from runner.passes import table
from runner.passes.record import CURRENT, told_of
from runner.targets.target import TARGETS, device_missing

ROOT = Path(__file__).resolve().parents[2]

INFO = """
name: tiny
arch: bert
model:
  id: nobody/tiny
  task: {task}
  parameters: 1000
  licence: MIT
  download_mb: 1
evaluation:
  sentences: sentences.txt
  prompt: the cat sat
recipes:
  - name: cpu-fp32
    file: olive_config.json
    device: cpu
    ep: CPUExecutionProvider
    gates:
      cosine: ">= 0.999"
      latency: "<= 0.000001x"
"""


SHORT = ("--rounds", "1", "--batch", "1", "--length", "16")  # one size, once


def recipe(folder: Path, model: Path, task: str) -> Path:
    folder.mkdir()
    (folder / "info.yml").write_text(INFO.format(task=task))
    (folder / "sentences.txt").write_text("the cat sat on the mat\na dog ran over the hill\n")
    source = {"type": "HfModel", "model_path": str(model), "task": task}
    config = {"input_model": source, "passes": {"convert": {"type": "OnnxConversion"}}}
    (folder / "olive_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def embedder(tiny_bert, tmp_path_factory) -> tuple[Path, Path, int, str]:
    """Benchmarks a recipe; returns its folder, the model's folder, the exit code."""
    root = tmp_path_factory.mktemp("bench-command")
    folder, output = recipe(root / "tiny", tiny_bert.folder, "feature-extraction"), root / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECIPE_CACHE", str(root / "cache"))
        code = run_command(["bench", str(folder), "--output-dir", str(output), "--rounds", "1", "--save", "--threads", "1"])
    return folder, output, code


@pytest.mark.skipif(device_missing(TARGETS["directml"]) is None, reason="DirectML is here")
@pytest.mark.parametrize("smoke", [True, False])
@pytest.mark.parametrize("verb", [["bench"], ["try", "hello"]], ids=lambda verb: verb[0])
def test_what_needs_a_device_that_is_not_here_ends_before_anything_is_made(tmp_path, monkeypatch, capsys, verb, smoke):
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)
    flags = ["--target", "directml", *(["--smoke"] if smoke else [])]
    assert run_command([verb[0], "all-minilm-l6-v2", *verb[1:], *flags]) == 1
    cause, remedy = capsys.readouterr().err.splitlines()
    assert cause == "target-unavailable: DmlExecutionProvider: DirectML exists on Windows only"
    assert remedy.startswith("    run on a machine with Windows 10 or newer")
    assert "or run a variant for the CPU" in remedy
    assert not list((tmp_path / "cache").rglob("*"))


@pytest.mark.skipif(device_missing(TARGETS["directml"]) is None, reason="DirectML is here")
def test_sessions_are_tuned_on_their_own_device_or_not_at_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    text = '<ir_version: 10, opset_import: ["" : 21]> agraph (float[2] x) => (float[2] y) { y = Add (x, x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "add.onnx")
    asked = ["tune", "-m", str(tmp_path / "add.onnx"), "-o", str(tmp_path / "out"), "--provider", "DmlExecutionProvider"]
    for flags in ([], ["--smoke"]):
        assert run_command([*asked, *flags]) == 1
        assert "DirectML exists on Windows only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(device_missing(TARGETS["directml"]) is None, reason="DirectML is here")
def test_a_benchmark_from_python_ends_before_anything_is_made_as_well(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)
    with pytest.raises(TargetUnavailable, match="Windows only"):
        benchmark("all-minilm-l6-v2", target="directml", smoke=True, max_memory="4GB", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missed_gate_ends_with_4_and_everything_is_written(embedder):
    folder, output, code = embedder
    assert code == 4
    (saved,) = (folder / "results").glob("*.cpu-fp32.json")
    results = read_results(saved)
    assert results == read_results(output / "results.json")
    assert results.command == "recipe bench tiny/cpu-fp32 --rounds 1"
    assert results.model is not None
    assert "/" not in results.model  # a local folder's name, and not where it lies
    assert results.threads == 1
    assert {gate.metric: gate.met for gate in results.gates} == {"cosine": True, "latency": False}
    assert results.passes == {"OnnxConversion": table.get("OnnxConversion").version}
    config = json.loads((folder / "olive_config.json").read_text(encoding="utf-8"))
    assert told_of(results.model_dump(), config) == CURRENT
    config["passes"]["convert"]["target_opset"] = 17
    assert told_of(results.model_dump(), config) == "other options"
    assert "gate" in (output / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def finished_copy(embedder, tmp_path, monkeypatch) -> Path:
    """The finished model below a copy of its recipe; the store is the one that it was made with."""
    folder, output, _ = embedder
    monkeypatch.setenv("RECIPE_CACHE", str(folder.parent / "cache"))
    shutil.copytree(folder, tmp_path / "tiny", ignore=shutil.ignore_patterns("results"))
    shutil.copytree(output, tmp_path / "tiny" / "models" / "mine", ignore=shutil.ignore_patterns("results.json", "report.html"))
    return tmp_path / "tiny" / "models" / "mine"


def test_a_finished_model_is_measured_as_it_lies(finished_copy, capsys):
    before = (finished_copy / "receipt.json").read_bytes()
    assert run_command(["bench", str(finished_copy), *SHORT]) == 4  # the gate of the variant that the receipt names
    results = read_results(finished_copy / "results.json")
    assert (results.recipe, results.variant, results.passes) == (
        "tiny",
        "cpu-fp32",
        {"OnnxConversion": table.get("OnnxConversion").version},
    )
    assert (finished_copy / "report.html").is_file()
    assert (finished_copy / "receipt.json").read_bytes() == before
    assert "as it lies" not in capsys.readouterr().err


def test_of_a_finished_model_that_the_recipe_would_not_make_today_no_passes_are_told(finished_copy, capsys):
    file = finished_copy.parents[1] / "olive_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["passes"]["convert"]["target_opset"] = 17
    file.write_text(json.dumps(config))
    model = (finished_copy / "model.onnx").read_bytes()
    assert run_command(["bench", str(finished_copy), "--rounds", "1", "--save"]) == 2
    assert "recipe bench tiny/cpu-fp32 --save" in capsys.readouterr().err
    assert not (finished_copy / "results.json").exists()
    assert run_command(["bench", str(finished_copy), *SHORT]) == 4
    assert "it is measured as it lies" in capsys.readouterr().err
    results = read_results(finished_copy / "results.json")
    assert (results.passes, results.settings, results.command) == (None, None, f"recipe bench mine {' '.join(SHORT)}")
    assert (finished_copy / "model.onnx").read_bytes() == model


def test_a_model_that_one_command_made_is_measured_by_the_recipe_beside_it(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert run_command(["export", "-m", str(tiny_bert.folder), "-o", "out"]) == 0
    assert run_command(["bench", "out", *SHORT]) == 0
    assert read_results(tmp_path / "out" / "results.json").row("cosine") is not None


@pytest.mark.parametrize(
    ("change", "flags", "told"),
    [
        ("", ["--set", "passes.convert.target_opset=17"], "in which --set can change nothing"),
        ("", ["--smoke"], "was not made by a smoke run"),
        ("recipe", [], "recipe bench --config olive_config.json --output-dir "),
        ("receipt", [], "receipt.json is no receipt of a run"),
        ("weights", [], "make it again: recipe run tiny/cpu-fp32 --output-dir "),
        ("source", [], "give its folder: --model-path FOLDER"),
    ],
)
def test_a_folder_that_cannot_be_measured_says_why_and_what_to_type(finished_copy, capsys, change, flags, told):
    file = finished_copy / "receipt.json"
    receipt = json.loads(file.read_text(encoding="utf-8"))
    if change == "recipe":
        file.write_text(json.dumps({**receipt, "recipe": "gone"}))
    elif change == "receipt":
        file.write_text("[]")
    elif change == "source":
        file.write_text(json.dumps({**receipt, "model": {"id": "x", "from": "folder x", "digest": "0"}}))
    elif change == "weights":
        (finished_copy / "model.onnx").unlink()
    assert run_command(["bench", str(finished_copy), "--rounds", "1", *flags]) == 2
    assert told in capsys.readouterr().err
    assert not (finished_copy / "results.json").exists()


def test_texts_are_embedded_and_compared(embedder, capsys):
    assert run_command(["try", str(embedder[1]), "the cat sat", "the cat sat", "red ball", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["vectors"]) == 3
    assert sum(value**2 for value in told["vectors"][0]) == pytest.approx(1, abs=1e-5)
    assert told["cosine"][0][1] == pytest.approx(1, abs=1e-5)


def test_what_would_change_a_recipe_is_refused_of_a_finished_model(embedder, capsys):
    assert run_command(["try", str(embedder[1]), "the cat sat", "--set", "passes.convert.target_opset=17"]) == 2
    assert "is a finished model, in which --set can change nothing" in capsys.readouterr().err


def test_similarities_are_shown_for_people(embedder, capsys):
    assert run_command(["try", str(embedder[1]), "the cat sat", "red ball"]) == 0
    text = capsys.readouterr().out
    assert "32 numbers" in text
    assert "1.000" in text


def test_recipe_can_be_left_out_in_its_folder(embedder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    for folder in embedder[:2]:
        monkeypatch.chdir(folder)
        assert run_command(["try", "the cat sat", "Ball.", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["inputs"] == ["the cat sat", "Ball."]
    monkeypatch.chdir(embedder[0])
    assert run_command(["try", "all-minilm-l6-v", "the cat sat"]) == 2
    assert "did you mean 'all-minilm-l6-v2'?" in capsys.readouterr().err


def test_without_an_input_the_recipes_example_is_used(embedder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.chdir(embedder[0])
    assert run_command(["try", str(embedder[1])]) == 0
    assert "the cat sat" in capsys.readouterr().out


def test_example_of_an_image_recipe_is_its_first_picture():
    from runner.catalog.discover import OWN_CATALOG
    from runner.catalog.find import find
    from runner.cli.try_model import own_example

    found = find("resnet-50", OWN_CATALOG)
    assert Path(own_example(found.info, found.folder)).name == "00-clouds.png"


def test_a_text_beyond_the_models_length_is_cut_and_said_so(embedder, capsys):
    assert run_command(["try", str(embedder[1]), "the cat sat " * 500, "the cat sat " * 600, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["cosine"][0][1] == pytest.approx(1, abs=1e-5)
    assert told.err.count("that the model takes: 'the cat sat") == 2


def test_bytes_that_are_no_text_are_refused(embedder, monkeypatch, capsys):
    assert run_command(["try", str(embedder[1]), "caf\udce9"]) == 2
    assert "no text in UTF-8" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    assert run_command(["try", str(embedder[1])]) == 2
    assert "no text in UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["", "   "])
def test_an_empty_input_is_refused(embedder, given, capsys):
    assert run_command(["try", str(embedder[1]), given]) == 2
    assert "nothing to ask" in capsys.readouterr().err


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Makes a recipe's model and returns its folder."""
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))

    def make(model, task: str) -> str:
        output = tmp_path / "model"
        folder = recipe(tmp_path / "tiny", model.folder, task)
        assert run_command(["run", str(folder), "--output-dir", str(output)]) == 0
        return str(output)

    return make


def test_masked_words_are_filled_in(tiny_masked_bert, finished, capsys):
    folder = finished(tiny_masked_bert, "fill-mask")
    capsys.readouterr()
    assert run_command(["try", folder, "the cat [mask] on the mat"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all("% " in line and "on the mat" in line for line in lines)
    assert run_command(["try", folder, "the cat sat"]) == 2
    assert "no [MASK] stands in 'the cat sat'" in capsys.readouterr().err
    assert run_command(["try", folder, "the cat sat " * 500 + "[MASK]"]) == 2
    assert "[MASK] stands beyond what the model reads" in capsys.readouterr().err


def test_an_image_is_classified_and_what_is_none_is_refused(tiny_resnet, finished, tmp_path, capsys):
    from PIL import Image

    folder = finished(tiny_resnet, "image-classification")
    capsys.readouterr()
    Image.effect_noise((40, 40), 60).convert("RGB").save(tmp_path / "noise.png")
    (tmp_path / "text.png").write_text("hello")
    assert run_command(["try", folder, str(tmp_path / "noise.png"), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert sum(share for _, share in told["classes"]) == pytest.approx(1, abs=1e-4)
    assert run_command(["try", folder, str(tmp_path / "text.png")]) == 1
    assert "not a readable image" in capsys.readouterr().err
    assert run_command(["try", folder, str(tmp_path / "nowhere.png")]) == 1
    assert "there is no file" in capsys.readouterr().err


def test_texts_that_are_made_up_are_no_longer_than_the_model_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "clip"
    asked = ["bench", "clip-vit-base-patch32", "--smoke", "--rounds", "1", "--catalog", str(ROOT / "recipes")]
    assert run_command([*asked, "--output-dir", str(output)]) == 0
    assert {row.name for row in read_results(output / "results.json").rows} >= {"latency", "throughput", "cosine"}
