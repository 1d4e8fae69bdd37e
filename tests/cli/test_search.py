"""`recipe search` from the command line to a model, its recipe and the report, with a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runner.cli import run_command
from runner.models.handle import ModelHandle
from runner.recipe.document import read_document

ROOT = Path(__file__).resolve().parents[2]
AXES = ["batch", "sequence"]


@pytest.fixture
def config(tiny_bert: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration with eight points, in the current folder; every point with opset 11 fails in its first step."""
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "search.json"
    passes = {
        "convert": {"type": "OnnxConversion", "use_dynamo_exporter": False, "target_opset": 17},
        "fix": {"type": "DynamicToFixedShape", "dim_param": {"choices": [["bach", "sequence"], AXES]}, "dim_value": [1, 16]},
        "quantize": {"type": "OnnxDynamicQuantization", "per_channel": [False, True], "reduce_range": [True, False]},
    }
    model = {"type": "HfModel", "model_path": str(tiny_bert.folder), "task": "feature-extraction"}
    strategy = {"sampler": "sequential", "max_samples": 6}
    evaluator = {"metrics": [{"name": "weight", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 1}]}]}
    told = {"input_model": model, "passes": passes, "search_strategy": strategy, "output_dir": "out"}
    file.write_text(json.dumps({**told, "evaluators": {"e": evaluator}, "evaluator": "e", "evaluate_input_model": False}))
    return file


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "search.json").read_text(encoding="utf-8"))
    return found


