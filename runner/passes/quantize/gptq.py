"""GPTQ: quantises the weights of a language model column by column, each column making up for the errors before it.

After E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh: GPTQ, accurate post-training quantization for generative pre-trained
transformers (ICLR 2023). The grids of all groups are fitted to the weights beforehand, errors weighed by the Hessian's
diagonal, so that the order of the columns is free and the codes need no index of groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from runner.errors import DataUnavailable, RunFailed
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import HEAD, QuantizedMatrix, Scheme
from runner.passes.declaration import Batches, Pass, PassContext
from runner.passes.quantize.grid import Parts, fit_grid, over_rows
from runner.passes.quantize.weight_only import Subject, WeightOnlyOptions, decoder_layers, leave, open_subject
from runner.recipe.config import DataConfig

if TYPE_CHECKING:
    import torch

WINDOW = 256  # tokens that the model reads at a time
WINDOWS = 32  # read at most; 8 000 tokens
_BATCH = 8
_COLUMNS = 64  # errors of so many columns are passed on together to the columns behind them
_LEAST_TOKENS = 256


class GptqOptions(WeightOnlyOptions):
    """Options of Gptq."""

    data_config: str | DataConfig | None = Field(
        None,
        description="text to calibrate on: a name among data_configs, or itself; text that the model writes when not given",
    )
    damp_percent: float = Field(
        0.01, gt=0, lt=1, description="share of the Hessian's mean diagonal that is added to its diagonal"
    )
    desc_act: bool = Field(True, description="quantise the columns with the largest inputs first")


def _apply(model: ModelHandle, options: GptqOptions, context: PassContext) -> ModelHandle:
    import torch

    torch.set_num_threads(context.threads)
    subject = open_subject(model, options)
    with torch.inference_mode():
        batches = _windows(subject, options, context)
        tokens = sum(batch.numel() for batch in batches)
        context.say(f"calibrating on {tokens} tokens")
        for place, hessians in _hessians(subject, batches, options):
            context.say(place)
            _quantize(subject, hessians, options)
    return leave(subject, context.output)


# --- calibration -----------------------------------------------------------------------------------------------------


def _windows(subject: Subject, options: GptqOptions, context: PassContext) -> tuple[torch.Tensor, ...]:
    """Returns batches of token ids, [batch, tokens] int64, all of one shape."""
    import torch

    if options.data_config is None:
        context.say("no data_config: the model writes the text to calibrate on")
        written = _written_by_the_model(subject.module)
        return tuple(written.split(min(_BATCH, len(written))))
    named = options.data_config
    given: Any = named.model_dump(mode="json") if isinstance(named, DataConfig) else named
    stream = torch.tensor(_tokens(context.data(given), WINDOWS * WINDOW), dtype=torch.long)
    if len(stream) < _LEAST_TOKENS:
        raise DataUnavailable(f"the text to calibrate on has {len(stream)} tokens; {_LEAST_TOKENS} are needed")
    length = min(WINDOW, _longest(subject.module))
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


def _longest(module: torch.nn.Module) -> int:
    config = module.config
    return int(getattr(getattr(config, "text_config", config), "max_position_embeddings", WINDOW))


def _written_by_the_model(module: Any) -> torch.Tensor:
    """Returns windows that the model samples from itself, each begun with another token."""
    import torch

    config = getattr(module.config, "text_config", module.config)
    length = min(WINDOW, _longest(module))
    starts = torch.randint(0, config.vocab_size, (WINDOWS, 1), generator=torch.Generator().manual_seed(0))
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


# --- Hessians --------------------------------------------------------------------------------------------------------

# The names of modules that see the same input, and the sum of x xᵀ over its tokens, [columns, columns].
Hessians = Sequence[tuple[tuple[str, ...], "torch.Tensor"]]


class _FirstLayerReached(Exception):
    """Ends a forward pass where the first decoder layer would begin."""


def _hessians(subject: Subject, batches: Sequence[torch.Tensor], options: GptqOptions) -> Iterator[tuple[str, Hessians]]:
    """Yields what is quantised next: a decoder layer at a time, then the head where it is asked for.

    The caller quantises the modules before it goes on, so that a layer's inputs come from quantised layers.
    """
    name, layers = decoder_layers(subject.module)
    linears = subject.linears()
    arguments = _layer_arguments(subject.module, layers, batches[0])
    hidden = [_first_input(subject.module, layers[0], batch) for batch in batches]
    for at, layer in enumerate(layers):
        inner = {one: module for one, module in linears.items() if one.startswith(f"{name}.{at}.")}
        args, kwargs = arguments[at]
        run = partial(_run, layer, args, kwargs)
        yield f"layer {at + 1} of {len(layers)}", _collect(inner, run, hidden)
        hidden = [run(states) for states in hidden]
    if options.lm_head and HEAD not in subject.matrices:
        head = subject.module.get_submodule(HEAD)
        yield "head", _collect({HEAD: head}, lambda ids: subject.module(ids, use_cache=False), batches)


def _layer_arguments(
    module: Any, layers: torch.nn.ModuleList, ids: torch.Tensor
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Returns what each layer is called with besides the hidden states: mask, positions, rotation."""
    found: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(at: int) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[at] = (args[1:], {key: value for key, value in kwargs.items() if key != "hidden_states"})

        return hook

    hooks = [layer.register_forward_pre_hook(note(at), with_kwargs=True) for at, layer in enumerate(layers)]
    module(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [found[at] for at in range(len(layers))]


def _first_input(module: Any, layer: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Returns the hidden states that the first layer gets, [batch, tokens, width]."""
    found: list[torch.Tensor] = []

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        raise _FirstLayerReached

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        module(ids, use_cache=False)
    except _FirstLayerReached:
        return found[0]
    finally:
        handle.remove()
    raise RunFailed("no-decoder", f"{type(module).__name__} does not run its first decoder layer")


def _run(layer: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], states: torch.Tensor) -> torch.Tensor:
    output = layer(states, *args, **kwargs)
    after: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return after


def _collect(
    modules: Mapping[str, torch.nn.Module], run: Callable[[torch.Tensor], Any], inputs: Sequence[torch.Tensor]
) -> Hessians:
    """Runs over the inputs and returns the Hessians of the modules."""
    sums: dict[str, torch.Tensor] = {}
    leader_of: dict[str, str] = {}
    seen: dict[int, tuple[str, torch.Tensor]] = {}  # inputs of this run, kept so that no other gets their identity

    def note(name: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            leader_of[name] = seen.setdefault(id(args[0]), (name, args[0]))[0]
            if leader_of[name] == name:
                tokens = args[0].reshape(-1, args[0].shape[-1])
                sums[name] = sums[name].addmm_(tokens.T, tokens) if name in sums else tokens.T @ tokens

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in modules.items()]
    for one in inputs:
        seen.clear()
        run(one)
    seen.clear()
    for hook in hooks:
        hook.remove()
    return [(tuple(name for name in leader_of if leader_of[name] == leader), total) for leader, total in sums.items()]


# --- solving ---------------------------------------------------------------------------------------------------------


def _quantize(subject: Subject, hessians: Hessians, options: GptqOptions) -> None:
    """Quantises modules and gives them their quantised weights."""
    import torch

    for names, hessian in hessians:
        schemes = {name: subject.scheme(name, options) for name in names}
        for scheme in dict.fromkeys(schemes.values()):
            alike = [name for name in names if schemes[name] == scheme]
            modules: list[Any] = [subject.module.get_submodule(name) for name in alike]
            if HEAD in alike and subject.shared:
                subject.shared = False
                modules[0].weight = torch.nn.Parameter(modules[0].weight.clone(), requires_grad=False)
            matrix = gptq(torch.cat([one.weight for one in modules]), hessian, scheme, options.damp_percent, options.desc_act)
            start = 0
            for name, module in zip(alike, modules, strict=True):
                stop = start + module.weight.shape[0]
                subject.matrices[name] = matrix.rows(start, stop)
                module.weight.copy_(subject.matrices[name].dequantized())
                start = stop


def gptq(
    weight: torch.Tensor, hessian: torch.Tensor, scheme: Scheme, damp: float = 0.01, descending: bool = True
) -> QuantizedMatrix:
    """Returns the weight quantised so that its products with the inputs behind the Hessian change least.

    Args:
        weight: float32 [rows, columns].
        hessian: float32 [columns, columns], the sum of x xᵀ over inputs x.
        scheme: how to quantise.
        damp: share of the mean diagonal that is added to the diagonal.
        descending: columns in order of falling diagonal; as they come otherwise.

    Raises:
        RunFailed: the Hessian stays singular however much it is damped.
    """
    import torch

    diagonal = hessian.diagonal()
    mean = diagonal.mean().clamp(min=1e-8)
    importance = diagonal.clamp(min=float(mean) * 1e-4)
    order = diagonal.argsort(descending=True) if descending else torch.arange(weight.shape[1])
    upper = _inverse_factor(hessian[order][:, order], damp * mean)

    group = order // scheme.group_size

    def solve(rows: torch.Tensor) -> Parts:
        scales, zeros = fit_grid(rows, scheme, importance)
        weight, scale, zero = (one.T.contiguous() for one in (rows[:, order], scales[:, group], zeros[:, group]))
        return _solve(weight, scale, zero, upper, scheme.levels)[:, order.argsort()], scales, zeros

    codes, scales, zeros = over_rows(solve, weight)
    return QuantizedMatrix.of_codes(scheme, codes, scales, zeros.byte())


def _inverse_factor(hessian: torch.Tensor, damp: torch.Tensor) -> torch.Tensor:
    """Returns the upper Cholesky factor of the damped Hessian's inverse; damps more where that fails in fp32."""
    import torch

    for _ in range(6):
        damped = hessian.clone()
        damped.diagonal().add_(damp)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        damp = damp * 10
    raise RunFailed(
        "gptq-singular", "the inputs of a layer have no usable Hessian", "calibrate on a longer and more varied text"
    )


def _solve(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, upper: torch.Tensor, levels: int) -> torch.Tensor:
    """Returns the codes, uint8 [rows, columns]; the other tensors are [columns, rows], so that a column is contiguous."""
    import torch

    columns, rows = weight.shape
    pivots = upper.diagonal().tolist()
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    errors = torch.empty(_COLUMNS, rows)
    for start in range(0, columns, _COLUMNS):
        stop = min(start + _COLUMNS, columns)
        for at in range(start, stop):
            column, scale, zero = weight[at], scales[at], zeros[at]
            code = (column / scale).add_(zero).round_().clamp_(0, levels)
            codes[at] = code
            error = errors[at - start]
            torch.sub(column, code.sub_(zero).mul_(scale), out=error).div_(pivots[at])
            weight[at + 1 : stop].addr_(upper[at, at + 1 : stop], error, alpha=-1)
        weight[stop:].addmm_(upper[start:stop, stop:].T, errors[: stop - start], alpha=-1)
    return codes.T


PASS = Pass(
    name="Gptq",
    summary="Quantises the linear layers of a language model with GPTQ, calibrated on text.",
    options=GptqOptions,
    apply=_apply,
    takes=("hf",),
    gives="hf",
    packages=("torch", "transformers", "safetensors"),
    data_options=("data_config",),
)
