"""Components of a pipeline: made once, kept apart in the store, several at once where they fit, and named where they fail."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from runner.engine import parts as engine_parts
from runner.engine.fingerprint import fingerprint, step_ingredients
from runner.engine.job import Job
from runner.engine.parts import PartFailed, Parts
from runner.engine.places import Places
from runner.engine.plan import Step
from runner.engine.store import Store
from runner.models.components import parts_of, pipeline_of
from runner.models.digest import DigestMemo, files_below, sha256_of_file
from runner.models.handle import ModelHandle
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.recipe.config import InputModel, RunConfig
from runner.targets.target import TARGETS

WIDTHS = {"text_encoder": 520, "unet": 600, "vae_decoder": 560}  # each above a megabyte, from which on files are linked
PASS = "OnnxDynamicQuantization"


def write_component(folder: Path, width: int, seed: int = 0) -> ModelHandle:
    folder.mkdir(parents=True, exist_ok=True)
    weight = np.random.default_rng(seed).standard_normal((width, width)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), folder / "model.onnx")
    return ModelHandle("onnx", folder, "model.onnx", None, {"component": folder.name})


@dataclass
class Bench:
    """A pipeline, a store, and steps that are applied to it."""

    folder: Path
    pipeline: ModelHandle
    threads: int = 2

    def __post_init__(self) -> None:
        self.said: list[str] = []
        places = Places(self.folder / "cache", self.folder / "models")
        for folder in (places.store, places.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        self.store = Store(places, DigestMemo(places.digests))
        self.job = Job(
            "test", self.pipeline, (), RunConfig(input_model=InputModel(type="ONNXModel")), self.folder, TARGETS["cpu"],
            self.threads, places, None, None, smoke=False, no_cache=False, scripts_allowed=False, log=self.folder / "log.txt",
        )  # fmt: skip

    def apply(
        self,
        differing: dict[str, Any] | None = None,
        model: ModelHandle | None = None,
        memory: int | None = None,
        **options: Any,
    ) -> tuple[ModelHandle, dict[str, Any]]:
        pass_ = table.get(PASS)
        typed = pass_.options(**options)
        components = {
            name: {"options": own, "data": {}} if own is not False else False for name, own in (differing or {}).items()
        }
        ingredients = step_ingredients(pass_, typed.model_dump(mode="json"), "input", TARGETS["cpu"], {}, components)
        step = Step("quantize", PASS, typed.model_dump(mode="json"), fingerprint(ingredients), ingredients, cached=False)
        work = self.folder / f"work-{len(list(self.folder.iterdir()))}"
        for name in ("output", "scratch"):
            (work / name).mkdir(parents=True)
        job = replace(self.job, memory=memory)
        context = PassContext(
            work / "output",
            work / "scratch",
            TARGETS["cpu"],
            self.threads,
            partial(job.open_data, self.pipeline),
            self.said.append,
        )
        return Parts(job, step, self.store).apply(pass_, model or self.pipeline, typed, context)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    parts = {name: write_component(tmp_path / "source" / name, width) for name, width in WIDTHS.items()}
    (tmp_path / "source" / "scheduler").mkdir()
    (tmp_path / "source" / "scheduler" / "scheduler_config.json").write_text("{}")
    return Bench(tmp_path, pipeline_of(tmp_path / "source", parts.items(), "text-to-image", model_variant="sd"))


@pytest.fixture
def processes_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every component is large enough for a process of its own."""
    monkeypatch.setattr(engine_parts, "WORTH_A_PROCESS", 1)


def states(told: dict[str, Any]) -> dict[str, str]:
    return {name: one["state"] for name, one in told.items()}


def operators(model: ModelHandle, name: str) -> set[str]:
    return {node.op_type for node in onnx.load(parts_of(model)[name].path).graph.node}


def test_a_component_is_made_again_only_where_its_options_change(bench: Bench) -> None:
    first, told = bench.apply()
    assert states(told) == {"text_encoder": "made", "unet": "made", "vae_decoder": "left"}
    second, told = bench.apply({"unet": {"per_channel": False}})
    assert states(told) == {"text_encoder": "stored", "unet": "made", "vae_decoder": "left"}
    assert told["unet"]["options"] == {"per_channel": False}
    digests = [sha256_of_file(parts_of(model)["unet"].path) for model in (first, second)]
    assert digests[0] != digests[1]
    assert (second.folder / "scheduler" / "scheduler_config.json").is_file()
    assert list(parts_of(second)) == list(WIDTHS)


def test_what_is_stored_takes_its_space_once(bench: Bench) -> None:
    from runner.engine.store import disk_use

    left = {"*": False, "vae_decoder": {"op_types_to_quantize": ["Gemm"]}}  # nothing to quantise: the graph stays large
    made, told = bench.apply(left)
    (entry,) = bench.store.entries()
    assert entry.record["component"] == "vae_decoder"
    assert parts_of(made)["vae_decoder"].path.samefile(entry.files / "model.onnx")
    assert parts_of(made)["unet"].path.samefile(bench.pipeline.folder / "unet" / "model.onnx")
    assert disk_use([entry, entry]) == entry.size == told["vae_decoder"]["bytes"]


