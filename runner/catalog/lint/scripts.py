"""The rule on scripts: what two recipes need lives in the runner, not in two copies."""

from __future__ import annotations

import io
import tokenize
from collections import Counter
from pathlib import Path

from runner.catalog.lint.rule import Fault, Faults, Rule
from runner.catalog.lint.subject import Subject
from runner.errors import Place
from runner.recipe.info import Info

SCRIPT = "user_script.py"
MOST_SHARED = 0.6
FEWEST_LINES = 8  # below, as for the few lines that register what the runner has, there is nothing to share


def _script_is_its_own(subject: Subject) -> Faults:
    path = subject.folder / SCRIPT
    if not path.is_file():
        return
    own = _code_lines(path)
    if own.total() < FEWEST_LINES:
        return
    for other in subject.catalogue.others(subject.folder):
        script = other.folder / SCRIPT
        if not script.is_file() or _is_copy(subject.info, other.info) or _is_copy(other.info, subject.info):
            continue
        share = (own & _code_lines(script)).total() / own.total()
        if share > MOST_SHARED:
            yield Fault(f"{share:.0%} of its lines stand in {script} too", Place(str(path), 1))


def _is_copy(info: Info, of: Info) -> bool:
    return info.origin is not None and info.origin.recipe == of.name


def _code_lines(path: Path) -> Counter[str]:
    """Counts the lines of code: blanks, comments and docstrings do not make two scripts differ."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return Counter(line.strip() for line in text.splitlines() if line.strip())
    lines: dict[int, list[str]] = {}
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    at_start = True
    for token in tokens:
        docstring = at_start and token.type == tokenize.STRING
        if token.type not in layout and not docstring:
            lines.setdefault(token.start[0], []).append(token.string)
        at_start = token.type in layout
    return Counter(" ".join(words) for words in lines.values())


RULES = (
    Rule(
        "script-is-its-own", "must", f"No {SCRIPT} shares more than {MOST_SHARED:.0%} of its lines with another recipe's.",
        "What is mended in one copy stays broken in the others.",
        "move what they share into runner/data and register it from there; a copy that is declared under 'origin' is exempt",
        of_recipe=_script_is_its_own,
    ),
)  # fmt: skip
