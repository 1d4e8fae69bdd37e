"""What a run needs, told beforehand: from facts, from files, and whether it is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from runner.cli import run_command
from runner.engine.capacity import _group_limits, free_disk, memory, same_disk
from runner.engine.estimate import Needs, StepNeeds, _of_files, estimate_config, walk
from runner.engine.fit import checks_left_out
from runner.errors import ModelUnavailable
from runner.models.handle import ModelHandle
from runner.models.stored_weights import count_files
from runner.models.weight_count import WeightCount, count_weights
from runner.passes.footprint import RULES, SOURCE_STEPS, Options, Stored, in_blocks
from runner.passes.table import MODULES

GB = 1e9


def config(*passes: dict[str, Any], model: str = "meta-llama/Llama-3.2-1B-Instruct", task: str = "text-generation") -> Options:
    steps = {f"step{at}": step for at, step in enumerate(passes)}
    return {"input_model": {"type": "HfModel", "model_path": model, "task": task}, "passes": steps}


def needs(*passes: dict[str, Any], provider: str = "CPUExecutionProvider", **model: str) -> Needs:
    told = estimate_config(config(*passes, **model), None, provider)
    assert told is not None
    return told


BUILD_INT4 = {"type": "ModelBuilder", "precision": "int4", "int4_block_size": 32}
GPTQ = {"type": "Gptq", "bits": 4, "group_size": 32, "sym": False}
RTN = {"type": "Rtn", "bits": 8, "group_size": 32, "lm_head": True, "embeds": True}


def test_every_pass_has_a_rule() -> None:
    assert set(RULES) == {*MODULES, *SOURCE_STEPS}


def test_bits_of_a_block() -> None:
    assert in_blocks(4, 32, scale=4, zero_points=False) * 8 == 5.0
    assert in_blocks(4, 128, scale=2, zero_points=True) * 8 == 4.15625


class TestSizes:
    """Against sizes that were measured on models of these shapes."""

    @pytest.mark.parametrize(("block", "measured"), [(32, 0.77), (128, 0.659)])
    def test_llama_3_2_1b_in_int4(self, block: int, measured: float) -> None:
        told = needs({**BUILD_INT4, "int4_block_size": block})
        assert told.output / GB == pytest.approx(measured, rel=0.05)

    @pytest.mark.parametrize(
        ("options", "megabytes"),
        [
            ({"precision": "fp32"}, 543.9),
            ({"precision": "int4"}, 90.0),
            ({"precision": "int4", "int4_algo_config": "k_quant_mixed"}, 117.2),
            ({"precision": "int8"}, 270.5),
        ],
    )
    def test_smollm2_135m(self, options: Options, megabytes: float) -> None:
        told = needs({"type": "ModelBuilder", **options}, model="HuggingFaceTB/SmolLM2-135M-Instruct")
        assert told.output / 1e6 == pytest.approx(megabytes, rel=0.02)

    def test_an_untied_embedding_stays_in_floating_point(self) -> None:
        model = "Qwen/Qwen2.5-7B-Instruct"
        weights = count_weights(model, "text-generation")
        assert weights is not None
        on_cpu, on_cuda = (
            needs(BUILD_INT4, provider=f"{name}ExecutionProvider", model=model).output for name in ("CPU", "CUDA")
        )
        assert on_cpu > 4 * weights.embedding + weights.linear / 2
        assert on_cuda < on_cpu - 2 * weights.embedding

    def test_codes_of_a_checkpoint_are_kept_by_the_builder(self) -> None:
        told = needs(GPTQ, RTN, {"type": "ModelBuilder", "precision": "int4"})
        assert [step.pass_name for step in told.steps] == ["Gptq", "Rtn", "ModelBuilder"]
        assert told.steps[0].output > told.steps[1].output == told.output
        assert told.steps[1].linked > 0.5 * told.output  # the codes of the layers
        assert told.disk >= sum(step.output - step.linked for step in told.steps)

    def test_dynamic_quantisation_leaves_embeddings_alone(self) -> None:
        bert = {"model": "google-bert/bert-base-uncased", "task": "fill-mask"}
        plain, quantised = needs({"type": "OnnxConversion"}, {"type": "OnnxDynamicQuantization"}, **bert).steps
        weights = count_weights(bert["model"], bert["task"])
        assert weights is not None
        assert plain.output - quantised.output == 3 * (weights.linear + weights.embedding)  # the head is a matrix of its own

    def test_a_model_is_sliced_in_its_own_type(self) -> None:
        """Measured: 1127.5 MB of Qwen3 0.6B in bf16, made in 2.1 GB of memory that is no file's."""
        told = needs({"type": "SliceGPT", "sparsity": 0.25}, model="Qwen/Qwen3-0.6B")
        assert told.output / 1e6 == pytest.approx(1127.5, rel=0.02)
        assert 2.0 < told.memory / GB < 3.0

    def test_half_precision(self) -> None:
        model = {"model": "microsoft/resnet-50", "task": "image-classification"}
        plain, half = needs({"type": "OnnxConversion"}, {"type": "OnnxFloatToFloat16"}, **model).steps
        assert half.output < 0.55 * plain.output


