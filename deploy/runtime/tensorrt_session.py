"""TensorRT and TensorRT-RTX engines: PyTorch holds the device's memory and streams."""

from __future__ import annotations

import contextlib
import queue
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.device import current_gpu
from segdeploy.engine.admission import check_place, check_version
from segdeploy.engine.bindings import Bindings, open_bindings
from segdeploy.engine.manifest import Manifest, read_manifest
from segdeploy.engine.options import route
from segdeploy.errors import InputError
from segdeploy.files import sha256_of_file, write_atomically
from segdeploy.packages import require
from segdeploy.runtime.closing import Closing
from segdeploy.runtime.session import TensorSpec, check_tensors

MOST_CONTEXTS = 8


class TensorRtSession(Closing):
    """An engine that is proven to be for this machine. Safe to call from several threads.

    Each thread that runs at the same time has an execution context, a stream and buffers of its
    own, up to `contexts`. A static engine is replayed as a CUDA graph from its third run on. RTX
    keeps the kernels that it compiles on this GPU in `NAME.engine.cache`.
    """

    def __init__(self, path: Path, *, backend: str | None = None, contexts: int = MOST_CONTEXTS):
        manifest = read_manifest(path)
        if backend not in (None, manifest.backend):
            raise InputError(
                f"{path}: was built by {manifest.backend}, and {backend} cannot read it; leave "
                f"--backend out, or build it: {replace(manifest, backend=backend).rebuild()}"
            )
        bindings = open_bindings(manifest.backend)
        check_version(manifest, path, bindings)
        check_place(manifest, path, current_gpu())
        engine = open_engine(bindings, manifest, path)
        self._start(bindings, manifest, engine, path, contexts)
        check_tensors(path, self.contract, self.input.shape, self.output.shape)

    def _start(
        self, bindings: Bindings, manifest: Manifest, engine: Any, path: Path, contexts: int
    ) -> None:
        self.backend, self.contract = manifest.backend, manifest.contract
        self._bindings, self._manifest, self._engine = bindings, manifest, engine
        self._cache = _RuntimeCache(engine, path) if bindings.is_rtx else None
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        taken = bindings.trt.TensorIOMode.INPUT
        inputs = [name for name in names if engine.get_tensor_mode(name) == taken]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or len(outputs) != 1:
            raise InputError(
                f"{path}: has {len(inputs)} inputs and {len(outputs)} outputs, not one"
            )
        self.input, self.output = (self._spec(name) for name in (inputs[0], outputs[0]))
        self.takes_any_size = bool(manifest.profiles)
        self._idle: queue.LifoQueue[_Lane] = queue.LifoQueue()
        self._may_open = threading.Semaphore(contexts)
        self._lanes: list[_Lane] = []

    def _spec(self, name: str) -> TensorSpec:
        shape = tuple("any" if side < 0 else side for side in self._engine.get_tensor_shape(name))
        dtype = self._engine.get_tensor_dtype(name).name.lower()
        return TensorSpec(name, shape, {"float": "float", "half": "float16"}.get(dtype, dtype))

    def run(self, array: NDArray[Any]) -> NDArray[Any]:
        """Run once on an array of the input's shape; half ends take and give float32.

        Raises:
            InputError: for a shape that no profile takes, or if the GPU fails.
        """
        lane = self._lane()
        try:
            return lane.run(np.ascontiguousarray(array))
        finally:
            self._idle.put(lane)

    def _lane(self) -> _Lane:
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        if self._may_open.acquire(blocking=False):
            lane = _Lane(self)
            self._lanes.append(lane)
            return lane
        return self._idle.get()

    def new_context(self) -> Any:
        """An execution context; RTX is told to capture graphs, and where its kernels are."""
        if self._cache is None:
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = self._bindings.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        config.set_runtime_cache(self._cache.cache)
        return self._engine.create_execution_context(config)

    @property
    def captures_graphs(self) -> bool:
        """Whether runs are replayed as a CUDA graph of ours: RTX has its own."""
        return not self._manifest.profiles and not self._bindings.is_rtx

    def profile_for(self, shape: tuple[int, ...]) -> int | None:
        """The profile to run an input (N, 3, H, W) or (N, H, W, 3) with; None if it is static."""
        profiles = self._manifest.profiles
        if not profiles:
            if tuple(shape) != self.input.shape:
                raise InputError(f"the engine takes {self.input.shape}, and not {tuple(shape)}")
            return None
        height, width = shape[1:3] if self.contract.layout == "NHWC" else shape[2:4]
        return route(profiles, (shape[0], height, width))

    def close(self) -> None:
        """Free contexts, buffers and the engine, and keep what RTX compiled."""
        if self._cache is not None:
            self._cache.save()
        self._lanes.clear()
        self._idle = queue.LifoQueue()
        self._engine = None


