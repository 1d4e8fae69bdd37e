"""The process that makes components of a step, one after the other. Run as ``python -m runner.engine.part_process``.

See `runner.engine.child` for its streams.
"""

from __future__ import annotations

import traceback
from functools import partial
from typing import IO

from runner.engine.child import exit_at_once, failure, take_jobs, write_to_log
from runner.engine.events import Event
from runner.engine.job import PartJob
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.passes.each_component import Part, make


def main() -> int:
    """Takes components from standard input and makes them; returns an exit code when one fails."""
    lines, events = take_jobs()
    for line in lines:
        one = PartJob.parse(line)
        write_to_log(one.job.log)
        try:
            made = _make(one, events)
        except BaseException as error:  # whoever started this process reports it; the traceback is for the log
            traceback.print_exc()
            failure(error, one.step, one.job.places.root).send(events)
            return 1
        Event("done", one.step, data={"handle": made}).send(events)
    return 0


def _make(one: PartJob, events: IO[str]) -> dict[str, object]:
    pass_ = table.get(one.pass_name)
    part = Part(one.component, one.model, pass_.options.model_validate(one.options))
    context = PassContext(
        one.folder / "output",
        one.folder / "scratch",
        one.job.target,
        one.threads,
        partial(one.job.open_data, one.model),
        lambda text: Event("said", one.step, text).send(events),
    )
    return make(pass_, part, context).to_json()


if __name__ == "__main__":
    exit_at_once(main())
