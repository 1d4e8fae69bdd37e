"""Makes the inputs that both sides get, once, in a process of its own. Run as ``python -m runner.bench.inputs``.

Neither side tokenizes or decodes images itself: both read the same arrays, and neither holds a processor's memory.
The request comes as one JSON object on standard input, the answer goes out the same way.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from runner.bench.inputs_record import Case, Inputs, Request
from runner.bench.labelled_pictures import captions, classes_of, labelled_pictures, picture_batches
from runner.bench.scenarios import (
    BATCH,
    CLASSIFIERS,
    EMBEDDINGS,
    MASKED_WORDS,
    PROMPT_TOKENS,
    TEXT_TOKENS,
    ZERO_SHOT,
    draws,
    generates,
    speaks,
    transcribes,
)
from runner.bench.sizes import batches_of, texts_of
from runner.data.batches import open_data
from runner.data.graded_pairs import graded_pairs
from runner.data.sound import Clip, read_sound
from runner.data.speech_dataset import names_dataset, speech_dataset
from runner.data.transcribed import transcribed
from runner.errors import DataUnavailable
from runner.evaluation.perplexity import token_windows
from runner.evaluation.probe_drawing import PROMPTS
from runner.evaluation.subject import failure
from runner.models.handle import ModelHandle
from runner.models.inputs import (
    IMAGE_TASKS,
    TEXT_TASKS,
    longest_text,
    made_up,
    model_inputs,
    pools_first_token,
    sequence_length,
    source_inputs,
)
from runner.models.sound_windows import SAMPLE_RATE
from runner.models.torch_source import load_tokenizer
from runner.recipe.config import DataComponent, DataConfig

_NOISE_SECONDS = 10
Arrays = Mapping[str, np.ndarray[Any, Any]]


def make_inputs(request: Request) -> Inputs:
    """Returns the inputs for a pair of models.

    Raises:
        DataUnavailable: the recipe names data that is not there or not usable.
        ModelUnavailable: the source has no tokenizer or image processor.
    """
    task = request.source.task or ""
    if speaks(request.source):
        return _language(request)
    if transcribes(request.output, request.source):
        return _speech(request)
    if draws(request.output, request.source):
        return _drawing(request)
    if task in (*CLASSIFIERS, ZERO_SHOT) and (pictures := _labelled_pictures(request)):
        return _labelled(request, pictures)
    if task in IMAGE_TASKS and request.source.kind == "hf":
        return _images(request)
    if task in TEXT_TASKS and request.source.kind == "hf":
        return _texts(request)
    return _made_up(request, "no labelled pictures are named" if task == ZERO_SHOT else "the source is loaded by a script")


def _language(request: Request) -> Inputs:
    tokenizer = load_tokenizer(request.source)
    evaluation = request.evaluation
    notes: list[str] = []
    windows: list[list[int]] = []
    if evaluation.text:
        ids = tokenizer(_read(request.folder, evaluation.text), add_special_tokens=False, verbose=False)["input_ids"]
        prefix, _ = _frame(tokenizer)
        windows = token_windows(ids, prefix, evaluation.windows, evaluation.window_tokens)
        prompt = [*prefix, *ids][:PROMPT_TOKENS]
    else:
        notes.append("perplexity is not measured: info.yml names no evaluation.text")
        ids = made_up(source_inputs(request.source), request.source.folder, {"sequence": PROMPT_TOKENS})["input_ids"][0]
        prompt = [int(token) for token in ids]
    if generates(request.output, request.source):
        return Inputs(prompt=tuple(prompt), windows=_frozen(windows), notes=tuple(notes))
    row = np.asarray([prompt], dtype=np.int64)
    feed = {"input_ids": row, "attention_mask": np.ones_like(row)}
    return Inputs(
        windows=_frozen(windows),
        single=_save(request, "single", feed),
        batch=_save(request, "batch", {name: np.repeat(array, BATCH, axis=0) for name, array in feed.items()}),
        about=f"{row.shape[1]} tokens",
        notes=tuple(notes),
    )


def _frozen(windows: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(ids) for ids in windows)


def _texts(request: Request) -> Inputs:
    evaluation = request.evaluation
    if not evaluation.sentences:
        return _made_up(request, "info.yml names no evaluation.sentences")
    tokenizer = load_tokenizer(request.source)
    fixed = _fixed_length(request.output)
    text = " ".join(_read(request.folder, evaluation.sentences).split("\n"))
    longest = longest_text(tokenizer, request.source.folder)
    standard = fixed or min(TEXT_TOKENS, longest)

    def rows_of(count: int, length: int) -> Arrays:
        return _rows(tokenizer, text, count, length)

    rows = rows_of(BATCH, standard)
    grid = texts_of(rows_of, standard, longest, fixed, request.sizes)
    shape: dict[str, Any] = {"padding": "max_length", "max_length": fixed} if fixed else {}
    batches = _open(request, "sentences", evaluation.sentences, "tokenize", shape)
    mask_token = tokenizer.mask_token_id if request.source.task in MASKED_WORDS else None
    if mask_token is not None:
        batches = (_masked(batch, tokenizer.all_special_ids, mask_token) for batch in batches)
    pairs, scores = _pairs(request, tokenizer, shape)
    return Inputs(
        pairs=pairs,
        scores=scores,
        single=_save(request, "single", {name: array[:1] for name, array in rows.items()}),
        batch=_save(request, "batch", rows),
        grid=tuple(Case(_save(request, f"{n}x{length}", feed), n, length) for (n, length), feed in grid.items()),
        answers=tuple(_save(request, f"answers-{at}", batch) for at, batch in enumerate(batches)),
        mask_token=mask_token,
        first_token=pools_first_token(request.source.folder),
        about=f"{rows['input_ids'].shape[1]} tokens",
    )


def _pairs(request: Request, tokenizer: Any, shape: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Returns the files with the tokens of graded pairs of sentences, and the grades; both empty where there are none."""
    named = request.evaluation.pairs
    if not named or request.source.task not in EMBEDDINGS:
        return (), ()
    pairs = graded_pairs(request.folder / named)
    longest = longest_text(tokenizer, request.source.folder)
    files = []
    for start in range(0, len(pairs), BATCH):
        chunk = pairs[start : start + BATCH]
        texts = [*(pair.first for pair in chunk), *(pair.second for pair in chunk)]
        encoded = tokenizer(
            texts, **{"return_tensors": "np", "padding": True, "truncation": True, "max_length": longest, **shape}
        )
        arrays = {name: np.asarray(array, np.int64) for name, array in encoded.items()}
        files.append(_save(request, f"pairs-{start // BATCH}", arrays))
    return tuple(files), tuple(pair.score for pair in pairs)


