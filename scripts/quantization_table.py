"""Makes SmolLM2 in every quantisation scheme and measures each: bits, size, perplexity, decode speed. See docs/quantization.md.

    python scripts/quantization_table.py [--model NAME=FOLDER ...] [--only SCHEME ...] [--rounds 5] [--into FILE]

Every model is made by the runner itself, so finished ones come from its store, and what is measured already is kept in the
results file until the model changes. Speeds are taken at the end, all schemes in turn. SmolLM2's published weights lie on
a 4-bit grid (asymmetric, blocks of 32) that flatters schemes with the same grid; the second column has them moved off it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from runner.bench.environment import OtherLoad, describe
from runner.catalog.find import find
from runner.engine.request import Request
from runner.engine.run import execute, plan_run
from runner.errors import RecipeError
from runner.evaluation.perplexity import perplexity, token_windows
from runner.evaluation.subject_process import SubjectProcess
from runner.models.files import read_graph
from runner.models.handle import ModelHandle
from runner.passes.table import options_of
from runner.recipe.load import load_config
from runner.targets.target import TARGETS, session_threads

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "smollm" / "smollm2-135m-instruct"
RESULTS = ROOT / "docs" / "quantization.json"
REFERENCE = "fp32"
PUBLISHED, MOVED = "SmolLM2-135M", "SmolLM2-135M, moved"
WINDOWS, WINDOW_TOKENS = 24, 256
PROMPT_TOKENS, NEW_TOKENS = 128, 64
MOVE = 0.2  # standard deviation, in steps of a 4-bit grid of blocks of 32

_TEXT = {"data_config": "calibration"}
_HEAD = {"type": "Rtn", "bits": 8, "group_size": 32, "lm_head": True, "embeds": True}
_PACK = {"type": "ModelBuilder", "precision": "int4", "int4_accuracy_level": 4}
_FLOAT = {"type": "ModelBuilder", "precision": "fp32"}


def _chain(*steps: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The steps, then an 8-bit head that the embedding shares: what differs between schemes is the decoder's layers."""
    return (*steps, _HEAD, _PACK)


def _grid(bits: int, group_size: int, sym: bool = False) -> dict[str, Any]:
    return {"bits": bits, "group_size": group_size, "sym": sym}


def _mixed(algorithm: str, **options: Any) -> dict[str, Any]:
    return {"type": "SelectiveMixedPrecision", "algorithm": algorithm, **options}


def _builder(**options: Any) -> dict[str, Any]:
    return {**_PACK, **options}


# Name -> the steps that make it. Names say method, group size and, where it has no zero points, "sym".
SCHEMES: dict[str, tuple[dict[str, Any], ...]] = {
    REFERENCE: (_FLOAT,),
    "int8": ({"type": "ModelBuilder", "precision": "int8", "extra_options": {"shared_embeddings": True}},),
    "builder default 32 sym": (_PACK,),
    "builder k_quant 32": (_builder(int4_algo_config="k_quant"),),
    "builder k_quant_mixed 32": (_builder(int4_algo_config="k_quant_mixed"),),
    "rtn 32": _chain({"type": "Rtn", **_grid(4, 32)}),
    "rtn 64": _chain({"type": "Rtn", **_grid(4, 64)}),
    "rtn 64 sym": _chain({"type": "Rtn", **_grid(4, 64, sym=True)}),
    "awq 64": _chain({"type": "Awq", **_grid(4, 64), **_TEXT}),
    "gptq 32": _chain({"type": "Gptq", **_grid(4, 32), **_TEXT}),
    "gptq 64": _chain({"type": "Gptq", **_grid(4, 64), **_TEXT}),
    "gptq 64 sym": _chain({"type": "Gptq", **_grid(4, 64, sym=True), **_TEXT}),
    "gptq 128": _chain({"type": "Gptq", **_grid(4, 128), **_TEXT}),
    "gptq 128 sym": _chain({"type": "Gptq", **_grid(4, 128, sym=True), **_TEXT}),
    "quarot + gptq 64": _chain({"type": "QuaRot"}, {"type": "Gptq", **_grid(4, 64), **_TEXT}),
    "k_quant_mixed + rtn 64": _chain(_mixed("k_quant_mixed"), {"type": "Rtn", **_grid(4, 64)}),
    "k_quant_mixed + gptq 64": _chain(_mixed("k_quant_mixed"), {"type": "Gptq", **_grid(4, 64), **_TEXT}),
    "k_quant_mixed + gptq 128": _chain(_mixed("k_quant_mixed"), {"type": "Gptq", **_grid(4, 128), **_TEXT}),
    "kld_gradient + gptq 64": _chain(
        _mixed("kld_gradient", ratio=0.8, **_grid(4, 64), **_TEXT), {"type": "Gptq", **_grid(4, 64), **_TEXT}
    ),
    "graph rtn 32": (_FLOAT, {"type": "OnnxBlockWiseRtnQuantization", "block_size": 32, "accuracy_level": 4}),
    "graph k_quant 32": (_FLOAT, {"type": "OnnxKQuantQuantization", "block_size": 32, "accuracy_level": 4}),
    "graph hqq 32": (_FLOAT, {"type": "OnnxHqqQuantization", "block_size": 32}),
}


