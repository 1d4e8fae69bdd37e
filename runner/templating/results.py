"""The tables of a recipe's README.md: what was measured, from the files in results/.

The files are read as plain JSON: what writes them (`runner.bench.results`) lies above this package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, Place, Problem
from runner.passes.record import CURRENT, told_of
from runner.recipe.document import read_document
from runner.recipe.info import Info
from runner.targets.target import TARGETS

_TITLES = {
    "ttft": "first token",
    "size": "size on disk",
    "load": "load time",
    "peak_rss": "peak memory",
    "cosine_min": "cosine, worst input",
}

_PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-genai", "onnxruntime-genai-cuda",
    "onnxruntime-genai-directml", "torch",
)  # fmt: skip
_PLAIN = "PyTorch fp32"
LAUNCH_MARK, OLDER_MARK = "†", "‡"
LAUNCH_BOUND = (
    "Against eager PyTorch, which at small batches waits longer for its kernels to be launched than it computes: the multiple"
    " tells more of that than of the kernels. No compiled original was measured beside it."
)
MARKS = (
    "†: against eager PyTorch, which at small batches waits longer for its kernels to be launched than it computes; no compiled"
    " original was measured beside it. ‡: the passes have changed since it was measured; the recipe's page says which."
)
_SPEEDS = ("decode", "ttft", "rtf", "image_time", "step_time", "latency", "throughput")
_KEPT = ("cosine", "agreement", "wer", "psnr")  # of value in themselves, whatever the baseline's are


def read_results_files(folder: Path) -> list[dict[str, Any]]:
    """Returns the results files of a recipe folder, smoke runs left out, in the order of their names.

    Raises:
        InvalidRecipe: a file is not JSON.
    """
    found = []
    for path in sorted((folder / "results").glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise InvalidRecipe(Problem("bad-results", error.msg, Place(str(path), error.lineno))) from None
        if not content.get("smoke"):
            found.append(content)
    return found


def results_table(folder: Path, variants: Mapping[str, Mapping[str, Any] | None]) -> str | None:
    """Returns a Markdown table for every machine that measured; None where nothing was measured.

    Args:
        folder: the recipe's folder.
        variants: its variants in the order of the columns, each with its config as plain data, where it has one.

    Raises:
        InvalidRecipe: a results file is not readable.
    """
    files = [content for content in read_results_files(folder) if content["variant"] in variants]
    hosts = dict.fromkeys(content["host"] for content in files)
    order = {name: number for number, name in enumerate(variants)}
    tables = [
        _host_table(sorted((one for one in files if one["host"] == host), key=lambda one: order[one["variant"]]), variants)
        for host in hosts
    ]
    return "\n\n".join(tables) or None


def _host_table(files: Sequence[dict[str, Any]], variants: Mapping[str, Mapping[str, Any] | None]) -> str:
    names = dict.fromkeys(row["name"] for content in files for row in content["rows"])
    rows = [["", *(f"`{content['variant']}`" for content in files)]]
    if any("baseline" in content and content["baseline"] != _PLAIN for content in files):
        rows += [["original", *(content.get("baseline", _PLAIN) for content in files)]]
    told = [told_of(content, variants[content["variant"]]) for content in files]
    if any(one != CURRENT for one in told):
        rows += [["measured with", *told]]
    revisions = [content["environment"].get("revision") or "" for content in files]
    if any(revisions):
        rows += [["revision", *revisions]]
    rows += [[_title(name), *(_cell(content, name) for content in files)] for name in names]
    if any(content.get("placement") for content in files):
        rows += [[f"nodes on {_provider(files[0])}", *(", ".join(filter(None, placed(content))) for content in files)]]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---|" + "---:|" * len(files))
    marked = any(launch_bound(content, row) for content in files for row in content["rows"])
    return f"{_machine(files[0])}\n\n" + "\n".join(lines) + f"\n\n{LAUNCH_MARK} {LAUNCH_BOUND}" * marked


def _machine(content: dict[str, Any]) -> str:
    environment, dates = content["environment"], content["date"][:10]
    packages = environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if name in packages)
    flags = ", ".join(environment["flags"])
    told = f"{environment['cpu']}, {content['threads']} threads ({flags})"
    if card := environment.get("card"):
        told = f"{card['name']}, driver {card['driver']}, CUDA {card['cuda']}; {environment['cpu']}"
    random = " Weights are random ones of the model's shapes: speed and memory count, quality is not judged." * _random(content)
    return (
        f"{told}; {versions}; {dates}.{random} "
        "In brackets: as a multiple of the original model in PyTorch, measured in turn in the same sitting."
    )


def _random(content: dict[str, Any]) -> bool:
    return content.get("weights") == "random"


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " "))


def _cell(content: dict[str, Any], name: str) -> str:
    row = next((row for row in content["rows"] if row["name"] == name), None)
    if row is None:
        return ""
    told = [ratio_of(content, row), *(f"{of_peer(peer)} of {peer['form']}" for peer in row.get("peers", ()))]
    ratio = f" ({'; '.join(told)})" if row.get("ratio") else ""
    return f"{figure(row['optimised']['value'], row['unit'])}{ratio}"


def ratio_of(content: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Returns a row's ratio, such as ``1.98x``, marked where it tells of launches of kernels; empty where it has none."""
    return f"{row['ratio']['value']:.2f}x{LAUNCH_MARK * launch_bound(content, row)}" if row.get("ratio") else ""


