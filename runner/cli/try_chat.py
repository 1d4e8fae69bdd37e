"""`recipe try` for language models in a terminal: a conversation."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from runner.models.generation import GenerationSession
from runner.targets.target import TARGETS

if TYPE_CHECKING:
    from runner.cli.try_tasks import Asked

Message = dict[str, str]
_HELP = "Ctrl-D or /exit ends, /reset forgets what was said, Ctrl-C stops an answer"
_LEAST_ROOM = 64  # tokens that an answer should find free


@dataclass
class Conversation:
    """What was said so far.

    Attributes:
        session: the model.
        system: what it is told before everything else.
        turns: messages of the user and the model, in turn.
    """

    session: GenerationSession
    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def prompt(self) -> tuple[list[int], int]:
        """Returns the tokens of all that was said, and how many of the oldest turns were dropped to leave room to answer."""
        dropped = 0
        room = min(_LEAST_ROOM, self.session.context_length // 2)
        while True:
            tokens = self.session.prompt([*self._told(), *self.turns])
            if len(tokens) + room <= self.session.context_length or len(self.turns) <= 1:
                return tokens, dropped
            self.turns = self.turns[2:]
            dropped += 1

    def _told(self) -> Sequence[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []


def converse(asked: Asked, system: str | None, search: dict[str, Any], most: int) -> None:
    """Talks with the user until the input ends.

    Args:
        asked: the model.
        system: what it is told before everything else.
        search: how tokens are chosen.
        most: tokens of an answer at most.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives the line below its history and editing
    on_cpu = asked.provider == TARGETS["cpu"].provider
    conversation = Conversation(GenerationSession(asked.model.folder, asked.threads, on_cpu=on_cpu), system)
    click.secho(_HELP, dim=True, err=True)
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.secho(f"\n{_HELP}", dim=True, err=True)
            continue
        if said in ("/exit", "/quit"):
            return
        if said == "/reset":
            conversation.turns.clear()
            click.secho("forgotten", dim=True, err=True)
        elif said.startswith("/"):
            click.secho(_HELP, dim=True, err=True)
        elif said:
            _answer(conversation, said, search, most)


def _answer(conversation: Conversation, said: str, search: dict[str, Any], most: int) -> None:
    """Streams the answer; what came of one that was stopped is part of the conversation."""
    before = list(conversation.turns)
    conversation.turns.append({"role": "user", "content": said})
    prompt, dropped = conversation.prompt()
    room = conversation.session.context_length - len(prompt)
    if room < 1:
        conversation.turns = before
        told = f"too long: {len(prompt)} tokens, and the model reads {conversation.session.context_length}"
        click.secho(told, fg="red", err=True)
        return
    if dropped:
        click.secho(f"the oldest {dropped} turns are forgotten: the context is full", dim=True, err=True)
    texts: list[str] = []
    try:
        for token in conversation.session.generate(prompt, min(most, room), **search):
            texts.append(token.text)
            click.echo(token.text, nl=False)
    except KeyboardInterrupt:
        click.secho(" [stopped]", dim=True, nl=False)
    click.echo()
    conversation.turns.append({"role": "assistant", "content": "".join(texts)})
