"""An ONNX graph on CUDA whose inputs and outputs stay on the device, replayed as one CUDA graph where the model allows it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from runner.errors import RunFailed
from runner.evaluation.forward import OnnxForward
from runner.models.handle import ModelHandle
from runner.models.session import open_session, raised_by_runtime

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

    from runner.evaluation.forward import Arrays

_NOT_CAPTURED = "-1"  # ONNX Runtime's id of a run that is not captured


@dataclass(frozen=True)
class Bound:
    """A feed that lies on the device, with the places for its outputs, and the options that its runs take."""

    binding: onnxruntime.IOBinding
    options: onnxruntime.RunOptions | None


class DeviceForward(OnnxForward):
    """An ONNX graph in a session on CUDA. `prepare` copies to the device, `arrays` from it; `run` does neither.

    A CUDA graph is captured for every prepared feed. Where ONNX Runtime refuses (a node runs on the CPU, or waits for the
    device), the session is opened again without.
    """

    def __init__(self, model: ModelHandle, threads: int, provider: str = "CUDAExecutionProvider") -> None:
        self._open = partial(open_session, model, threads, (provider,))
        self._ids = count(1)
        self.replays = True
        try:
            captured = self._open({"enable_cuda_graph": "1"})
        except RunFailed:
            captured, self.replays = None, False
        super().__init__(model, threads, provider, captured)

    def prepare(self, inputs: Arrays) -> list[Bound]:
        """Returns one bound feed a piece, its inputs on the device."""
        feeds = super().prepare(inputs)
        if self.replays:
            try:
                return [self._captured(feed) for feed in feeds]
            except Exception as error:
                if not raised_by_runtime(error):
                    raise
            self.replays = False
            self._session = self._open()
        return [Bound(self._bound(feed), None) for feed in feeds]

    def run(self, prepared: list[Bound]) -> list[Bound]:
        """Runs every piece and waits for the device."""
        for one in prepared:
            self._session.run_with_iobinding(one.binding, one.options)
            one.binding.synchronize_outputs()
        return prepared

    def arrays(self, outputs: list[Bound]) -> dict[str, np.ndarray[Any, Any]]:
        """Returns the outputs of all pieces together, copied from the device."""
        return super().arrays([one.binding.copy_outputs_to_cpu() for one in outputs])

    def _bound(self, feed: Arrays) -> onnxruntime.IOBinding:
        import onnxruntime

        binding = self._session.io_binding()
        for name, array in feed.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        for name in self._outputs:
            binding.bind_output(name, "cuda", 0)
        return binding

    def _captured(self, feed: Arrays) -> Bound:
        """Returns the feed with outputs at fixed places, behind the run that captured it."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", _NOT_CAPTURED)
        binding = self._bound(feed)
        self._session.run_with_iobinding(binding, options)
        made = binding.get_outputs()
        binding.clear_binding_outputs()
        for name, value in zip(self._outputs, made, strict=True):
            binding.bind_ortvalue_output(name, value)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(next(self._ids)))
        bound = Bound(binding, options)
        self.run([bound])
        return bound
