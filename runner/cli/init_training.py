"""What `recipe init` asks about training: data of one's own, and how a row of it reads as text."""

from __future__ import annotations

import string
from collections.abc import Sequence

from runner.errors import UsageError, did_you_mean

_ASKED = ("instruction", "question", "prompt", "input", "query")
_ANSWERED = ("response", "answer", "output", "completion", "target")
_MESSAGES = ("messages", "conversations")


def chat_column(columns: Sequence[str]) -> str | None:
    """Returns the column of conversations, which the model's chat template turns into text; None where there is none."""
    return next((name for name in _MESSAGES if name in columns), None)


def proposed_template(columns: Sequence[str]) -> str:
    r"""Returns how a row could read as text: a question and its answer where columns are called so; \n is a line break."""
    asked = next((name for name in _ASKED if name in columns), None)
    answered = next((name for name in _ANSWERED if name in columns), None)
    if asked and answered:
        return f"### Question: {{{asked}}}\\n### Answer: {{{answered}}}"
    return "{text}" if "text" in columns else r"\n".join(f"{{{name}}}" for name in columns)


def check_template(text: str, columns: Sequence[str]) -> None:
    """Makes sure that a template names columns that are there.

    Raises:
        UsageError: it names none, or one that is not there.
    """
    try:
        named = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise UsageError("bad-template", f"'{text}': {error}", "write a column as {name}, and a brace as {{") from None
    if not named:
        raise UsageError("bad-template", f"'{text}' names no column", f"write one as {{{columns[0]}}}")
    for name in named:
        if name not in columns:
            raise UsageError("unknown-column", f"the data has no column '{name}'", did_you_mean(name, columns))
