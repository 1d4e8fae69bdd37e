"""Draws pictures with ONNX Runtime from the folder of an optimised Stable Diffusion or Stable Diffusion XL pipeline.

The loop is that of diffusers' pipelines: text encoders, classifier-free guidance (https://arxiv.org/abs/2207.12598), the
scheduler's steps over the UNet, the autoencoder's decoder. Schedulers come from diffusers. With the same noise the picture is
that of the PyTorch pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from runner.errors import ModelUnavailable, RunFailed, UsageError
from runner.models.checkpoint import read_json
from runner.models.components import MANIFEST, is_pipeline, parts_of, pipeline_of
from runner.models.diffusion import TASK, pixels_per_latent, require_diffusers
from runner.models.diffusion_scheduler import load_scheduler, set_steps, step_options
from runner.models.diffusion_text import load_tokenizers, prompt_ids
from runner.models.handle import ModelHandle
from runner.models.hub import INDEX
from runner.models.session import open_session, raised_by_runtime

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime
    import torch

    Array = np.ndarray[Any, Any]

DEFAULT_GUIDANCE = {"sd": 7.5, "sdxl": 5.0}
_LARGEST = 4096
_NUMPY_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64", "tensor(int32)": "int32"}


@dataclass(frozen=True)
class Wanted:
    """The picture that is asked for.

    Attributes:
        prompt: what it shows; may be empty.
        negative_prompt: what it does not show.
        steps: of the scheduler.
        guidance: how much the prompt counts; 1 or less leaves guidance out, None takes the kind's usual one.
        seed: of the noise that it starts from.
        height: in pixels; the model's own when None.
        width: in pixels; the model's own when None.
        scheduler: diffusers' name of another scheduler; the model's own when None.
    """

    prompt: str
    negative_prompt: str | None = None
    steps: int = 30
    guidance: float | None = None
    seed: int = 0
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None


@dataclass(frozen=True)
class _Text:
    """What the UNet reads of prompts: hidden states [prompts, tokens, width] and, for XL, pooled ones [prompts, width]."""

    hidden: Array
    pooled: Array | None


class DrawingPipeline:
    """Text encoders, UNet and decoder of one folder, each in a session that is opened when it is first needed.

    Args:
        model: the pipeline.
        threads: threads of each session.
        provider: execution provider.
        profile: folder where each session writes a profile when it ends, named after its component.

    Raises:
        ModelUnavailable: the folder holds no such pipeline.
        PackageMissing: diffusers is not installed.
    """

    def __init__(
        self, model: ModelHandle, threads: int, provider: str = "CPUExecutionProvider", profile: Path | None = None
    ) -> None:
        require_diffusers()
        if not is_pipeline(model) or "unet" not in parts_of(model):
            raise ModelUnavailable("no-pipeline", f"{model.folder} holds no pipeline that draws", "make it with a recipe")
        self.model = model
        self.variant: str = model.attributes["model_variant"]
        self._threads, self._provider, self._profile = threads, provider, profile
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._tokenizers = load_tokenizers(model.folder)
        self._unet = read_json(model.folder / "unet" / "config.json")
        self._autoencoder = read_json(model.folder / "vae_decoder" / "config.json")
        self._pixels = pixels_per_latent(self._autoencoder)

    @classmethod
    def from_folder(cls, folder: Path, threads: int = 0, provider: str = "CPUExecutionProvider") -> DrawingPipeline:
        """Returns the pipeline in the output folder of a recipe: ``DrawingPipeline.from_folder(path).draw(Wanted("a cat"))``.

        Args:
            folder: what `recipe run` wrote.
            threads: threads of each session; 0 leaves them to ONNX Runtime.
            provider: execution provider.

        Raises:
            ModelUnavailable: the folder holds no such pipeline.
            PackageMissing: diffusers is not installed.
        """
        for name in (MANIFEST, INDEX):
            if not (folder / name).is_file():
                raise ModelUnavailable("no-pipeline", f"{folder} has no {name}", "name the folder that 'recipe run' wrote")
        listed: Mapping[str, Mapping[str, Any]] = read_json(folder / MANIFEST)["components"]
        parts = [
            (name, ModelHandle("onnx", folder / name, PurePosixPath(facts["file"]).name, TASK))
            for name, facts in listed.items()
        ]
        variant = "sdxl" if "text_encoder_2" in listed else "sd"
        return cls(pipeline_of(folder, parts, TASK, model_variant=variant), threads, provider)

    def open(self) -> None:
        """Opens the sessions of all components that drawing needs."""
        for name in parts_of(self.model):
            if name != "vae_encoder":
                self._session(name)

    def size(self, wanted: Wanted) -> tuple[int, int]:
        """Returns the (height, width) in pixels of a picture.

        Raises:
            UsageError: the model cannot draw it.
        """
        own = _square(self._unet["sample_size"], self._pixels)
        found = (wanted.height or own[0], wanted.width or own[1])
        multiple = self._pixels * 2 ** (len(self._unet["block_out_channels"]) - 1)
        if any(not multiple <= edge <= _LARGEST or edge % multiple for edge in found):
            raise UsageError(
                "bad-size",
                f"a picture of {found[1]} x {found[0]} pixels cannot be drawn",
                f"take multiples of {multiple} up to {_LARGEST}; this model was made for {own[1]} x {own[0]}",
            )
        return found

    def left_out(self, prompt: str) -> str:
        """Returns the end of a prompt that is longer than the text encoders read; empty where it is not."""
        return max((prompt_ids(one, prompt).left_out for one in self._tokenizers), key=len)

    def noise(self, wanted: Wanted) -> Array:
        """Returns the latents [1, channels, height, width] that a picture starts from, as diffusers draws them on the CPU."""
        drawn: Array = self._noise(wanted, seeded(wanted)).numpy()
        return drawn

    def _noise(self, wanted: Wanted, random: torch.Generator) -> torch.Tensor:
        height, width = self.size(wanted)
        return start_noise(int(self._unet["in_channels"]), height // self._pixels, width // self._pixels, random)

    def draw(
        self, wanted: Wanted, latents: Array | None = None, step_done: Callable[[int, int], None] = lambda *_: None
    ) -> Array:
        """Returns the picture: fp32 [height, width, 3], from 0 to 1.

        Args:
            wanted: what to draw.
            latents: noise to start from; drawn from the seed when None.
            step_done: told the number of steps that are done, and of all.

        Raises:
            UsageError: the model cannot draw a picture of that size, or in so many steps, or has no such scheduler.
            RunFailed: a component does not run, or puts out numbers that are none.
        """
        import torch

        height, width = self.size(wanted)
        scheduler = load_scheduler(self.model.folder, self.variant, wanted.scheduler)
        set_steps(scheduler, wanted.steps)
        guidance = DEFAULT_GUIDANCE[self.variant] if wanted.guidance is None else wanted.guidance
        guided = guidance > 1.0 and not self._reads_guidance
        text = self._read(wanted, guided)
        random = seeded(wanted)
        start = self._noise(wanted, random) if latents is None else torch.from_numpy(latents)
        state, options = start * scheduler.init_noise_sigma, step_options(scheduler, random)
        count = len(scheduler.timesteps)
        for at, step in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(torch.cat([state] * 2) if guided else state, step)
            predicted = torch.from_numpy(self._denoise(scaled, float(step), text, (height, width), guidance))
            if guided:
                without, towards = predicted.chunk(2)
                predicted = without + guidance * (towards - without)
            state = scheduler.step(predicted, step, state, **options, return_dict=False)[0]
            step_done(at + 1, count)
        return self._decode(state.numpy())

    @property
    def _reads_guidance(self) -> bool:
        """A distilled UNet is told how much the prompt counts, and runs once a step (https://arxiv.org/abs/2210.03142)."""
        return self._unet.get("time_cond_proj_dim") is not None

    def _read(self, wanted: Wanted, guided: bool) -> _Text:
        """Reads the prompt and, in front of it where there is guidance, what it is not."""
        import numpy as np

        asked = self._encode(wanted.prompt)
        if not guided:
            return asked
        if wanted.negative_prompt is None and self._zeros_for_nothing:
            against = _Text(np.zeros_like(asked.hidden), None if asked.pooled is None else np.zeros_like(asked.pooled))
        else:
            against = self._encode(wanted.negative_prompt or "")
        pooled = None if asked.pooled is None or against.pooled is None else np.concatenate([against.pooled, asked.pooled])
        return _Text(np.concatenate([against.hidden, asked.hidden]), pooled)

    @property
    def _zeros_for_nothing(self) -> bool:
        return bool(read_json(self.model.folder / INDEX).get("force_zeros_for_empty_prompt"))

    def _encode(self, prompt: str) -> _Text:
        """XL joins the hidden states before the last layer of both encoders, and takes the pooled state of the second."""
        import numpy as np

        found = [
            self._run(name, {"input_ids": prompt_ids(tokenizer, prompt).ids})
            for name, tokenizer in zip(("text_encoder", "text_encoder_2"), self._tokenizers, strict=False)
        ]
        if self.variant == "sd":
            return _Text(found[0]["last_hidden_state"], None)
        return _Text(np.concatenate([_before_last(one) for one in found], axis=-1), found[-1]["text_embeds"])

    def _denoise(self, latents: torch.Tensor, step: float, text: _Text, size: tuple[int, int], guidance: float) -> Array:
        import numpy as np

        rows = latents.shape[0]
        feed: dict[str, Any] = {
            "sample": latents.numpy(),
            "timestep": np.asarray([step], dtype=np.float32),
            "encoder_hidden_states": text.hidden,
        }
        if self._reads_guidance:
            feed["timestep_cond"] = np.repeat(_waves(guidance - 1.0, int(self._unet["time_cond_proj_dim"])), rows, axis=0)
        if text.pooled is not None:
            times = np.asarray([[*size, 0, 0, *size]], dtype=np.float32)
            feed |= {"text_embeds": text.pooled, "time_ids": np.repeat(times, rows, axis=0)}
        return self._run("unet", feed)["out_sample"]

    def _decode(self, latents: Array) -> Array:
        import numpy as np

        pixels = self._run("vae_decoder", {"latent_sample": self._unscaled(latents)})["sample"]
        if not np.isfinite(pixels).all():
            raise RunFailed(
                "picture-not-finite",
                "the decoder puts out numbers that are none (NaN or infinite)",
                "half precision overflows in some autoencoders: keep vae_decoder in fp32",
            )
        picture: Array = np.clip(pixels[0] / 2 + 0.5, 0.0, 1.0).transpose(1, 2, 0)
        return picture

    def _unscaled(self, latents: Array) -> Array:
        """Returns latents as the decoder takes them; some autoencoders of XL say the mean and deviation of each channel."""
        import numpy as np

        scale = float(self._autoencoder["scaling_factor"])
        means, deviations = self._autoencoder.get("latents_mean"), self._autoencoder.get("latents_std")
        if self.variant != "sdxl" or means is None or deviations is None:
            plain: Array = latents / scale
            return plain
        mean, deviation = (np.asarray(one, np.float32).reshape(1, -1, 1, 1) for one in (means, deviations))
        unscaled: Array = latents * deviation / scale + mean
        return unscaled

    def _run(self, name: str, feed: Mapping[str, Any]) -> dict[str, Array]:
        """Runs a component on arrays with one row a picture; a graph that fixes its batch at one gets one row at a time."""
        import numpy as np

        session = self._session(name)
        described = {one.name: one for one in session.get_inputs()}
        given = {
            key: value.astype(_NUMPY_TYPES[one.type]) for key, one in described.items() if (value := feed[key]) is not None
        }
        first = next(iter(described.values()))
        rows = len(given[first.name])
        names = [one.name for one in session.get_outputs()]
        if first.shape[0] != 1 or rows == 1:
            return dict(zip(names, self._results(name, session, given), strict=True))
        single = [
            self._results(name, session, {key: _row(value, at, rows) for key, value in given.items()}) for at in range(rows)
        ]
        return {key: np.concatenate(values) for key, values in zip(names, zip(*single, strict=True), strict=True)}

    def _results(self, name: str, session: onnxruntime.InferenceSession, feed: Mapping[str, Any]) -> list[Array]:
        import numpy as np

        try:
            return [one.astype(np.float32) for one in session.run(None, dict(feed))]
        except Exception as error:
            if not raised_by_runtime(error):
                raise
            raise RunFailed("component-does-not-run", f"{name}: {str(error).strip().splitlines()[0]}") from error

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        if name not in self._sessions:
            part, profile = parts_of(self.model)[name], self._profile / name if self._profile else None
            self._sessions[name] = open_session(part, self._threads, (self._provider,), profile=profile)
        return self._sessions[name]


def seeded(wanted: Wanted) -> torch.Generator:
    """Returns the source of all noise of a picture, on the CPU."""
    import torch

    return torch.Generator().manual_seed(wanted.seed)


def start_noise(channels: int, height: int, width: int, random: torch.Generator) -> torch.Tensor:
    """Returns the latents [1, channels, height, width] that a picture starts from, in fp32.

    What a seed gives in half precision is left to each release of PyTorch.
    """
    import torch

    return torch.randn((1, channels, height, width), generator=random)


def _waves(value: float, width: int) -> Array:
    """Returns a number as sines and cosines of falling frequencies [1, width], as diffusers tells a UNet the guidance.

    From https://github.com/google-research/vdm, model_vdm.py.
    """
    import numpy as np

    half = width // 2
    angles = 1000.0 * value * np.exp(np.arange(half, dtype=np.float32) * -(np.log(10000.0) / (half - 1)))
    found = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width - 2 * half)])
    row: Array = found.astype(np.float32)[None]
    return row


def _square(size: int | list[int], pixels: int) -> tuple[int, int]:
    edges = (size, size) if isinstance(size, int) else (size[0], size[1])
    return edges[0] * pixels, edges[1] * pixels


def _before_last(found: Mapping[str, Array]) -> Array:
    numbered = [name for name in found if name.startswith("hidden_states.")]
    return found[max(numbered, key=lambda name: int(name.rpartition(".")[2]))]


def _row(value: Any, at: int, rows: int) -> Any:
    return value[at : at + 1] if len(value) == rows else value
