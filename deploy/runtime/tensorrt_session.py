"""Session of a TensorRT or TensorRT-RTX engine, on device memory and streams of PyTorch."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.artifact import EngineFile
from segdeploy.device import current_gpu
from segdeploy.engine.bindings import Bindings, open_bindings
from segdeploy.engine.compatibility import check_host, check_version
from segdeploy.engine.deserialization import open_engine
from segdeploy.engine.manifest import Manifest
from segdeploy.errors import InputError
from segdeploy.files import write_atomically
from segdeploy.packages import require
from segdeploy.profiles import route
from segdeploy.runtime.closing import Closing
from segdeploy.runtime.session import check_output, check_tensors
from segdeploy.tensor_spec import TensorSpec

MOST_CONTEXTS = 8
_MOST_SHAPES = 4


class TensorRtSession(Closing):
    """An engine that passed the compatibility check. Safe to call from several threads.

    Each concurrent thread uses its own execution context, stream and buffers, up to `contexts`. A
    static TensorRT engine is replayed as a CUDA graph from the second run on. TensorRT-RTX keeps
    the kernels that it compiles on this GPU in `NAME.engine.cache`.
    """

    def __init__(
        self, file: EngineFile, *, backend: str | None = None, contexts: int = MOST_CONTEXTS
    ):
        path = file.path
        manifest, plan = file.read()
        if backend not in (None, manifest.backend):
            raise InputError(
                f"{path}: was built by {manifest.backend}, and {backend} cannot read it; leave "
                f"--backend out, or build it: {replace(manifest, backend=backend).rebuild()}"
            )
        bindings = open_bindings(manifest.backend)
        check_version(manifest, path, bindings)
        check_host(manifest, path, current_gpu())
        torch = require("torch")
        if not torch.cuda.is_available():
            raise InputError(
                f"{path}: the engine needs PyTorch's device memory and streams, but this PyTorch "
                f"{torch.__version__} sees no GPU; install PyTorch with CUDA"
            )
        engine = open_engine(bindings, manifest, path, plan)
        self._start(bindings, manifest, engine, path, contexts)
        check_tensors(path, self.contract, self.input.shape, self.output.shape)

    def _start(
        self, bindings: Bindings, manifest: Manifest, engine: Any, path: Path, contexts: int
    ) -> None:
        self.backend, self.contract, self._path = manifest.backend, manifest.contract, path
        # CUDA's current device is per thread: every thread must use the engine's device.
        self.device = require("torch").cuda.current_device()
        # Only one thread at a time creates contexts and buffers, or captures a CUDA graph: another
        # thread must not allocate during a capture.
        self.setting_up = threading.RLock()
        self.profiles = manifest.profiles
        self._bindings, self._manifest, self._engine = bindings, manifest, engine
        self._cache = _RuntimeCache(engine, path) if bindings.is_rtx else None
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        taken = bindings.trt.TensorIOMode.INPUT
        inputs = [name for name in names if engine.get_tensor_mode(name) == taken]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or len(outputs) != 1:
            raise InputError(
                f"{path}: has {len(inputs)} inputs and {len(outputs)} outputs, not one of each"
            )
        self.input, self.output = (self._spec(name) for name in (inputs[0], outputs[0]))
        self.takes_any_size = bool(manifest.profiles)
        self._idle: queue.LifoQueue[_ContextSlot] = queue.LifoQueue()
        self._may_open = threading.Semaphore(contexts)

    def _spec(self, name: str) -> TensorSpec:
        shape = tuple("any" if side < 0 else side for side in self._engine.get_tensor_shape(name))
        dtype = self._engine.get_tensor_dtype(name).name.lower()
        return TensorSpec(name, shape, {"half": "float16", "bf16": "bfloat16"}.get(dtype, dtype))

    def run(self, array: NDArray[Any]) -> NDArray[Any]:
        """Run once on an array of the input's shape.

        The array of an FP16 or BF16 input or output is float32.

        Raises:
            InputError: for a shape that no profile takes, or if the GPU fails.
        """
        slot = self._slot()
        try:
            result = slot.run(np.ascontiguousarray(array))
        finally:
            self._idle.put(slot)
        check_output(self._path, self.contract, array.shape, result)
        return result

    def run_timed(self, array: NDArray[Any]) -> tuple[NDArray[Any], dict[str, float]]:
        """Run once; return the output, and the seconds of copies and computation by CUDA events."""
        slot = self._slot()
        marks = [require("torch").cuda.Event(enable_timing=True) for _ in range(4)]
        try:
            output = slot.run(np.ascontiguousarray(array), marks)
        finally:
            self._idle.put(slot)
        names = ("host to device", "compute", "device to host")
        spans = [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]
        return output, dict(zip(names, spans, strict=True))

    def _slot(self) -> _ContextSlot:
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        if self._may_open.acquire(blocking=False):
            try:
                with self.setting_up:
                    return _ContextSlot(self)
            except BaseException:
                self._may_open.release()
                raise
        return self._idle.get()

    def new_context(self) -> Any:
        """Return a new execution context.

        For TensorRT-RTX, the context captures CUDA graphs and uses the runtime cache.

        Raises:
            InputError: if the GPU has no room for an execution context.
        """
        if self._cache is None:
            context = self._engine.create_execution_context()
        else:
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = self._bindings.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            config.set_runtime_cache(self._cache.cache)
            context = self._engine.create_execution_context(config)
        if context is None:
            raise InputError(
                f"{self.backend}: the GPU has no room for an execution context; build the engine "
                "for smaller inputs (--max), or use fewer threads"
            )
        return context

    @property
    def captures_graphs(self) -> bool:
        """Whether runs are replayed as this session's CUDA graph; TensorRT-RTX captures its own."""
        return not self._manifest.profiles and not self._bindings.is_rtx

    def profile_for(self, shape: tuple[int, ...]) -> int | None:
        """Return the profile of an input (N, 3, H, W) or (N, H, W, 3); None for a static engine."""
        profiles = self._manifest.profiles
        if not profiles:
            if tuple(shape) != self.input.shape:
                raise InputError(f"the engine takes only {self.input.shape}, not {tuple(shape)}")
            return None
        height, width = shape[1:3] if self.contract.layout == "NHWC" else shape[2:4]
        return route(profiles, (shape[0], height, width))

    def close(self) -> None:
        """Save TensorRT-RTX's compiled kernels, and free the contexts, buffers and engine."""
        if self._cache is not None:
            self._cache.save()
        self._idle = queue.LifoQueue()
        self._engine = None


