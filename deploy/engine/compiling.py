"""Engine builder for TensorRT and TensorRT-RTX: parse, verify the convolutions, compile."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segdeploy.calibration.layers import with_names
from segdeploy.engine.bindings import Bindings
from segdeploy.engine.network_proof import count_int8, prove_network
from segdeploy.engine.options import BuildOptions
from segdeploy.engine.timing_cache import shared_timing_cache
from segdeploy.errors import CheckFailed, InputError
from segdeploy.onnx_graph.convolutions import CONVOLUTIONS, ConvProof
from segdeploy.onnx_graph.model_file import convolution_of, module_of
from segdeploy.profiles import Shape

if TYPE_CHECKING:
    import onnx

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class BuiltPlan:
    """A serialized engine, the proofs of its convolutions, and the number of INT8 convolutions."""

    plan: bytes
    convolutions: tuple[ConvProof, ...]
    int8: int


def build_plan(
    bindings: Bindings,
    graph: onnx.ModelProto,
    source: str,
    options: BuildOptions,
    on_progress: Progress = lambda done, total, note: None,
) -> BuiltPlan:
    """Compile a graph as a strongly typed network: the engine has the precision of the graph.

    Before the build, the dilation, padding, stride and groups of every convolution are read back
    from TensorRT's network and compared with the graph. Ctrl-C ends the build at its next step.

    Raises:
        InputError: if the parser or builder refuses the graph, with the node, module and reason.
        CheckFailed: if a convolution of TensorRT's network reads other pixels than in the graph.
        KeyboardInterrupt: if the build was interrupted.
    """
    trt, logger = bindings.trt, bindings.log()
    builder = _builder(bindings, logger)
    network = builder.create_network(bindings.network_flags())
    parser = trt.OnnxParser(network, logger)
    graph = with_names(graph)  # the proof and the messages find a node by its name
    modules = {
        node.name: convolution_of(node) if node.op_type in CONVOLUTIONS else module_of(node)
        for node in graph.graph.node
    }
    if not parser.parse(graph.SerializeToString()):
        raise InputError(
            f"{source}: TensorRT's parser refuses it: {_parser_errors(parser, modules)}"
        )
    convolutions = prove_network(trt, network, graph)
    if failures := [proof.failure() for proof in convolutions if not proof.holds]:
        raise CheckFailed(f"{source}: not built; in TensorRT's network {'; '.join(failures[:3])}")
    int8 = count_int8(trt, network)
    config = builder.create_builder_config()
    _configure(bindings, builder, config, network, options)
    stop = _Stop()
    config.progress_monitor = _monitor(trt, on_progress, stop)
    with shared_timing_cache(options.timing_cache, config), stop.on_signals():
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            if stop.asked:
                raise stop.error or KeyboardInterrupt()
            reason = "; ".join(logger.errors[:2]) or "no reason given"
            raise InputError(f"{source}: {_text(bindings, reason, modules, options)}")
    return BuiltPlan(bytes(plan), tuple(convolutions), int8)


def _builder(bindings: Bindings, logger: Any) -> Any:
    try:
        return bindings.usable(bindings.trt.Builder(logger), logger, "the builder")
    except (RuntimeError, TypeError) as error:  # TensorRT returned no builder
        raise InputError(
            f"{bindings.name} {bindings.version}: cannot make a builder here "
            f"({'; '.join(logger.errors[:1]) or error}); a builder needs a GPU and its driver "
            "(`segdeploy doctor` looks for them); --backend tensorrt-rtx builds without a GPU"
        ) from error


def _configure(
    bindings: Bindings, builder: Any, config: Any, network: Any, options: BuildOptions
) -> None:
    trt = bindings.trt
    if bindings.is_rtx:
        known = bindings.compute_capabilities()
        config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            config.set_compute_capability(known[target], index)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    if options.weights == "refittable":
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.weights == "stripped":
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    image = network.get_input(0)
    _, second, _, last = tuple(image.shape)  # -1 where the shape is dynamic
    # The number of channels is fixed, and smaller than the height of an image.
    is_nhwc = last > 0 and (second < 0 or last < second)

    def laid_out(shape: Shape) -> tuple[int, ...]:
        batch, height, width = shape
        return (batch, height, width, last) if is_nhwc else (batch, second, height, width)

    for profile in options.profiles:
        shapes = builder.create_optimization_profile()
        sizes = (profile.minimum, profile.optimum, profile.maximum)
        shapes.set_shape(image.name, *(laid_out(size) for size in sizes))
        config.add_optimization_profile(shapes)


@dataclass
class _Stop:
    """A request to end the build, and the exception that caused the request, if any."""

    asked: bool = False
    error: BaseException | None = None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Record SIGINT and SIGTERM; an exception must not pass through TensorRT's stack frames."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: Any) -> None:
            self.asked = True

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.asked:  # the builder finished before it saw the request
            raise self.error or KeyboardInterrupt()


def _monitor(trt: Any, on_progress: Progress, stop: _Stop) -> Any:
    def tell(done: int, total: int, note: str) -> None:
        try:
            on_progress(done, total, note)
        except BaseException as error:  # raised again after the build
            stop.asked, stop.error = True, error

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Reports the steps of the outermost phase, and the name of the current phase."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps, self._done, self._outermost = 1, 0, ""

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self._outermost, self._steps, self._done = phase_name, max(1, num_steps), 0
            tell(self._done, self._steps, phase_name)

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._outermost:
                tell(self._steps, self._steps, phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._outermost:
                self._done = step + 1
                tell(self._done, self._steps, phase_name)
            return not stop.asked

    return Monitor()


def _parser_errors(parser: Any, modules: dict[str, str | None]) -> str:
    message = []
    for index in range(min(parser.num_errors, 2)):
        error = parser.get_error(index)
        name = error.node_name()
        where = f" (module {modules[name]})" if modules.get(name) else ""
        message.append(f"node {name}{where}, {error.node_operator()}: {error.desc().strip()}")
    return "; ".join(message) or "no reason given"


def _text(
    bindings: Bindings, reason: str, modules: dict[str, str | None], options: BuildOptions
) -> str:
    """Return the builder's reason, the PyTorch modules of the nodes in it, and a remedy."""
    named = [
        name for name in modules if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", reason)
    ]
    where = ", ".join(f"node {name} is of module {modules[name]}" for name in named[:3])
    message = f"{bindings.name} cannot build it: {reason}" + (f" ({where})" if where else "")
    lacks = "OutOfMemory" in reason or "workspace" in reason.lower()
    if lacks and options.workspace is not None:
        return f"{message}; --workspace {options.workspace} MiB is too little"
    if options.weights != "kept" and "CUDA_SUCCESS" in reason:
        return f"{message}; --refittable and --stripped need a GPU when building, too"
    return message
