"""What `recipe try` does for each task: streams text, shows vectors and similarities, words, or classes, draws, transcribes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.try_drawing import Drawing, draw
from runner.cli.try_features import show_features
from runner.cli.try_labels import rank_labels
from runner.cli.try_speech import transcribe
from runner.errors import DataUnavailable, UsageError
from runner.models.handle import ModelHandle
from runner.targets.target import TARGETS

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

BEST = 5
ZERO_SHOT = "zero-shot-image-classification"
_HEAD = 8
MAX_NEW_TOKENS = 256  # of a language model's answer


@dataclass(frozen=True)
class Asked:
    """A model and what it is asked.

    Attributes:
        model: the model.
        inputs: texts, or paths of images or sounds.
        threads: threads of its session.
        provider: execution provider.
        max_new_tokens: longest answer, or most of what is said in a sound; the task's own limit when None.
        temperature: 0 for greedy decoding.
        raw: no chat template.
        as_json: print JSON instead of text.
        drawing: how a picture is drawn, and where it goes.
        labels: what pictures may show; all inputs are pictures then.
        top_p: probability of the likeliest tokens that are drawn from, where the temperature is not 0.
    """

    model: ModelHandle
    inputs: tuple[str, ...]
    threads: int
    provider: str
    max_new_tokens: int | None
    temperature: float
    raw: bool
    as_json: bool
    drawing: Drawing = field(default_factory=Drawing)
    labels: tuple[str, ...] = ()
    top_p: float = 1.0


def answer(asked: Asked) -> None:
    """Prints the model's answer.

    Raises:
        UsageError: the task has no form that can be tried here.
        DataUnavailable: an input is not what the model takes.
    """
    task = (asked.model.task or "").removesuffix("-with-past")
    if asked.labels and task != ZERO_SHOT:
        cause = f"--labels: a model for '{task}' ranks no labels"
        raise UsageError("no-labels-here", cause, "it is for models of pictures and texts")
    if asked.model.kind == "genai":
        from runner.models.transcription import hears

        (transcribe if hears(asked.model.folder) else _generate)(asked)
        return
    if task not in _TASKS and asked.model.kind == "hf":
        raise UsageError(
            "not-onnx",
            f"{asked.model.folder} is a checkpoint in transformers' form, which is not tried",
            f"make it an ONNX model first: recipe optimize -m {asked.model.folder}",
        )
    if task not in _TASKS:
        raise UsageError(
            "cannot-try",
            f"a model of kind '{asked.model.kind}' for '{task or 'no task'}' cannot be tried",
            f"tasks: {', '.join(_TASKS)}",
        )
    _TASKS[task](asked)


def _generate(asked: Asked) -> None:
    from runner.models.generation import GenerationSession

    if len(asked.inputs) > 1:
        raise UsageError("one-prompt", "a language model answers one prompt at a time", "put the prompt in quotes")
    session = GenerationSession(asked.model.folder, asked.threads, on_cpu=asked.provider == TARGETS["cpu"].provider)
    prompt = session.text_tokens(asked.inputs[0]) if asked.raw else session.prompt(asked.inputs[0])
    room = session.context_length - len(prompt)
    search = _search(asked)
    times, texts = [time.perf_counter()], []
    for token in session.generate(prompt, max(1, min(asked.max_new_tokens or MAX_NEW_TOKENS, room)), **search):
        times.append(time.perf_counter())
        texts.append(token.text)
        if not asked.as_json:
            click.echo(token.text, nl=False)
    _tell_generated(asked, "".join(texts), len(prompt), times)


def _search(asked: Asked) -> dict[str, Any]:
    """Returns how tokens are chosen, as onnxruntime-genai's search options."""
    if not asked.temperature:
        return {"do_sample": False}
    drawn = {"do_sample": True, "temperature": asked.temperature, "top_p": asked.top_p}
    seed = asked.drawing.seed
    return drawn if seed is None else {**drawn, "random_seed": seed % 2**31}  # a 32-bit number there


def chat(asked: Asked, system: str | None) -> None:
    """Holds a conversation with a language model.

    Raises:
        UsageError: the model is no language model.
    """
    from runner.cli.try_chat import converse

    converse(asked, system, _search(asked), asked.max_new_tokens or MAX_NEW_TOKENS)


def _tell_generated(asked: Asked, text: str, prompt: int, times: list[float]) -> None:
    tokens = len(times) - 1
    first = times[1] - times[0] if tokens else None
    rate = (tokens - 1) / (times[-1] - times[1]) if tokens > 1 else None
    if asked.as_json:
        _print_json({"text": text, "prompt_tokens": prompt, "new_tokens": tokens, "first_token_s": first, "tokens_per_s": rate})
        return
    click.echo()
    speed = f", {rate:.0f} tokens/s" if rate else ""
    started = f"first after {first * 1e3:.0f} ms" if first is not None else "none came"
    click.secho(f"{prompt} tokens in, {tokens} out: {started}{speed}, {asked.threads} threads", dim=True, err=True)


