"""Text generation with onnxruntime-genai: one loaded model, its tokenizer, streaming and logits. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import RunFailed, UsageError
from runner.models.handle import ModelHandle
from runner.models.session import tuned_options
from runner.targets.target import TARGETS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PRUNED = "/lm_head/prune/"  # begins the names of the nodes that choose the last position
PARTS_WITH_SESSIONS = ("decoder", "encoder", "embedding", "vision", "speech")


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One generated token and the text that it completes, which is empty inside a character of several tokens."""

    id: int
    text: str


def import_genai() -> Any:
    """Returns the module onnxruntime_genai.

    Its native part is a module of the same name inside the package. When that one is found first (the current folder is the
    package's own), it kills the process while looking for ONNX Runtime, which no `except` could catch; so look before.

    Raises:
        RunFailed: it is not installed, or something else of its name comes first on the path.
    """
    found = find_spec("onnxruntime_genai")
    if found is None or not found.submodule_search_locations:
        what = f"'{found.origin}' is found under its name" if found else "the package is not installed"
        raise RunFailed(
            "no-genai",
            f"onnxruntime-genai cannot be imported: {what}",
            "pip install onnxruntime-genai; start from another folder if a file there has its name",
        )
    import onnxruntime_genai

    if str(getattr(onnxruntime_genai, "__id__", "")).endswith("-cuda"):
        import onnxruntime

        onnxruntime.preload_dlls()  # finds CUDA and cuDNN in Python packages, which its own loader does not
    return onnxruntime_genai


def genai_config(folder: Path) -> dict[str, Any]:
    """Returns the folder's genai_config.json.

    Raises:
        RunFailed: there is none, or it is damaged.
    """
    path = folder / "genai_config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config["model"]["decoder"]["filename"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFailed("bad-genai-config", f"{path} cannot be read: {error}", "build the model again") from None
    return config


def provider_of(config: Mapping[str, Any]) -> str:
    """Returns the execution provider that a genai_config.json names first for its decoder; the CPU's where none is ours."""
    named = config["model"]["decoder"].get("session_options", {}).get("provider_options") or [{}]
    first = next(iter(named[0]), "cpu").lower()
    return next((one.provider for one in TARGETS.values() if first in (one.genai_provider, one.name)), TARGETS["cpu"].provider)


