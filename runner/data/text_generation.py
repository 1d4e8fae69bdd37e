"""Token sequences for language models out of rows of text: Olive's `text_generation_huggingface_pre_process`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from string import Formatter
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from runner.data.containers import TEXT_GENERATION
from runner.data.hub import first_rows, require_columns
from runner.data.local import Examples
from runner.errors import DataUnavailable, InvalidRecipe, Problem, did_you_mean
from runner.models.handle import ModelHandle
from runner.recipe.config import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED_LABEL = -100  # transformers' loss functions skip it
_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names


class TextGenerationOptions(Model):
    """How rows become token sequences."""

    strategy: Literal["line-by-line", "line-by-line-random", "join", "join-random", "join-sliding-window"] = Field(
        "join", description="a sequence a row, or windows of all rows joined; in order or at random places"
    )
    max_seq_len: int = Field(1024, ge=2, description="tokens a sequence")
    max_samples: int | None = Field(None, ge=1, description="sequences at most")
    stride: int | None = Field(None, ge=1, description="tokens from one sliding window to the next")
    joiner: str | None = Field("\n\n", description="text between joined rows")
    text_cols: str | list[str] = Field("text", description="columns that are joined by a space")
    text_template: str | None = Field(None, description="text with {column} in it")
    text_formatting_func: str | None = Field(None, description="function in user_script from a row to its text")
    chat_template: bool | str | None = Field(None, description="the tokenizer's chat template (true), or one as text")
    message_col: str = Field("messages", description="column with chat messages")
    completion_only_loss: bool = Field(
        False, description="label the answer alone: the template's last column, or the last message; line-by-line only"
    )
    add_special_tokens: bool = Field(True, description="put the tokenizer's begin and end tokens around a row")
    pad_to_max_len: bool = Field(True, description="fill up shorter rows")
    padding_side: Literal["left", "right"] = "right"
    drop_short_sequences: bool = Field(False, description="leave out rows that are shorter than max_seq_len")
    use_attention_mask: bool = True
    random_seed: int = 0
    random_retries: int = Field(10, ge=1, description="draws for a sequence before it is given up")
    processing_batch_size: int = Field(1024, ge=1, description="rows that are tokenized at once")
    task: str | None = None
    trust_remote_code: bool | None = None
    user_script: str | None = None
    script_dir: str | None = None

    @property
    def columns(self) -> list[str]:
        """Returns the columns of text."""
        return [self.text_cols] if isinstance(self.text_cols, str) else list(self.text_cols)


def text_generation_options(parameters: Mapping[str, Any]) -> TextGenerationOptions:
    """Returns the checked options.

    Raises:
        InvalidRecipe: one is unknown or wrong, or they do not go together.
    """
    try:
        options = TextGenerationOptions.model_validate(dict(parameters))
    except ValidationError as error:
        raise InvalidRecipe(
            *(_problem(detail["type"], str(detail["loc"][0]), detail["msg"]) for detail in error.errors())
        ) from None
    wrong = None
    if options.strategy == "join-sliding-window" and options.stride is None:
        wrong = "the strategy join-sliding-window needs 'stride'"
    elif options.strategy.endswith("random") and options.max_samples is None:
        wrong = f"the strategy {options.strategy} needs 'max_samples'"
    elif options.completion_only_loss and options.strategy != "line-by-line":
        wrong = "'completion_only_loss' needs the strategy line-by-line"
    elif options.completion_only_loss and not (options.chat_template or options.text_template):
        wrong = "'completion_only_loss' needs a text_template or a chat_template, which say what the answer is"
    elif options.drop_short_sequences and options.pad_to_max_len and options.strategy.startswith("line"):
        wrong = "'pad_to_max_len' and 'drop_short_sequences' exclude one another"
    if wrong:
        raise InvalidRecipe(Problem("bad-value", f"'{TEXT_GENERATION}': {wrong}"))
    return options


def _problem(kind: str, name: str, message: str) -> Problem:
    if kind == "extra_forbidden":
        remedy = did_you_mean(name, TextGenerationOptions.model_fields)
        return Problem("unknown-parameter", f"'{TEXT_GENERATION}' has no parameter '{name}'", remedy=remedy)
    return Problem("bad-value", f"'{TEXT_GENERATION}': '{name}': {message[:1].lower()}{message[1:]}")


def text_generation(
    dataset: Any,
    model: ModelHandle,
    options: TextGenerationOptions,
    formatted: Callable[[Mapping[str, Any]], str] | None = None,
) -> Examples:
    """Returns sequences of token ids with their masks, labelled with themselves (padding and shared context left out).

    Rows whose text is empty are left out, and so are those that lack a value that the template names.

    Args:
        dataset: rows of text, or of chat messages.
        model: its folder holds the tokenizer.
        options: how sequences are made.
        formatted: the function that `text_formatting_func` names.

    Raises:
        DataUnavailable: a column is missing, or there is not enough text for one sequence.
    """
    import numpy as np

    from runner.models.torch_source import load_tokenizer

    tokenizer = load_tokenizer(model)
    rows = first_rows(dataset, options.max_samples if options.strategy == "line-by-line" else None)
    texts = [text for row in rows if (text := _text(row, options, tokenizer, formatted))]
    if options.completion_only_loss:
        questions = [_question(row, options, tokenizer) for row in rows if _text(row, options, tokenizer, formatted)]
        sequences = _answers(texts, questions, tokenizer, options)
    else:
        make = _joined if options.strategy.startswith("join") else _single_rows
        sequences = make(texts, tokenizer, options)
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    items = []
    for ids, context in sequences:
        missing = options.max_seq_len - len(ids) if options.pad_to_max_len else 0
        around = (missing, 0) if options.padding_side == "left" else (0, missing)
        tokens = np.pad(np.asarray(ids, np.int64), around, constant_values=fill)
        mask = np.pad(np.ones(len(ids), np.int64), around)
        labels = np.where(mask == 1, tokens, IGNORED_LABEL)
        labels[:context] = IGNORED_LABEL
        inputs = {"input_ids": tokens, "attention_mask": mask} if options.use_attention_mask else {"input_ids": tokens}
        items.append((inputs, labels))
    if not items:
        raise DataUnavailable(
            f"the data has not enough text for one sequence of {options.max_seq_len} tokens",
            "lower max_seq_len, or take more rows",
        )
    return Examples(items, {"input_ids": fill})


def _text(
    row: Mapping[str, Any],
    options: TextGenerationOptions,
    tokenizer: PreTrainedTokenizerBase,
    formatted: Callable[[Mapping[str, Any]], str] | None,
) -> str:
    if options.chat_template:
        require_columns(row, [options.message_col])
        if not isinstance(options.chat_template, str) and not tokenizer.chat_template:
            raise DataUnavailable(
                "the model's tokenizer has no chat template", "say with text_template how a row reads as text"
            )
        template = options.chat_template if isinstance(options.chat_template, str) else None
        return str(
            tokenizer.apply_chat_template(
                conversation(row[options.message_col], options.message_col), tokenize=False, chat_template=template
            )
        )
    if formatted is not None:
        text = formatted(row)
    elif options.text_template is not None:
        if any(row.get(name, "") is None for name in template_columns(options.text_template)):
            return ""
        try:
            text = options.text_template.format(**row)
        except (KeyError, IndexError) as error:
            raise DataUnavailable(
                f"text_template names {error}, and the data set has {', '.join(row)}", did_you_mean(str(error).strip("'"), row)
            ) from None
    else:
        require_columns(row, options.columns)
        text = " ".join(str(row[name]) for name in options.columns if row[name] is not None)
    if not text.strip() or not options.add_special_tokens:
        return text.strip() and text
    return " ".join(part for part in (_token(tokenizer.bos_token), text, _token(tokenizer.eos_token)) if part)


def template_columns(template: str) -> list[str]:
    """Returns the columns that a template names; of {row.key} and {row[0]} it is row.

    Raises:
        ValueError: its braces do not match.
    """
    named = [name for _, name, _, _ in Formatter().parse(template) if name]
    return [re.split(r"[.\[]", name)[0] for name in named]


def conversation(messages: Any, column: str) -> list[dict[str, Any]]:
    """Returns messages with role and content, also where they come in ShareGPT's form.

    Args:
        messages: a row's value.
        column: where it stands.

    Raises:
        DataUnavailable: it is no conversation.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataUnavailable(
            f"the column {column} holds no list of messages", 'a message is {"role": "user", "content": "..."}'
        )
    made = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise DataUnavailable(
                f"the column {column} holds a message that is a {type(message).__name__}",
                'a message is {"role": "user", "content": "..."}',
            )
        role, content = ("role", "content") if "role" in message else ("from", "value")
        if role not in message or content not in message:
            raise DataUnavailable(
                f"a message has no role or no content: it has {', '.join(map(str, message))}",
                'a message is {"role": "user", "content": "..."}, or {"from": "human", "value": "..."}',
            )
        made.append({"role": _ROLES.get(message[role], message[role]), "content": message[content]})
    return made


