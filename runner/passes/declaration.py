"""What a pass is: a function on model handles, and a declaration that everything else derives from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runner.models.handle import Kind, ModelHandle
from runner.models.outline import Outline
from runner.models.sharded_weights import Outlasts
from runner.models.spent_files import Inode
from runner.recipe.options import PassOptions
from runner.targets.target import Target


class Batches(Protocol):
    """Calibration or evaluation inputs: iterating gives dicts from input name to numpy array, leading axis = batch."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...


@dataclass(frozen=True)
class PassContext:
    """What a pass may use besides the model and its options.

    Attributes:
        output: an empty folder; what the pass leaves in it is its result.
        scratch: an empty folder on the same disk, thrown away afterwards.
        target: what the model is made for.
        threads: threads to compute with.
        data: gives the inputs of a data config by its name.
        say: tells the person what is happening, in a few words.
        kept: a folder, there or not, that outlives an interruption and is removed when the result is stored; None where the
            caller has none.
        counted: is told what `progress` was; None where the caller shows no bar.
        memory: bytes that there are for this process; None where nobody says.
        take_over: asks for the files of the model that came in, once nothing but writing can fail any more. Returns those that
            nobody else has and the run does not need on: the pass may spoil them while it reads them for the last time. There
            are none where the steps before are to be kept.
        outlasts: says of a file of the model that came in whether it is there longer than the result, which the next step reads
            and nobody else: the result may link such a file for a part of it. None where the result is to stand alone.
    """

    output: Path
    scratch: Path
    target: Target
    threads: int
    data: Callable[[str], Batches]
    say: Callable[[str], None]
    kept: Path | None = None
    counted: Callable[[int, int, str], None] | None = None
    memory: int | None = None
    take_over: Callable[[], Collection[Inode]] = tuple
    outlasts: Outlasts | None = None

    def progress(self, done: int, total: int, news: str = "") -> None:
        """Tells how far a long action has come: so many of a total, of steps, layers and the like.

        Args:
            done: what is done, from 0 to `total`.
            total: what there is to do.
            news: what is worth a line; the bar alone moves where there is none.
        """
        if self.counted is not None:
            self.counted(done, total, news)
        elif news:
            self.say(f"{done} of {total}: {news}")


@dataclass(frozen=True)
class Pass:
    """The declaration of a pass.

    Attributes:
        name: Olive's name for it.
        summary: what it does, in one sentence.
        options: its typed options.
        apply: `apply(model, options, context)` writes into `context.output` and returns the handle of what it wrote.
        takes: kinds of model that it accepts.
        gives: kind of model that it makes; None where it keeps the kind.
        packages: libraries whose version decides its result; part of the fingerprint.
        targets: targets it can make models for.
        version: raised when the same options start to give another result.
        data_options: options that name a data config, whose content is part of the fingerprint.
        leaves: components of a pipeline that it leaves as they are.
        foresee: `foresee(options, outline, target)` refuses, before any work, what the pass would refuse of a model of that
            outline; the outline is None where it is not known. Returns that of the result, None where it cannot be told.
        hands_on: `hands_on(options)` returns options, by their names, that later steps on transformers models have in a
            run where nobody gave them.
        imports: imports what `apply` needs and takes long to import; a worker calls it while its job is still being planned.
    """

    name: str
    summary: str
    options: type[PassOptions]
    apply: Callable[[ModelHandle, Any, PassContext], ModelHandle]
    takes: tuple[Kind, ...]
    gives: Kind | None
    packages: tuple[str, ...]
    targets: tuple[str, ...] = ("cpu", "cuda", "directml")
    version: int = 1
    data_options: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    foresee: Callable[[Any, Outline | None, Target], Outline | None] | None = None
    hands_on: Callable[[Any], dict[str, Any]] | None = None
    imports: Callable[[], object] | None = None


def keeps_outline(options: Any, outline: Outline | None, target: Target) -> Outline | None:
    """Is `Pass.foresee` of a pass that refuses nothing by a model's outline, and leaves it as it is."""
    return outline
