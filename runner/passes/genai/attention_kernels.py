"""Lets onnxruntime-genai's builder write an attention that ONNX Runtime's kernels take, whatever the width of a head.

GroupQueryAttention of the CPU and of CUDA (ONNX Runtime 1.32) takes heads whose width is a multiple of 8. Where it rotates
queries and keys itself, a multiple of 16, of which a multiple of 16 is rotated. The builder (0.18) looks at neither, and its
graph fails at the first token. Here the rotation moves out of such an attention, into RotaryEmbedding, which takes every even
width; heads that are no multiple of 8 get MultiHeadAttention. That one knows no window, no cap of scores and no sinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from runner.errors import InvalidRecipe, Problem
from runner.passes.genai.streamed_weights import base_of_models, unknown_releases
from runner.targets.target import Target

_RULED = ("cpu", "cuda")  # targets whose kernels have these rules
_ROTATES_BY_LAYER = "SmolLM3ForCausalLM"  # the builder puts the rotation back into the attention of each of its layers
_HEAD, _ROTATED = 8, 16  # what the widths are multiples of


@contextmanager
def attention_that_runs(builder: Any, target: Target) -> Iterator[None]:
    """Has, within the block, each model's attention chosen by the width of its heads; not in a release that is not known.

    Args:
        builder: the builder's module.
        target: what is built for.

    Raises:
        InvalidRecipe: no attention takes the heads of the model; it is told before a weight is read.
    """
    if target.name not in _RULED or unknown_releases():
        yield
        return
    model = base_of_models(builder)
    original = model.make_attention_init

    def chosen(made: Any, config: Any) -> None:
        _choose(made, config, target)
        original(made, config)

    model.make_attention_init = chosen
    try:
        yield
    finally:
        model.make_attention_init = original


def _choose(made: Any, config: Any, target: Target) -> None:
    """Takes from a model of the builder's what its heads are not served in, before it decides on its attention."""
    if made.use_paged_attention or not made.is_gqa_supported():
        return
    rotated = made.rope_attrs["rotary_embedding_dim"] or made.head_size
    inside = made.attention_attrs["rope"] and made.is_fused_rope_supported()
    if not made.head_size % _HEAD and not (inside and (made.head_size % _ROTATED or rotated % _ROTATED)):
        return
    lost = _not_served(made, config) if made.head_size % _HEAD else []
    lost += [f"the rotation of {_ROTATES_BY_LAYER}"] if made.model_type == _ROTATES_BY_LAYER else []
    lost += ["an odd width"] if rotated % 2 else []
    if lost:
        raise InvalidRecipe(
            Problem(
                "head-size-not-served",
                f"ModelBuilder: the heads of this model are {made.head_size} wide ({rotated} of it rotated), and no attention "
                f"of {target.provider} takes that with {' and '.join(lost)}",
                remedy="export it with OnnxConversion in place of ModelBuilder, or choose another model",
            )
        )
    made.is_fused_rope_supported = made.is_packed_matmul_supported = lambda: False  # queries and keys are rotated apart
    if made.head_size % _HEAD:
        made.is_gqa_supported = made.is_packed_attn_supported = lambda: False


def _not_served(made: Any, config: Any) -> list[str]:
    """Returns what a model has that MultiHeadAttention does not know."""
    windows = (made.window_size or 0) > 0 and any(made.is_local(layer) for layer in range(made.num_layers))
    return [
        *(["a sliding window"] if windows else []),
        *(["capped scores"] if made.attention_attrs["softcap"] else []),
        *(["sinks"] if made.model_type == "GptOssForCausalLM" else []),
    ]
