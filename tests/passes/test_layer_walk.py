"""Hessians of a layer's matrices, and the walk from layer to layer."""

from __future__ import annotations

import torch

from runner.models.handle import ModelHandle
from runner.models.torch_source import load_torch
from runner.passes.layer_walk import input_hessians, walk_layers

IDS = torch.arange(32).view(2, 16)


class Chain(torch.nn.Module):
    """Two matrices with one input, one behind them, and one more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = torch.nn.Linear(300, 40), torch.nn.Linear(300, 40)
        self.behind, self.last = torch.nn.Linear(40, 8), torch.nn.Linear(8, 8)
        self.ran = 0

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        between = self.behind(torch.relu(self.left(states)) * self.right(states))
        self.ran += 1
        given: torch.Tensor = self.last(between)
        return given


def test_a_hessian_is_the_sum_over_all_tokens() -> None:
    chain, inputs = Chain(), [torch.randn(2, 7, 300), torch.randn(2, 7, 300)]
    modules: dict[str, torch.nn.Module] = {name: getattr(chain, name) for name in ("left", "right", "behind")}
    with torch.inference_mode():
        (names, first), (others, second) = input_hessians(modules, chain, inputs)
        assert chain.ran == 0  # nothing is run behind the last input
        outputs: list[torch.Tensor] = []
        again = input_hessians(modules, chain, inputs, outputs)
    assert (names, others) == (("left", "right"), ("behind",))
    tokens = torch.cat(inputs).view(-1, 300)
    torch.testing.assert_close(first, tokens.T @ tokens)
    between = torch.relu(chain.left(tokens)) * chain.right(tokens)
    torch.testing.assert_close(second, between.T @ between)
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(again, [(0, first), (0, second)], strict=True))
    torch.testing.assert_close(torch.cat(outputs), chain(torch.cat(inputs)))


def test_the_next_layer_gets_what_was_kept_or_what_the_changed_layer_gives(tiny_llama: ModelHandle) -> None:
    def inputs_of_the_second(keep: bool) -> torch.Tensor:
        module = load_torch(tiny_llama)
        found: list[torch.Tensor] = []
        with torch.inference_mode():
            for layer in walk_layers(module, [IDS]):
                found += layer.inputs
                if keep:
                    layer.outputs.extend(layer.run(states) for states in layer.inputs)
                for parameter in layer.layer.parameters():
                    parameter.zero_()
        return found[1]

    with torch.inference_mode():
        states = load_torch(tiny_llama)(IDS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(inputs_of_the_second(keep=True), states[1])
    torch.testing.assert_close(inputs_of_the_second(keep=False), states[0])  # a layer of zeros passes on what it gets
