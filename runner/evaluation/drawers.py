"""A loaded pipeline that draws pictures from text, by diffusers' PyTorch pipeline or by ours over ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from runner.errors import RunFailed
from runner.evaluation.torch_form import TorchForm
from runner.models.diffusion_pipeline import DrawingPipeline, Wanted, seeded, start_noise
from runner.models.diffusion_scheduler import other_scheduler, set_steps
from runner.models.diffusion_torch import load_pipeline
from runner.models.handle import ModelHandle

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array = np.ndarray[Any, Any]

StepDone = Callable[[int, int], None]


class Drawer(Protocol):
    """A loaded pipeline."""

    def draw(self, wanted: Wanted, *, step_done: StepDone = ...) -> Array:
        """Returns a picture, fp32 [height, width, 3] from 0 to 1; see `DrawingPipeline.draw`.

        The noise that it starts from is the seed's, the same whatever draws and on whatever device.
        """
        ...


def open_drawer(
    model: ModelHandle, threads: int, provider: str = "CPUExecutionProvider", form: TorchForm | None = None
) -> Drawer:
    """Loads every component of a `diffusers` source, or those of an optimised pipeline that drawing needs.

    Args:
        model: the source or the pipeline.
        threads: threads to compute with.
        provider: execution provider; PyTorch runs on the device that it drives.
        form: how PyTorch runs the source; eager in fp32 when None.

    Raises:
        RecipeError: it does not load.
    """
    if model.kind == "diffusers":
        return TorchDrawer(model, threads, "cuda" if provider == "CUDAExecutionProvider" else "cpu", form or TorchForm())
    pipeline = DrawingPipeline(model, threads, provider)
    pipeline.open()
    return pipeline


class TorchDrawer:
    """The source through diffusers' own pipeline; compiled, its UNet is.

    Args:
        source: of kind `diffusers`.
        threads: threads to compute with.
        device: PyTorch's name of the device.
        form: its floating-point type, and whether the UNet is compiled.
    """

    def __init__(self, source: ModelHandle, threads: int, device: str = "cpu", form: TorchForm | None = None) -> None:
        import torch

        torch.set_num_threads(threads)
        form = form or TorchForm()
        self._pipeline = load_pipeline(source).to(device, form.dtype())
        if form.compiled:
            self._pipeline.unet = torch.compile(self._pipeline.unet)
        self._own_scheduler = self._pipeline.scheduler

    def draw(self, wanted: Wanted, *, step_done: StepDone = lambda *_: None) -> Array:
        """See `Drawer.draw`.

        Raises:
            UsageError: the model cannot draw in so many steps, or has no such scheduler.
            RunFailed: the numbers of the picture are none.
        """
        import numpy as np
        import torch

        def at_step_end(pipeline: Any, at: int, _: torch.Tensor, given: dict[str, Any]) -> dict[str, Any]:
            if pipeline.device.type == "cuda":
                torch.cuda.synchronize()
            step_done(at + 1, pipeline.num_timesteps)
            return given

        own = self._own_scheduler
        self._pipeline.scheduler = own if wanted.scheduler is None else other_scheduler(own, wanted.scheduler)
        set_steps(self._pipeline.scheduler, wanted.steps)
        options = {} if wanted.guidance is None else {"guidance_scale": wanted.guidance}
        random = seeded(wanted)
        pictures: Array = self._pipeline(
            prompt=wanted.prompt,
            negative_prompt=wanted.negative_prompt,
            num_inference_steps=wanted.steps,
            height=wanted.height,
            width=wanted.width,
            generator=random,
            latents=self._noise(wanted, random),
            callback_on_step_end=at_step_end,
            output_type="np",
            **options,
        ).images
        if not np.isfinite(pictures).all():
            raise RunFailed("picture-not-finite", "the picture in PyTorch holds numbers that are none (NaN or infinite)")
        return pictures[0]

    def _noise(self, wanted: Wanted, random: torch.Generator) -> torch.Tensor:
        pixels, unet = self._pipeline.vae_scale_factor, self._pipeline.unet
        own = unet.config.sample_size
        edges = (own, own) if isinstance(own, int) else own
        asked = (wanted.height, wanted.width)
        height, width = (one // pixels if one else edge for one, edge in zip(asked, edges, strict=True))
        return start_noise(unet.config.in_channels, height, width, random).to(unet.device, unet.dtype)