class TestNeeds:
    def test_what_streams_does_not_grow_with_the_model(self) -> None:
        """Measured: 1.3 GB to build the shape of Llama 3.2 1B in int4."""
        assert 1.3 < needs(BUILD_INT4).memory / GB < 2.0
        large = needs(BUILD_INT4, model="meta-llama/Llama-3.1-8B-Instruct")
        assert large.memory / GB < 4
        assert large.steps[0].check > 8 * GB

    def test_a_check_that_does_not_fit_is_left_out(self) -> None:
        told = Needs(0, (StepNeeds("a", "Gptq", 10, output=10, check=10**15), StepNeeds("b", "ModelBuilder", 10, 10, check=30)))
        assert told.memory == 10
        assert checks_left_out(told).keys() == {"a"}
        left_out = checks_left_out(told, 20)
        assert left_out.keys() == {"a", "b"}
        assert "more than --max-memory" in left_out["b"]

    def test_what_is_cached_needs_nothing(self) -> None:
        told = needs(GPTQ, RTN, BUILD_INT4)
        done = replace(told, steps=tuple(replace(step, cached=True) for step in told.steps))
        assert (done.memory, done.disk) == (0, 0)
        assert done.output == told.output

    def test_disk_is_the_most_at_a_time(self) -> None:
        steps = (StepNeeds("a", "Gptq", 1, output=10, scratch=100), StepNeeds("b", "ModelBuilder", 1, output=10))
        assert Needs(0, steps).disk == 110

    def test_links_take_no_room(self) -> None:
        steps = (StepNeeds("a", "Gptq", 1, 100), StepNeeds("b", "Rtn", 1, 80, linked=70), StepNeeds("c", "ModelBuilder", 1, 85))
        assert Needs(0, steps).disk == 100 + 10 + 85
        assert Needs(0, steps[1:]).disk == 80 + 85  # links to what was not made here

    def test_links_to_a_source_on_the_same_disk_take_no_room(self) -> None:
        steps = (StepNeeds("a", "SelectiveMixedPrecision", 1, 90, linked=90), StepNeeds("b", "Rtn", 1, 80, passed_on=50))
        assert Needs(0, steps).disk == 90 + 80
        assert Needs(0, steps, linkable=True).disk == 80
        done = (replace(steps[0], cached=True), replace(steps[1], linked=70))
        assert Needs(0, done).disk == 10

    def test_floats_that_are_passed_on_are_links(self) -> None:
        """Where the step is not the last one, and what it leaves goes; they are not given up either."""
        steps = (StepNeeds("a", "Rtn", 1, 100, passed_on=60), StepNeeds("b", "ModelBuilder", 1, 85, spends=100))
        assert Needs(0, steps, linkable=True).disk == 100 + 85
        assert Needs(0, steps, dropped=True, linkable=True).disk == 40 + 85
        assert Needs(0, steps, dropped=True, spent=True, linkable=True).disk == 85
        assert Needs(0, steps, dropped=True).disk == 100 + 85  # on another disk
        assert Needs(0, steps[:1], dropped=True, linkable=True).disk == 100
        source = (StepNeeds("source", "ImportGguf", 1, 70), *steps)
        assert Needs(0, source, dropped=True).disk == 70 + 40 + 85
        twice = (steps[0], StepNeeds("b", "Rtn", 1, 70, linked=40, passed_on=25), replace(steps[1], name="c"))
        assert Needs(0, twice, dropped=True, linkable=True).disk == 40 + 5 + 85

    def test_the_floats_of_a_checkpoint_of_codes_are_passed_on(self) -> None:
        told = needs(GPTQ, RTN, BUILD_INT4)
        weights = count_weights("meta-llama/Llama-3.2-1B-Instruct", "text-generation")
        assert weights is not None
        assert [step.passed_on for step in told.steps] == [2 * weights.embedding, 0, 0]

    def test_what_is_dropped_makes_room(self) -> None:
        steps = (StepNeeds("a", "Gptq", 1, 100), StepNeeds("b", "Rtn", 1, 80, linked=70), StepNeeds("c", "ModelBuilder", 1, 85))
        assert Needs(0, steps, dropped=True).disk == 80 + 85
        source = (StepNeeds("source", "ImportGguf", 1, 50), *steps)
        assert Needs(0, source, dropped=True).disk == 50 + 80 + 85  # the source is needed on

    def test_what_is_given_up_while_the_next_is_written_makes_room_at_once(self) -> None:
        steps = (StepNeeds("a", "Gptq", 1, 100), StepNeeds("b", "ModelBuilder", 1, 105, scratch=5, spends=100))
        assert Needs(0, steps, dropped=True).disk == 210
        assert Needs(0, steps, dropped=True, spent=True).disk == 110
        assert Needs(0, steps, spent=True).disk == 210
        source = (StepNeeds("source", "ImportGguf", 1, 50), steps[1])
        assert Needs(0, source, dropped=True, spent=True).disk == 160

    def test_nothing_is_told_of_an_unknown_model_or_pass(self) -> None:
        assert estimate_config(config(BUILD_INT4, model="nobody/knows"), None, None) is None
        assert estimate_config(config({"type": "NoSuchPass"}), None, None) is None
        assert estimate_config({"passes": []}, None, None) is None

    def test_components_are_worked_on_one_at_a_time(self) -> None:
        told = needs({"type": "OnnxConversion"}, model="CompVis/stable-diffusion-v1-4", task="text-to-image")
        weights = count_weights("CompVis/stable-diffusion-v1-4", "text-to-image")
        assert weights is not None
        whole = next(iter(walk(Stored.plain(weights, 4), [("convert", "OnnxConversion", {})], "cpu")))
        assert told.memory < whole.memory
        assert told.output == whole.output