def _embed(asked: Asked) -> None:
    from runner.evaluation.retention import pooled, unit
    from runner.models.inputs import pools_first_token

    encoded = encode(asked.model, asked.inputs)
    hidden = next(iter(_run(asked, encoded).values()))
    first_token = pools_first_token(asked.model.folder)
    vectors = pooled(hidden, encoded["attention_mask"], first_token) if hidden.ndim == 3 else unit(hidden)
    similarities = (vectors @ vectors.T).tolist()
    if asked.as_json:
        _print_json({"inputs": asked.inputs, "vectors": vectors.tolist(), "cosine": similarities})
        return
    for text, vector in zip(asked.inputs, vectors, strict=True):
        head = " ".join(f"{value:+.4f}" for value in vector[:_HEAD])
        click.echo(f"[{head} …] {len(vector)} numbers  {_short(text)}")
    if len(asked.inputs) > 1:
        click.echo()
        for at, row in enumerate(similarities):
            click.echo(f"{at + 1:>3}  {'  '.join(f'{value:6.3f}' for value in row)}  {_short(asked.inputs[at])}")


def _fill(asked: Asked) -> None:
    import numpy as np

    from runner.models.torch_source import load_tokenizer

    tokenizer = load_tokenizer(asked.model)
    mask = str(tokenizer.mask_token)
    inputs = tuple(re.sub(r"\[mask\]|<mask>", mask, text, flags=re.IGNORECASE) for text in asked.inputs)
    without = next((text for text in inputs if mask not in text), None)
    if without is not None:
        raise UsageError("no-mask", f"no {mask} stands in '{_short(without)}'", f"write {mask} where a word is missing")
    found: list[tuple[str, list[list[tuple[str, float]]]]] = []
    for text in inputs:
        encoded = encode(asked.model, (text,))
        places = np.flatnonzero(encoded["input_ids"][0] == tokenizer.mask_token_id)
        if len(places) < text.count(mask):
            raise UsageError("text-too-long", f"{mask} stands beyond what the model reads of a text", "shorten the text")
        rows = _softmax(next(iter(_run(asked, encoded).values()))[0][places])
        choices = [[(tokenizer.decode([int(at)]).strip(), float(row[at])) for at in _best(row)] for row in rows]
        found.append((text, choices))
    if asked.as_json:
        _print_json([{"input": text, "masks": words} for text, words in found])
        return
    for text, masks in found:
        for words in masks:
            for word, share in words:
                click.echo(f"{share:6.1%}  {text.replace(mask, click.style(word, bold=True), 1)}")


def _classify_text(asked: Asked) -> None:
    _tell_classes(asked, next(iter(_run(asked, encode(asked.model, asked.inputs)).values())))


def _classify_image(asked: Asked) -> None:
    from runner.data.local import Raw, process_images

    paths = [_image(Path(text).expanduser()) for text in asked.inputs]
    examples = process_images(Raw(paths, [None] * len(paths)), asked.model)
    for path, (inputs, _) in zip(asked.inputs, examples.items, strict=True):
        one = Asked(asked.model, (path,), *list(asked.__dict__.values())[2:])
        _tell_classes(one, next(iter(_run(asked, {name: array[None] for name, array in inputs.items()}).values())))


def _image(path: Path) -> Path:
    if not path.is_file():
        raise DataUnavailable(f"there is no file '{path}'", "an image model takes the path of an image file")
    return path


def _tell_classes(asked: Asked, logits: Array) -> None:
    from runner.models.inputs import read_facts

    names: Mapping[str, str] = read_facts(asked.model.folder).get("id2label") or {}
    found = [
        (text, [(names.get(str(at), f"class {at}"), float(row[at])) for at in _best(row)])
        for text, row in zip(asked.inputs, _softmax(logits), strict=True)
    ]
    if asked.as_json:
        _print_json([{"input": text, "classes": classes} for text, classes in found])
        return
    for text, classes in found:
        click.echo(_short(text))
        for name, share in classes:
            click.echo(f"{share:7.1%}  {name}")


def encode(model: ModelHandle, texts: Sequence[str]) -> dict[str, Array]:
    """Returns the tokens of texts, int64 [texts, tokens] by input name; says so where one is cut to the model's length."""
    import numpy as np

    from runner.models.inputs import longest_text
    from runner.models.torch_source import load_tokenizer

    tokenizer = load_tokenizer(model)
    longest = longest_text(tokenizer, model.folder)
    for text in texts:
        tokens = len(tokenizer(text, verbose=False)["input_ids"])
        if tokens > longest:
            click.echo(f"{tokens} tokens are cut to the {longest} that the model takes: '{_short(text)}'", err=True)
    encoded = tokenizer(list(texts), return_tensors="np", padding=True, truncation=True, max_length=longest)
    return {name: np.asarray(array, dtype=np.int64) for name, array in encoded.items()}


def _run(asked: Asked, inputs: Mapping[str, Array]) -> dict[str, Array]:
    from runner.evaluation.forward import open_forward, outputs_of

    return outputs_of(open_forward(asked.model, asked.threads, asked.provider), inputs)


def _best(row: Array) -> list[int]:
    return [int(at) for at in row.argsort()[::-1][:BEST]]


def _softmax(logits: Array) -> Array:
    import numpy as np

    raised: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Array = raised / raised.sum(axis=-1, keepdims=True)
    return shares


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"


def _print_json(data: Any) -> None:
    click.echo(json.dumps(data, ensure_ascii=False, indent=2))


_TASKS: dict[str, Callable[[Asked], None]] = {
    "feature-extraction": _embed,
    "sentence-similarity": _embed,
    "fill-mask": _fill,
    "text-classification": _classify_text,
    "sequence-classification": _classify_text,
    "image-classification": _classify_image,
    "image-feature-extraction": show_features,
    "text-to-image": draw,
    ZERO_SHOT: rank_labels,
}
