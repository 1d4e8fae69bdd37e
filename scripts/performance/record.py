"""What the suite measures, as rows of docs/performance.json."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_BAR = re.compile(r"(<=|>=|<|>) ([0-9.]+)")


@dataclass(frozen=True)
class Row:
    """One case of a section.

    Attributes:
        case: what was measured, such as a model and a precision.
        unit: of the values.
        values: side to its median.
        ratio: ours against what the bar speaks of; None where that side failed.
        of: what the ratio is of, such as ``ours / best peer (optimum O3)``.
        bar: what the ratio must reach, such as ``<= 0.5``; None for a row without one.
        failed: side to why it is missing.
        remark: what a reader should know besides.
        busy: share of the machine that other processes used meanwhile.
        quality_kept: False where speed was bought with answers, so that no bar is met.
    """

    case: str
    unit: str
    values: Mapping[str, float]
    ratio: float | None = None
    of: str = ""
    bar: str | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""
    busy: float | None = None
    quality_kept: bool = True

    @property
    def met(self) -> bool | None:
        """Returns whether the bar is reached; None without a bar or a ratio."""
        if self.bar is None or self.ratio is None:
            return None
        found = _BAR.fullmatch(self.bar)
        assert found is not None, self.bar
        ratio, limit = self.ratio, float(found[2])
        reached = {"<=": ratio <= limit, ">=": ratio >= limit, "<": ratio < limit, ">": ratio > limit}[found[1]]
        return reached and self.quality_kept


class Record:
    """The results file: a section holds its command and its cases, a case its rows and what measured them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sections = self._read()

    def has(self, section: str, case: str) -> bool:
        """Says whether a case has been measured."""
        return case in self.sections.get(section, {}).get("cases", {})

    def put(
        self,
        section: str,
        case: str,
        rows: Sequence[Row],
        environment: Mapping[str, Any],
        command: str,
        recipes: Mapping[str, Any],
    ) -> None:
        """Writes a case in place of what was known of it; what another run of the suite wrote meanwhile stays.

        Args:
            section: the section.
            case: what was measured.
            rows: the figures.
            environment: machine, software and the project's revision.
            command: measures the section again.
            recipes: what `performance.passes.passes_of` says of the recipes whose models were measured.
        """
        self.sections = self._read()
        known = self.sections.setdefault(section, {"command": command, "cases": {}})
        known["command"] = command
        known["cases"][case] = {
            "date": time.strftime("%Y-%m-%d"),
            "environment": dict(environment),
            "recipes": dict(recipes),
            "rows": [{**asdict(row), "met": row.met} for row in rows],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.sections, indent=1) + "\n", encoding="utf-8")

    def _read(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        return found