@dataclass(frozen=True)
class Subject:
    """One scheme of one model, made.

    Attributes:
        name: of the scheme.
        model: the folder for onnxruntime-genai.
        fingerprint: identity of the folder's content.
    """

    name: str
    model: ModelHandle
    fingerprint: str


def main() -> None:
    """Makes, measures, writes the results file and prints what it wrote."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER", help="one more transformers folder")
    parser.add_argument("--only", action="append", metavar="SCHEME", help="measure these schemes; the reference always is")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every scheme at decoding; 0 leaves speeds as they are")
    parser.add_argument("--into", type=Path, default=RESULTS, help="the results file")
    asked = parser.parse_args()
    names = [name for name in SCHEMES if not asked.only or name in {REFERENCE, *asked.only}]
    console = Console(stderr=True)
    results = json.loads(asked.into.read_text(encoding="utf-8")) if asked.into.is_file() else {"models": {}}
    with tempfile.TemporaryDirectory(prefix="quantization-") as scratch:
        speed: list[Subject] = []
        prompt: list[int] = []
        failed: list[str] = []
        for title, folder in _models(asked.model, Path(scratch)):
            rows = results["models"].setdefault(title, {})
            windows, opening = _texts(folder)
            prompt = opening if title == MOVED else prompt
            for name in names:
                try:
                    subject = _make(name, title, folder, Path(scratch), console)
                except RecipeError as error:
                    if [one.rule for one in error.problems] == ["group-size"]:
                        console.print(f"{title}: {name}: left out: {error.problems[0].cause}")
                        continue
                    failed.append(f"{title}: {name}: {error}")
                    rows.pop(name, None)
                    continue
                if rows.get(name, {}).get("fingerprint") != subject.fingerprint:
                    rows[name] = _judge(subject, windows)
                    _write(results, asked.into)
                console.print(f"{title}: {name}: perplexity {rows[name]['perplexity']:.3f}")
                speed += [subject] if title == MOVED else []
        if asked.rounds:
            results["speed"] = _speeds(speed, prompt, asked.rounds, console)
    _write(results, asked.into)
    if failed:
        sys.exit("\n".join(["these were not made:", *failed]))


def _write(results: dict[str, Any], into: Path) -> None:
    results["date"] = time.strftime("%Y-%m-%d")
    into.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


# --- models ----------------------------------------------------------------------------------------------------------


def _models(more: Sequence[str], scratch: Path) -> Iterator[tuple[str, Path]]:
    """Yields name and transformers folder of the moved model, the published one, and those that were asked for."""
    found = find(str(RECIPE), ROOT / "recipes", "cpu-fp32")
    request = Request(load_config([found.config], options_of), found.info, "cpu-fp32", output_dir=scratch / "fetched")
    published = execute(plan_run(request, lambda _: None), lambda _: None).source.folder
    yield MOVED, _moved(published, scratch / "moved")
    yield PUBLISHED, published
    for text in more:
        name, _, folder = text.partition("=")
        yield name, Path(folder)


def _moved(source: Path, folder: Path) -> Path:
    """Writes the model with Gaussian noise on the decoder's matrices, a fraction of a 4-bit step wide; returns its folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for layer in model.model.layers.modules():
        if isinstance(layer, torch.nn.Linear):
            blocks = layer.weight.data.view(-1, 32)
            step = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / 15
            blocks += torch.randn(blocks.shape, generator=generator) * step * MOVE
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def _texts(folder: Path) -> tuple[list[list[int]], list[int]]:
    """Returns the windows that perplexity is measured on, and the prompt that is decoded from."""
    from runner.models.torch_source import load_tokenizer

    tokenizer = load_tokenizer(ModelHandle("hf", folder, None, "text-generation"))
    text = (RECIPE / "sample_data" / "held_out.txt").read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    prefix = [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []
    return token_windows(ids, prefix, WINDOWS, WINDOW_TOKENS), [*prefix, *ids][:PROMPT_TOKENS]


def _make(name: str, title: str, folder: Path, scratch: Path, console: Console) -> Subject:
    """Runs the scheme's steps on a model."""
    config = scratch / f"{title}-{name}.json"
    calibration = scratch / "calibration.txt"
    calibration.write_bytes((RECIPE / "sample_data" / "calibration.txt").read_bytes())
    data = {
        "name": "calibration",
        "type": "HuggingfaceContainer",
        "load_dataset_config": {"type": "sentences", "path": calibration.name},
        "pre_process_data_config": {"type": "tokenize", "max_length": 1024},
    }
    steps = {f"step{at}": step for at, step in enumerate(SCHEMES[name])}
    document = {
        "input_model": {"type": "HfModel", "model_path": str(folder), "task": "text-generation"},
        "data_configs": [data],
        "passes": steps,
        "output_dir": str(scratch / f"{title}-{name}"),
    }
    config.write_text(json.dumps(document), encoding="utf-8")
    plan = plan_run(Request(load_config([config], options_of)), lambda _: None)
    console.print(f"{title}: {name}: {' > '.join(step.pass_name for step in plan.steps)}")
    outcome = execute(plan, lambda _: None)
    return Subject(name, outcome.model, plan.steps[-1].fingerprint or "")


# --- measuring -------------------------------------------------------------------------------------------------------


def _judge(subject: Subject, windows: list[list[int]]) -> dict[str, Any]:
    """Returns what does not depend on how busy the machine is."""
    with SubjectProcess(subject.model, subject.name) as process:
        process.load(session_threads(), TARGETS["cpu"].provider, generates=True)
        losses = process.ask("losses", windows=windows)["losses"]
    graph = subject.model.path
    return {
        "fingerprint": subject.fingerprint,
        "passes": SCHEMES[subject.name],
        "perplexity": round(perplexity(losses, windows).value, 4),
        "bits": round(bits_of_weight(graph), 3),
        "bytes": sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*")),
    }


def bits_of_weight(graph: Path) -> float:
    """Returns the bits that a weight of the decoder takes, with scales and zero points, without head and embedding."""
    from onnx import helper, numpy_helper

    model = read_graph(graph)
    sizes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    stored = weights = 0
    for node in model.graph.node:
        if "lm_head" in node.name:
            continue
        if node.op_type == "MatMulNBits":
            shape = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            weights += shape["K"] * shape["N"]
            stored += sum(sizes[name].nbytes for name in node.input[1:4] if name)
        elif node.op_type == "MatMul" and node.input[1] in sizes:
            weights += sizes[node.input[1]].size
            stored += sizes[node.input[1]].nbytes
    return 8 * stored / weights


def _speeds(subjects: Sequence[Subject], prompt: list[int], rounds: int, console: Console) -> dict[str, Any]:
    """Decodes with every scheme in turn, each in a process of its own, round after round."""
    samples: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    busy = []
    for number in range(rounds):
        for subject in subjects:
            console.print(f"round {number + 1} of {rounds}: {subject.name}")
            with SubjectProcess(subject.model, subject.name) as process:
                process.load(session_threads(), TARGETS["cpu"].provider, generates=True)
                process.ask("generate", prompt=prompt, new_tokens=1)
                others = OtherLoad(process.pid)
                seconds = process.ask("generate", prompt=prompt, new_tokens=NEW_TOKENS)["seconds"]
                busy.append(others.share())
            samples[subject.name].append(round((len(seconds) - 1) / (seconds[-1] - seconds[0]), 1))
    return {
        "rounds": rounds,
        "environment": describe(median(busy)).model_dump(mode="json"),
        "tokens_per_second": {name: {"median": median(taken), "samples": taken} for name, taken in samples.items()},
    }


if __name__ == "__main__":
    main()
