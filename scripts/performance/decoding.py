"""Language models behind a prompt of 128 tokens: decoding against llama.cpp and the memory, the first token against PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import runner
from performance.bandwidth import block_sum_bytes, bytes_a_token, read_bandwidth
from performance.contest import PeerFailed, Side, Terms, loaded, ratio, take_turns
from performance.gguf_file import gguf
from performance.models import Made, by_recipe, random_decoder
from performance.peers import LLAMA_CPP, environment
from performance.products import products_alone
from performance.record import Row
from runner.evaluation.perplexity import perplexity, token_windows
from runner.evaluation.subject_process import SubjectProcess
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_tokenizer
from runner.targets.target import TARGETS

PROMPT_TOKENS, NEW_TOKENS = 128, 48
OURS, TORCH, KINDS, PLAIN = "ours int4", "PyTorch fp32", ("Q4_0", "Q4_K_M"), "F16"
LIMIT, TRIED_SIDE = "the memory's limit", "with the setting"
IN_FP32 = {"mlas.qnbit.force_fp32": "1"}  # widens blocks of 32 to fp32 for the product; faster for a prompt, slower for a token


@dataclass(frozen=True)
class Decoder:
    """One language model.

    Attributes:
        name: what the tables call it.
        recipe: its int4 recipe, ID or ID/VARIANT.
        of_llama: the bar of decoding, ours divided by the best of llama.cpp.
        of_limit: the bar of decoding, ours divided by what the memory allows; None without one.
        random: the model whose shape is taken, with random weights; None for real ones.
        overrides: what the recipe is made with where all of it would take too long, and no speed depends on it.
    """

    name: str
    recipe: str
    of_llama: str
    of_limit: str | None
    random: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


DECODERS = (
    Decoder("SmolLM2-135M", "smollm2-135m-instruct", ">= 1.5", None),
    Decoder(
        "Llama-3.2-1B shape",
        "llama-3.2-1b-instruct",
        ">= 1.15",
        ">= 0.9",
        "meta-llama/Llama-3.2-1B",
        {"data_configs.0.pre_process_data_config.max_samples": 2},
    ),
)


@dataclass(frozen=True)
class Setting:
    """What was tried.

    Attributes:
        decoder: whose recipe it stands beside.
        overrides: of the recipe.
        options: session options on top of the threads.
        recipe: the variant that is overridden; the decoder's own when None.
    """

    decoder: Decoder
    overrides: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None


_REAL, _SHAPE = DECODERS
_GROUP, _HEAD, _BUILD = "passes.gptq.group_size", "passes.rtn.group_size", "passes.build.int4"
_BUILDER = "llama-3.2-1b-instruct/cpu-int4"
SETTINGS: Mapping[str, Setting] = {
    "8-bit head in blocks of 64": Setting(_REAL, {_HEAD: 64}),
    "all in blocks of 64": Setting(_REAL, {_GROUP: 64, _HEAD: 64}),
    "all in blocks of 64, head in 4 bits": Setting(_REAL, {_GROUP: 64, _HEAD: 64, "passes.rtn.bits": 4}),
    "threads do not spin": Setting(_REAL, {}, {"session.intra_op.allow_spinning": "0"}),
    "all in blocks of 32": Setting(_SHAPE, {_GROUP: 32, _HEAD: 32}),
    "all in blocks of 128": Setting(_SHAPE, {_GROUP: 128, _HEAD: 128}),
    "head in 4 bits": Setting(_SHAPE, {"passes.rtn.bits": 4}),
    "builder's k-quant mixed, blocks of 32": Setting(_SHAPE, {}, recipe=_BUILDER),
    "builder's rounding, blocks of 32, symmetric": Setting(_SHAPE, {f"{_BUILD}_algo_config": "rtn"}, recipe=_BUILDER),
    "accuracy level 1": Setting(_SHAPE, {f"{_BUILD}_accuracy_level": 1}),
}
_SETTINGS = "settings: "
TRIED = tuple(f"{_SETTINGS}{one}" for one in SETTINGS)


def cases() -> list[str]:
    """Returns the names of the models."""
    return [one.name for one in DECODERS]


first_token_cases = cases


def recipes_of(case: str) -> Sequence[str]:
    """Returns the recipes of a model, or of a setting that was tried."""
    tried = SETTINGS.get(case.removeprefix(_SETTINGS))
    decoder = tried.decoder if tried else next(one for one in DECODERS if one.name == case)
    return [one for one in (decoder.recipe, tried.recipe if tried else None) if one]


def measure_decode(case: str, cache: Path, terms: Terms) -> list[Row]:
    """Returns a model's row against llama.cpp and its row against the memory; or the row of settings that were tried.

    Raises:
        RecipeError: a recipe of ours fails.
    """
    if case in TRIED:
        return [_setting(case.removeprefix(_SETTINGS), cache, terms)]
    decoder, made, work = _made(case, cache)
    sides, failed = _llama_sides(made, work, cache, terms.threads)
    sides.insert(0, _ours(made.folder, terms.threads))
    before = read_bandwidth(terms.threads, terms.clock)
    seconds, dropped, busy = _decode(sides, failed, NEW_TOKENS, terms, work)
    bandwidth = max(before, read_bandwidth(terms.threads, terms.clock))
    rates = {name: [_rate(one) for one in turns] for name, turns in seconds.items()}
    medians = {name: median(one) for name, one in rates.items()}
    peers = [name for name in medians if name != OURS]
    best = max(peers, key=lambda name: medians[name], default=None)
    weights, cache_bytes = bytes_a_token(made.folder, PROMPT_TOKENS + NEW_TOKENS // 2)
    limit = bandwidth / (weights + cache_bytes)
    per_token = f"{weights / 1e6:.0f} MB of weights and {cache_bytes / 1e6:.1f} MB of cache a token"
    per_token += f" (and {block_sum_bytes(made.folder) / 1e6:.0f} MB of block sums, not counted in the limit)"
    remark = f"{bandwidth / 1e9:.1f} GB/s read by {terms.threads} threads; {per_token}"
    against = ratio(rates[OURS], rates[best]) if best else None
    of_llama = f"ours / {best or 'llama.cpp'}"
    of_memory = {OURS: medians[OURS], LIMIT: limit}
    name, told = decoder.name, _weights(decoder, terms)
    share = medians[OURS] / limit
    return [
        Row(f"{name}, against llama.cpp", "tokens/s", medians, against, of_llama, decoder.of_llama, dropped, told, busy),
        Row(f"{name}, against the memory", "tokens/s", of_memory, share, "ours / limit", decoder.of_limit, {}, remark, busy),
        *_answers(decoder, made, work, cache, terms),
    ]


def measure_first_token(case: str, cache: Path, terms: Terms) -> list[Row]:
    """Returns a model's row, milliseconds from the prompt to the first token, and that of its products alone.

    Raises:
        RecipeError: a recipe of ours fails.
    """
    decoder, made, work = _made(case, cache)
    sides, failed = _llama_sides(made, work, cache, terms.threads, KINDS[:1])
    torch_side = Side(
        TORCH, Path(sys.executable), {"kind": "torch decoder", "folder": str(made.source), "threads": terms.threads}
    )
    sides = [_ours(made.folder, terms.threads), torch_side, *sides]
    seconds, dropped, busy = _decode(sides, failed, 1, terms, work)
    times = {name: [1000 * one[0] for one in turns] for name, turns in seconds.items()}
    medians = {name: median(one) for name, one in times.items()}
    return [
        Row(
            decoder.name, "ms", medians, ratio(times[OURS], times[TORCH]), f"ours / {TORCH}", "<= 0.65", dropped,
            _weights(decoder, terms), busy,
        ),
        _products_alone(decoder, made, terms),
    ]  # fmt: skip


def _products_alone(decoder: Decoder, made: Made, terms: Terms) -> Row:
    """What products with weights take of a prompt, on both sides, and with another kernel."""
    alone = products_alone(made.folder, PROMPT_TOKENS, terms.threads, terms.rounds, terms.clock, IN_FP32)
    sides = {OURS: alone["quantised"], TRIED_SIDE: alone["quantised, set"], TORCH: alone["fp32"]}
    (told,) = (f"the setting: {name}={value}" for name, value in IN_FP32.items())
    medians = {name: median(one) for name, one in sides.items()}
    case = f"{decoder.name}: the layers' products alone"
    return Row(case, "ms", medians, ratio(sides[OURS], sides[TORCH]), f"ours / {TORCH}", remark=told)


def _answers(decoder: Decoder, made: Made, work: Path, cache: Path, terms: Terms) -> list[Row]:
    """What the speed costs: perplexities over that of the same weights in 16 bits; nothing of random weights."""
    if decoder.random:
        return []
    windows = _windows(decoder, made)
    found, failed = {}, {}
    for kind in (PLAIN, *KINDS):
        name = f"llama.cpp {kind}"
        try:
            python = environment(LLAMA_CPP, cache)
            path = gguf(made.source, kind, work / "gguf", python, terms.threads)
            load = {"kind": "llama judge", "path": str(path), "threads": terms.threads, "tokens": len(windows[0])}
            with loaded([Side(name, python, load)], work / "log.txt") as (processes, not_loaded):
                if name in not_loaded:
                    raise PeerFailed(not_loaded[name])
                found[name] = perplexity(processes[name].ask("losses", windows=windows)["losses"], windows).value
        except PeerFailed as error:
            failed[name] = str(error)
    with SubjectProcess(ModelHandle("genai", made.folder, None, "text-generation"), OURS) as process:
        process.load(terms.threads, TARGETS["cpu"].provider, generates=True)
        found[OURS] = perplexity(process.ask("losses", windows=windows)["losses"], windows).value
    plain = found.pop(f"llama.cpp {PLAIN}", None)
    if plain is None:
        return []
    told = f"{len(windows)} windows of {len(windows[0])} tokens; {plain:.2f} in 16 bits"
    values = {name: round(one / plain, 4) for name, one in found.items()}
    return [Row(f"{decoder.name}: perplexity", "x", values, failed=failed, remark=told)]


def _windows(decoder: Decoder, made: Made) -> list[list[int]]:
    """The text that the recipe itself is judged on, as tokens."""
    recipe = runner.load_recipe(decoder.recipe)
    assert recipe.request.info is not None
    evaluation = recipe.request.info.evaluation
    tokenizer = load_tokenizer(ModelHandle("hf", made.source, None, "text-generation"))
    text = (recipe.folder / str(evaluation.text)).read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return token_windows(ids, [], evaluation.windows, evaluation.window_tokens)


def _setting(name: str, cache: Path, terms: Terms) -> Row:
    """One setting in turns with the recipe's own. What it does to quality is told in docs/quantization.md."""
    tried = SETTINGS[name]
    decoder, made, work = _made(tried.decoder.name, cache)
    other = made
    if tried.overrides or tried.recipe:
        own = tried.recipe is None
        overrides = {**(decoder.overrides if own else {}), **tried.overrides}
        label = name.replace(" ", "-").replace(",", "").replace("'", "")
        other = by_recipe(tried.recipe or decoder.recipe, work / label, _given(decoder, made), overrides)
    sides = [
        _ours(made.folder, terms.threads),
        Side(name, Path(sys.executable), _genai(other.folder, terms.threads, tried.options)),
    ]
    seconds, dropped, busy = _decode(sides, {}, NEW_TOKENS, terms, work)
    if dropped:
        raise PeerFailed("; ".join(dropped.values()))
    rates = {side: [_rate(one) for one in turns] for side, turns in seconds.items()}
    values = {OURS: median(rates[OURS]), TRIED_SIDE: median(rates[name])}
    size = f"{bytes_a_token(other.folder, 0)[0] / 1e6:.0f} MB of weights a token"
    told = ", ".join(one for one in (size, terms.remark) if one)
    case = f"{decoder.name}: {name}"
    return Row(case, "tokens/s", values, ratio(rates[name], rates[OURS]), "the setting / ours", None, {}, told, busy)


