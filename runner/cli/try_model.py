"""`recipe try`: ask a model something, or show it an input."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import catalog, catalog_option, json_option, recipe_argument, request_options
from runner.cli.try_drawing import Drawing, drawing_options
from runner.cli.try_labels import label_option
from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.cli.ready_model import Ready
    from runner.models.handle import ModelHandle
    from runner.recipe.info import Info

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FINISHED = ("receipt.json", "genai_config.json")
TEXT_TO_IMAGE = "text-to-image"
_OF_A_RUN = {"variant": "--variant", "overrides": "--set", "model_path": "--model-path"}  # arguments of `make_request`


@click.command("try")
@recipe_argument
@click.argument("inputs", nargs=-1, metavar="[INPUT]...")
@request_options
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), show_default="256; speech: all that is said", help="Longest answer."
)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Likeliest share drawn from."
)
@click.option("--raw", is_flag=True, help="Give the prompt as it stands, without the chat template.")
@click.option("--system", metavar="TEXT", help="What a language model is told before a conversation.")
@click.option("--image", "images", multiple=True, metavar="FILE", help="A picture to look at, as an INPUT. Repeatable.")
@click.option("--audio", "sounds", multiple=True, metavar="FILE", help="A sound to hear, as an INPUT. Repeatable.")
@label_option
@drawing_options
@json_option
@catalog_option
def try_model(
    word: str | None,
    inputs: Sequence[str],
    max_new_tokens: int | None,
    temperature: float,
    top_p: float,
    raw: bool,
    system: str | None,
    images: tuple[str, ...],
    sounds: tuple[str, ...],
    labels: tuple[str, ...],
    as_json: bool,
    **chosen: Any,
) -> None:
    """Ask a model something: RECIPE is an id, a recipe folder, or the folder of a finished model.

    In one of these folders RECIPE can be left out: what names neither a recipe nor a folder is an INPUT there.

    A language model answers the INPUT, word for word; without one, in a terminal, it holds a conversation. An
    embedding model gives the vector of one text, and the similarities of several. A masked-word model fills in
    [MASK]. A classifier names the five best classes of a text or an image file; one of pictures and texts ranks
    labels: PICTURE --labels "a dog,a cat". A speech model writes down what is said in sound files. A model that draws
    writes the picture of a text to a file. Without an INPUT the recipe's own example is used.
    """
    from runner.cli.try_tasks import Asked, answer, chat

    if word is not None and _is_input(word):
        inputs, word = (word, *inputs), None
    drawing = Drawing.taken_from(chosen)
    ready, example = _model(word, chosen)
    model, threads, provider = ready.model, ready.threads, ready.target.provider
    _check_files(model, images, sounds)
    inputs = (*inputs, *images, *sounds)
    if _converses(model, inputs, raw or as_json):
        chat(Asked(model, (), threads, provider, max_new_tokens, temperature, raw, as_json, drawing, labels, top_p), system)
        return
    if system is not None:
        raise UsageError("no-conversation", "--system is for conversations with a language model", "leave out the INPUT")
    given = _given(inputs, example, may_be_empty=model.task == TEXT_TO_IMAGE)
    asked = Asked(model, given, threads, provider, max_new_tokens, temperature, raw, as_json, drawing, labels, top_p)
    answer(asked)


def _converses(model: ModelHandle, inputs: Sequence[str], plainly: bool) -> bool:
    """Whether nothing was asked, a person sits there, and the model writes text."""
    from runner.models.transcription import hears

    writes = model.kind == "genai" and not hears(model.folder)
    sits_there = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    return writes and not inputs and not plainly and sits_there


def _check_files(model: ModelHandle, images: Sequence[str], sounds: Sequence[str]) -> None:
    """Refuses pictures and sounds that the model does not take."""
    from runner.models.tasks import TASKS
    from runner.models.transcription import hears

    speech = model.kind == "genai" and hears(model.folder)
    task = "automatic-speech-recognition" if speech else (model.task or "").removesuffix("-with-past")
    reads = TASKS[task].reads if task in TASKS else ()
    for flag, given, part in (("--image", images, "image"), ("--audio", sounds, "audio")):
        if given and part not in reads:
            takes = (
                ", ".join(dict.fromkeys("text" if one in ("decoder", "prompt") else one for one in reads)) or "something else"
            )
            raise UsageError("not-taken", f"{flag}: a model for {task or 'no task'} takes {takes}", f"leave out {flag}")


def _is_input(word: str) -> bool:
    """Whether the first word is asked of the model in the current folder: a text or a picture, and no recipe's name.

    A single word that is close to the name of a recipe is taken for a slip in that.
    """
    from runner.catalog.discover import CONFIG_SUFFIXES
    from runner.catalog.find import find, is_there
    from runner.recipe.folder import INFO_NAMES

    path = Path(word).expanduser()
    if not any(Path(name).is_file() for name in (*INFO_NAMES, *_FINISHED)):
        return False
    if word and is_there(path):
        return path.is_file() and path.suffix.lower() not in CONFIG_SUFFIXES
    if not word.strip():
        return True
    try:
        find(word, catalog())
    except UsageError as error:
        (problem,) = error.problems
        slip = " " not in word and (problem.remedy or "").startswith("did you mean")
        return problem.rule in ("unknown-recipe", "no-such-path") and not slip
    return False


def _given(inputs: Sequence[str], example: str | None, *, may_be_empty: bool = False) -> tuple[str, ...]:
    from runner.catalog.find import is_there

    given = tuple(inputs) or _piped()
    if not given and example:
        given = (example,)
        click.echo(f"> {example}", err=True)
    if not given or (not may_be_empty and any(not text.strip() for text in given)):
        raise UsageError("empty-input", "there is nothing to ask", "give a text, or a file for an image model")
    if any(not _is_unicode(text) and not is_there(Path(text)) for text in given):
        raise UsageError("not-text", "what is asked is no text in UTF-8", "for an image or a sound give its file's path")
    return given


def _piped() -> tuple[str, ...]:
    """Returns the text on standard input, where something is piped into it; bytes that are no UTF-8 stay as surrogates."""
    if sys.stdin is None or sys.stdin.isatty():
        return ()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    return tuple(filter(None, (sys.stdin.read().strip(),)))


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _model(word: str | None, chosen: dict[str, Any]) -> tuple[Ready, str | None]:
    """Returns the model and its example input: of a finished model's folder, or of a recipe, made where needed."""
    from runner.cli.ready_model import finished_in, made_of
    from runner.cli.request import make_request
    from runner.engine.publish import read_receipt

    folder = Path(word or ".").expanduser()
    ready = finished_in(folder, chosen, "try it on the CPU with --target cpu")
    if ready is not None:
        if given := [flag for name, flag in _OF_A_RUN.items() if chosen.get(name)]:
            cause = f"{folder} is a finished model, in which {', '.join(given)} can change nothing"
            raise UsageError("bad-usage", cause, "leave it out, or name the recipe in place of the folder")
        return ready, _example_of(folder, read_receipt(folder))
    request = make_request(word, (), **chosen)
    example = own_example(request.info, request.loaded.files[0].parent) if request.info else None
    return made_of(request), example


def _example_of(folder: Path, receipt: dict[str, Any] | None) -> str | None:
    """The example of the recipe that a finished model's receipt names; None where that recipe is not to be found."""
    from runner.catalog.find import find
    from runner.errors import InvalidRecipe

    name = (receipt or {}).get("recipe")
    for word in (name, *map(str, folder.resolve().parents[:2])) if name else ():
        try:
            found = find(word, catalog())
        except (InvalidRecipe, UsageError):
            continue
        if found.info is not None and found.info.name == name:
            return own_example(found.info, found.folder)
    return None


def own_example(info: Info, folder: Path) -> str | None:
    """Returns what a recipe asks when nothing is said: its prompt, else its first picture or sound; None without any."""
    evaluation = info.evaluation
    if evaluation.prompt:
        return evaluation.prompt
    for named, suffixes in ((evaluation.images, IMAGE_SUFFIXES), (evaluation.speech, (".wav",))):
        files = sorted(path for path in (folder / named).rglob("*") if path.suffix.lower() in suffixes) if named else []
        if files:
            return str(files[0])
    return None
