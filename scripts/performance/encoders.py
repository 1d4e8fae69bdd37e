"""Encoders, one input at a time: fp32 against the best of the peers, int8 against PyTorch with what it keeps of the answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from performance.contest import PeerFailed, Side, Terms, loaded, ratio, take_turns
from performance.models import by_recipe, random_encoder
from performance.peers import OLIVE_AI, OPTIMUM, environment, script
from performance.record import Row
from runner.models.components import MANIFEST
from runner.models.handle import ModelHandle

TEXT_TOKENS, TEXTS, CAPTIONS, CAPTION_TOKENS = 128, 8, 10, 12
RUNS = 10  # of a side in its turn
# How `recipe bench` opens every graph on CPU (runner/models/session.py).
SESSION = {"optimization.disable_specified_optimizers": "SkipLayerNormFusion"}
TORCH, COMPILED, OURS, PLAIN, INT8 = "PyTorch", "torch.compile", "ours fp32", "ours fp32, default session", "ours int8"
PEERS = (TORCH, COMPILED, "optimum O2", "optimum O3", "Olive")
MAKING_SECONDS = 1200.0
ROOT = Path(__file__).resolve().parents[2]
LEAST_COSINE = 0.99  # below it no speed counts
Feed = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Encoder:
    """One model.

    Attributes:
        name: what the table calls it.
        recipe: its recipe; the default variant is fp32, `cpu-int8-dynamic` int8.
        task: Hugging Face's name.
        auto_class: transformers' class for the task.
        output: what is compared with PyTorch's.
        olive_type: `model_type` of Olive's OrtTransformersOptimization.
        random: the model whose shape is taken, with random weights; None for real ones.
        olive_inputs: `io_config` for Olive, where it does not know the model's inputs.
    """

    name: str
    recipe: str
    task: str
    auto_class: str
    output: str
    olive_type: str
    random: str | None = None
    olive_inputs: Mapping[str, Any] | None = None


_INT8 = "cpu-int8-dynamic"  # variant that every recipe of an encoder has
_FEATURES, _HIDDEN = "feature-extraction", "last_hidden_state"
_DINOV2 = {
    "input_names": ["pixel_values"],
    "input_shapes": [[1, 3, 224, 224]],
    "output_names": ["last_hidden_state", "pooler_output"],
    "dynamic_axes": {"pixel_values": {"0": "batch"}},
}
ENCODERS = (
    Encoder("MiniLM-L6", "all-minilm-l6-v2", _FEATURES, "AutoModel", _HIDDEN, "bert"),
    Encoder(
        "BERT base", "bert-base-uncased", "fill-mask", "AutoModelForMaskedLM", "logits", "bert",
        "google-bert/bert-base-uncased",
    ),
    Encoder("DINOv2 small", "dinov2-small", "image-feature-extraction", "AutoModel", _HIDDEN, "vit", None, _DINOV2),
    Encoder(
        "ViT base", "vit-base-patch16-224", "image-classification", "AutoModelForImageClassification", "logits", "vit",
        "google/vit-base-patch16-224",
    ),
    Encoder(
        "CLIP ViT-B/32", "clip-vit-base-patch32", "zero-shot-image-classification", "AutoModel", "logits_per_image", "clip",
        "openai/clip-vit-base-patch32",
    ),
)  # fmt: skip


def cases() -> list[str]:
    """Returns the names of the models."""
    return [one.name for one in ENCODERS]


def recipes_of(case: str) -> Sequence[str]:
    """Returns the recipes of a model, in fp32 and in 8 bits."""
    recipe = next(one.recipe for one in ENCODERS if one.name == case)
    return recipe, f"{recipe}/{_INT8}"


def measure(case: str, cache: Path, terms: Terms) -> list[Row]:
    """Makes all sides of a model, lets them take turns, and returns its fp32 row and its int8 row.

    Raises:
        RecipeError: a recipe of ours fails.
        PeerFailed: PyTorch fails, or a model of ours does not run.
    """
    encoder = next(one for one in ENCODERS if one.name == case)
    work = cache / "encoders" / encoder.recipe
    work.mkdir(parents=True, exist_ok=True)
    folder = random_encoder(encoder.random, encoder.auto_class, work / "source") if encoder.random else None
    fp32 = by_recipe(encoder.recipe, work / "fp32", folder)
    int8 = by_recipe(f"{encoder.recipe}/{_INT8}", work / "int8", folder)
    source = folder or fp32.source
    sides, failed = _sides(encoder, source, fp32.folder, int8.folder, work, cache, terms.threads)
    judged = _feed(encoder, source, _sentences(encoder))
    np.savez(work / "judged.npz", **judged)  # type: ignore[arg-type]
    timed = judged if "pixel_values" in judged else {name: values[:1] for name, values in judged.items()}
    np.savez(work / "feed.npz", **timed)  # type: ignore[arg-type]
    with loaded(sides, work / "log.txt") as (processes, not_loaded):
        answers = {}
        for name, process in list(processes.items()):
            try:
                process.ask("feed", arrays=str(work / "judged.npz"), into=str(work / f"{name}.npz"))
                answers[name] = _answer(encoder, dict(np.load(work / f"{name}.npz")))
                process.ask("feed", arrays=str(work / "feed.npz"), into=str(work / f"{name}.npz"))
            except (PeerFailed, KeyError) as error:
                not_loaded[name] = f"no output {error}" if isinstance(error, KeyError) else str(error)
                del processes[name]
        told, dropped, busy = take_turns(processes, not_loaded, terms.rounds, "run", {"repeats": RUNS, "clock": terms.clock})
    if missing := [name for name in (TORCH, OURS, INT8) if name in dropped]:
        raise PeerFailed(f"{missing[0]}: {dropped[missing[0]]}")
    values = {name: [median(one["milliseconds"]) for one in turns] for name, turns in told.items()}
    return _rows(encoder, values, answers, {**failed, **dropped}, busy, terms.remark)


def _rows(
    encoder: Encoder,
    values: Mapping[str, Sequence[float]],
    answers: Mapping[str, Any],
    failed: Mapping[str, str],
    busy: float,
    clock: str,
) -> list[Row]:
    medians = {name: median(one) for name, one in values.items()}
    best = min((name for name in PEERS if name in medians), key=lambda name: medians[name])
    cosines = {name: round(_cosine(answers[name], answers[TORCH]), 5) for name in answers}
    weights = ", ".join(one for one in ("random weights" if encoder.random else "real weights", clock) if one)
    told = f"{weights}; cosine to PyTorch: ours {cosines[OURS]}" + "".join(
        f", {name} {cosines[name]}" for name in PEERS[2:] if name in cosines and cosines[name] < 0.9999
    )
    fp32 = {name: one for name, one in medians.items() if name != INT8}
    kept = cosines[INT8]
    return [
        Row(f"{encoder.name} fp32", "ms", fp32, ratio(values[OURS], values[best]), f"ours / {best}", "< 1", failed, told, busy),
        Row(
            f"{encoder.name} int8", "ms", {TORCH: medians[TORCH], INT8: medians[INT8]}, ratio(values[TORCH], values[INT8]),
            "PyTorch / ours", ">= 2.0", {}, f"cosine {kept}, {weights}", busy, kept >= LEAST_COSINE,
        ),
    ]  # fmt: skip


def _answer(encoder: Encoder, outputs: Feed) -> Any:
    """Returns what the model is for, flat: of each text its embedding, the mean over the tokens, as long as the others."""
    answer = outputs[encoder.output].astype(np.float64)
    if encoder.task == _FEATURES:
        pooled = answer.mean(axis=1)
        answer = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return answer.ravel()


def _cosine(one: Any, other: Any) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)) if one.shape == other.shape else 0.0


def _sentences(encoder: Encoder) -> list[str]:
    """Returns the sentences that the recipe is evaluated on; none for random weights, which say nothing of any text."""
    found = sorted((ROOT / "recipes").glob(f"*/{encoder.recipe}/sample_data/sentences.txt"))
    return found[0].read_text(encoding="utf-8").split("\n") if found and not encoder.random else []


def _feed(encoder: Encoder, source: Path, sentences: Sequence[str]) -> Feed:
    """Returns inputs of the model: texts of 128 tokens, a picture, or a picture and ten captions.

    Args:
        encoder: the model.
        source: its transformers folder.
        sentences: what the texts are made of, one behind the other; one of random tokens where there are none.
    """
    random = np.random.default_rng(0)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    picture = {"pixel_values": random.standard_normal((1, 3, 224, 224)).astype(np.float32)}
    if encoder.olive_type == "vit":
        return picture
    if encoder.olive_type == "bert":
        ids = random.integers(1000, config["vocab_size"] - 1, (1, TEXT_TOKENS))
        if sentences:
            ids = np.asarray([_tokens(source, sentences[at::TEXTS]) for at in range(TEXTS)], dtype=np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    ids = random.integers(1000, 40000, (CAPTIONS, CAPTION_TOKENS))
    ids[:, -1] = 49407
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), **picture}


def _tokens(source: Path, sentences: Sequence[str]) -> list[int]:
    """Returns a text of 128 tokens.

    Raises:
        PeerFailed: the sentences are too few for it.
    """
    from runner.models.torch_source import load_tokenizer

    tokenizer = load_tokenizer(ModelHandle("hf", source, None, _FEATURES))
    told = tokenizer(" ".join(sentences), max_length=TEXT_TOKENS, truncation=True)["input_ids"]
    if len(told) < TEXT_TOKENS:
        raise PeerFailed(f"{len(sentences)} sentences make {len(told)} tokens, and {TEXT_TOKENS} are needed")
    return list(told)


# --- the sides -------------------------------------------------------------------------------------------------------


def _sides(
    encoder: Encoder, source: Path, fp32: Path, int8: Path, work: Path, cache: Path, threads: int
) -> tuple[list[Side], dict[str, str]]:
    here = Path(sys.executable)
    module = {"kind": "module", "folder": str(source), "auto_class": encoder.auto_class, "threads": threads}

    def graphs(name: str, folder: Path, config: Mapping[str, str]) -> Side:
        paths = [str(folder / file) for file in _files(folder)]
        return Side(name, here, {"kind": "graphs", "paths": paths, "threads": threads, "config": dict(config)})

    sides = [
        Side(TORCH, here, {**module, "compiled": False}),
        Side(COMPILED, here, {**module, "compiled": True}),
        graphs(OURS, fp32, SESSION),
        graphs(PLAIN, fp32, {}),
        graphs(INT8, int8, SESSION),
    ]
    failed = {}
    for name, make in _makers(encoder, source, cache):
        try:
            sides.append(graphs(name, _made(work / name.replace(" ", "-"), make), {}))
        except PeerFailed as error:
            failed[name] = str(error)
    return sides, failed


def _files(folder: Path) -> list[str]:
    manifest = folder / MANIFEST
    if manifest.is_file():
        return list(json.loads(manifest.read_text(encoding="utf-8"))["components"])
    return ["model.onnx"]


def _makers(encoder: Encoder, source: Path, cache: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    for level in ("O2", "O3"):
        yield f"optimum {level}", lambda folder, level=level: _by_optimum(encoder, source, level, folder, cache)
    yield "Olive", lambda folder: _by_olive(encoder, source, folder, cache)


def _made(folder: Path, make: Callable[[Path], None]) -> Path:
    if not (folder / "model.onnx").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        make(folder)
        if not (folder / "model.onnx").is_file():
            raise PeerFailed("it wrote no model.onnx")
    return folder


def _by_optimum(encoder: Encoder, source: Path, level: str, folder: Path, cache: Path) -> None:
    command = [script(environment(OPTIMUM, cache), "optimum-cli"), "export", "onnx", "--model", str(source)]
    task = "feature-extraction" if encoder.task == "image-feature-extraction" else encoder.task  # optimum's name of it
    _run([*command, "--task", task, "--optimize", level, str(folder)], cache)


def _by_olive(encoder: Encoder, source: Path, folder: Path, cache: Path) -> None:
    config = folder.with_suffix(".json")
    passes = {
        "convert": {"type": "OnnxConversion"},
        "fuse": {"type": "OrtTransformersOptimization", "model_type": encoder.olive_type},
    }
    model: dict[str, Any] = {"type": "HfModel", "model_path": str(source), "task": encoder.task}
    if encoder.olive_inputs:
        model["io_config"] = encoder.olive_inputs
    config.write_text(json.dumps({"input_model": model, "passes": passes, "output_dir": str(folder)}), encoding="utf-8")
    _run([script(environment(OLIVE_AI, cache), "olive"), "run", "--config", str(config)], cache)


def _run(command: Sequence[str], folder: Path) -> None:
    told = {"OLIVE_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **told}, capture_output=True, text=True, check=False, timeout=MAKING_SECONDS
    )
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise PeerFailed(f"{Path(command[0]).name}: {lines[-1] if lines else f'exit {done.returncode}'}")