def _given(decoder: Decoder, made: Made) -> Path | None:
    return made.source if decoder.random else None


def _made(case: str, cache: Path) -> tuple[Decoder, Made, Path]:
    decoder = next(one for one in DECODERS if one.name == case)
    work = cache / "decoders" / decoder.name.replace(" ", "-").lower()
    source = random_decoder(decoder.random, work / "source") if decoder.random else None
    return decoder, by_recipe(decoder.recipe, work / "int4", source, decoder.overrides), work


def _genai(folder: Path, threads: int, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "genai decoder", "folder": str(folder), "threads": threads, "options": dict(options)}


def _ours(folder: Path, threads: int) -> Side:
    return Side(OURS, Path(sys.executable), _genai(folder, threads, {}))


def _llama_sides(
    made: Made, work: Path, cache: Path, threads: int, kinds: Sequence[str] = KINDS
) -> tuple[list[Side], dict[str, str]]:
    sides, failed = [], {}
    for kind in kinds:
        name = f"llama.cpp {kind}"
        try:
            python = environment(LLAMA_CPP, cache)
            path = gguf(made.source, kind, work / "gguf", python, threads)
            sides.append(Side(name, python, {"kind": "llama decoder", "path": str(path), "threads": threads}))
        except PeerFailed as error:
            failed[name] = str(error)
    return sides, failed


