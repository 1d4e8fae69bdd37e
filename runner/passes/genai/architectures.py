"""Architectures that onnxruntime-genai's builder lacks or builds otherwise than transformers computes them.

Each is a class derived from one of the builder's own, put in its place while a model is built:

    OLMo         LayerNormalization without weights, where the builder takes the mean out of nothing
    OLMo 2, 3    norms behind attention and feed-forward instead of before them; one norm of queries and keys over all heads
                 (Team OLMo: 2 OLMo 2 Furious, arXiv 2501.00656); in OLMo 3 layers with a window keep the unscaled rotation
    gpt-oss      quantised experts of a checkpoint whose experts are not packed as MXFP4
    Ministral 3  the ramp of YaRN's frequencies
    Phi-3        a long rotation over no more tokens than the model was trained on
    SmolLM3      layers without any rotation (B. Yang et al.: Rope to Nope and Back Again, arXiv 2501.18795)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Architecture -> the name under which the builder dispatches it, and the builder's class of that name.
_MENDED = {
    "GptOssForCausalLM": ("GptOssForCausalLM", "GPTOSSModel"),
    "OlmoForCausalLM": ("OlmoForCausalLM", "OLMoModel"),
    "Olmo2ForCausalLM": ("OlmoForCausalLM", "OLMoModel"),
    "Olmo3ForCausalLM": ("OlmoForCausalLM", "OLMoModel"),
    "Mistral3ForConditionalGeneration": ("Mistral3ForConditionalGeneration", "Mistral3TextModel"),
    "SmolLM3ForCausalLM": ("SmolLM3ForCausalLM", "SmolLM3Model"),
}
_TWO_KINDS = ("Olmo3ForCausalLM",)  # whose configuration says the rotation of each kind of layer


@contextmanager
def mended(builder: Any, config: Any) -> Iterator[None]:
    """Puts the class for the configuration's architecture into the builder's module; nothing changes for other models."""
    architecture = config.architectures[0]
    if architecture == "Phi3ForCausalLM" and config.rope_parameters["rope_type"] == "longrope":
        with _rotates_long(builder):
            yield
        return
    if architecture not in _MENDED:
        yield
        return
    config.architectures[0], name = _MENDED[architecture]
    original = getattr(builder, name)
    setattr(builder, name, _DERIVED.get(architecture, _post_norm_olmo)(original))
    if architecture in _TWO_KINDS and "full_attention" in config.rope_parameters:
        config.rope_parameters = dict(config.rope_parameters["full_attention"])
    try:
        yield
    finally:
        setattr(builder, name, original)


@contextmanager
def _rotates_long(builder: Any) -> Iterator[None]:
    """Has a Phi-3 with a long rotation built as one, even where it is trained on its whole context."""
    original = builder.Phi3MiniModel
    builder.Phi3MiniModel = builder.Phi3MiniLongRoPEModel
    try:
        yield
    finally:
        builder.Phi3MiniModel = original


def _yarn(self: Any, inv_freq: Any) -> Any:
    """Frequencies scaled by YaRN as transformers does it: the ramp to the scaled ones begins and ends at whole numbers.

    After B. Peng et al.: YaRN, arXiv 2309.00071; `inv_freq` and the result are of shape [half the head].
    """
    import torch

    asked, half = self.rope_attrs["rescale_inv_freq"], len(inv_freq)
    ends = [
        half * math.log(self.original_context_length / (turns * 2 * math.pi)) / math.log(self.rope_attrs["theta"])
        for turns in (asked["ntk_beta"], asked["ntk_alpha"])
    ]
    low, high = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), 2 * half - 1)
    ramp = ((torch.arange(half, dtype=torch.float32) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return inv_freq / asked["factor"] * ramp + inv_freq * (1 - ramp)


def _gpt_oss(original: Any) -> type:
    class GptOss(original):  # type: ignore[misc]
        """A decoder whose experts may lie in floating point, [experts, inputs, outputs]."""

        def make_moe_preprocessing(self, layer_id: int, moe: Any, root_input: str) -> None:
            self.experts = moe.experts
            super().make_moe_preprocessing(layer_id, moe, root_input)

        def load_mxfp4_experts(self, layer_id: int, decode: bool = False) -> Any:
            if not decode or _is_packed(Path(self.model_name_or_path)):
                return super().load_mxfp4_experts(layer_id, decode)
            return self.experts.gate_up_proj.transpose(-1, -2), self.experts.down_proj.transpose(-1, -2)

    return GptOss


def _is_packed(folder: Path) -> bool:
    told = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config") or {}
    return told.get("quant_method") == "mxfp4"


def _ministral3(original: Any) -> type:
    class Ministral3(original):  # type: ignore[misc]
        """A decoder whose rotation is scaled by YaRN."""

        make_inv_freq_rescaled_with_ntk = _yarn

    return Ministral3


def _smollm3(original: Any) -> type:
    class SmolLM3(original):  # type: ignore[misc]
        """A decoder some of whose layers rotate neither queries nor keys."""

        def make_attention_qk_rope(self, layer_id: int, **names: Any) -> tuple[str, str]:
            if not self.no_rope_layers[layer_id]:
                return "", ""
            caches: tuple[str, str] = super().make_attention_qk_rope(layer_id, **names)
            return caches

    return SmolLM3


def _centred_olmo(original: Any) -> type:
    class CentredOlmo(original):  # type: ignore[misc]
        """A decoder whose norms subtract the mean and have no weights."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.layernorm_attrs["simple"] = False
            self.layernorm_attrs["epsilon"] = 1e-5

    return CentredOlmo


