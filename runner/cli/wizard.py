"""Questions in a terminal, one after another, back and forth: every answer is kept, and checked as soon as it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from runner.errors import RecipeError

Answers = Mapping[str, str]
_BACK = "\0back"
_BACK_TYPED = "<"


@dataclass(frozen=True)
class Option:
    """One answer among several.

    Attributes:
        value: the answer.
        text: how it is shown.
        disabled: why it cannot be chosen; None where it can.
    """

    value: str
    text: str
    disabled: str | None = None


def _nothing(_: Answers) -> Sequence[Option]:
    return ()


def _always(_: Answers) -> bool:
    return True


def _empty(_: Answers) -> str:
    return ""


def _fits(_: str, __: Answers) -> None:
    return None


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        key: name of its answer.
        text: what is asked.
        hint: what an answer looks like.
        options: answers to choose from; none where it is typed.
        default: answer that stands there at first.
        applies: whether it is asked at all.
        check: raises a `RecipeError` where the answer will not do.
    """

    key: str
    text: str
    hint: str = ""
    options: Callable[[Answers], Sequence[Option]] = _nothing
    default: Callable[[Answers], str] = _empty
    applies: Callable[[Answers], bool] = _always
    check: Callable[[str, Answers], None] = _fits


class Wizard:
    """Asks questions until all are answered.

    Args:
        questions: in their order; what a question offers may depend on the answers before it.
        answers: those that are given already; each is checked when its turn comes.
        tell: shows what is wrong with an answer.

    Attributes:
        answers: name to answer.
    """

    def __init__(self, questions: Sequence[Question], answers: Answers, tell: Callable[[RecipeError], None]) -> None:
        self._questions = questions
        self._tell = tell
        self._given = set(answers)
        self._settled: set[str] = set()
        self.answers: dict[str, str] = dict(answers)

    def run(self) -> None:
        """Asks what is open.

        Raises:
            KeyboardInterrupt: somebody pressed Ctrl-C.
        """
        while (question := self._next()) is not None:
            if question.key in self._given:
                self._given.discard(question.key)
                self._accept(question, self.answers[question.key])
                continue
            answer = self._ask(question)
            if answer == _BACK:
                self._reopen_from(self._before(question)[-1])
            else:
                self._accept(question, answer)

    def complete(self) -> None:
        """Answers what is open as the questions propose, and asks nobody.

        Raises:
            RecipeError: an answer will not do.
        """
        while (question := self._next()) is not None:
            answer = self.answers.get(question.key) or question.default(self.answers)
            question.check(answer, {**self.answers, question.key: answer})
            self.answers[question.key] = answer
            self._settled.add(question.key)

    def back(self) -> None:
        """Opens the last question again."""
        self._reopen_from([one for one in self._questions if self._stands(one)][-1])

    def change(self) -> None:
        """Lets one answer be chosen and opens its question; the others stand as long as they fit."""
        import questionary

        choices = [
            questionary.Choice(f"{one.key}: {self.answers[one.key]}", one.key) for one in self._questions if self._stands(one)
        ]
        chosen = questionary.select("Which answer?", [*choices, questionary.Choice("← leave them", _BACK)]).unsafe_ask()
        self._settled.discard(chosen)

    def _stands(self, question: Question) -> bool:
        return question.key in self._settled and question.applies(self.answers)

    def _next(self) -> Question | None:
        """The first open question; whether a question applies is looked at only when those before it are answered."""
        return next((one for one in self._questions if one.key not in self._settled and one.applies(self.answers)), None)

    def _before(self, question: Question) -> list[Question]:
        return [one for one in self._questions[: self._questions.index(question)] if self._stands(one)]

    def _behind(self, question: Question) -> list[Question]:
        return [one for one in self._questions[self._questions.index(question) + 1 :] if self._stands(one)]

    def _accept(self, question: Question, answer: str) -> None:
        """Keeps an answer that will do; later answers that no longer fit it are asked for again.

        A later answer that was the default follows its default.
        """
        proposed = {other for other in self._behind(question) if self.answers[other.key] == other.default(self.answers)}
        self.answers[question.key] = answer
        try:
            question.check(answer, self.answers)
        except RecipeError as error:
            self._tell(error)
            return
        self._settled.add(question.key)
        for other in self._behind(question):
            try:
                if other in proposed:
                    self.answers[other.key] = other.default(self.answers)
                other.check(self.answers[other.key], self.answers)
            except RecipeError as error:
                self._tell(error)
                self._settled.discard(other.key)

    def _reopen_from(self, question: Question) -> None:
        """The question is asked again, and those behind it; what was answered stands there as the default."""
        at = self._questions.index(question)
        self._settled -= {one.key for one in self._questions[at:]}

    def _ask(self, question: Question) -> str:
        back = bool(self._before(question))
        options = question.options(self.answers)
        default = self.answers.get(question.key) or question.default(self.answers)
        if options:
            return choose(question.text, options, default, back=back)
        return _typed(question, default, back=back)


def choose(text: str, options: Sequence[Option], default: str | None = None, *, back: bool = False) -> str:
    """Returns the value of the option that was chosen with the arrow keys.

    Raises:
        KeyboardInterrupt: somebody pressed Ctrl-C.
    """
    import questionary

    choices = [questionary.Choice(one.text, one.value, disabled=one.disabled) for one in options]
    if back:
        choices.append(questionary.Choice("← back", _BACK))
    usable = [one.value for one in options if one.disabled is None]
    chosen: Any = questionary.select(text, choices, default=default if default in usable else None).unsafe_ask()
    return str(chosen)


def is_back(answer: str) -> bool:
    """Returns whether an answer of `choose` asks for the question before."""
    return answer == _BACK


def _typed(question: Question, default: str, *, back: bool) -> str:
    import questionary

    hints = [question.hint, f"{_BACK_TYPED} goes back" if back else ""]
    if hint := "; ".join(part for part in hints if part):
        click.echo(click.style(f"  {hint}", dim=True), err=True)
    try:
        answer = str(questionary.text(question.text, default=default).unsafe_ask()).strip()
    except EOFError:
        raise KeyboardInterrupt from None
    return _BACK if back and answer == _BACK_TYPED else answer
