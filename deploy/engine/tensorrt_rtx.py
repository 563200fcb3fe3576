"""The TensorRT-RTX builder: ahead of time, for any listed GPU, on a machine that has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from segdeploy.calibration.layers import with_names
from segdeploy.errors import CheckFailed, InputError
from segdeploy.exporter.dilation import CONVOLUTIONS, ConvGeometry, ConvProof, node_geometry
from segdeploy.onnx_file import module_of
from segdeploy.packages import require

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Profile:
    """An optimisation profile: the input shapes (N, 3, H, W) that a dynamic engine takes."""

    minimum: Shape
    optimum: Shape
    maximum: Shape


@dataclass(frozen=True)
class BuiltPlan:
    """A serialised engine, the builder's version, the proof of its convolutions, those in INT8."""

    plan: bytes
    version: str
    convolutions: tuple[ConvProof, ...]
    int8: int


def compute_capabilities(targets: Sequence[str]) -> list[Any]:
    """Turn `sm86`-like names into the builder's compute capabilities.

    Raises:
        InputError: for a name that this TensorRT-RTX cannot build for.
    """
    trt = require("tensorrt_rtx")
    known = {
        name.lower(): value
        for name, value in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    for target in targets:
        if target.lower() not in known:
            raise InputError(
                f"--target {target}: TensorRT-RTX {trt.__version__} builds for "
                f"{', '.join(known)}; name the compute capability of your GPU"
            )
    return [known[target.lower()] for target in targets]


def build_plan(
    graph: onnx.ModelProto, source: str, targets: Sequence[str], profile: Profile | None
) -> BuiltPlan:
    """Compile a graph as it is typed: strongly typed, so the precision is the graph's own.

    Before building, the dilation, padding, stride and groups of every convolution are read back
    from TensorRT's network and set beside the graph's.

    Raises:
        InputError: if the parser or the builder refuses, with the node, its module and the reason.
        CheckFailed: if TensorRT's network reads other pixels than the graph.
    """
    capabilities = compute_capabilities(targets)
    trt = require("tensorrt_rtx")
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)  # RTX networks are strongly typed
    parser = trt.OnnxParser(network, logger)
    graph = with_names(graph)  # by its name a Conv node is found again
    if not parser.parse(graph.SerializeToString()):
        raise InputError(f"{source}: TensorRT's parser refuses it: {_parser_errors(parser, graph)}")
    convolutions = prove_network(trt, network, graph)
    if failures := [proof.complaint() for proof in convolutions if not proof.holds]:
        raise CheckFailed(f"{source}: not built; in TensorRT's network {'; '.join(failures[:3])}")
    int8 = count_int8(trt, network)
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(capability, index)
    if profile is not None:
        shapes = builder.create_optimization_profile()
        shapes.set_shape(
            network.get_input(0).name, profile.minimum, profile.optimum, profile.maximum
        )
        config.add_optimization_profile(shapes)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = "; ".join(logger.errors[:2]) or "no reason given"
        raise InputError(f"{source}: TensorRT-RTX cannot build it: {reason}")
    return BuiltPlan(bytes(plan), trt.__version__, tuple(convolutions), int8)


def prove_network(trt: Any, network: Any, graph: onnx.ModelProto) -> list[ConvProof]:
    """Set every 2-D Conv node of `graph` beside the layer that TensorRT's parser made of it."""
    layers = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        # Setting the class is the binding's way to reach the subclass.
        if layer.type == trt.LayerType.CONVOLUTION:
            layer.__class__ = trt.IConvolutionLayer
            layers[layer.name] = _layer_geometry(trt, layer)
        elif layer.type == trt.LayerType.DECONVOLUTION:
            layer.__class__ = trt.IDeconvolutionLayer
            layers[layer.name] = replace(_layer_geometry(trt, layer), transposed=True)
    proofs = []
    for node in graph.graph.node:
        if node.op_type not in CONVOLUTIONS:
            continue
        expected, found = node_geometry(node, graph), layers.get(node.name)
        if expected.transposed and found is not None:
            # TensorRT puts the output padding into the padding behind; its shape check sees that.
            found = replace(found, padding=expected.padding)
        if len(expected.kernel) == 2:
            proofs.append(ConvProof(module_of(node) or node.name, node.name, expected, found))
    return proofs


def count_int8(trt: Any, network: Any) -> int:
    """Convolutions of TensorRT's network whose data and weights both come from a Dequantize layer.

    Such a one is an INT8 convolution (Developer Guide, "Explicit quantization").
    """
    dequantised = set()
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    for layer in layers:
        if layer.type == trt.LayerType.DEQUANTIZE:
            dequantised.add(layer.get_output(0).name)
    convolutions = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]

    def reads(layer: Any, index: int) -> bool:
        tensor = layer.get_input(index) if index < layer.num_inputs else None
        return tensor is not None and tensor.name in dequantised

    return sum(reads(layer, 0) and reads(layer, 1) for layer in convolutions)


def _layer_geometry(trt: Any, layer: Any) -> ConvGeometry:
    padding: tuple[int | str, ...] = (*layer.pre_padding, *layer.post_padding)
    if layer.padding_mode in (trt.PaddingMode.SAME_UPPER, trt.PaddingMode.SAME_LOWER):
        padding = (layer.padding_mode.name,)
    return ConvGeometry(
        kernel=tuple(layer.kernel_size_nd),
        dilation=tuple(layer.dilation_nd),
        stride=tuple(layer.stride_nd),
        padding=padding,
        groups=layer.num_groups,
    )


def _parser_errors(parser: Any, graph: onnx.ModelProto) -> str:
    modules = {node.name: module_of(node) or node.name for node in graph.graph.node}
    said = []
    for index in range(min(parser.num_errors, 2)):
        error = parser.get_error(index)
        name = error.node_name()
        where = f" (module {modules[name]})" if modules.get(name, name) != name else ""
        said.append(f"node {name}{where}, {error.node_operator()}: {error.desc().strip()}")
    return "; ".join(said) or "no reason given"


def _logger(trt: Any) -> Any:
    class ErrorLog(trt.ILogger):  # type: ignore[misc]
        """Keeps TensorRT's errors for our own message instead of printing them."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            grave = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)
            # Error 35, "no driver", is said on every machine without a GPU and explains nothing.
            if severity in grave and "cudaError 35" not in message:
                self.errors.append(message.strip())

    return ErrorLog()