def _post_norm_olmo(original: Any) -> type:
    base: Any = original.__base__

    class PostNormOlmo(base):  # type: ignore[misc]
        """A decoder whose norms stand behind attention and feed-forward."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.two_rotations = "rescale_inv_freq" in self.rope_attrs and "sliding_attention" in self.layer_types
            if self.two_rotations:
                self._make_both_caches()

        def _make_both_caches(self) -> None:
            super().make_rotary_embedding_caches(cos_cache_name="cos_cache_global", sin_cache_name="sin_cache_global")
            scaled = dict(self.rope_attrs)
            del self.rope_attrs["rescale_inv_freq"]
            self.rope_attrs |= {"mscale": 1.0, "create_caches": True}
            super().make_rotary_embedding_caches(cos_cache_name="cos_cache_local", sin_cache_name="sin_cache_local")
            self.rope_attrs |= {**scaled, "create_caches": False}

        def make_rotary_embedding_caches(self, **names: Any) -> Any:
            if getattr(self, "two_rotations", False):
                reach = "global" if self.window_size == -1 else "local"
                names = {"cos_cache_name": f"cos_cache_{reach}", "sin_cache_name": f"sin_cache_{reach}"}
            return super().make_rotary_embedding_caches(**names)

        make_inv_freq_rescaled_with_ntk = _yarn

        def make_attention_init(self, config: Any) -> None:
            self.attention_attrs["q_norm"] = self.attention_attrs["k_norm"] = True
            super().make_attention_init(config)

        def is_fused_qk_norm_gqa_supported(self) -> bool:
            return False  # the fused norm is one of each head

        def make_qk_norm(self, layer_id: int, attention: Any) -> None:
            for letter, norm, width in (("q", attention.q_norm, self.q_size), ("k", attention.k_norm, self.kv_size)):
                name = f"/model/layers.{layer_id}/attn/{letter}_norm/SimplifiedLayerNormalization"
                weight = f"model.layers.{layer_id}.attn.{letter}_norm.layernorm.weight"
                self.make_initializer(norm.weight, weight, to=self.io_dtype)
                output = f"{name}/output_0"
                epsilon = self.layernorm_attrs["epsilon"]
                given = [self.attention_attrs[f"{letter}_path"], weight]
                self.make_node(
                    "SimplifiedLayerNormalization", given, [output], name=name, epsilon=epsilon, axis=-1, stash_type=1
                )
                self.make_value(output, self.io_dtype, shape=self.make_hidden_state_shape(last_dim=width))
                self.attention_attrs[f"{letter}_path"] = output

        def make_layer(self, layer_id: int, layer: Any) -> None:
            norms = self.layernorm_attrs
            if not norms["first_layernorm"]:
                self._add_to_stream(layer_id, "input")
            self.make_attention(layer_id, layer.self_attn, root_input=norms["root_input"])
            last = layer_id == self.num_layers - 1
            if last and self.prunes_hidden_rows():
                self.make_selected_hidden_rows()
            self._norm_branch(layer_id, layer.post_attention_layernorm, "post_attention")
            self._add_to_stream(layer_id, "post_attention")
            self.make_mlp(layer_id, layer.mlp, root_input=norms["root_input"])
            self._norm_branch(layer_id, layer.post_feedforward_layernorm, "post_feedforward")
            norms["first_layernorm"] = False
            norms["last_layernorm"] = last

        def _norm_branch(self, layer_id: int, norm: Any, location: str) -> None:
            """Normalises what stands at `skip_input`, which the next addition takes; the stream stays at `root_input`."""
            norms = self.layernorm_attrs
            stream = norms["root_input"]
            norms["root_input"] = norms["skip_input"]
            self.make_layernorm(layer_id, norm, skip=False, simple=True, location=location)
            norms["root_input"], norms["skip_input"] = stream, norms["output_0"]

        def _add_to_stream(self, layer_id: int, location: str) -> None:
            norms = self.layernorm_attrs
            name = f"/model/layers.{layer_id}/{location}/Add"
            self.make_add(name, [norms["root_input"], norms["skip_input"]], self.io_dtype, self.make_hidden_state_shape())
            norms["root_input"] = f"{name}/output_0"

    return PostNormOlmo


_DERIVED = {
    "GptOssForCausalLM": _gpt_oss,
    "OlmoForCausalLM": _centred_olmo,
    "Mistral3ForConditionalGeneration": _ministral3,
    "SmolLM3ForCausalLM": _smollm3,
}