DRAWING = "CompVis/stable-diffusion-v1-4"
EXPORT = {"type": "OnnxConversion", "target_opset": 17}


def fused(**options: Any) -> dict[str, Any]:
    return {"type": "OrtTransformersOptimization", **options}


class TestPipelines:
    """Against what was measured on the UNet of Stable Diffusion v1.4, the largest of its components."""

    def memory(self, *passes: dict[str, Any]) -> list[float]:
        return [step.memory / GB for step in needs(*passes, model=DRAWING, task="text-to-image").steps]

    def test_export(self) -> None:
        assert self.memory(EXPORT) == [pytest.approx(7.4, rel=0.05)]

    def test_fusion_and_its_check_hold_less_than_the_export(self) -> None:
        quick = {"enable_shape_inference": False}
        export, fusion = self.memory(EXPORT, fused(optimization_options=quick))
        assert 4.0 < fusion < export

    @pytest.mark.parametrize(
        ("options", "measured"),
        [
            ({}, 20.9),
            ({"float16": True}, 20.9),
            ({"optimization_options": {"enable_shape_inference": True}}, 20.9),
            ({"float16": True, "optimization_options": {"enable_shape_inference": False}}, 12.0),
        ],
    )
    def test_what_fusion_infers_and_converts_decides(self, options: Options, measured: float) -> None:
        assert self.memory(EXPORT, fused(**options))[1] == pytest.approx(measured, rel=0.05)

    def test_dynamic_quantisation(self) -> None:
        assert self.memory(EXPORT, {"type": "OnnxDynamicQuantization"})[1] == pytest.approx(13.35, rel=0.05)

    def test_the_check_may_hold_all_components_in_pytorch(self) -> None:
        weights = count_weights(DRAWING, "text-to-image")
        assert weights is not None
        last = self.memory(EXPORT, {"type": "OnnxDynamicQuantization"}, {"type": "OnnxOpVersionConversion"})[-1]
        assert last > 4 * weights.total / GB

    def test_what_is_on_disk_is_the_whole(self) -> None:
        told = needs(EXPORT, model=DRAWING, task="text-to-image")
        assert told.output / GB == pytest.approx(4.27, rel=0.01)

    def test_only_the_files_that_are_loaded_count(self, tmp_path: Path) -> None:
        parts = {"text_encoder": 10, "unet": 60, "vae": 30}
        for part in (*parts, "tokenizer", "scheduler", "safety_checker"):
            (tmp_path / part).mkdir()
            (tmp_path / part / "config.json").write_text("{}")
        (tmp_path / "model_index.json").write_text("{}")
        for name in ("model.safetensors", "model.fp16.safetensors"):
            for part, rows in {**parts, "safety_checker": 1000}.items():
                save_file({"one.weight": np.zeros((rows, 4), np.float32)}, tmp_path / part / name)
        begun = _of_files(ModelHandle("diffusers", tmp_path, None, "text-to-image", {"model_variant": "sd"}))
        assert begun is not None
        stored, _ = begun
        assert (stored.weights.total, stored.size, stored.share) == (400, 1600, 0.6)