def _speech(request: Request) -> Inputs:
    """The recipe's clips with their transcripts; noise, which nobody transcribes, where it names none."""
    named = request.evaluation.speech
    clips = _clips(request, named) if named else []
    sounds = [read_sound(clip.path) for clip in clips]
    notes: tuple[str, ...] = ()
    if not sounds:
        notes = ("word error rate is not measured: info.yml names no evaluation.speech",)
        noise = np.random.default_rng(0).standard_normal(_NOISE_SECONDS * SAMPLE_RATE)
        sounds = [(0.1 * noise).astype(np.float32)]
    seconds = sum(len(sound) for sound in sounds) / SAMPLE_RATE
    return Inputs(
        sounds=_save(request, "sounds", {f"{at:04}": sound for at, sound in enumerate(sounds)}),
        transcripts=tuple(clip.text for clip in clips),
        sound_seconds=seconds,
        about=f"{len(sounds)} clips, {seconds:.0f} s",
        notes=notes,
    )


def _clips(request: Request, named: str) -> list[Clip]:
    folder = request.folder / named
    return speech_dataset(named, request.scratch) if names_dataset(named) and not folder.exists() else transcribed(folder)


def _drawing(request: Request) -> Inputs:
    """The recipe's prompts; those of the receipt's check where it names none."""
    named = request.evaluation.prompts
    if not named:
        return Inputs(prompts=PROMPTS, notes=("prompts are made up: info.yml names no evaluation.prompts",))
    prompts = tuple(line.strip() for line in _read(request.folder, named).splitlines() if line.strip())
    if not prompts:
        raise DataUnavailable(f"the evaluation data '{named}' holds no prompt", "write one prompt a line")
    return Inputs(prompts=prompts)


def _labelled_pictures(request: Request) -> list[tuple[Path, str]]:
    named = request.evaluation.images
    return labelled_pictures(request.folder / named) if named and request.source.kind == "hf" else []


def _labelled(request: Request, pictures: Sequence[tuple[Path, str]]) -> Inputs:
    """Pictures whose class is known; a model of pictures and texts chooses among captions of the classes."""
    source, zero_shot = request.source, request.source.task == ZERO_SHOT
    names = sorted({name for _, name in pictures})
    numbers = {name: at for at, name in enumerate(names)} if zero_shot else classes_of(source, names)
    texts = captions(source, names) if zero_shot else {}
    answers, first = [], None
    for at, pixels in enumerate(picture_batches(source, [file for file, _ in pictures])):
        first = first or pixels
        answers.append(_save(request, f"answers-{at}", {**texts, **pixels}))
    batch = {name: np.resize(array, (BATCH, *array.shape[1:])) for name, array in (first or {}).items()}
    size = "x".join(str(axis) for axis in batch["pixel_values"].shape[2:])
    return Inputs(
        single=_save(request, "single", {**texts, **{name: array[:1] for name, array in batch.items()}}),
        batch=_save(request, "batch", {**texts, **batch}),
        grid=_picture_grid(request, batch, texts),
        answers=tuple(answers),
        truth=tuple(numbers[name] for _, name in pictures),
        about=f"{size} pixels" + (f" and {len(names)} captions" if zero_shot else ""),
        notes=(f"{len(pictures)} pictures of {len(names)} classes",),
    )