def open_engine(bindings: Bindings, manifest: Manifest, path: Path) -> Any:
    """Deserialise an engine whose manifest was checked; stripped weights come from its parent.

    Raises:
        InputError: if TensorRT refuses it, or the parent is not beside it.
    """
    logger = bindings.log()
    runtime = bindings.trt.Runtime(logger)
    if manifest.options.get("version_compatible") is True:
        runtime.engine_host_code_allowed = True  # its lean runtime rides in the plan
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        reason = "; ".join(logger.errors[:2]) or "no reason given"
        raise InputError(
            f"{path}: {bindings.name} {bindings.version} cannot open it ({reason}); `segdeploy "
            f"doctor` looks at the driver; else build it again: {manifest.rebuild()}"
        )
    if manifest.options.get("weights") == "stripped":
        _refit(bindings, logger, engine, manifest, path)
    return engine


def _refit(bindings: Bindings, logger: Any, engine: Any, manifest: Manifest, path: Path) -> None:
    parent = path.with_name(manifest.parent or "")
    if not parent.is_file() or sha256_of_file(parent) != manifest.parent_sha256:
        raise InputError(
            f"{path}: holds no weights; they come from {manifest.parent}, which must lie beside "
            "it, unchanged"
        )
    refitter = bindings.trt.Refitter(engine, logger)
    reader = bindings.trt.OnnxParserRefitter(refitter, logger)
    if not reader.refit_from_bytes(parent.read_bytes()) or not refitter.refit_cuda_engine():
        reason = "; ".join(logger.errors[:2]) or "no reason given"
        raise InputError(f"{path}: cannot be given the weights of {parent.name} ({reason})")


class _Lane:
    """One thread's way through an engine: context, stream, and buffers for each shape."""

    def __init__(self, session: TensorRtSession):
        self._torch = require("torch")
        self._session = session
        self._context = session.new_context()
        self._stream = self._torch.cuda.Stream()
        self._profile = 0
        self._buffers: dict[tuple[int, ...], _Buffers] = {}

    def run(self, array: NDArray[Any]) -> NDArray[Any]:
        """Copy to the device, execute, copy back."""
        torch, stream = self._torch, self._stream
        profile = self._session.profile_for(array.shape)
        with torch.cuda.stream(stream):
            if profile is not None and profile != self._profile:
                self._context.set_optimization_profile_async(profile, stream.cuda_stream)
                self._profile = profile
                stream.synchronize()
            buffers = self._bound(array.shape)
            buffers.host_input.copy_(torch.from_numpy(array))
            buffers.device_input.copy_(buffers.host_input, non_blocking=True)
            self._execute(buffers)
            buffers.host_output.copy_(buffers.device_output, non_blocking=True)
        stream.synchronize()
        found = buffers.host_output
        result: NDArray[Any] = (found.float() if found.is_floating_point() else found).numpy()
        return np.array(result)  # the buffer is another run's next

    def _bound(self, shape: tuple[int, ...]) -> _Buffers:
        """The buffers for an input's shape, at addresses that the context knows."""
        context, session = self._context, self._session
        context.set_input_shape(session.input.name, shape)
        if shape not in self._buffers:
            given = tuple(context.get_tensor_shape(session.output.name))
            self._buffers[shape] = _Buffers(self._torch, session, shape, given)
        buffers = self._buffers[shape]
        context.set_tensor_address(session.input.name, buffers.device_input.data_ptr())
        context.set_tensor_address(session.output.name, buffers.device_output.data_ptr())
        return buffers

    def _execute(self, buffers: _Buffers) -> None:
        if buffers.graph is not None:
            buffers.graph.replay()
            return
        if buffers.runs == 1 and self._session.captures_graphs:  # the first run set things up
            graph = self._torch.cuda.CUDAGraph()
            with self._torch.cuda.graph(graph, stream=self._stream):
                self._enqueue()
            buffers.graph = graph
            graph.replay()
            return
        self._enqueue()
        buffers.runs += 1

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise InputError(f"{self._session.backend}: the engine failed to run on this GPU")


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
        self.runs = 0


class _RuntimeCache:
    """What RTX compiled for this GPU, in a file beside the engine; a foreign one is left unread."""

    def __init__(self, engine: Any, path: Path):
        self._path = path.with_name(f"{path.name}.cache")
        self.cache = engine.create_runtime_config().create_runtime_cache()
        self._held = b""
        if self._path.is_file():
            held = self._path.read_bytes()
            if self.cache.deserialize(held):
                self._held = held

    def save(self) -> None:
        """Write it where it has grown; a folder that cannot be written to costs only time."""
        content = bytes(self.cache.serialize())
        if content != self._held:
            with contextlib.suppress(OSError):
                write_atomically(self._path, content)