def test_weights_of_a_folder_are_read_off_its_headers(tiny_masked_bert: ModelHandle) -> None:
    from transformers import AutoModelForMaskedLM

    module = AutoModelForMaskedLM.from_pretrained(tiny_masked_bert.folder)
    counted, each = count_files(tiny_masked_bert.folder)
    assert counted.total == sum(weight.numel() for weight in module.parameters())
    assert (each, counted.tied) == (4.0, True)
    assert counted.embedding == module.get_input_embeddings().weight.numel()


def test_weights_that_a_folder_holds_in_two_forms_count_once(tiny_masked_bert: ModelHandle, tmp_path: Path) -> None:
    folder = tmp_path / "twice"
    shutil.copytree(tiny_masked_bert.folder, folder)
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert count_files(folder) == count_files(tiny_masked_bert.folder)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[]"])
def test_a_damaged_file_says_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelUnavailable, match="unreadable safetensors header"):
        count_files(tmp_path)


class TestCapacity:
    def test_this_machine(self, tmp_path: Path) -> None:
        there = memory()
        assert 0 < there.free <= there.limit
        assert free_disk(tmp_path / "not" / "made" / "yet") > 0
        assert same_disk(tmp_path, tmp_path / "below")

    def test_the_tightest_control_group_counts(self, tmp_path: Path) -> None:
        groups, process = tmp_path / "groups", tmp_path / "cgroup"
        (groups / "outer" / "inner").mkdir(parents=True)
        (groups / "outer" / "memory.max").write_text("8000000000\n")
        (groups / "outer" / "inner" / "memory.max").write_text("max\n")
        process.write_text("0::/outer/inner\n")
        assert list(_group_limits(groups, process)) == [8_000_000_000]

    def test_version_1(self, tmp_path: Path) -> None:
        groups, process = tmp_path / "groups", tmp_path / "cgroup"
        (groups / "memory" / "job").mkdir(parents=True)
        (groups / "memory" / "job" / "memory.limit_in_bytes").write_text("4000000000\n")
        process.write_text("5:cpu:/job\n4:memory:/job\n")
        assert list(_group_limits(groups, process)) == [4_000_000_000]

    def test_no_control_groups(self, tmp_path: Path) -> None:
        assert list(_group_limits(tmp_path, tmp_path / "none")) == []


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `recipe run` on a configuration that it writes; gives the exit code and both streams."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def run(content: Options, *flags: str) -> tuple[int, str, str]:
        (tmp_path / "config.json").write_text(json.dumps(content))
        code = run_command(["run", "--config", "config.json", *flags])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


