"""`recipe cache`: look into the store, explain misses, verify, clean up."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import catalog_option, config_option, json_option, recipe_argument, request_options

if TYPE_CHECKING:
    from runner.engine.explain import Explanation


@click.group()
def cache() -> None:
    """The store of finished steps."""


def _cache_dir_option(function: Any) -> Any:
    return click.option("--cache-dir", help="The cache of a configuration that names cache_dir; the user's by default.")(
        function
    )


def _open(cache_dir: str | None) -> Any:
    from runner.engine.places import places
    from runner.engine.store import Store
    from runner.models.digest import DigestMemo

    where = places(cache_dir)
    memo = DigestMemo(where.digests)
    return where, memo, Store(where, memo)


@cache.command("ls")
@_cache_dir_option
@json_option
def list_entries(cache_dir: str | None, as_json: bool) -> None:
    """List what is stored, the oldest first."""
    from runner.engine.store import disk_use

    where, _, store = _open(cache_dir)
    entries = list(store.entries())
    if as_json:
        click.echo(json.dumps([{"fingerprint": entry.fingerprint, "bytes": entry.size, **entry.record} for entry in entries]))
        return
    for entry in entries:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.record["created"]))
        part = f" {entry.record['component']}" if "component" in entry.record else ""
        name = f"{entry.record['step']} {entry.record['pass']}{part}"
        click.echo(f"{entry.fingerprint[:12]}  {made}  {entry.size / 1e6:9.1f} MB  {name}")
    click.echo(f"{len(entries)} entries, {disk_use(entries) / 1e6:.1f} MB in {where.root}")


@cache.command()
@recipe_argument
@config_option
@request_options
@json_option
@catalog_option
def why(word: str | None, configs: Sequence[Path], as_json: bool, **chosen: Any) -> None:
    """Explain, step by step, why a run would find its result in the store or not."""
    from runner.cli.request import make_request
    from runner.engine.explain import explain
    from runner.engine.run import plan_run

    plan = plan_run(make_request(word, configs, only_plan=True, **chosen), lambda _: None, fetch=False)
    told = explain(plan)
    if as_json:
        click.echo(json.dumps([_as_json(one) for one in told], indent=2))
        return
    for one in told:
        click.echo(f"{one.name}: {one.state}")
        for reason in one.reasons:
            click.echo(f"    {reason}")
        for part in one.components:
            click.echo(f"    {part.name}: {part.state}")
            for reason in part.reasons:
                click.echo(f"        {reason}")


def _as_json(one: Explanation) -> dict[str, Any]:
    components = {part.name: {"state": part.state, "reasons": list(part.reasons)} for part in one.components}
    told = {"step": one.name, "state": one.state, "cached": one.cached, "reasons": list(one.reasons)}
    return {**told, **({"components": components} if components else {})}


@cache.command()
@_cache_dir_option
@json_option
def verify(cache_dir: str | None, as_json: bool) -> None:
    """Hash every stored file again. Damaged entries are taken out, and the exit code is 1."""
    _, _, store = _open(cache_dir)
    damaged = {entry.fingerprint: wrong for entry in store.entries() if (wrong := store.damage(entry, thorough=True))}
    for fingerprint in damaged:
        store.remove(fingerprint)
    if as_json:
        click.echo(json.dumps({"damaged": damaged}, indent=2))
    else:
        for fingerprint, wrong in damaged.items():
            click.echo(f"{fingerprint[:12]} was damaged and is taken out: {'; '.join(wrong)}")
        click.echo(f"{len(damaged)} damaged")
    if damaged:
        raise SystemExit(1)


@cache.command()
@_cache_dir_option
@click.option("--older-than", type=float, metavar="DAYS", default=30.0, show_default=True, help="Take out entries this old.")
@click.option("--all", "everything", is_flag=True, help="Take out every entry.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
def gc(cache_dir: str | None, older_than: float, everything: bool, dry_run: bool, as_json: bool) -> None:
    """Take out old entries, and what crashed and interrupted runs left behind."""
    _, _, store = _open(cache_dir)
    limit = time.time() - older_than * 86400
    doomed = [entry for entry in store.entries() if everything or entry.record["created"] < limit]
    old = [path for path in store.unfinished() if everything or path.stat().st_mtime < limit]
    leftovers = [*store.leftovers(), *old]
    if not dry_run:
        for entry in doomed:
            store.remove(entry.fingerprint)
        for path in leftovers:
            shutil.rmtree(path, ignore_errors=True)
    from runner.engine.store import disk_use

    size = disk_use(doomed)
    if as_json:
        told = {
            "entries": [entry.fingerprint for entry in doomed],
            "bytes": size,
            "leftovers": len(leftovers),
            "dry_run": dry_run,
        }
        click.echo(json.dumps(told, indent=2))
        return
    verb = "would go" if dry_run else "gone"
    click.echo(f"{len(doomed)} entries ({size / 1e6:.1f} MB) and {len(leftovers)} leftovers {verb}")
