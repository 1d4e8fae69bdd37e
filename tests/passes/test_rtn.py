"""Rounding on tiny models: what it quantises, what it ties, and the GenAI model made of it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError

from runner.errors import InvalidRecipe, ModelUnavailable
from runner.evaluation.parity import Parity
from runner.models import files, sharded_weights
from runner.models.digest import sha256_of_file
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import quantization_of, read_checkpoint
from runner.models.sharded_weights import mapped_weights
from runner.models.spent_files import can_spend, held_by_these
from runner.models.torch_source import load_torch
from runner.models.twin import architecture_of
from runner.passes.declaration import PassContext
from runner.passes.export.tiny_twin import make_twin
from runner.passes.genai import lazy_weights, model_builder, quantized_source, shared_embedding, streamed_weights
from runner.passes.genai.builder_options import ModelBuilderOptions
from runner.passes.genai.quantized_source import write_for_builder
from runner.passes.quantize import rtn
from runner.passes.quantize.rtn import RtnOptions
from runner.targets.target import TARGETS
from tests.conftest import ApplyPass


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    twin = architecture_of("HuggingFaceTB/SmolLM2-135M-Instruct")
    return make_twin(twin, twin.task, tmp_path_factory.mktemp("tied"))


@pytest.mark.parametrize("symmetric", [False, True])
def test_eight_bits_keep_the_weights(tied: ModelHandle, apply_pass: ApplyPass, symmetric: bool):
    rounded = apply_pass("Rtn", tied, bits=8, group_size=32, sym=symmetric)
    before, after = load_torch(tied), load_torch(rounded)
    for name, parameter in before.named_parameters():
        error = (parameter - after.get_parameter(name)).abs().max()
        assert error <= 0.006 * parameter.abs().max(), name


@pytest.mark.parametrize("embeds", [True, False])
@pytest.mark.parametrize(
    "model_id", ["HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B", "microsoft/Phi-3-mini-4k-instruct"]
)
def test_the_builder_gives_up_what_it_has_written(
    model_id: str, embeds: bool, tmp_path: Path, apply_pass: ApplyPass, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "_LINKED_FROM", 0)
    monkeypatch.setattr(sharded_weights, "_FULL", 20_000)
    monkeypatch.setattr(lazy_weights, "_STORED_AT_ONCE", 1000)
    twin = architecture_of(model_id)
    source = make_twin(twin, twin.task, tmp_path / "source")
    rounded = apply_pass("Rtn", source, bits=4, group_size=32, lm_head=True, embeds=embeds)
    expected = apply_pass("ModelBuilder", rounded, precision="int4")
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    shutil.copytree(rounded.folder, alone)
    shutil.copytree(rounded.folder, shared)
    weights = next(shared.glob("*.safetensors"))
    (tmp_path / "elsewhere").hardlink_to(weights)
    digest = sha256_of_file(weights)
    for folder in (alone, shared):
        output, scratch = (tmp_path / f"{folder.name}-{name}" for name in ("output", "scratch"))
        output.mkdir()
        scratch.mkdir()
        context = PassContext(
            output, scratch, TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None,
            take_over=lambda folder=folder, scratch=scratch: held_by_these(folder, scratch),
        )  # fmt: skip
        built = model_builder.PASS.apply(replace(rounded, folder=folder), ModelBuilderOptions(precision="int4"), context)
        for name in ("model.onnx", "model.onnx.data"):
            assert sha256_of_file(built.folder / name) == sha256_of_file(expected.folder / name)
    assert sha256_of_file(weights) == digest
    if can_spend(tmp_path) and "Phi" not in model_id:  # whose projections are taken apart in a copy
        left = [name for name, one in mapped_weights(alone).items() if name.endswith(".qweight") and one.any()]
        assert left == []


@pytest.mark.parametrize("asked", [{"lm_head": True, "embeds": True}, {"lm_head": True}, {"embeds": True}])
@pytest.mark.parametrize("model_id", ["HuggingFaceTB/SmolLM2-135M-Instruct", "microsoft/Phi-3-mini-4k-instruct"])
def test_floats_that_became_codes_are_given_up_and_no_others(
    model_id: str, asked: dict[str, bool], tmp_path: Path, apply_pass: ApplyPass
):
    twin = architecture_of(model_id)
    layers = apply_pass("Rtn", make_twin(twin, twin.task, tmp_path / "source"), bits=4, group_size=32)
    options = {"bits": 8, "group_size": 32, **asked}
    expected = mapped_weights(apply_pass("Rtn", layers, **options).folder)
    output, scratch = tmp_path / "output", tmp_path / "scratch"
    output.mkdir()
    scratch.mkdir()
    context = PassContext(
        output, scratch, TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None, take_over=lambda: held_by_these(layers.folder)
    )
    rtn.PASS.apply(layers, RtnOptions.model_validate(options), context)
    made = mapped_weights(output)
    assert made.keys() == expected.keys()
    assert all(torch.equal(one, expected[name]) for name, one in made.items())
    left = mapped_weights(layers.folder)["model.embed_tokens.weight"].any()
    tied = model_id.startswith("HuggingFaceTB")
    kept = len(asked) == 1 and (tied or "embeds" not in asked)
    assert bool(left) == (kept or not can_spend(tmp_path))


def test_a_tied_embedding_and_head_become_one_matrix(tied: ModelHandle, apply_pass: ApplyPass):
    rounded = apply_pass(
        "Rtn", tied, bits=4, group_size=32, lm_head=True, embeds=True, overrides={"re:.*(head|embed).*": {"bits": 8}}
    )
    checkpoint = read_checkpoint(rounded.folder)
    assert checkpoint.shared
    assert checkpoint.matrices["lm_head"].scheme.bits == 8
    assert not [name for name in (*checkpoint.matrices, *checkpoint.floats) if "embed_tokens" in name]
    module = load_torch(rounded)
    assert module.get_input_embeddings().weight is module.get_output_embeddings().weight


def test_of_a_model_that_also_sees_only_the_decoder_is_rounded(tmp_path: Path, apply_pass: ApplyPass):
    twin = architecture_of("Qwen/Qwen3.5-0.8B")
    source = make_twin(twin, twin.task, tmp_path / "source")
    names = read_checkpoint(apply_pass("Rtn", source, bits=8, group_size=32).folder).matrices
    assert names
    assert all(name.startswith("model.language_model.layers.") for name in names)
    with pytest.raises(InvalidRecipe, match=r"no model\.embed_tokens"):
        apply_pass("Rtn", source, bits=8, group_size=32, embeds=True)


@pytest.mark.parametrize("only", ["lm_head", "embeds"])
def test_one_of_both_is_untied_from_the_other(tied: ModelHandle, apply_pass: ApplyPass, only: str):
    rounded = apply_pass("Rtn", tied, bits=4, group_size=32, **{only: True})
    module = load_torch(rounded)
    head, embedding = module.get_output_embeddings().weight, module.get_input_embeddings().weight
    assert not torch.equal(head, embedding)
    original = load_torch(tied).get_output_embeddings().weight
    assert torch.equal(embedding if only == "lm_head" else head, original)


@pytest.mark.parametrize("bits", [None, 8])
def test_the_embedding_of_a_tied_model_stays_beside_a_head_in_floating_point(
    tied: ModelHandle, apply_pass: ApplyPass, bits: int | None
) -> None:
    rounded = apply_pass("Rtn", tied, bits=4, group_size=32)
    built = apply_pass("ModelBuilder", rounded, precision="int4", embedding_bits=bits)
    assert Parity(rounded, 2).compare(built)["outputs"]["logits"]["cosine"] > 0.999
    graph = onnx.load(built.folder / "model.onnx", load_external_data=False).graph
    (lookup,) = (node for node in graph.node if "input_ids" in node.input and "Gather" in node.op_type)
    assert lookup.op_type == ("Gather" if bits is None else "GatherBlockQuantized")
    assert [one.i for one in lookup.attribute if one.name == "bits"] == ([] if bits is None else [bits])


def test_an_untied_embedding_is_looked_up_in_its_own_codes(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    rounded = apply_pass("Rtn", tiny_llama, bits=8, group_size=32, lm_head=True, embeds=True)
    built = apply_pass("ModelBuilder", rounded, precision="int4")
    assert Parity(rounded, 2).compare(built)["outputs"]["logits"]["cosine"] > 0.999
    names = {one.name for one in onnx.load(built.folder / "model.onnx", load_external_data=False).graph.initializer}
    assert "model.embed_tokens.qweight" in names
    assert "model.embed_tokens.weight" not in names


@pytest.mark.parametrize("model_id", ["HuggingFaceTB/SmolLM2-135M-Instruct", "microsoft/Phi-3-mini-4k-instruct"])
@pytest.mark.parametrize("sym", [False, True])
def test_a_graph_whose_embedding_reads_codes_is_written_once(
    model_id: str, sym: bool, tmp_path: Path, apply_pass: ApplyPass, monkeypatch: pytest.MonkeyPatch
):
    twin = architecture_of(model_id)
    source = make_twin(twin, twin.task, tmp_path / "source")
    rounded = apply_pass("Rtn", source, bits=8, group_size=32, sym=sym, lm_head=True, embeds=True)
    with monkeypatch.context() as patch:
        patch.setattr(streamed_weights, "SERVED", ())  # a release that is not known: the graph is changed behind the builder
        later = apply_pass("ModelBuilder", rounded, precision="int4")
    monkeypatch.setattr(shared_embedding, "_save", None)
    at_once = apply_pass("ModelBuilder", rounded, precision="int4")
    one, other = (onnx.load(made.folder / "model.onnx") for made in (later, at_once))
    assert sorted(str(node) for node in one.graph.node) == sorted(str(node) for node in other.graph.node)
    first, second = ({it.name: onnx.numpy_helper.to_array(it) for it in model.graph.initializer} for model in (one, other))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert "model.embed_tokens.weight" not in first


def test_int8_with_a_shared_embedding_is_written_once(
    tied: ModelHandle, apply_pass: ApplyPass, monkeypatch: pytest.MonkeyPatch
):
    options = {"precision": "int8", "extra_options": {"shared_embeddings": True}}
    with monkeypatch.context() as patch:
        patch.setattr(streamed_weights, "SERVED", ())
        later = onnx.load(apply_pass("ModelBuilder", tied, **options).folder / "model.onnx")
    monkeypatch.setattr(shared_embedding, "_save", None)
    at_once = onnx.load(apply_pass("ModelBuilder", tied, **options).folder / "model.onnx")
    first, second = ({it.name: onnx.numpy_helper.to_array(it) for it in model.graph.initializer} for model in (later, at_once))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_codes_that_the_builder_takes_as_they_are_become_links(
    tied: ModelHandle, tmp_path: Path, apply_pass: ApplyPass, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "_LINKED_FROM", 0)
    monkeypatch.setattr(sharded_weights, "_FULL", 20_000)
    rounded = apply_pass("Rtn", tied, bits=4, group_size=32, lm_head=True, embeds=True)
    (tmp_path / "plain").mkdir()
    write_for_builder(read_checkpoint(rounded.folder), rounded.folder, tmp_path / "plain", False)
    before = {file.stat().st_ino for file in rounded.folder.glob("*.safetensors")}
    fresh = [file for file in (tmp_path / "plain").glob("*.safetensors") if file.stat().st_ino not in before]
    assert len(before) > 2
    assert [file.name for file in fresh] == ["embedding.safetensors"]
    written, checkpoint = read_checkpoint(tmp_path / "plain"), read_checkpoint(rounded.folder)
    assert written.matrices.keys() == checkpoint.matrices.keys()
    assert all(torch.equal(one.codes(), checkpoint.matrices[name].codes()) for name, one in written.matrices.items())


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4, "group_size": 32},
        {"bits": 4, "group_size": 32, "sym": True},
        {"bits": 8, "group_size": -1},
        {"bits": 4, "group_size": 32, "lm_head": True, "embeds": True, "overrides": {"re:.*qkv_proj": {"bits": 8}}},
    ],
)
def test_fused_projections_are_read_apart_where_they_lie(
    options: dict[str, object], tmp_path: Path, apply_pass: ApplyPass, monkeypatch: pytest.MonkeyPatch
):
    """The graph is that of projections written apart, which a release with another loader gets."""
    monkeypatch.setattr(files, "_LINKED_FROM", 0)
    monkeypatch.setattr(sharded_weights, "_LINKED_FROM", 0)
    twin = architecture_of("microsoft/Phi-3-mini-4k-instruct")
    source = make_twin(twin, twin.task, tmp_path / "source")
    rounded = apply_pass("Rtn", source, **options)
    at_once = apply_pass("ModelBuilder", rounded, precision="int4")
    folder = next(tmp_path.glob("scratch-*/quantised-source"))
    names = {name for file in folder.glob("*.safetensors") for name in sharded_weights.mapped_file(file)}
    assert any("qkv_proj.qweight" in name for name in names)
    assert not any("q_proj" in name or "up_proj" in name.replace("gate_up_proj", "") for name in names)
    inodes = {file.stat().st_ino for file in rounded.folder.glob("*.safetensors")}
    assert inodes <= {file.stat().st_ino for file in folder.glob("*.safetensors")}
    monkeypatch.setattr(quantized_source, "unknown_releases", lambda: ["0.99"])
    apart = apply_pass("ModelBuilder", rounded, precision="int4")
    assert sha256_of_file(at_once.folder / "model.onnx.data") == sha256_of_file(apart.folder / "model.onnx.data")
    one, other = (onnx.load(made.folder / "model.onnx", load_external_data=False) for made in (at_once, apart))
    assert sorted(str(node) for node in one.graph.node) == sorted(str(node) for node in other.graph.node)


def test_what_is_quantised_stays(tied: ModelHandle, apply_pass: ApplyPass):
    first = apply_pass("Rtn", tied, bits=4, group_size=32)
    second = apply_pass("Rtn", first, bits=8, group_size=64, lm_head=True, embeds=True)
    before, after = read_checkpoint(first.folder).matrices, read_checkpoint(second.folder).matrices
    assert set(after) == {*before, "lm_head"}
    assert all(torch.equal(after[name].qweight, matrix.qweight) for name, matrix in before.items())
    told = quantization_of(second.folder)
    assert told is not None
    assert told["bits"] == 4
    assert told["overrides"]["lm_head"] == {"bits": 8, "group_size": 64}


def test_int8_shares_the_embedding_when_asked(tied: ModelHandle, apply_pass: ApplyPass):
    apart = apply_pass("ModelBuilder", tied, precision="int8", prune_lm_head=True)
    shared = apply_pass("ModelBuilder", tied, precision="int8", prune_lm_head=True, shared_embeddings=True)
    sizes = [(one.folder / "model.onnx.data").stat().st_size for one in (apart, shared)]
    embedding = load_torch(tied).get_input_embeddings().weight.nbytes
    assert sizes[0] - sizes[1] >= embedding
    assert sorted(file.name for file in apart.folder.iterdir()) == sorted(file.name for file in shared.folder.iterdir())
    assert Parity(tied, 2).compare(shared)["outputs"]["logits"]["cosine"] > 0.999


def test_quantised_weights_are_built_as_int4_only(tied: ModelHandle, apply_pass: ApplyPass):
    rounded = apply_pass("Rtn", tied, bits=8, group_size=32)
    with pytest.raises(InvalidRecipe, match="quantised already"):
        apply_pass("ModelBuilder", rounded, precision="fp32")


def test_a_damaged_checkpoint_is_named(tied: ModelHandle, apply_pass: ApplyPass):
    rounded = apply_pass("Rtn", tied, group_size=32)
    weights: Path = rounded.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        load_torch(rounded)


def test_typos_are_errors():
    with pytest.raises(ValidationError):
        RtnOptions.model_validate({"embed": True})
    with pytest.raises(ValidationError):
        RtnOptions.model_validate({"bits": 5})


def test_a_second_quantiser_with_nothing_to_do_is_refused(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    first = apply_pass("Rtn", tiny_llama, group_size=32)
    with pytest.raises(InvalidRecipe, match="quantised all of the decoder's layers already"):
        apply_pass("Rtn", first, bits=8, group_size=16)


def test_projections_of_quantised_weights_are_not_joined(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    rounded = apply_pass("Rtn", tiny_llama, bits=4, group_size=32)
    with pytest.raises(InvalidRecipe, match="fuse_mlp_gate_up joins weights in floating point"):
        apply_pass("ModelBuilder", rounded, precision="int4", fuse_mlp_gate_up=True)


def test_a_result_that_is_passed_on_links_the_floats_of_its_source(
    tied: ModelHandle, apply_pass: ApplyPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding, which the next step makes codes of, is not copied; what is built is the same."""
    monkeypatch.setattr(files, "_LINKED_FROM", 0)
    monkeypatch.setattr(sharded_weights, "_LINKED_FROM", 10_000)
    source = tied.folder / "model.safetensors"
    digest = sha256_of_file(source)

    def steps(passed_on: bool) -> tuple[ModelHandle, ModelHandle, ModelHandle]:
        def is_linked(file: Path) -> bool:
            return file.stat().st_nlink > 1

        layers = apply_pass("Rtn", tied, group_size=32, outlasts=(lambda _: True) if passed_on else None)
        outer = {"lm_head": True, "embeds": True, "bits": 8, "group_size": 32}
        head = apply_pass("Rtn", layers, outlasts=is_linked if passed_on else None, **outer)
        return layers, head, apply_pass("ModelBuilder", head, precision="int4")

    layers, head, built = steps(passed_on=True)
    shards = {file.name: file for file in layers.folder.glob("*.safetensors")}
    assert [name for name, file in shards.items() if file.samefile(source)], "the source is linked for its embedding"
    fresh = sum(file.stat().st_size for file in shards.values() if not file.samefile(source))
    embedding = mapped_weights(tied.folder)["model.embed_tokens.weight"]
    apart = steps(passed_on=False)
    whole = sum(file.stat().st_size for file in apart[0].folder.glob("*.safetensors"))
    assert whole - fresh >= embedding.numel() * embedding.element_size()
    assert not [file for file in head.folder.glob("*.safetensors") if file.samefile(source)], "no weight of it is left"
    assert [file for file in head.folder.glob("*.safetensors") if any(file.samefile(one) for one in shards.values())]
    assert mapped_weights(layers.folder).keys() == mapped_weights(apart[0].folder).keys()
    torch.testing.assert_close(load_torch(layers).state_dict(), load_torch(apart[0]).state_dict(), rtol=0, atol=0)
    data = [sha256_of_file(one.folder / "model.onnx.data") for one in (built, apart[2])]
    assert data[0] == data[1]
    assert sha256_of_file(source) == digest
