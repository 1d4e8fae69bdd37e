"""The text that a language model is calibrated on: the recipe's data, or what the model writes itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.errors import DataUnavailable, InvalidRecipe, Problem
from runner.passes.declaration import Batches, PassContext
from runner.recipe.config import DataConfig

if TYPE_CHECKING:
    import torch

WINDOW = 256  # tokens that the model reads at a time
WINDOWS = 32  # read at most; 8 000 tokens
_BATCH = 2  # windows at a time: enough to keep the cores busy
_LEAST_TOKENS = 256
_TOY_PARAMETERS, _TOY_WINDOW, _TOY_WINDOWS = (
    10_000_000,
    64,
    8,
)  # a toy's narrow layers need no more text, and smoke runs no wait


def calibration_windows(
    module: torch.nn.Module, data_config: str | DataConfig | None, context: PassContext
) -> tuple[torch.Tensor, ...]:
    """Returns batches of token ids, [batch, tokens] int64, all of one shape.

    Args:
        module: the language model; without a data config it samples the text from itself.
        data_config: a name among the recipe's data_configs, or a data config itself.
        context: what the pass that calibrates was given.

    Raises:
        InvalidRecipe: the model is no language model.
        DataUnavailable: the data has no token ids, or too few of them.
    """
    import torch

    if not getattr(module, "can_generate", bool)():
        name = type(module).__name__
        raise InvalidRecipe(Problem("no-language-model", f"{name} is no language model", remedy="this pass serves those only"))

    if data_config is None:
        context.say("no data_config: the model writes the text to calibrate on")
        written = _written_by_the_model(module)
        return tuple(written.split(min(_BATCH, len(written))))
    given: Any = data_config.model_dump(mode="json") if isinstance(data_config, DataConfig) else data_config
    stream = torch.tensor(_tokens(context.data(given), WINDOWS * WINDOW), dtype=torch.long)
    if len(stream) < _LEAST_TOKENS:
        raise DataUnavailable(f"the text to calibrate on has {len(stream)} tokens; {_LEAST_TOKENS} are needed")
    length = min(WINDOW, _longest(module))
    windows = stream[: len(stream) // length * length].view(-1, length)
    batch = min(_BATCH, len(windows))
    return tuple(windows[: len(windows) // batch * batch].split(batch))


def _tokens(data: Batches, most: int) -> list[int]:
    """Returns the first tokens of a data set, its examples strung together without their padding."""
    found: list[int] = []
    for inputs in data:
        if "input_ids" not in inputs:
            raise DataUnavailable("the data to calibrate on has no input_ids", "let its pre-processing tokenize a text")
        ids = inputs["input_ids"]
        found += ids[inputs["attention_mask"] != 0].tolist() if "attention_mask" in inputs else ids.ravel().tolist()
        if len(found) >= most:
            break
    return found[:most]


def _longest(module: Any) -> int:
    config = module.config
    return int(getattr(getattr(config, "text_config", config), "max_position_embeddings", WINDOW))


def _written_by_the_model(module: Any) -> torch.Tensor:
    """Returns windows that the model samples from itself, each begun with another token."""
    import torch

    config = getattr(module.config, "text_config", module.config)
    toy = sum(parameter.numel() for parameter in module.parameters()) < _TOY_PARAMETERS
    windows, length = (_TOY_WINDOWS, _TOY_WINDOW) if toy else (WINDOWS, WINDOW)
    length = min(length, _longest(module))
    starts = torch.randint(0, config.vocab_size, (windows, 1), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    text: torch.Tensor = module.generate(
        starts,
        attention_mask=torch.ones_like(starts),
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        min_new_tokens=length - 1,
        max_new_tokens=length - 1,
        pad_token_id=0,
    )
    return text
