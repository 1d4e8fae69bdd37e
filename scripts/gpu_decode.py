"""Where the time of a decoded token goes, how near it comes to the memory's limit, and what was tried.

    python scripts/gpu_decode.py --work FOLDER PIECE...

PIECE is one of gpu_suite.py's that left a language model in FOLDER/models. Prints JSON in its last line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from runner.errors import RecipeError
from runner.evaluation.placement import placement
from runner.models.files import read_graph
from runner.models.generation import GenerationSession, genai_config
from runner.models.handle import ModelHandle

PROMPT, TOKENS, REPEATS = 128, 128, 3
KERNELS = 10  # that are told by name
# What is tried on a finished model: options of the decoder's provider, and of its session.
TRIED: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "without CUDA graphs": ({"enable_cuda_graph": "0"}, {}),
    "with CUDA graphs": ({"enable_cuda_graph": "1"}, {}),
    "with CUDA graphs and fpA_intB products": ({"enable_cuda_graph": "1"}, {"ep.cuda.fpa_intb_gemm": "1"}),
}


def main() -> None:
    """Prints, for every model, its bytes a token, the times of what was tried, and the profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true", help="few tokens")
    parser.add_argument("pieces", nargs="+", metavar="PIECE")
    asked = parser.parse_args()
    tokens = 8 if asked.smoke else TOKENS
    made = [name for name in asked.pieces if (asked.work / "models" / name / "genai_config.json").is_file()]
    if not made:
        sys.exit(f"no language model of {', '.join(asked.pieces)} is in {asked.work / 'models'}: make it with gpu_suite.py")
    print(json.dumps({name: _study(asked.work / "models" / name, asked.work / "tried", tokens) for name in made}))


def _study(model: Path, scratch: Path, tokens: int) -> dict[str, Any]:
    told: dict[str, Any] = {"bytes_a_token": bytes_a_token(model), "tried": {}}
    for name, (provider_options, session_options) in TRIED.items():
        if session_options and "int4" not in model.name:
            continue
        folder = scratch / f"{model.name}-{name.replace(' ', '-')}"
        _with_options(model, folder, provider_options, session_options)
        try:
            told["tried"][name] = _seconds_a_token(folder, tokens)
        except RecipeError as error:
            told["tried"][name] = {"failed": error.problems[0].cause}
        shutil.rmtree(folder)
    provider = "CUDAExecutionProvider" if _provider_options(genai_config(model)) else "CPUExecutionProvider"
    placed = placement(ModelHandle("genai", model), os.cpu_count() or 1, provider)
    return {**told, "profile": placed, "kernels": _kernels(model, tokens)}


def _kernels(model: Path, tokens: int) -> dict[str, float]:
    """Returns the seconds a token that each kernel of the GPU takes, and all of them as `total`; empty without a GPU.

    CUPTI, through which torch's profiler hears of kernels, tells of those of the whole process.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return {}
    torch.zeros(1, device="cuda")
    session = GenerationSession(model, os.cpu_count() or 1)
    list(_times(session, tokens))
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        list(_times(session, tokens))
    found = {one.key: one.self_device_time_total / 1e6 / tokens for one in seen.key_averages() if one.self_device_time_total}
    slowest = sorted(found.items(), key=lambda one: -one[1])[:KERNELS]
    return {"total": sum(found.values()), **{name[:90]: seconds for name, seconds in slowest}}


def bytes_a_token(model: Path) -> int:
    """Returns the bytes of weights that a token reads: all but tables in which rows are looked up."""
    graph = read_graph(model / genai_config(model)["model"]["decoder"]["filename"], weights=False).graph
    looked_up = {node.input[0] for node in graph.node if "Gather" in node.op_type}
    read = {name for node in graph.node if "Gather" not in node.op_type for name in node.input}
    return sum(_size(one) for one in graph.initializer if one.name in read or one.name not in looked_up)


def _size(tensor: Any) -> int:
    import math

    import onnx

    return int(math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _with_options(model: Path, folder: Path, provider_options: Mapping[str, str], session_options: Mapping[str, str]) -> None:
    """Makes a copy of a model of hard links, with other options of the decoder."""
    shutil.copytree(model, folder, copy_function=os.link)
    config = genai_config(model)
    for entry in _provider_options(config):
        for own in entry.values():
            own.update(provider_options)
    config["model"]["decoder"]["session_options"].update(session_options)
    path = folder / "genai_config.json"
    path.unlink()
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _provider_options(config: dict[str, Any]) -> list[dict[str, dict[str, str]]]:
    found: list[dict[str, dict[str, str]]] = config["model"]["decoder"]["session_options"].get("provider_options", [])
    return found


def _seconds_a_token(folder: Path, tokens: int) -> dict[str, Any]:
    """Returns the median seconds of a token behind the prompt, and of the first one; and the first tokens that are written."""
    session = GenerationSession(folder, os.cpu_count() or 1, on_cpu=not _provider_options(genai_config(folder)))
    first, behind = [], []
    for _ in range(1 + REPEATS):
        times = list(_times(session, tokens))
        first.append(times[0])
        behind.append((times[-1] - times[0]) / (len(times) - 1))
    written = session.generate_ids(list(range(1, PROMPT + 1)), 16, do_sample=False, min_length=PROMPT + 16)
    return {"token": median(behind[1:]), "first": median(first[1:]), "written": list(written)}


def _times(session: GenerationSession, tokens: int) -> Iterator[float]:
    started = time.perf_counter()
    for _ in session.generate_rows(list(range(1, PROMPT + 1)), 1, tokens, do_sample=False, min_length=PROMPT + tokens):
        yield time.perf_counter() - started


if __name__ == "__main__":
    main()