def test_a_search_keeps_the_best_and_tells_the_rest(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["search", "--config", str(config), "--goal", "parity >= 0.9", "--minimize", "size"]
    assert run_command(asked) == 0
    told = capsys.readouterr()
    found = record(Path("out-search"))
    trials = found["trials"]
    failed = [one for one in trials if one["reason"]]
    assert (len(trials), len(failed), found["size"]) == (6, 4, 8)
    assert failed[3]["reason"].startswith("as in point 1: step 'fix'")
    assert failed[3]["failed_step"] == failed[0]["failed_step"]
    sizes = [one["figures"]["size"]["value"] for one in trials if not one["reason"]]
    best = trials[found["best"]]
    assert best["figures"]["size"]["value"] == min(sizes)
    assert found["best"] in found["front"]
    for text in ("best, front", "failed", "6 of 8 points"):
        assert text in told.out
    for name in ("search.html", "search.svg", "search.png"):
        assert (Path("out-search") / name).stat().st_size > 1000
    assert "no input has an axis" in (Path("out-search") / "search.html").read_text(encoding="utf-8")
    assert len(_stored(config.parent, "OnnxConversion")) == 1  # built once for all points

    receipt = json.loads(Path("out/receipt.json").read_text(encoding="utf-8"))
    assert receipt["fingerprint"] == best["fingerprint"]
    written = read_document(Path("out-recipe/olive_config.json")).plain()
    assert written["passes"]["quantize"]["per_channel"] is best["point"]["quantize.per_channel"]
    assert "search_strategy" not in written
    assert run_command(["run", "out-recipe", "--output-dir", "again", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["receipt"]["fingerprint"] == best["fingerprint"]

    assert run_command([*asked, "--samples", "6", "--goal", "size <= 0.001"]) == 4  # the same points, judged anew
    told = capsys.readouterr()
    assert "goes on: 6 points are known" in told.err
    assert "is the nearest" in told.err
    assert [one["seconds"] for one in record(Path("out-search"))["trials"]] == [one["seconds"] for one in trials]


def _stored(folder: Path, name: str) -> list[Path]:
    records = [path for path in (folder / "cache" / "store").rglob("*.json") if '"ingredients"' in path.read_text("utf-8")]
    return [path for path in records if json.loads(path.read_text("utf-8"))["ingredients"].get("pass") == name]


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
def test_a_search_that_was_killed_goes_on(config: Path) -> None:
    arguments = ["run", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", *arguments], env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    file = Path("out-search/search.json")
    deadline = time.monotonic() + 120
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = record(Path("out-search"))["trials"]
    assert 1 <= len(before) < 6
    assert run_command(arguments) == 0
    after = record(Path("out-search"))["trials"]
    assert after[: len(before)] == before
    assert len(after) == 6


def test_nothing_but_failures_is_an_error(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["search", "--config", str(config), "--set", 'passes.fix.dim_param=["bach", "sequence"]', "--samples", "2"]
    assert run_command(arguments) == 1
    told = capsys.readouterr().err
    assert "search-failed: none of 2 points could be made" in told
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--minimize", "decode"], "wrong-direction: --minimize decode: more of it is better"),
        (["--minimize", "sise"], "did you mean 'size'?"),
        (["--goal", "size"], "is not a figure and its bar"),
        (["--goal", "size = 3"], "bad-goal"),
        (["--goal", "size <= many"], "is no bar"),
        (
            ["--goal", "perplexity <= 1.03x"],
            "a model for feature-extraction, without a recipe's evaluation data, has no figure",
        ),
        (["--goal", "perplexity <= 1.03x", "--dry-run"], "it has: latency, throughput, cosine, cosine_min, size"),
        (["--maximize", "decode", "--dry-run"], "has no figure 'decode'"),
        (["--goal", "cosine >= 2"], "can never be met: cosine is 1 at most"),
        (["--goal", "parity >= 1.5"], "can never be met: parity is 1 at most"),
        (["--goal", "parity >= 0.99x"], "is itself a comparison"),
        (["--space", "passes.quantise.per_channel=true"], "did you mean 'quantize'?"),
        (["--space", "passes.quantize.per_chanel=true,false"], "did you mean 'per_channel'?"),
    ],
)
def test_bad_input_is_told(config: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["search", "--config", str(config), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not Path("out-search").exists()


@pytest.mark.parametrize("taken", ["out", "out-2", "out-recipe", "out-search"])
def test_an_output_that_cannot_be_written_is_told_before_the_first_point(
    config: Path, taken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(taken).write_text("somebody's", encoding="utf-8")
    assert run_command(["search", "--config", str(config), "--minimize", "size", "--models", "2"]) == 1
    told = capsys.readouterr().err
    assert f"{taken} is a file; a folder was expected" in told
    assert "point 1" not in told
    assert Path(taken).read_text(encoding="utf-8") == "somebody's"
    assert not _stored(config.parent, "OnnxConversion")


def _space(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run_command(["search", *arguments, "--dry-run", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_what_is_pinned_does_not_vary(own_catalogue: None, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, pinned = "all-minilm-l6-v2/cpu-int8-dynamic", "passes.quantize.per_channel=true"
    free, told = _space(capsys, recipe), _space(capsys, recipe, "--set", pinned)
    assert free["space"]["quantize.per_channel"] == [True, False]
    assert told["space"] == {**free["space"], "quantize.per_channel": [True]}
    assert told["size"] * 2 == free["size"]
    assert {point["quantize.per_channel"] for point in told["first"]} == {True}
    told = _space(capsys, recipe, "--space", pinned)
    assert (told["builtin"], told["space"], told["size"]) == (False, {"quantize.per_channel": [True]}, 1)
    assert run_command(["search", recipe, "--space", pinned, "--dry-run"]) == 0
    assert "one point: every option has one value" in capsys.readouterr().out


def test_groups_that_do_not_divide_the_rows_are_left_out(own_catalogue: None, capsys: pytest.CaptureFixture[str]) -> None:
    group = "gptq.group_size"
    assert _space(capsys, "smollm2-135m-instruct")["space"][group] == [32, 64]  # rows of 576 and 1536
    assert 128 in _space(capsys, "llama-3.2-1b-instruct")["space"][group]


@pytest.mark.parametrize("flags", [["-o", "made"], ["--output_path", "made", "--order", "pass-by-pass"]])
def test_one_value_is_one_point(config: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(config.read_text(encoding="utf-8"))
    del told["passes"]["fix"]
    told["passes"]["quantize"] = {"type": "OnnxDynamicQuantization", "weight_type": ["QInt8"]}
    config.write_text(json.dumps(told), encoding="utf-8")
    assert run_command(["search", "--config", str(config), "--minimize", "size", *flags]) == 0
    shown = capsys.readouterr()
    assert "one point: every option has one value" in shown.err
    assert "done: the only point was tried" in shown.out
    assert [one["point"] for one in record(Path("made-search"))["trials"]] == [{"quantize.weight_type": "QInt8"}]
    assert Path("made/model.onnx").is_file()


def test_a_dry_run_shows_the_space(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["search", "--config", str(config), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["size"], told["samples"], len(told["first"])) == (8, 6, 5)
    assert not Path("out-search").exists()


def test_one_pass_after_the_other_and_more_than_one_model(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = f'passes.fix.dim_param={{"choices": [{json.dumps(AXES)}]}}'
    asked = ["search", "--config", str(config), "--space", right, "--minimize", "size", "--order", "pass-by-pass"]
    asked += ["--space", "passes.convert.target_opset=17,18", "--models", "2", "--samples", "8"]
    assert run_command(asked) == 0
    trials = record(Path("out-search"))["trials"]
    opsets = [one["point"]["convert.target_opset"] for one in trials]
    assert opsets[:2] == [17, 18]  # the first step varies with the first values of the others
    assert trials[0]["point"].keys() == trials[1]["point"].keys()
    best_opset = min(trials[:2], key=lambda one: one["figures"]["size"]["value"])["point"]["convert.target_opset"]
    assert set(opsets[2:]) == {best_opset}  # and stays while the last one varies
    assert (Path("out") / "model.onnx").is_file()
    assert (Path("out-2") / "model.onnx").is_file()
    first, second = (json.loads((Path(name) / "receipt.json").read_text("utf-8")) for name in ("out", "out-2"))
    assert first["fingerprint"] != second["fingerprint"]
    told = capsys.readouterr().out
    assert "5 of 8 points were tried: pass-by-pass varies one step at a time; --order joint goes on" in told
    assert "done: every step was varied on the best of the others" in told
    assert "--samples goes on" not in told


def test_no_point_is_begun_when_the_time_is_over(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["search", "--config", str(config), "--minimize", "size", "--max-time", "0.01"]
    asked += ["--set", f"passes.fix.dim_param={json.dumps(AXES)}"]
    assert run_command(asked) == 0
    assert len(record(Path("out-search"))["trials"]) == 1
    assert "done: 0.01 s are over" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to one process there")
def test_ctrl_c_keeps_the_points(config: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", "search", "--config", str(config)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    file = Path("out-search/search.json")
    deadline = time.monotonic() + 120
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in told
    assert "Traceback" not in told
    assert record(Path("out-search"))["trials"]