class GenerationSession:
    """A model folder of onnxruntime-genai, loaded once.

    Args:
        folder: holds genai_config.json, the graph and the tokenizer.
        threads: threads of every session of the model, unless the folder was tuned on a machine with as many cores.
        every_position: make `all_logits` possible for a model whose head is pruned to the last token. The pruned graph is
            changed in memory only; its weights are read from the same file.
        on_cpu: run on the CPU whatever provider the model was built for.
        profile: where profiles of the sessions go; ONNX Runtime adds the time to the name, and writes when a session ends.
        graphs: let the decoder capture CUDA graphs where its folder says so. With them onnxruntime-genai 0.18 reads a prompt of
            one row only.

    Raises:
        RunFailed: the model does not load.
    """

    def __init__(
        self,
        folder: Path,
        threads: int,
        *,
        every_position: bool = False,
        on_cpu: bool = False,
        profile: Path | None = None,
        graphs: bool = True,
    ) -> None:
        self.folder = folder
        self._library = import_genai()
        self._described = genai_config(folder)
        self._graph = _without_pruning(folder, self._described) if every_position else None
        self._every_position = every_position
        try:
            config = self._library.Config(str(folder))
            if on_cpu:
                config.clear_providers()
            tuned = tuned_options(ModelHandle("genai", folder)).get("intra_op_num_threads")
            config.overlay(json.dumps(threads_overlay(self._described, int(tuned or threads), on_cpu=on_cpu)))
            if profile is not None:
                config.overlay(json.dumps(profile_overlay(self._described, profile)))
            if not graphs and not on_cpu and self.captures:
                config.set_provider_option("cuda", "enable_cuda_graph", "0")
            if self._graph is not None:
                config.add_model_data(self._described["model"]["decoder"]["filename"], self._graph)
            self._model = self._library.Model(config)
        except RuntimeError as error:
            raise RunFailed("model-does-not-load", f"onnxruntime-genai does not load {folder}: {error}") from error

    @property
    def captures(self) -> bool:
        """Returns whether the folder says that the decoder's steps are replayed as CUDA graphs."""
        told = self._described["model"]["decoder"].get("session_options", {}).get("provider_options", ())
        return any(options.get("enable_cuda_graph") == "1" for entry in told for options in entry.values())

    @property
    def context_length(self) -> int:
        """Returns how many tokens prompt and answer may have together."""
        return int(self._described["model"]["context_length"])

    @cached_property
    def tokenizer(self) -> Any:
        """The onnxruntime_genai.Tokenizer of the folder."""
        try:
            return self._library.Tokenizer(self._model)
        except RuntimeError as error:
            raise RunFailed(
                "no-tokenizer", f"onnxruntime-genai does not load the tokenizer of {self.folder}: {error}"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text` as it stands: control tokens in it count, none is added."""
        return [int(token) for token in self.tokenizer.encode(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of `tokens`."""
        import numpy as np

        return str(self.tokenizer.decode(np.asarray(tokens, dtype=np.int32)))

    @property
    def chats(self) -> bool:
        """Returns whether the tokenizer carries a chat template."""
        if (self.folder / "chat_template.jinja").is_file():
            return True
        told = self.folder / "tokenizer_config.json"
        return told.is_file() and bool(json.loads(told.read_text(encoding="utf-8")).get("chat_template"))

    def prompt(self, messages: str | Sequence[Mapping[str, str]]) -> list[int]:
        """Returns the ids of a prompt: messages in the model's chat template, or plain text behind its first token.

        Args:
            messages: what the user says, or a conversation as mappings of `role` and `content`.
        """
        if not self.chats:
            text = messages if isinstance(messages, str) else "\n".join(message["content"] for message in messages)
            return self.text_tokens(text)
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(one) for one in messages]
        return self.encode(str(self.tokenizer.apply_chat_template(json.dumps(conversation), add_generation_prompt=True)))

    def text_tokens(self, text: str) -> list[int]:
        """Returns the ids of plain text, with the tokens that the tokenizer puts around a text."""
        self.tokenizer.update_options(add_special_tokens="true")
        try:
            return self.encode(text)
        finally:
            self.tokenizer.update_options(add_special_tokens="false")

    def generate(self, prompt: Sequence[int], max_new_tokens: int, **search: Any) -> Iterator[GeneratedToken]:
        """Yields tokens with their text until the model ends its answer or `max_new_tokens` are there.

        Args:
            prompt: ids of the prompt.
            max_new_tokens: the most tokens to add.
            search: entries of genai_config.json's search section, such as do_sample, temperature, top_p.

        Raises:
            UsageError: prompt and answer do not fit the context.
            RunFailed: the model stops with an error.
        """
        stream = self.tokenizer.create_stream()
        for token in self.generate_ids(prompt, max_new_tokens, **search):
            yield GeneratedToken(token, stream.decode(token))

    def generate_ids(self, prompt: Sequence[int], max_new_tokens: int, **search: Any) -> Iterator[int]:
        """Yields the ids alone; needs no tokenizer. See `generate`."""
        try:
            generator = self._generator(len(prompt) + max_new_tokens, search)
            generator.append_tokens(list(prompt))
            for _ in range(max_new_tokens):
                if generator.is_done():
                    return
                generator.generate_next_token()
                yield int(generator.get_next_tokens()[0])
        except RuntimeError as error:
            raise RunFailed("generation-failed", f"onnxruntime-genai stopped: {error}") from error

    def generate_rows(self, prompt: Sequence[int], rows: int, new_tokens: int, **search: Any) -> Iterator[NDArray[np.int32]]:
        """Yields the next token of every row, int32 [rows], `new_tokens` times or until all rows have ended.

        Args:
            prompt: ids of the prompt, which every row begins with.
            rows: how many rows are generated at once.
            new_tokens: the most tokens of each.
            search: as of `generate`.

        Raises:
            UsageError, RunFailed: as `generate`.
        """
        import numpy as np

        try:
            generator = self._generator(len(prompt) + new_tokens, {**search, "batch_size": rows})
            generator.append_tokens(np.tile(np.asarray(prompt, dtype=np.int32), rows))
            for _ in range(new_tokens):
                if generator.is_done():
                    return
                generator.generate_next_token()
                yield np.asarray(generator.get_next_tokens())
        except RuntimeError as error:
            raise RunFailed("generation-failed", f"onnxruntime-genai stopped: {error}") from error

    def read(self, tokens: Sequence[int], one_by_one: int, further: int = 0) -> tuple[NDArray[np.float32], list[int]]:
        """Reads tokens in one go, the last of them one at a time through the key-value cache, and goes on by itself.

        Args:
            tokens: what is read.
            one_by_one: how many of them, at the end, are fed alone.
            further: the most tokens that are written greedily behind them; fewer where the context or the answer ends.

        Returns:
            logits [len(tokens), vocabulary], as of `all_logits`, and the ids that were written.

        Raises:
            UsageError, RunFailed: as `all_logits`.
        """
        import numpy as np

        split = len(tokens) - one_by_one
        further = min(further, self.context_length - len(tokens))
        rows: list[NDArray[np.float32]] = []
        written: list[int] = []
        try:
            generator = self._generator(len(tokens) + further, {"do_sample": False})
            for piece in (list(tokens[:split]), *([token] for token in tokens[split:])):
                generator.append_tokens(piece)
                logits = np.asarray(generator.get_output("logits"), dtype=np.float32)[0]
                if len(logits) != len(piece):
                    raise _pruned()
                rows.append(logits)
            while len(written) < further and not generator.is_done():
                generator.generate_next_token()
                written.append(int(generator.get_next_tokens()[0]))
        except RuntimeError as error:
            raise RunFailed("generation-failed", f"onnxruntime-genai stopped: {error}") from error
        return np.concatenate(rows), written

    def all_logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Returns logits [len(tokens), vocabulary]: row t is the model's guess at token t + 1.

        Raises:
            UsageError: the head is pruned to the last token and the session was opened without `every_position`.
            RunFailed: the model stops with an error.
        """
        import numpy as np

        try:
            generator = self._generator(len(tokens) + 1, {})
            generator.append_tokens(list(tokens))
            logits = np.asarray(generator.get_output("logits"), dtype=np.float32)
        except RuntimeError as error:
            raise RunFailed("generation-failed", f"onnxruntime-genai stopped: {error}") from error
        if logits.shape[1] != len(tokens):
            raise _pruned()
        rows: NDArray[np.float32] = logits[0]
        return rows

    def _generator(self, length: int, search: Mapping[str, Any]) -> Any:
        if length > self.context_length:
            raise UsageError(
                "context-too-short",
                f"prompt and answer need {length} tokens, and the model has room for {self.context_length}",
                "shorten the prompt or ask for fewer new tokens",
            )
        window = self._described["model"]["decoder"].get("sliding_window", {}).get("window_size", 0)
        parameters = self._library.GeneratorParams(self._model)
        parameters.set_search_options(**{**search, "max_length": max(length, window)})  # a cache must hold one window
        return self._library.Generator(self._model, parameters)


def _pruned() -> UsageError:
    return UsageError(
        "pruned-head", "this model gives logits of the last token only", "open the session with every_position=True"
    )


def threads_overlay(config: Mapping[str, Any], threads: int, *, on_cpu: bool) -> dict[str, Any]:
    """Returns what sets the threads of every session that runs on the CPU, to be laid over a genai_config.json.

    onnxruntime-genai 0.18 crashes when it reads a sound on CUDA with options laid over those of its sessions.

    Args:
        config: what lies in genai_config.json.
        threads: threads of each session.
        on_cpu: all sessions run on the CPU, whatever provider the model was built for.
    """
    described = config["model"]
    parts = [part for part in PARTS_WITH_SESSIONS if part in described and (on_cpu or not _on_device(described[part]))]
    return {"model": {part: {"session_options": {"intra_op_num_threads": threads}} for part in parts}}


def profile_overlay(config: Mapping[str, Any], prefix: Path) -> dict[str, Any]:
    """Returns what lets every session write a profile, to be laid over a genai_config.json or put into it.

    Args:
        config: what lies in genai_config.json.
        prefix: path that the names of the files begin with; each part's is added.
    """
    parts = [part for part in PARTS_WITH_SESSIONS if part in config["model"]]
    return {"model": {part: {"session_options": {"enable_profiling": f"{prefix}-{part}"}} for part in parts}}


def _on_device(part: Mapping[str, Any]) -> bool:
    return any(part.get("session_options", {}).get("provider_options") or ())


def _without_pruning(folder: Path, config: Mapping[str, Any]) -> bytes | None:
    """Returns the decoder graph with the head computing every position, or None where nothing is pruned.

    What prunes is a Gather of the last position and an Unsqueeze: one pair in front of the head, or several behind the last
    attention. What reads a pair is put back onto what the Gather reads. Only the graph is read, its weights stay in their file.
    """
    import onnx

    model = onnx.load(folder / config["model"]["decoder"]["filename"], load_external_data=False)
    made_by = {output: node for node in model.graph.node for output in node.output}
    back = {
        node.output[0]: made_by[node.input[0]].input[0]
        for node in model.graph.node
        if node.op_type == "Unsqueeze" and node.name.startswith(PRUNED)
    }
    if not back:
        return None
    kept = [node for node in model.graph.node if not node.name.startswith(PRUNED)]
    for node in kept:
        node.input[:] = [back.get(name, name) for name in node.input]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    logits = config["model"]["decoder"]["outputs"]["logits"]
    for output in model.graph.output:
        if output.name == logits:
            output.type.tensor_type.shape.dim[1].dim_param = "sequence_length"
    behind_head = [value for value in model.graph.value_info if value.name.startswith("/lm_head/")]
    for value in behind_head:
        model.graph.value_info.remove(value)
    return bytes(model.SerializeToString())
