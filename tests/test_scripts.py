"""Scripts that make what people see."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from runner.targets.target import TARGETS, device_missing

ROOT = Path(__file__).resolve().parents[1]


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(os.name == "nt", reason="no terminal devices there")
@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("one\r\ntwo\r\n", "one\ntwo"),
        ("10 %\r\x1b[2K50 %\r\x1b[2K100 %\r\n", "100 %"),
        ("first\r\nsecond\r\n\x1b[1A\x1b[2Kthird\r\n", "first\nthird"),
        ("\x1b[?25l\x1b[31mred\x1b[0m\x1b[?25h", "\x1b[31mred\x1b[0m"),
    ],
)
def test_screen_keeps_what_stays(written: str, seen: str) -> None:
    assert _script("draw_terminal").screen(written) == seen


@pytest.mark.skipif(os.name == "nt", reason="no terminal devices there")
def test_terminal_output_is_that_of_a_terminal() -> None:
    command = [sys.executable, "-c", "import sys; print(sys.stdout.isatty())"]
    assert _script("draw_terminal").terminal_output(command).strip() == "True"


def test_sample_images_are_always_the_same(tmp_path: Path) -> None:
    """Pixels are compared, since encoders differ between versions."""
    _script("draw_sample_images").draw(tmp_path, 2, seed=1)
    for path in sorted(tmp_path.iterdir()):
        committed = Image.open(ROOT / "recipes" / "resnet" / "resnet-50" / "sample_data" / "images" / path.name).convert("RGB")
        drawn = Image.open(path).convert("RGB")
        assert drawn.size == committed.size == (224, 224)
        pairs = zip(drawn.tobytes(), committed.tobytes(), strict=True)
        assert sum(abs(one - other) for one, other in pairs) / (224 * 224 * 3) < 2


def test_a_sitting_replaces_what_it_measured_on_the_page_of_gpus_and_nothing_else() -> None:
    def decode(model: str, token: float) -> dict[str, object]:
        return {"figures": {model: {"bytes_a_token": 1, "tried": {"graphs": {"token": token}}}}}

    def kernels(*sides: str) -> dict[str, object]:
        return {"figures": {"sides": [{"side": side, "tried": side not in ("original", "optimised")} for side in sides]}}

    taken_over = _script("gpu_page").taken_over
    before = taken_over({}, {"machine": {"figures": {"read": 3.0}}, "decode-7b": decode("fp16", 1.0)})
    before |= {"vit-kernels": kernels("original", "another way", "optimised"), "lora": {"figures": {"loss": 0.1}}}
    after = taken_over(
        before,
        {
            "machine": {"figures": {"read": 2.0}},
            "decode-7b": decode("int4", 0.5),
            "vit-kernels": kernels("original", "optimised"),
            "vit": {"figures": {"rows": []}},
        },
    )
    assert after["decode-7b"]["figures"]["fp16"] == before["decode-7b"]["figures"]["fp16"]
    assert [after["decode-7b"]["figures"][model]["read"] for model in ("fp16", "int4")] == [3.0, 2.0]
    assert [side["side"] for side in after["vit-kernels"]["figures"]["sides"]] == ["original", "another way", "optimised"]
    assert after["lora"] == before["lora"]
    assert "vit" not in after  # its results lie in the recipe's folder


def _gpu_script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.skipif(device_missing(TARGETS["cuda"]) is None, reason="there is a GPU")
def test_the_suite_of_gpus_measures_no_processor_in_place_of_one(tmp_path: Path) -> None:
    done = _gpu_script("gpu_suite.py", "--only", "machine", "--work", str(tmp_path / "work"))
    assert done.returncode == 1
    assert "no NVIDIA driver" in done.stderr or "reports no GPU" in done.stderr
    assert not (tmp_path / "work").exists()
    limits = _gpu_script("gpu_limits.py", CUDA_VISIBLE_DEVICES="")
    assert limits.returncode == 1
    assert "--smoke" in limits.stderr


def test_a_piece_without_figures_is_not_done_and_says_why(tmp_path: Path) -> None:
    done = _gpu_script(
        "gpu_suite.py", "--only", "machine,decode-1b,vit-base-kernels", "--target", "cpu", "--work", str(tmp_path)
    )
    assert done.returncode == 1
    assert [path.stem for path in (tmp_path / "done").iterdir()] == ["machine"]
    record = json.loads((tmp_path / "done" / "machine.json").read_text())
    assert record["smoke"]
    assert record["card"] is None
    assert "exit 1: no language model of llama-1b-fp16, llama-1b-int4 is in" in done.stdout
    assert f"log: {tmp_path / 'logs' / 'decode-1b.log'}" in done.stdout
    log = (tmp_path / "logs" / "vit-base-kernels.log").read_text().splitlines()
    cause = next(line for line in reversed(log) if line[:1].strip())
    assert cause.startswith("there is no model in ")
    assert f"exit 1: {cause}\n" in done.stdout
    suite = _script("gpu_suite")
    sizes = {small: suite.Suite(tmp_path, 0.0, "cpu" if small else "cuda", smoke=False, rounds=1) for small in (True, False)}
    assert {small: one.done_before(suite.PIECES[0]) for small, one in sizes.items()} == {True: True, False: False}


@pytest.mark.parametrize(
    ("script", "arguments", "cause"),
    [
        ("gpu_finetune.py", (), "--work: there is no folder '{}'"),
        ("gpu_decode.py", ("smollm2-fp16",), "no language model of smollm2-fp16 is in {}"),
        ("gpu_kernels.py", ("vit-base-fp16",), "there is no model in {}"),
        ("gpu_kernels.py", ("vit-bas-fp16",), "there is no piece 'vit-bas-fp16' of pictures or text; there are "),
    ],
)
def test_what_a_gpu_script_is_to_read_and_is_not_there(
    tmp_path: Path, script: str, arguments: tuple[str, ...], cause: str
) -> None:
    nowhere = tmp_path / "nowhere"
    done = _gpu_script(script, "--work", str(nowhere), *arguments)
    assert done.returncode in (1, 2)
    assert cause.format(nowhere) in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_error_as_json_is_told_by_its_message(tmp_path: Path) -> None:
    log = tmp_path / "piece.log"
    done = subprocess.run(
        [sys.executable, "-m", "runner", "run", "no-such-recipe", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    log.write_text(f"reading\n{done.stderr}", encoding="utf-8")
    assert (
        _script("gpu_suite")._last_line(log).startswith("unknown-recipe: there is no recipe, folder or file 'no-such-recipe'")
    )


def test_pieces_that_are_left_are_told_by_the_exit_code_and_random_weights_by_the_record(tmp_path: Path) -> None:
    done = _gpu_script("gpu_suite.py", "--only", "machine", "--target", "cpu", "--seconds", "1", "--work", str(tmp_path))
    assert done.returncode == 3
    assert "start again for it" in done.stdout
    suite = _script("gpu_suite")
    pieces = {piece.name: piece for piece in suite.PIECES}
    found = {name: suite._of_random_weights(pieces[name]) for name in ("decode-1b", "llama-1b-fp16", "smollm2-fp16", "machine")}
    assert found == {"decode-1b": True, "llama-1b-fp16": True, "smollm2-fp16": False, "machine": False}


def test_the_page_of_gpus_refuses_records_without_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = _script("gpu_page")
    kept = (ROOT / "docs" / "gpu.json").read_bytes()
    for name in ("FIGURES", "PAGE"):
        copy = tmp_path / getattr(page, name).name
        copy.write_bytes(getattr(page, name).read_bytes())
        monkeypatch.setattr(page, name, copy)
    records = tmp_path / "done"

    def told(*flags: str) -> tuple[int, str]:
        return page.main(["--records", str(records), *flags]), capsys.readouterr().err

    assert told() == (1, f"nothing is written:\n    {records}: there is no such folder\n")
    records.mkdir()
    machine = {"figures": json.loads(kept)["machine"]["figures"] | {"read": 1e12}}
    for record, words in (
        ({**machine, "smoke": True, "card": None}, "small sizes"),
        ({**machine, "smoke": False, "card": None}, "no card"),
        ({"figures": {}, "card": "one"}, "no record of gpu_suite.py with figures"),
        ([], "no record of gpu_suite.py with figures"),
    ):
        (records / "machine.json").write_text(json.dumps(record))
        code, error = told()
        assert code == 1
        assert words in error
        assert page.FIGURES.read_bytes() == kept
    (records / "machine.json").write_text(json.dumps({**machine, "smoke": False, "card": "one"}))
    assert told("--check")[0] == 1
    assert page.FIGURES.read_bytes() == kept
    assert told()[0] == 0
    assert json.loads(page.FIGURES.read_text())["machine"]["figures"]["read"] == 1e12
    assert told("--check")[0] == 0


def _receipt(folder: Path, provider: str, **structure: Any) -> str:
    folder.mkdir()
    (folder / "receipt.json").write_text(json.dumps({"provider": provider, "structure": structure or None}))
    return str(folder)


@pytest.mark.skipif(device_missing(TARGETS["directml"]) is None, reason="DirectML is here")
def test_what_ran_on_no_device_counts_by_its_kernels_only_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = _script("provider_share").main
    good = _receipt(tmp_path / "good", "DmlExecutionProvider", nodes=20, on_cpu={"Shape": 1})
    poor = _receipt(tmp_path / "poor", "DmlExecutionProvider", nodes=20, on_cpu={"Shape": 3})
    assert main([good, "--least", "0.9", "--without-device"]) == 0
    assert "kernels for 19 of 20 nodes (95.0%); it ran none: DirectML exists on Windows only" in capsys.readouterr().out
    assert main([good, poor, "--least", "0.9", "--without-device"]) == 1
    assert f"too little: {poor}" in capsys.readouterr().out
    assert main([good, "--least", "0.9"]) == 1
    assert "ran nothing here" in capsys.readouterr().out
    assert main([_receipt(tmp_path / "silent", "DmlExecutionProvider"), "--least", "0.9", "--without-device"]) == 1
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--least", "0.9"])


def test_what_fell_back_on_a_device_that_is_here_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = _script("provider_share")
    monkeypatch.setattr(script, "what_is_missing", lambda target: None)
    provider, cpu = "DmlExecutionProvider", "CPUExecutionProvider"
    placed = {
        "good": {"nodes": {provider: 19, cpu: 1}},
        "fell-back": {"nodes": {cpu: 20}},
        "unknown": None,
    }
    for name, found in placed.items():
        folder = _receipt(tmp_path / name, provider, nodes=20, on_cpu={}, placed=found)
        assert script.main([folder, "--least", "0.9", "--without-device"]) == int(name != "good")
    told = capsys.readouterr().out
    assert f"{provider} ran 19 of 20 nodes (95.0%)" in told
    assert f"{provider} ran 0 of 20 nodes (0.0%)" in told
    assert "no profile tells what it ran" in told