class _ContextSlot:
    """One thread's execution context, stream, and buffers for each input shape."""

    def __init__(self, session: TensorRtSession):
        self._torch = require("torch")
        self._session = session
        with self._torch.cuda.device(session.device):
            self._context = session.new_context()
            self._stream = self._torch.cuda.Stream()
        self._profile = 0
        # The most recent input shapes: tiles of another image size can have another shape.
        self._buffers: OrderedDict[tuple[int, ...], _Buffers] = OrderedDict()

    def run(self, array: NDArray[Any], marks: Sequence[Any] = ()) -> NDArray[Any]:
        """Copy to the device, execute, copy back; four events in `marks` delimit the steps."""
        torch, stream = self._torch, self._stream
        marked = iter(marks)

        def mark() -> None:
            for event in itertools.islice(marked, 1):
                event.record(stream)

        profile = self._session.profile_for(array.shape)
        with torch.cuda.device(self._session.device), torch.cuda.stream(stream):
            if profile is not None and profile != self._profile:
                changed = self._context.set_optimization_profile_async(profile, stream.cuda_stream)
                self._must(changed, f"take its profile {profile}")
                self._profile = profile
                stream.synchronize()
            buffers = self._bound(array.shape)
            # PyTorch warns about read-only arrays, such as those of images.
            array = array if array.flags.writeable else array.copy()
            buffers.host_input.copy_(torch.from_numpy(array))
            mark()
            buffers.device_input.copy_(buffers.host_input, non_blocking=True)
            mark()
            self._execute(buffers)
            mark()
            buffers.host_output.copy_(buffers.device_output, non_blocking=True)
            mark()
        stream.synchronize()
        found = buffers.host_output
        result: NDArray[Any] = (found.float() if found.is_floating_point() else found).numpy()
        return np.array(result)  # the next run reuses the buffer

    def _bound(self, shape: tuple[int, ...]) -> _Buffers:
        """Return the buffers for an input shape, bound to the context."""
        context, session = self._context, self._session
        self._must(context.set_input_shape(session.input.name, shape), f"take the shape {shape}")
        if shape in self._buffers:
            self._buffers.move_to_end(shape)
        else:
            given = tuple(context.get_tensor_shape(session.output.name))
            with session.setting_up:
                if len(self._buffers) == _MOST_SHAPES:
                    self._buffers.popitem(last=False)
                self._buffers[shape] = _Buffers(self._torch, session, shape, given)
        buffers = self._buffers[shape]
        for name, memory in (
            (session.input.name, buffers.device_input),
            (session.output.name, buffers.device_output),
        ):
            self._must(context.set_tensor_address(name, memory.data_ptr()), f"bind {name}")
        return buffers

    def _execute(self, buffers: _Buffers) -> None:
        if buffers.graph is not None:
            buffers.graph.replay()
            return
        self._enqueue()
        # The first run initializes the context; a CUDA graph is then captured for later runs.
        if not buffers.was_tried and self._session.captures_graphs:
            buffers.was_tried = True
            self._stream.synchronize()
            buffers.graph = self._captured()

    def _captured(self) -> Any:
        """Return a CUDA graph of one run; None if the capture fails, which costs only time."""
        torch = self._torch
        graph = torch.cuda.CUDAGraph()
        mode = "thread_local"  # other threads keep using their own streams
        try:
            with (
                self._session.setting_up,
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode=mode),
            ):
                self._enqueue()
        except (RuntimeError, InputError):
            return None
        return graph

    def _enqueue(self) -> None:
        self._must(self._context.execute_async_v3(self._stream.cuda_stream), "run")

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise InputError(f"{self._session.backend}: the engine cannot {what} on this GPU")