def of_peer(peer: Mapping[str, Any]) -> str:
    """Returns the ratio to the original in another form."""
    return f"{peer['ratio']['value']:.2f}x"


def launch_bound(content: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Says whether a speed on a GPU stands against eager PyTorch alone, with no compiled original beside it."""
    eager = "compiled" not in content.get("baseline", _PLAIN)
    forms = [peer["form"] for peer in row.get("peers", ())]
    alone = eager and not any("compiled" in form for form in forms)
    return bool(alone and content["environment"].get("card") and row["name"] in _SPEEDS and row.get("ratio"))


def _provider(content: Mapping[str, Any]) -> str:
    return TARGETS[content["target"]].provider.removesuffix("ExecutionProvider")


def placed(content: Mapping[str, Any]) -> tuple[str, str]:
    """Returns how many of the nodes the target's provider ran, and its share of the host's time; empty where nobody looked."""
    found = content.get("placement")
    if not found:
        return "", ""
    provider = TARGETS[content["target"]].provider
    nodes, seconds = sum(found["nodes"].values()), sum(found["seconds"].values())
    ran, took = found["nodes"].get(provider, 0), found["seconds"].get(provider, 0.0)
    share = f"{took / seconds:.1%} of the time".replace("%", " %") if seconds else ""
    return f"{ran} of {nodes} ({ran / max(1, nodes):.1%})".replace("%", " %"), share


def figure(value: float, unit: str) -> str:
    """Returns a figure as people read it: `105 MB`, `175 tokens/s`, `0.993`."""
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    text = f"{value:,.0f}" if value >= 100 else f"{value:.4g}" if unit == "" else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


@dataclass(frozen=True)
class Measured:
    """A results file as overviews show it.

    Attributes:
        variant: name of the variant.
        figures: text by figure: only what has a ratio, and kept quality.
        ratios: optimised over the original, by figure.
        older: it was not measured with the passes of today, or nobody knows with which.
    """

    variant: str
    figures: Mapping[str, str]
    ratios: Mapping[str, float]
    older: bool

    @property
    def title(self) -> str:
        """Returns the variant's name, marked where it is older."""
        return f"`{self.variant}`{OLDER_MARK * self.older}"


def best_figures(folder: Path, info: Info) -> Iterator[Measured]:
    """Yields each results file of a recipe, for overviews. Random weights are left out: they say nothing of quality."""
    files = {variant.name: folder / variant.file for variant in info.recipes}
    for content in read_results_files(folder):
        path = files.get(content["variant"])
        if _random(content) or path is None:
            continue
        rows = [row for row in content["rows"] if row.get("ratio")]
        told = {row["name"]: f"{ratio_of(content, row)}{_beside(row)}" for row in rows}
        kept = {row["name"]: figure(row["optimised"]["value"], row["unit"]) for row in content["rows"] if row["name"] in _KEPT}
        older = told_of(content, read_document(path).plain() if path.is_file() else None) != CURRENT
        yield Measured(content["variant"], {**told, **kept}, {row["name"]: row["ratio"]["value"] for row in rows}, older)


def _beside(row: Mapping[str, Any]) -> str:
    compiled = [of_peer(peer) for peer in row.get("peers", ()) if "compiled" in peer["form"]]
    return f" ({compiled[0]} of compiled)" if compiled else ""
