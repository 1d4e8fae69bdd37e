"""One call of onnxruntime-genai's builder, with weights that stream and what it misses in a configuration made good."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, Problem, RunFailed
from runner.models.generation import import_genai
from runner.models.quantized_checkpoint import Scheme
from runner.passes.declaration import PassContext
from runner.passes.genai.architectures import mended
from runner.passes.genai.attention_kernels import attention_that_runs
from runner.passes.genai.quantized_source import fused_read_apart
from runner.passes.genai.shared_embedding import Share
from runner.passes.genai.streamed_weights import streamed

ALL_LAYERS_SLIDE = ("mistral", "phi3")  # architectures whose sliding_window holds for every layer


@contextmanager
def _builder() -> Iterator[Any]:
    """The builder's module. It imports its parts as top-level modules, which must not find namesakes elsewhere first."""
    parts = str(Path(import_genai().__file__).parent / "models")
    sys.path.insert(0, parts)
    try:
        from onnxruntime_genai.models import builder

        yield builder
    finally:
        sys.path.remove(parts)


@contextmanager
def _without_cupy() -> Iterator[None]:
    """Keeps MatMulNBitsQuantizer on the CPU, whose rounding is computed here as well, bit for bit, on all cores.

    Where it finds cupy and a GPU its k-quant sums there in another order, and each of our threads would wait for that GPU.
    """
    before = sys.modules.get("cupy")
    sys.modules["cupy"] = None  # type: ignore[assignment]  # which is how Python marks a module that is not to be imported
    try:
        yield
    finally:
        del sys.modules["cupy"]
        if before is not None:
            sys.modules["cupy"] = before


def import_builder() -> None:
    """Imports what `build` needs and takes long to import."""
    with _builder():
        pass


def build(
    source: Path,
    precision: str,
    chosen: Mapping[str, Any],
    context: PassContext,
    lookup: Scheme | None,
    share: Share | None,
    hqq: bool,
) -> None:
    """Lets the builder write a graph, its configuration and the tokenizer into the output folder.

    Args:
        source: a transformers folder.
        precision: of the weights.
        chosen: the builder's options.
        context: says where to and for what.
        lookup, share, hqq: see `streamed`.

    Raises:
        InvalidRecipe: the builder refuses the options, or no attention of the target takes the model's heads.
        RunFailed: it does not know the architecture, or is of a release to which HQQ is not fitted.
    """
    work = context.scratch / "builder"
    work.mkdir()
    arguments = (None, str(source), str(context.output), precision, context.target.genai_provider, str(work))
    with _builder() as builder:
        try:
            prepared = builder.parse_extra_options(
                *arguments, [f"{name}={_written(name, value)}" for name, value in chosen.items()]
            )
        except (ValueError, NotImplementedError) as error:
            raise InvalidRecipe(Problem("bad-combination", f"ModelBuilder: {error}")) from error
        config = prepared["hf_details"]["hf_config"]
        _prepare(config)
        try:
            streams = streamed(builder, context.threads, lookup, share, hqq, context.take_over)
            attention = attention_that_runs(builder, context.target)
            with mended(builder, config), streams, attention, fused_read_apart(), _without_cupy():
                builder.create_model(*arguments, **prepared)
        except NotImplementedError as error:
            raise RunFailed(
                "unsupported-architecture",
                f"onnxruntime-genai's builder cannot build this model: {error}",
                "export it with OnnxConversion instead",
            ) from error
    text = getattr(config, "text_config", config)
    scaled = (getattr(text, "rope_parameters", None) or {}).get("rope_type") == "linear"
    if text.model_type == "gemma3_text" and scaled and not chosen.get("config_only"):
        _restore_local_rotation(context.output / chosen["filename"], text.rope_local_base_freq)


def _restore_local_rotation(graph: Path, theta: float) -> None:
    """Gemma 3: window layers rotate by their own base, unscaled; the builder applies the global layers' scaling to them too."""
    import numpy as np
    import onnx

    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        turn = {"cos_cache_local": np.cos, "sin_cache_local": np.sin}.get(tensor.name)
        if turn is None:
            continue
        stored = {entry.key: entry.value for entry in tensor.external_data}
        positions, halves = tensor.dims
        angles = np.outer(np.arange(positions), theta ** -(np.arange(halves) / halves))
        values = turn(angles).astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        with (graph.parent / stored["location"]).open("r+b") as data:
            data.seek(int(stored["offset"]))
            data.write(values.tobytes())


def _prepare(config: Any) -> None:
    """Says in a transformers configuration what the builder does not find in it by itself."""
    config = getattr(config, "text_config", config)
    nested = getattr(config, "rope_parameters", None) or {}
    if config.model_type == "gemma3_text" and "full_attention" in nested:
        # transformers 5 keeps one rotary setting for each kind of layer, the builder reads the older flat form
        config.rope_parameters = dict(nested["full_attention"])
        config.rope_local_base_freq = nested["sliding_attention"]["rope_theta"]
    if config.model_type == "phi3":
        _prepare_phi3(config)
    window = getattr(config, "sliding_window", None)
    if config.model_type in ALL_LAYERS_SLIDE and window and window < config.max_position_embeddings:
        # without a list of kinds the builder takes every layer for a full one and drops the window
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers


def _prepare_phi3(config: Any) -> None:
    """Lets the builder choose the class of a Phi-3 by its rotation; it goes by the lengths of its context alone."""
    rope = config.rope_parameters
    if rope["rope_type"] != "longrope":
        config.original_max_position_embeddings = config.max_position_embeddings
        return
    rope.setdefault("type", rope["rope_type"])  # its older name, which the builder reads


def _written(name: str, value: Any) -> str:
    """The value of an option as the builder's command line spells it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return ",".join(f"{key}:{item}" for key, item in value.items())
    if isinstance(value, list):
        return ("/" if name == "op_types_to_quantize" else ",").join(value)
    return str(value)
