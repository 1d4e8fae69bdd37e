"""Adapters taken out of exported graphs: ONNX Runtime gives the same outputs with them, and the base model's without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from runner.errors import InvalidRecipe
from runner.models.adapter_weights import read_weights
from runner.models.handle import ModelHandle
from runner.models.session import open_session
from runner.models.torch_source import load_torch
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.targets.target import TARGETS
from tests.conftest import ApplyPass
from tests.passes.finetune.conftest import counting

Adapted = Callable[[str], tuple[ModelHandle, list[str]]]
KINDS = ("lora", "dora", "loha")
FEED = counting(3, 1)[0]


def expected(model: ModelHandle, *, adapter: bool = True) -> Any:
    if not adapter:
        model = replace(model, attributes={**model.attributes, "adapter_path": None})
    with torch.inference_mode():
        return load_torch(model)(**{name: torch.from_numpy(array) for name, array in FEED.items()}).logits.numpy()


def difference(found: Any, wanted: Any) -> float:
    kept = FEED["attention_mask"] > 0
    return float(np.abs(found[kept] - wanted[kept]).max())


def plain_session(model: ModelHandle) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.path, options)


@pytest.fixture(scope="module")
def exported(adapted: Adapted, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[ModelHandle, ModelHandle]]:
    """Exports the adapted model of a kind when it is first asked for; gives it beside its source."""
    made: dict[str, tuple[ModelHandle, ModelHandle]] = {}

    def get(kind: str) -> tuple[ModelHandle, ModelHandle]:
        if kind not in made:
            source, _ = adapted(kind)
            folder = tmp_path_factory.mktemp(f"onnx-{kind}")
            pass_ = table.get("OnnxConversion")
            context = PassContext(folder, folder, TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)
            made[kind] = (
                source,
                pass_.apply(source, pass_.options.model_validate({"use_dynamo_exporter": kind == "lora"}), context),
            )
        return made[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_as_inputs(exported: Any, apply_pass: ApplyPass, kind: str) -> None:
    source, graph = exported(kind)
    taken = apply_pass("ExtractAdapters", graph, adapter_type=kind)
    file = taken.folder / taken.attributes["adapter_weights"]["file"]
    session = plain_session(taken)
    assert difference(session.run(["logits"], FEED)[0], expected(source, adapter=False)) < 1e-5
    adapter, run = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    adapter.Load(str(file))
    run.add_active_adapter(adapter)
    assert difference(session.run(["logits"], FEED, run)[0], expected(source)) < 1e-5
    assert difference(open_session(taken, 2).run(["logits"], FEED)[0], expected(source)) < 1e-5


def test_another_rank_fits(exported: Any, apply_pass: ApplyPass) -> None:
    _, graph = exported("lora")
    taken = apply_pass("ExtractAdapters", graph)
    weights = read_weights(taken.folder / "adapter_weights.onnx_adapter")
    assert sorted(weights)[0] == "model.layers.0.self_attn.q_proj.lora_A.weight"
    session = plain_session(taken)
    whole = session.run(["logits"], {**FEED, **weights})[0]
    padded = {
        name: np.pad(array, ((0, 3), (0, 0)) if "lora_A" in name else ((0, 0), (0, 3))) for name, array in weights.items()
    }
    assert difference(session.run(["logits"], {**FEED, **padded})[0], whole) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("save_format", ["safetensors", "numpy"])
def test_as_inputs_of_fixed_shape_that_are_required(exported: Any, apply_pass: ApplyPass, kind: str, save_format: str) -> None:
    source, graph = exported(kind)
    taken = apply_pass(
        "ExtractAdapters", graph, adapter_type=kind, save_format=save_format, dynamic_lora_r=False, optional_inputs=False
    )
    weights = read_weights(taken.folder / taken.attributes["adapter_weights"]["file"])
    session = plain_session(taken)
    assert {one.name for one in session.get_inputs()} == {*FEED, *weights}
    assert difference(session.run(["logits"], {**FEED, **weights})[0], expected(source)) < 1e-5
    assert [one.name for one in open_session(taken, 2).get_inputs()] == list(FEED)


@pytest.mark.parametrize("kind", KINDS)
def test_as_external_initializers(exported: Any, apply_pass: ApplyPass, kind: str) -> None:
    source, graph = exported(kind)
    taken = apply_pass("ExtractAdapters", graph, adapter_type=kind, make_inputs=False)
    assert difference(plain_session(taken).run(["logits"], FEED)[0], expected(source)) < 1e-5
    external = [
        one.name
        for one in onnx.load(taken.path, load_external_data=False).graph.initializer
        if one.data_location == onnx.TensorProto.EXTERNAL
    ]
    weights = read_weights(taken.folder / "adapter_weights.safetensors")
    assert sorted(external) == sorted(weights)
    assert sorted(read_weights(taken.folder / "adapter_weights.onnx_adapter")) == sorted(weights)


def test_what_is_not_there_is_named(exported: Any, apply_pass: ApplyPass, exported_bert: ModelHandle) -> None:
    with pytest.raises(InvalidRecipe, match="no weights that are named as a lora adapter's"):
        apply_pass("ExtractAdapters", exported_bert)
    with pytest.raises(InvalidRecipe, match="set adapter_type to dora"):
        apply_pass("ExtractAdapters", exported("dora")[1])
    with pytest.raises(InvalidRecipe, match="set adapter_type to loha"):
        apply_pass("ExtractAdapters", exported("loha")[1])


def test_the_genai_builders_adapter(adapted: Adapted, apply_pass: ApplyPass, tmp_path: Path) -> None:
    import onnxruntime_genai as genai

    source, _ = adapted("lora")
    taken = apply_pass("ExtractAdapters", apply_pass("ModelBuilder", source, precision="fp32"))
    assert taken.kind == "genai"
    model = genai.Model(str(taken.folder))
    adapters = genai.Adapters(model)
    adapters.load(str(taken.folder / taken.attributes["adapter_weights"]["file"]), "counting")
    tokens = FEED["input_ids"][1:2]
    found = []
    for name in (None, "counting"):
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=32)
        generator = genai.Generator(model, parameters)
        if name:
            generator.set_active_adapter(adapters, name)
        generator.append_tokens(tokens.astype(np.int32))
        found.append(np.array(generator.get_output("logits"))[0, -1])
    with torch.inference_mode():
        ids = torch.from_numpy(tokens)
        base = replace(source, attributes={**source.attributes, "adapter_path": None})
        wanted = [load_torch(one)(input_ids=ids).logits[0, -1].numpy() for one in (base, source)]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_quantised_adapter_becomes_no_input(adapted: Adapted, apply_pass: ApplyPass) -> None:
    built = apply_pass("ModelBuilder", adapted("lora")[0], precision="int4")
    with pytest.raises(InvalidRecipe, match="is quantised"):
        apply_pass("ExtractAdapters", built)
    taken = apply_pass("ExtractAdapters", built, make_inputs=False)
    before, after = (all_logits(one.folder) for one in (built, taken))
    np.testing.assert_allclose(before, after, atol=1e-6)


def all_logits(folder: Path) -> Any:
    from runner.models.generation import GenerationSession

    return GenerationSession(folder, 1, every_position=True, on_cpu=True).all_logits([5, 6, 7, 8])