class TestRefusal:
    HUGE = config({"type": "OnnxConversion"}, model="meta-llama/Llama-2-70b-hf")

    def test_a_run_that_cannot_fit_is_refused_before_anything_is_fetched(self, command: Command, tmp_path: Path) -> None:
        code, _, error = command(self.HUGE)
        assert code == 1
        assert "too-little-memory: step 'step0' (OnnxConversion) needs about" in error
        assert "--force" in error
        assert not (tmp_path / "hub").exists()

    def test_force_goes_on(self, command: Command) -> None:
        code, _, error = command(self.HUGE, "--force", "--offline")
        assert code == 1
        assert "too-little" not in error
        assert "model-not-here" in error

    def test_what_the_worker_is_allowed_counts_too(self, command: Command) -> None:
        small = config(BUILD_INT4, model="HuggingFaceTB/SmolLM2-135M")
        code, _, error = command(small, "--max-memory", "0.5", "--offline")
        assert code == 1
        assert "more than --max-memory, 500 MB" in error
        assert "model-not-here" in command(small, "--max-memory", "8", "--offline")[2]

    def test_a_dry_run_tells(self, command: Command) -> None:
        code, told, _ = command(self.HUGE, "--dry-run")
        assert code == 0
        assert "does not fit too-little-memory" in told
        code, told, _ = command(self.HUGE, "--dry-run", "--json")
        plan = json.loads(told)
        assert plan["needs"]["memory_bytes"] > 100 * GB
        assert plan["needs"]["download_bytes"] == pytest.approx(138e9, rel=0.01)
        assert [step["pass"] for step in plan["needs"]["steps"]] == ["OnnxConversion"]
        assert "more than" in plan["does_not_fit"][0]

    def test_an_unknown_model_is_not_refused(self, command: Command) -> None:
        unknown = config(BUILD_INT4, model="nobody/knows")
        assert "cannot be told" in command(unknown, "--dry-run")[1]
        assert "model-not-here" in command(unknown, "--offline")[2]

    def test_smoke_runs_are_small(self, command: Command) -> None:
        code, told, _ = command(self.HUGE, "--smoke", "--dry-run")
        assert code == 0
        assert "does not fit" not in told

    def test_a_folder_that_is_here_is_not_downloaded(self, command: Command, tiny_masked_bert: ModelHandle) -> None:
        local = config({"type": "OnnxConversion"}, model=str(tiny_masked_bert.folder), task="fill-mask")
        plan = json.loads(command(local, "--dry-run", "--json")[1])
        assert plan["needs"]["download_bytes"] == 0
        assert plan["does_not_fit"] == []


def test_too_little_disk_names_what_is_written_where(command: Command, tiny_masked_bert: ModelHandle, tmp_path: Path) -> None:
    from runner.engine.fit import check_fit
    from runner.engine.request import Request
    from runner.engine.run import plan_run
    from runner.errors import DoesNotFit
    from runner.passes.table import options_of
    from runner.recipe.load import load_config

    (tmp_path / "config.json").write_text(
        json.dumps(config({"type": "OnnxConversion"}, model=str(tiny_masked_bert.folder), task="fill-mask"))
    )
    plan = plan_run(Request(load_config([tmp_path / "config.json"], options_of)), lambda _: None)
    with pytest.raises(DoesNotFit) as caught:
        check_fit(plan, Needs(10**15, (StepNeeds("convert", "OnnxConversion", 0, output=2 * 10**15),)))
    [problem] = caught.value.problems
    assert problem.rule == "too-little-disk"
    assert "2000000.0 GB for finished steps below" in problem.cause
    assert "1000000.0 GB for the download below" in problem.cause


def test_weights_of_unknown_kind_are_estimated_roughly() -> None:
    from runner.engine.estimate import _of_id
    from runner.recipe.info import Info

    info = Info.model_validate(
        {
            "name": "mine",
            "arch": "llama",
            "model": {
                "id": "Org/Mine",
                "task": "text-generation",
                "parameters": 2_000_000_000,
                "licence": "MIT",
                "download_mb": 4000,
            },
            "recipes": [{"name": "cpu-int4", "file": "olive_config.json", "device": "cpu", "ep": "CPUExecutionProvider"}],
        }
    )
    begun = _of_id("Org/Mine", "text-generation", info)
    assert begun is not None
    stored, roughly = begun
    assert stored.weights == WeightCount(linear=2_000_000_000)
    assert stored.size == 4e9
    assert roughly is not None


def test_a_run_whose_check_is_left_out_says_so(
    command: Command, tiny_masked_bert: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.engine.work.checks_left_out", lambda *_: {"step0": "it takes too much"})
    local = config({"type": "OnnxConversion"}, model=str(tiny_masked_bert.folder), task="fill-mask")
    code, told, _ = command(local, "--output-dir", str(tmp_path / "made"))
    assert code == 0
    assert "not compared with the source: left out: it takes too much" in " ".join(told.split())
    (step,) = json.loads((tmp_path / "made" / "receipt.json").read_text())["steps"]
    assert step["parity"] == {"numeric": False, "reason": "left out: it takes too much", "outputs": {}}