def _images(request: Request) -> Inputs:
    if not request.evaluation.images:
        return _made_up(request, "info.yml names no evaluation.images")
    batches = list(_open(request, "images", request.evaluation.images, "process_images", {}))
    first = {name: np.resize(array, (BATCH, *array.shape[1:])) for name, array in batches[0].items()}
    return Inputs(
        single=_save(request, "single", {name: array[:1] for name, array in first.items()}),
        batch=_save(request, "batch", first),
        grid=_picture_grid(request, first, {}),
        answers=tuple(_save(request, f"answers-{at}", batch) for at, batch in enumerate(batches)),
        about="x".join(str(axis) for axis in next(iter(first.values())).shape[2:]) + " pixels",
        first_token=pools_first_token(request.source.folder),
    )


def _picture_grid(request: Request, pixels: Arrays, texts: Arrays) -> tuple[Case, ...]:
    batches = batches_of(pixels, request.sizes)
    return tuple(Case(_save(request, f"{size}-pictures", {**texts, **feed}), size) for size, feed in batches.items())


def _made_up(request: Request, why: str) -> Inputs:
    """Random values of the model's own shapes: good for time, and for telling whether both sides compute the same."""
    output, folder = request.output, request.source.folder
    inputs = model_inputs(output if output.kind == "onnx" else request.source)
    axes = {str(one.shape[0]) for one in inputs if one.shape and isinstance(one.shape[0], str)}
    text = {"sequence": sequence_length(folder, TEXT_TOKENS)}
    single = made_up(inputs, folder, text)
    batch = made_up(inputs, folder, {**text, **dict.fromkeys(axes, BATCH)})
    return Inputs(
        single=_save(request, "single", single),
        batch=_save(request, "batch", batch),
        answers=tuple(_save(request, f"answers-{at}", made_up(inputs, folder, text, seed=at + 1)) for at in range(BATCH)),
        about=" and ".join("x".join(str(axis) for axis in array.shape[1:]) for array in single.values()),
        notes=(f"answers are compared on made-up inputs: {why}",),
    )


def _open(request: Request, kind: str, path: str, process: str, parameters: Mapping[str, Any]) -> Iterable[Arrays]:
    config = DataConfig(
        name="evaluation",
        load_dataset_config=DataComponent(type=kind, params={"path": path}),
        pre_process_data_config=DataComponent(type=process, params=dict(parameters)),
        dataloader_config=DataComponent(params={"batch_size": BATCH}),
    )
    return open_data(config, folder=request.folder, model=request.source, smoke=False, script_allowed=False)


def _read(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except OSError as error:
        raise DataUnavailable(
            f"the evaluation data '{name}' cannot be read: {error.strerror}", "see evaluation in info.yml"
        ) from None


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Returns the special tokens that the tokenizer puts before and behind a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    first = special.index(0)
    last = len(special) - special[::-1].index(0)
    return ids[:first], ids[last:]


def _rows(tokenizer: Any, text: str, count: int, length: int) -> Arrays:
    """Returns `count` rows of exactly `length` tokens of the text, which starts anew when it ends.

    Raises:
        DataUnavailable: there is no room for a word between the tokenizer's special tokens.
    """
    before, behind = _frame(tokenizer)
    least = len(before) + len(behind) + 1
    if length < least:
        raise DataUnavailable(f"a text has {least} tokens at least, and {length} are asked for", "give a greater --length")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    body: np.ndarray[Any, Any] = np.resize(np.asarray(ids, dtype=np.int64), (count, length - len(before) - len(behind)))
    frame = [np.tile(np.asarray(part, dtype=np.int64), (count, 1)) for part in (before, behind)]
    rows = np.concatenate([frame[0], body, frame[1]], axis=1)
    arrays = {"input_ids": rows, "attention_mask": np.ones_like(rows)}
    if "token_type_ids" in tokenizer.model_input_names:
        arrays["token_type_ids"] = np.zeros_like(rows)
    return arrays


def _masked(batch: Arrays, special: Sequence[int], mask_token: int) -> Arrays:
    """Returns the batch with the middle word of every row put behind the mask token."""
    ids = batch["input_ids"].copy()
    for row in ids:
        words = np.flatnonzero(~np.isin(row, special))
        if len(words):
            row[words[len(words) // 2]] = mask_token
    return {**batch, "input_ids": ids}


def _fixed_length(output: ModelHandle) -> int | None:
    if output.kind != "onnx":
        return None
    ids = next((one for one in model_inputs(output) if one.name == "input_ids"), None)
    length = ids.shape[1] if ids and len(ids.shape) > 1 else None
    return length if isinstance(length, int) else None


def _save(request: Request, name: str, arrays: Arrays) -> str:
    path = request.scratch / f"{name}.npz"
    np.savez(path, **dict(arrays))  # type: ignore[arg-type]
    return str(path)


def main() -> None:
    """Takes one request and answers it."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        answer = asdict(make_inputs(Request.parse(sys.stdin.readline())))
    except Exception as error:  # told to the parent; the traceback is for the log
        traceback.print_exc()
        answer = {"failed": failure(error)}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
