"""The Hugging Face hub: what its cache holds, and downloads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import ModelUnavailable
from runner.models.checkpoint import CHECKPOINT_FILES

if TYPE_CHECKING:
    from runner.recipe.info import HubSource

_WEIGHTS = (".safetensors", ".bin")
INDEX = "model_index.json"  # of a diffusers pipeline
# Second copies of the weights in a repository: for the loaders of Mistral and open_clip, or in other precisions.
_SECOND_COPIES = ("consolidated*", "open_clip_*", "model.fp32*", "*.fp16.safetensors")


def cache_folder() -> Path:
    """Returns the folder of the hub's cache, where its environment variables put it."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def cached_snapshot(source: HubSource) -> Path | None:
    """Returns the complete snapshot of a repository in the hub's cache (its documented layout), or None."""
    repository = cache_folder() / f"models--{source.hub.replace('/', '--')}"
    revision = source.revision or "main"
    reference = repository / "refs" / revision
    try:
        snapshot = repository / "snapshots" / (reference.read_text().strip() if reference.is_file() else revision)
        whole = _is_checkpoint(snapshot) or _is_pipeline(snapshot)
    except OSError:
        return None
    return snapshot if whole else None


def _is_checkpoint(snapshot: Path) -> bool:
    return (snapshot / "config.json").is_file() and any(path.suffix in _WEIGHTS for path in snapshot.iterdir())


def _is_pipeline(snapshot: Path) -> bool:
    return (snapshot / INDEX).is_file() and any(path.suffix in _WEIGHTS for path in snapshot.glob("unet/*"))


def download(source: HubSource, say: Callable[[str], None]) -> Path:
    """Downloads a repository's checkpoint. Interrupted downloads go on where they stopped (huggingface_hub does that).

    Raises:
        ModelUnavailable: it is gated, not there, or the hub does not answer.
    """
    return _download(source, [f"*{ending}" for ending in CHECKPOINT_FILES], say, _SECOND_COPIES)


def download_pipeline(source: HubSource, folders: Sequence[str], variant: str | None, say: Callable[[str], None]) -> Path:
    """Downloads a diffusers pipeline: its index and these folders.

    Args:
        source: the repository.
        folders: names of the components' folders.
        variant: the form of the weights, such as ``fp16``; the full ones when None.
        say: told what is being fetched.

    Raises:
        ModelUnavailable: it is gated, not there, or the hub does not answer.
    """
    form = f".{variant}" if variant else ""
    weights = (f"*model{form}.safetensors", f"*model{form}-*-of-*.safetensors")
    wanted = [f"{folder}/{name}" for folder in folders for name in ("*.json", "*.txt", "*.model", *weights)]
    return _download(source, [INDEX, *wanted], say)


def download_config(source: HubSource, say: Callable[[str], None]) -> Path:
    """Downloads what a tiny twin is made from: a repository's configuration and tokenizer.

    Raises:
        ModelUnavailable: it is gated, not there, or the hub does not answer.
    """
    names = ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer*.json", "chat_template.jinja"]
    return _download(source, names, say)


def _download(
    source: HubSource, patterns: list[str], say: Callable[[str], None], left_out: Sequence[str] | None = None
) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    say(f"asking the hub for {source.hub}")
    try:
        HfApi().model_info(source.hub, revision=source.revision, timeout=10)
        say(f"downloading {source.hub}")
        return Path(
            snapshot_download(
                source.hub,
                revision=source.revision,
                allow_patterns=patterns,
                ignore_patterns=list(left_out) if left_out else None,
            )
        )
    except GatedRepoError:
        raise ModelUnavailable(
            "model-gated", f"hub: {source.hub} is gated; accept its terms there, then `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ModelUnavailable("model-not-found", f"hub: there is no repository {source.hub}, or it is private") from None
    except HfHubHTTPError as error:
        raise ModelUnavailable("hub-failed", f"hub: {str(error).splitlines()[0]}") from None
    except Exception as error:  # the HTTP library under huggingface_hub changes with its releases
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "requests") and not isinstance(
            error, OSError
        ):
            raise
        raise ModelUnavailable("hub-unreachable", f"the hub cannot be reached ({str(error).splitlines()[0]})") from None
