"""Writes runner/targets/operator_kernels.json: for which operators, versions and types an execution provider has kernels.

    python scripts/refresh_operator_kernels.py OperatorKernels.md --version 1.31.1 [--provider CUDAExecutionProvider]

OperatorKernels.md is the page of that name in ONNX Runtime's docs folder, or what its tools/python/gen_opkernel_doc.py writes
on a machine that has the provider. The sections of the providers that are not named stay as they are.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parents[1] / "runner" / "targets" / "operator_kernels.json"
PROVIDERS = ("CPUExecutionProvider", "CUDAExecutionProvider", "DmlExecutionProvider")

_SECTION = re.compile(r"^## Operators implemented by (\w+)", re.MULTILINE)
_DOMAIN = re.compile(r"^\|\*\*Operator Domain:\*\* \*([\w.]+)\*")
_ROW = re.compile(r"^\|(?P<op>[\w.]*)\|[^|]*\|(?P<versions>[^|]+)\|(?P<types>[^|]*)\|$")
_CONSTRAINT = re.compile(r"\*\*(\w+)\*\* = (.*?)(?=<br|$)")
_TENSOR = re.compile(r"(?<!\()tensor\((\w+)\)")
_INTERNAL = "com.ms.internal."  # made by ONNX Runtime's own rewriting, never in a model

Kernel = tuple[int, int | None, dict[str, str]]
Operators = dict[str, dict[str, list[Kernel]]]


def read_page(text: str) -> dict[str, Operators]:
    """Returns, by provider, domain and operator, the kernels of the page: first and last version, element types by name."""
    headings = list(_SECTION.finditer(text))
    ends = [*(heading.start() for heading in headings[1:]), len(text)]
    return {
        heading[1]: _operators(text[heading.end() : end].splitlines())
        for heading, end in zip(headings, ends, strict=True)
        if heading[1] in PROVIDERS
    }


def _operators(lines: Iterable[str]) -> Operators:
    found: Operators = {}
    domain = operator = ""
    for line in lines:
        if heading := _DOMAIN.match(line):
            domain = heading[1]
        elif row := _ROW.match(line):
            operator = row["op"] or operator
            versions = row["versions"]
            if domain and versions[0] in "[0123456789" and not domain.startswith(_INTERNAL):
                types = {name: " ".join(sorted(_TENSOR.findall(listed))) for name, listed in _CONSTRAINT.findall(row["types"])}
                known = {name: listed for name, listed in types.items() if listed}
                found.setdefault(domain, {}).setdefault(operator, []).append((*_versions(versions), known))
    return found


def _versions(text: str) -> tuple[int, int | None]:
    """Returns first and last version of `13+`, `13` or `[7, 12]`."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    return numbers[0], None if text.endswith("+") else numbers[-1]


def write_table(path: Path, providers: dict[str, Any]) -> None:
    """Writes the table, an operator a line; a list of types stands once and is referred to by its place."""
    types = sorted({listed for one in providers.values() for kernel in _kernels(one) for listed in kernel[2].values()})
    at = {listed: place for place, listed in enumerate(types)}
    lines = ["{", ' "types": [', ",\n".join(f"  {json.dumps(listed)}" for listed in types), " ],", ' "providers": {']
    for name, one in sorted(providers.items()):
        lines += [f'  "{name}": {{"onnxruntime": {json.dumps(one["onnxruntime"])}, "operators": {{']
        for domain, operators in sorted(one["operators"].items()):
            rows = (
                f'    "{operator}": '
                + json.dumps([[first, last, {key: at[listed] for key, listed in by.items()}] for first, last, by in kernels])
                for operator, kernels in sorted(operators.items())
            )
            lines += [f'   "{domain}": {{', ",\n".join(rows), "   },"]
        lines[-1] = "   }"
        lines.append("  }},")
    lines[-1] = "  }}"
    path.write_text("\n".join([*lines, " }", "}"]) + "\n", encoding="utf-8")


def _kernels(provider: dict[str, Any]) -> Iterator[Kernel]:
    for operators in provider["operators"].values():
        for kernels in operators.values():
            yield from kernels


def read_table(path: Path) -> dict[str, Any]:
    """Returns the providers of a table that `write_table` wrote; none where there is no table yet."""
    if not path.is_file():
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))
    for provider in table["providers"].values():
        for kernel in _kernels(provider):
            kernel[2].update({key: table["types"][place] for key, place in kernel[2].items()})
    providers: dict[str, Any] = table["providers"]
    return providers


def main() -> int:
    """Refreshes the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="OperatorKernels.md")
    parser.add_argument("--version", required=True, help="version or commit of ONNX Runtime that the page belongs to")
    parser.add_argument("--provider", action="append", choices=PROVIDERS, help="take only this section; may be repeated")
    parser.add_argument("--output", type=Path, default=TABLE)
    asked = parser.parse_args()
    found = read_page(asked.page.read_text(encoding="utf-8"))
    wanted = asked.provider or sorted(found)
    if absent := [provider for provider in wanted if not found.get(provider)]:
        print(f"{asked.page} has no kernels of {', '.join(absent)}", file=sys.stderr)
        return 1
    fresh = {provider: {"onnxruntime": asked.version, "operators": found[provider]} for provider in wanted}
    write_table(asked.output, {**read_table(asked.output), **fresh})
    for provider in wanted:
        print(f"{provider}: {sum(len(operators) for operators in found[provider].values())} operators")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