def _decode(
    sides: Sequence[Side], failed: Mapping[str, str], new_tokens: int, terms: Terms, work: Path
) -> tuple[dict[str, list[list[float]]], dict[str, str], float]:
    """Returns the seconds to each token, of every side and round; one turn before them does not count.

    Who is loaded later can be faster, so all are loaded once more for the second half of the rounds, in the other order.
    """
    prompt = np.random.default_rng(0).integers(1000, 40000, PROMPT_TOKENS).tolist()
    question = {"prompt": prompt, "new_tokens": new_tokens, "clock": terms.clock}
    seconds: dict[str, list[list[float]]] = {one.name: [] for one in sides}
    dropped, busy = dict(failed), 0.0
    for order, rounds in ((sides, -(-terms.rounds // 2)), (sides[::-1], terms.rounds // 2)):
        with loaded([one for one in order if one.name not in dropped], work / "log.txt") as (processes, not_loaded):
            _, not_ready, _ = take_turns(processes, not_loaded, 1, "decode", {**question, "new_tokens": 2})
            told, lost, others = take_turns(processes, not_ready, rounds, "decode", question)
        dropped |= lost
        busy = max(busy, others)
        for name, turns in told.items():
            seconds[name] += [one["seconds"] for one in turns]
    return {name: turns for name, turns in seconds.items() if name not in dropped}, dropped, busy


def _rate(seconds: Sequence[float]) -> float:
    return (len(seconds) - 1) / (seconds[-1] - seconds[0])


def _weights(decoder: Decoder, terms: Terms) -> str:
    return ", ".join(one for one in ("random weights" if decoder.random else "real weights", terms.remark) if one)
