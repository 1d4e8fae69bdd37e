"""The spread of the catalogue, every architecture and every pipeline in it, runs with tiny models: what `recipe check` does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.catalog.discover import list_entries
from runner.catalog.selection import Candidate, candidates_of, spread
from runner.engine.smoke_many import smoke_many

CATALOG = Path(__file__).resolve().parents[2] / "recipes"
SPREAD = [pytest.param(one, id=one.id) for one in spread(candidates_of(list_entries(CATALOG).entries))]
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


@pytest.mark.parametrize("candidate", SPREAD)
def test_smoke_run_passes(
    candidate: Candidate, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # by all workers: a tiny model is made once
    monkeypatch.setenv("RECIPE_CACHE", str(shared / "smoke-cache"))
    (done,) = smoke_many({candidate.id: candidate.config}, jobs=1, threads=max(1, (os.cpu_count() or 1) // WORKERS))
    assert done.passed, f"{done.cause}\n{done.log.read_text(encoding='utf-8') if done.log else ''}"