def test_weights_of_one_component_concern_no_other(bench: Bench) -> None:
    bench.apply()
    write_component(bench.pipeline.folder / "unet", WIDTHS["unet"], seed=1)
    _, told = bench.apply()
    assert states(told) == {"text_encoder": "stored", "unet": "made", "vae_decoder": "left"}


def test_a_component_says_whether_it_is_worked_on(bench: Bench) -> None:
    made, told = bench.apply({"vae_*": {}, "text_encoder": False})
    assert states(told) == {"text_encoder": "left", "unet": "made", "vae_decoder": "made"}
    assert operators(made, "text_encoder") == {"MatMul"}
    assert "MatMulInteger" in operators(made, "vae_decoder")


def test_a_damaged_entry_is_made_again(bench: Bench) -> None:
    bench.apply({"text_encoder": False})
    (entry,) = bench.store.entries()
    (entry.files / "model.onnx").write_bytes(b"damaged")
    _, told = bench.apply({"text_encoder": False})
    assert states(told)["unet"] == "made"


@pytest.mark.usefixtures("processes_pay")
def test_several_at_once_make_the_same_files(bench: Bench) -> None:
    apart, told = bench.apply({"vae_decoder": {}})
    assert set(states(told).values()) == {"made"}
    assert bench.said[0] == "2 components at once, 1 thread each"
    shutil.rmtree(bench.folder / "cache" / "store")
    bench.said.clear()
    alone, _ = Bench(bench.folder, bench.pipeline, threads=1).apply({"vae_decoder": {}})
    digests = [{name: sha256_of_file(path) for name, path in files_below(one.folder)} for one in (apart, alone)]
    assert digests[0] == digests[1]


@pytest.mark.usefixtures("processes_pay")
def test_what_does_not_fit_into_memory_goes_one_after_the_other(bench: Bench) -> None:
    _, told = bench.apply({"vae_decoder": {}}, memory=psutil.Process().memory_info().rss + 400_000_000)
    assert set(states(told).values()) == {"made"}
    assert not any("at once" in text for text in bench.said)


@pytest.mark.parametrize("apart", [False, True])
def test_a_failure_names_its_component_and_keeps_the_others(bench: Bench, apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if apart:
        monkeypatch.setattr(engine_parts, "WORTH_A_PROCESS", 1)
    graph = bench.pipeline.folder / "text_encoder" / "model.onnx"
    graph.write_bytes(b"\xff" * (1 << 20))
    with pytest.raises(PartFailed) as failed:
        bench.apply()
    event = failed.value.event
    assert (event.step, event.data["component"]) == ("quantize", "text_encoder")
    assert "cannot be read" in event.data["problems"][0]["cause"]
    assert [entry.record["component"] for entry in bench.store.entries()] == ["unet"]
    write_component(graph.parent, WIDTHS["text_encoder"])
    _, told = bench.apply()
    assert states(told) == {"text_encoder": "made", "unet": "stored", "vae_decoder": "left"}


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.usefixtures("processes_pay")
def test_a_killed_process_is_told_as_what_it_is(bench: Bench) -> None:
    def kill_first() -> None:
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            for one in psutil.Process().children():
                if "runner.engine.part_process" in one.cmdline():
                    one.kill()
                    return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_first)
    killer.start()
    with pytest.raises(PartFailed) as failed:
        bench.apply()
    killer.join()
    assert failed.value.event.data["component"] == "text_encoder"
    assert "was killed (SIGKILL)" in failed.value.event.data["problems"][0]["cause"]
    assert not list((bench.folder / "cache" / "scratch").iterdir())


def test_a_run_tells_of_its_components(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from runner.cli import run_command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    model = {"type": "DiffusersModel", "model_path": "CompVis/stable-diffusion-v1-4", "model_variant": "sd"}
    quantize = {"type": PASS, "components": ["unet", "vae_decoder"], "op_types_to_quantize": ["MatMul"]}
    passes = {"convert": {"type": "OnnxConversion", "target_opset": 17}, "quantize": quantize}
    (tmp_path / "config.json").write_text(json.dumps({"input_model": model, "passes": passes, "output_dir": "out"}))

    def told(verb: str, *flags: str) -> Any:
        assert run_command([*verb.split(), "--config", "config.json", "--smoke", "--json", *flags]) == 0
        return json.loads(capsys.readouterr().out)

    steps = told("run")["receipt"]["steps"]
    assert set(states(steps[1]["components"]).values()) == {"made"}
    assert states(steps[2]["components"]) == {
        "text_encoder": "left", "unet": "made", "vae_encoder": "left", "vae_decoder": "made"
    }  # fmt: skip
    other = ("--set", "passes.quantize.components.unet.per_channel=false")
    expected = {"text_encoder": "left as it is", "unet": "to do", "vae_encoder": "left as it is", "vae_decoder": "cached"}
    assert told("run", "--dry-run", *other)["steps"][2]["components"] == expected
    why = told("cache why", *other)[2]["components"]
    assert {name: one["state"] for name, one in why.items()} == expected
    assert why["unet"]["reasons"] == ["options.per_channel: true -> false"]