class _Buffers:
    """Pinned and device memory for one shape of input and output."""

    def __init__(
        self,
        torch: Any,
        session: TensorRtSession,
        taken: tuple[int, ...],
        given: tuple[int, ...],
    ):
        types = {
            "float": torch.float32,
            "float16": torch.float16,
            "bf16": torch.bfloat16,
            "uint8": torch.uint8,
            "int32": torch.int32,
            "int64": torch.int64,
        }
        first, last = types[session.input.dtype], types[session.output.dtype]
        self.host_input = torch.empty(taken, dtype=first, pin_memory=True)
        self.device_input = torch.empty(taken, dtype=first, device="cuda")
        self.device_output = torch.empty(given, dtype=last, device="cuda")
        self.host_output = torch.empty(given, dtype=last, pin_memory=True)
        self.graph: Any = None
        self.was_tried = False


class _RuntimeCache:
    """The cache of TensorRT-RTX's kernels, a file beside the engine; a foreign file is ignored."""

    def __init__(self, engine: Any, path: Path):
        self._path = path.with_name(f"{path.name}.cache")
        config = engine.create_runtime_config()
        self.cache = config.create_runtime_cache()
        self._held = b""
        if self._path.is_file():
            held = self._path.read_bytes()
            if self.cache.deserialize(held):
                self._held = held

    def save(self) -> None:
        """Write the cache if it changed; a folder that cannot be written to costs only time."""
        content = bytes(self.cache.serialize())
        if content != self._held:
            with contextlib.suppress(OSError):
                write_atomically(self._path, content)
