"""`recipe run-pass`: any pass on any model that it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from runner.cli.composed_flags import ListsCommand, data_flags, run_flags, subject_flags
from runner.cli.flags import adapter_flag, flag, flags
from runner.errors import UsageError


@click.command("run-pass", cls=ListsCommand)
@flags(
    flag("pass_name", "--pass-name", metavar="NAME", help="The pass, in any case; 'recipe passes' lists them."),
    flag("pass_config", "--pass-config", metavar="JSON", help="Its options: JSON, or a file with them."),
    flag("list_passes", "--list-passes", is_flag=True, help="List the passes, and stop."),
    *subject_flags,
    adapter_flag,
    *data_flags,
    *run_flags,
)
def run_pass(
    pass_name: str | None,
    pass_config: str | None,
    list_passes: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
    log_level: int,
    max_memory: float | None,
    **given: Any,
) -> None:
    """Apply one pass to a model.

    Its options stand in --pass-config, and in --set OPTION=VALUE over it.
    """
    from runner.catalog.discover import catalog_root
    from runner.cli.carry_out import Way, limits_of
    from runner.cli.composed_flags import data_wish, subject_and_wish
    from runner.cli.composed_run import run_composed, say_at
    from runner.compose.calibration import calibration, reads_of
    from runner.compose.known import look_up
    from runner.compose.single_step import compose, one_pass
    from runner.templating.clone import clone_of

    if list_passes:
        from runner.cli.passes import passes_ls

        click.get_current_context().invoke(passes_ls, as_json=as_json)
        return
    if pass_name is None:
        raise UsageError("no-pass", "no pass was named", "give --pass-name; --list-passes tells what there is")
    data = data_wish(given)
    subject, wish = subject_and_wish(given)
    known = look_up(subject, wish.catalog, wish.offline, lambda text: say_at(log_level, text))
    config = None
    if data.names_data:
        clone = clone_of(catalog_root(wish.catalog) / "recipe")
        reads = reads_of(known.subject.task, subject.folder if subject.kind == "onnx" else None)
        config = calibration(reads, data, clone).config
    chain = one_pass(known, pass_name, _options(pass_config), wish.target, config)
    composed, request = compose(known, chain, wish, f"{known.subject.name} after {pass_name}")
    run_composed(composed, request, Way(dry_run, force, as_json, limits_of(max_memory)), log_level)


def _options(given: str | None) -> dict[str, Any]:
    """Returns the options that --pass-config holds or names."""
    if given is None:
        return {}
    text = given
    if not given.lstrip().startswith("{"):
        path = Path(given).expanduser()
        if not path.is_file():
            raise UsageError(
                "bad-pass-config", f"--pass-config {given}: this is neither JSON nor a file", "for example '{\"bits\": 4}'"
            )
        text = path.read_text(encoding="utf-8")
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError("bad-pass-config", f"--pass-config: not JSON: {error}", "for example '{\"bits\": 4}'") from None
    if not isinstance(options, dict):
        raise UsageError("bad-pass-config", "--pass-config must map options to values", "for example '{\"bits\": 4}'")
    kept: dict[str, Any] = {**options.pop("config", {}), **options}
    kept.pop("type", None)
    return kept
