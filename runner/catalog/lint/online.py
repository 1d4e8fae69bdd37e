"""`recipe lint --online`: compares what info.yml says of a model with what the hub says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from runner.catalog.lint.facts import same_licence
from runner.catalog.lint.rule import Fault, Finding, Rule
from runner.catalog.lint.subject import Subject

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

TIMEOUT = 10.0  # seconds a request may take
TOLERANCE = 0.01
_AT_ONCE = 8
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_seq_len")
_INNER_CONFIGS = ("text_config", "llm_config")
# Formats that hold the same weights, the one that is fetched first.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_SECOND_COPIES = re.compile(
    r"\.(fp16|fp32|bf16|non_ema|ema|onnx|int8)\.|(^|/)(onnx|openvino|original|consolidated|flax)|training_args"
)

RULE = Rule(
    "facts-match-the-hub", "must", "Facts of the model are what the hub says (only with --online).",
    "What was true at first is changed on the hub now and then, and typing errors look like facts.",
    "write what the hub says, and the day under 'provenance: … checked'; or say why it differs",
)  # fmt: skip


class Unreachable(Exception):
    """The hub does not tell of a model."""


class Silent(Unreachable):
    """The hub does not answer at all."""


@dataclass(frozen=True)
class HubFacts:
    """What the hub says of a model; None where it says nothing.

    Attributes:
        parameters: weights in its safetensors files.
        licence: its licence's tag, or the name that its card gives it.
        gated: whether the licence is to be accepted first.
        download_mb: megabytes (10^6 bytes) of the weights that a run would fetch.
        context_length: tokens that its config.json names.
    """

    parameters: int | None = None
    licence: str | None = None
    gated: bool | None = None
    download_mb: float | None = None
    context_length: int | None = None


class Hub(Protocol):
    """What answers for the hub."""

    def facts(self, model: str) -> HubFacts | None:
        """Returns what the hub says of a model; None where it has none of that id.

        Raises:
            Unreachable: it does not tell, or does not answer at all.
        """
        ...


@dataclass(frozen=True)
class Comparison:
    """What came of comparing some recipes with the hub.

    Attributes:
        findings: facts that differ.
        reached: how many models the hub told of.
        unreached: model id to why it could not be asked for it.
    """

    findings: Sequence[Finding]
    reached: int
    unreached: Mapping[str, str]


def compare_with_hub(subjects: Sequence[Subject], hub: Hub) -> Comparison:
    """Returns the differences of every recipe's facts to the hub's, asked for a few models at a time.

    When the hub is silent to the first question, no other is put to it.
    """
    if not subjects:
        return Comparison((), 0, {})
    first = _answer(hub, subjects[0])
    if isinstance(first, Silent):
        return Comparison((), 0, {subject.info.model.id: str(first) for subject in subjects})
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = [first, *pool.map(lambda subject: _answer(hub, subject), subjects[1:])]
    findings, unreached = [], {}
    for subject, answer in zip(subjects, answers, strict=True):
        if isinstance(answer, Unreachable):
            unreached[subject.info.model.id] = str(answer)
        else:
            findings += [Finding.of(RULE, "must", fault) for fault in differences(subject, answer)]
    return Comparison(findings, len(subjects) - len(unreached), unreached)


def _answer(hub: Hub, subject: Subject) -> HubFacts | Unreachable | None:
    try:
        return hub.facts(subject.info.model.id)
    except Unreachable as error:
        return error


def differences(subject: Subject, hub: HubFacts | None) -> Iterator[Fault]:
    """Yields every fact of info.yml that is not the hub's; what either of them does not say is not compared."""
    model = subject.info.model
    if hub is None:
        yield Fault(f"the hub has no model '{model.id}', or it is private", subject.place("model", "id"), "correct the id")
        return
    for key in ("parameters", "context_length", "download_mb", "licence", "gated"):
        ours, theirs = getattr(model, key), getattr(hub, key)
        if ours is None or theirs is None or _same(key, ours, theirs):
            continue
        yield Fault(f"{key} is {_told(ours)} in info.yml, {_told(theirs)} on the hub", subject.place("model", key))


def _same(key: str, ours: Any, theirs: Any) -> bool:
    if key == "licence":
        return same_licence(ours, theirs)
    if key in ("parameters", "download_mb"):
        return bool(abs(ours - theirs) <= TOLERANCE * theirs)
    return bool(ours == theirs)


def _told(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:,}" if isinstance(value, (int, float)) else f"'{value}'"


def facts_of(info: ModelInfo, config: Mapping[str, Any] | None) -> HubFacts:
    """Returns what the hub's answer says.

    Args:
        info: `HfApi.model_info` with `files_metadata=True`.
        config: the model's config.json, where it could be read.
    """
    return HubFacts(
        parameters=info.safetensors.total if info.safetensors else None,
        licence=_licence(info),
        gated=None if info.gated is None else bool(info.gated),
        download_mb=_download_mb(info),
        context_length=_context_length(config or {}),
    )


def _licence(info: ModelInfo) -> str | None:
    card = info.card_data
    tag = getattr(card, "license", None)
    told = getattr(card, "license_name", None) if tag in (None, "other") else tag
    return str(told) if told else None


def _download_mb(info: ModelInfo) -> float | None:
    """The weights in the best format that every part of the model has; second copies of them do not count."""
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if not _SECOND_COPIES.search(file.rfilename)}
    inside = any("/" in name and name.endswith(_WEIGHTS) for name in sizes) and "model_index.json" in sizes
    for ending in _WEIGHTS:
        weights = [size for name, size in sizes.items() if name.endswith(ending) and ("/" in name) == inside]
        if sum(weights):
            return sum(weights) / 1e6
    return None


def _context_length(config: Mapping[str, Any]) -> int | None:
    for holder in (config, *(config.get(key) or {} for key in _INNER_CONFIGS)):
        for key in _CONTEXT_KEYS:
            if isinstance(holder.get(key), int):
                return int(holder[key])
    return None


class HuggingFace:
    """The Hugging Face hub, asked with the token of this machine when there is one."""

    def facts(self, model: str) -> HubFacts | None:
        """Returns what the hub says of a model; None where it has none of that id.

        Raises:
            Unreachable: it does not tell, or does not answer at all.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

        try:
            info = HfApi().model_info(model, files_metadata=True, timeout=TIMEOUT)
        except GatedRepoError:
            raise Unreachable("gated, and the hub tells of it only to those who accepted its licence") from None
        except RepositoryNotFoundError:
            return None
        except HfHubHTTPError as error:
            raise Unreachable(_first_line(error)) from None
        except Exception as error:
            if not _is_of_the_network(error):
                raise
            raise Silent(_first_line(error)) from None
        return facts_of(info, _config_json(model))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _config_json(model: str) -> Mapping[str, Any] | None:
    """The model's config.json; None where there is none, or it is not given before the licence is accepted."""
    import json
    from pathlib import Path

    from huggingface_hub import hf_hub_download

    try:
        content = json.loads(Path(hf_hub_download(model, "config.json", etag_timeout=TIMEOUT)).read_bytes())
    except ValueError:
        return None
    except Exception as error:
        if not _is_of_the_network(error):
            raise
        return None
    return content if isinstance(content, dict) else None


def _is_of_the_network(error: Exception) -> bool:
    """Says whether huggingface_hub, or the HTTP library under it, which changes with its releases, reached nothing."""
    libraries = ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests")
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in libraries