def _question(row: Mapping[str, Any], options: TextGenerationOptions, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the text before the answer: before the template's last column, or before the last message."""
    if options.chat_template:
        template = options.chat_template if isinstance(options.chat_template, str) else None
        return str(
            tokenizer.apply_chat_template(
                conversation(row[options.message_col], options.message_col)[:-1],
                tokenize=False,
                chat_template=template,
                add_generation_prompt=True,
            )
        )
    whole = options.text_template or ""
    before = whole[: whole.rfind("{")].format(**row)
    return f"{tokenizer.bos_token} {before}" if options.add_special_tokens and tokenizer.bos_token else before


def _answers(
    texts: Sequence[str], questions: Sequence[str], tokenizer: PreTrainedTokenizerBase, options: TextGenerationOptions
) -> Iterator[tuple[list[int], int]]:
    """Yields (token ids, how many of them are the question), rows left out whose answer is cut off."""
    for ids, asked in zip(_tokenized(texts, tokenizer), _tokenized(questions, tokenizer), strict=True):
        kept = ids[: options.max_seq_len]
        same = next((at for at, (one, other) in enumerate(zip(kept, asked, strict=False)) if one != other), len(asked))
        if same < len(kept):
            yield kept, same


def _token(token: Any) -> str | None:
    return str(token) if token is not None else None


def _tokenized(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, **options: Any) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, **options)["input_ids"]
    return ids


