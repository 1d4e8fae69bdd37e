"""SliceGPT, which goes layer by layer, gives what comes of turning and cutting the whole model in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.models import sharded_weights, torch_source
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_torch
from runner.passes.quantize.hadamard import rotation
from runner.passes.residual_stream import Stream, open_stream, set_parameter, turn_reader, turn_writer
from tests.conftest import ApplyPass

WIDTH, SHARE = 64, 0.25


CLOSE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of a norm, by the type that weights are stored in


@pytest.fixture(params=[(True, torch.bfloat16), (False, torch.bfloat16), (True, torch.float32)], ids=str)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> ModelHandle:
    """A small Llama of random weights, and gains that are not all one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tied, dtype = request.param
    config = LlamaConfig(
        vocab_size=96, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=2, eos_token_id=3, tie_word_embeddings=tied,
        initializer_range=0.2,
    )  # fmt: skip
    module = LlamaForCausalLM(config)
    for name, weight in module.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    module.to(dtype).save_pretrained(tmp_path / "source")
    return ModelHandle("hf", tmp_path / "source", None, "text-generation", {"model_type": "llama"})


def tokens() -> torch.Tensor:
    return torch.tensor(np.random.default_rng(0).integers(5, 96, (4, 128)))


@pytest.mark.parametrize("orientation", ["pca", "random"])
def test_logits_are_those_of_the_model_sliced_as_a_whole(
    orientation: str, source: ModelHandle, apply_pass: ApplyPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = int(WIDTH * (1 - SHARE))
    stored = next(iter(sharded_weights.mapped_weights(source.folder).values())).dtype
    with torch.inference_mode():
        wanted = sliced_whole(load_torch(source), tokens(), width, orientation).to(stored).float()
        expected = wanted(tokens(), use_cache=False).logits
    monkeypatch.setattr(torch_source, "LARGE", 0)
    monkeypatch.setattr(sharded_weights, "_FULL", 20_000)
    options = {"sparsity": SHARE, "final_orientation": orientation, "calibration_data_config": "text"}
    data = [{"input_ids": tokens().numpy()}]
    for memory in (None, 1):  # hidden states in memory, and in files
        made = apply_pass("SliceGPT", source, data=data, memory=memory, **options)
        assert len(list(made.folder.glob("*.safetensors"))) > 2
        module: Any = load_torch(made)
        assert (module.config.hidden_size, module.config.head_dim) == (width, WIDTH // 4)
        assert {one.dtype for one in sharded_weights.mapped_weights(made.folder).values()} == {stored}
        with torch.inference_mode():
            found = module(tokens(), use_cache=False).logits
        assert (found - expected).norm() < CLOSE[stored] * expected.norm()
        for name, weight in module.named_parameters():
            other = wanted.get_parameter(name)
            assert (weight - other).norm() < CLOSE[stored] * other.norm(), name


def sliced_whole(module: Any, batch: torch.Tensor, width: int, orientation: str) -> Any:
    """Turns, cuts and turns a model in fp32."""
    stream = open_stream(module, "SliceGPT")
    covariance = torch.zeros(stream.width, stream.width, dtype=torch.float64)
    for _, states in norm_inputs(module, stream, [batch]):
        covariance += (states.T @ states).double()
    components = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    head = module.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
    for norm in stream.norms:
        for reader in norm.readers:
            reader.weight.mul_(norm.module.weight + norm.offset)
        norm.module.weight.fill_(1 - norm.offset)
    turn(stream, components)
    shares: dict[int, list[torch.Tensor]] = {}
    for at, states in norm_inputs(module, stream, [batch]):
        shares.setdefault(at, []).append(states[:, :width].square().sum(-1) / stream.width)
    full = stream.width
    turn(stream, torch.eye(full, width, dtype=torch.float64))
    for at, norm in enumerate(stream.norms):
        gain = float(torch.cat(shares[at]).sqrt().mean()) * (full / width) ** 0.5
        set_parameter(norm.module, "weight", torch.full((width,), gain - norm.offset))
    if orientation == "random":
        turn(stream, rotation(width, "random", torch.Generator().manual_seed(42)))
    return module


def turn(stream: Stream, matrix: torch.Tensor) -> None:
    for reader in (stream.embedding, *(one for norm in stream.norms for one in norm.readers)):
        turn_reader(reader, matrix)
    for writer in stream.writers:
        turn_writer(writer, matrix)


def norm_inputs(module: Any, stream: Stream, batches: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
    seen: list[tuple[int, torch.Tensor]] = []

    def note(at: int) -> Callable[..., None]:
        def hook(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            states = args[0].reshape(-1, args[0].shape[-1])
            seen.append((at, states * states.square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()))

        return hook

    hooks = [norm.module.register_forward_pre_hook(note(at)) for at, norm in enumerate(stream.norms)]
    for batch in batches:
        module(batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    yield from seen