def _joined(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, options: TextGenerationOptions
) -> Iterator[tuple[list[int], int]]:
    """Yields (token ids, how many of them the sequence before has had already)."""
    joiner = _tokenized([options.joiner], tokenizer)[0] if options.joiner else []
    if options.strategy == "join-random":
        yield from ((ids, 0) for ids in _random_windows(texts, joiner, tokenizer, options))
        return
    length = options.max_seq_len
    step = options.stride if options.strategy == "join-sliding-window" and options.stride else length
    waiting: list[int] = []
    made = 0
    for start in range(0, len(texts), options.processing_batch_size):
        for ids in _tokenized(texts[start : start + options.processing_batch_size], tokenizer):
            waiting += [*ids, *joiner]
        at = 0
        while at + length <= len(waiting):
            if made == options.max_samples:
                return
            yield waiting[at : at + length], max(length - step, 0) if made else 0
            made += 1
            at += step
        waiting = waiting[at:]


def _random_windows(
    texts: Sequence[str], joiner: Sequence[int], tokenizer: PreTrainedTokenizerBase, options: TextGenerationOptions
) -> Iterator[list[int]]:
    random = Random(options.random_seed)  # noqa: S311 - which text is looked at is no secret
    known: dict[int, list[int]] = {}

    def window(start: int) -> list[int]:
        ids: list[int] = []
        for at in range(start, len(texts)):
            if at not in known:
                known[at] = _tokenized([texts[at]], tokenizer)[0]
            ids += [*known[at], *joiner]
            if len(ids) >= options.max_seq_len:
                break
        return ids[: options.max_seq_len]

    for _ in range(options.max_samples or 0):
        for _ in range(options.random_retries if texts else 0):
            ids = window(random.randrange(len(texts)))
            if len(ids) == options.max_seq_len:
                yield ids
                break


def _single_rows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, options: TextGenerationOptions
) -> Iterator[tuple[list[int], int]]:
    """Yields (token ids, 0) of single rows, cut to the longest that is allowed."""

    def fits(ids: Sequence[int]) -> bool:
        return bool(ids) and (not options.drop_short_sequences or len(ids) >= options.max_seq_len)

    def tokens(some: Sequence[str]) -> list[list[int]]:
        return [ids[: options.max_seq_len] for ids in _tokenized(some, tokenizer)]

    if options.strategy == "line-by-line":
        yield from ((ids, 0) for ids in tokens(texts) if fits(ids))
        return
    random = Random(options.random_seed)  # noqa: S311
    for _ in range(options.max_samples or 0):
        for _ in range(options.random_retries if texts else 0):
            ids = tokens([texts[random.randrange(len(texts))]])[0]
            if fits(ids):
                yield ids, 0
                break
