"""The FP32 graph with its calibration statistics, from which graphs of any precision are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from segdeploy.contract import Precision
from segdeploy.onnx_graph.model_file import module_of

if TYPE_CHECKING:
    import onnx

    from segdeploy.calibration.fp16_range import Fallback
    from segdeploy.calibration.half_precision import HalfGraph
    from segdeploy.calibration.layers import InsertionPoints, Layer
    from segdeploy.calibration.quantize import QuantizationScheme
    from segdeploy.calibration.thresholds import Statistics

_MOST_BLOCKS = 20


@dataclass(frozen=True)
class Source:
    """An FP32 graph with its quantizer insertion points, statistics and FP32 fallbacks.

    `half` is the type of the parts that are not INT8 (`fp16` or `bf16`), or None for FP32.
    """

    model: onnx.ModelProto
    insertion_points: InsertionPoints
    statistics: Mapping[str, Statistics]
    fp32_fallbacks: tuple[Fallback, ...]
    scheme: QuantizationScheme
    half: Precision | None

    def in_int8(
        self, chosen: Collection[str], method: str, *, weights_only: Collection[str] = ()
    ) -> onnx.ModelProto:
        """Return the graph with the convolutions `chosen` by node name in INT8, the rest in FP32.

        The convolutions in `weights_only` also compute in FP32, but store int8 weights.
        """
        from segdeploy.calibration.quantize import Range, quantize

        ranges = {
            name: Range(one.thresholds[method], one.lowest, one.highest)
            for name in self.insertion_points.activations(chosen, results=self.scheme.results)
            for one in (self.statistics[name],)
        }
        return quantize(
            self.model,
            self.insertion_points,
            chosen,
            ranges,
            self.scheme,
            weights_only=weights_only,
        )

    @property
    def in_fp32(self) -> dict[str, str]:
        """The reason for each convolution that is an FP32 fallback, by node; it is not INT8 either.

        Its data or weight does not fit FP16, so its scale does not fit an FP16 graph either.
        """
        fp32_fallbacks = {fallback.node: fallback.reason for fallback in self.fp32_fallbacks}
        return {
            y.name: fp32_fallbacks[y.name]
            for y in self.insertion_points.layers
            if y.name in fp32_fallbacks
        }

    def typed(self, graph: onnx.ModelProto, *, keep_io: bool = True) -> HalfGraph:
        """Return `graph` with its FP32 parts converted to `half`, except for the FP32 fallbacks."""
        from segdeploy.calibration.half_precision import HalfGraph, to_half

        if self.half is None:
            return HalfGraph(graph, (), ())
        kept = [fallback.node for fallback in self.fp32_fallbacks]
        return to_half(graph, precision=self.half, kept=kept, keep_io=keep_io)

    def odd_channels(self) -> dict[str, str]:
        """Return the modules with dead or outlying output channels, and the number of each."""
        from onnx import numpy_helper

        from segdeploy.calibration.quantize import odd_channels

        weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        found, modules = {}, self.modules()
        for layer in self.insertion_points.layers:
            values = numpy_helper.to_array(weights[layer.weight])
            dead, outliers = odd_channels(values)
            if dead or outliers:
                found[modules[layer.name]] = f"{dead} dead, {outliers} outlying of {len(values)}"
        return found

    def modules(self) -> dict[str, str]:
        """Return the module of each convolution by node name, or the node name if it is unknown.

        If a module has several convolutions, the node name is appended.
        """
        module_names = {node.name: module_of(node) for node in self.model.graph.node}
        names = {
            layer.name: module_names[layer.name] or layer.name
            for layer in self.insertion_points.layers
        }
        often = Counter(names.values())  # at several scales, a module has several convolutions
        return {n: m if often[m] == 1 else f"{m} ({n})" for n, m in names.items()}

    def blocks(self) -> dict[str, list[Layer]]:
        """Return the layers by block, such as a backbone stage or a branch of the head.

        A block is a module path, shortened until the top-level part has at most 20 blocks.
        """
        modules = self.modules()
        depths = {}
        for part in {name.split(".")[0] for name in modules.values()}:
            paths = [name.split(".") for name in modules.values() if name.split(".")[0] == part]
            deepest = max(len(path) for path in paths)
            depths[part] = next(
                depth
                for depth in range(deepest, 0, -1)
                if len({tuple(path[:depth]) for path in paths}) <= _MOST_BLOCKS or depth == 1
            )
        blocks: dict[str, list[Layer]] = {}
        for layer in self.insertion_points.layers:
            path = modules[layer.name].split(".")
            blocks.setdefault(".".join(path[: depths[path[0]]]), []).append(layer)
        return blocks


def learn(
    model: onnx.ModelProto,
    shape: Sequence[int],
    frames: Iterator[tuple[str, Any]],
    *,
    scheme: QuantizationScheme,
    half: Precision | None,
    method: str | None,
    known: Mapping[str, Statistics] | None,
    any_size: bool = False,
) -> tuple[Source, int]:
    """Collect statistics over `frames` unless they are `known`; also return when ranges settled.

    The second value is the number of frames after which the ranges had settled, 0 if they were
    `known`. `shape` is the shape of one input; with `any_size` the frames may have
    another height and width. `method` is the method of INT8 ranges, or None
    without INT8. Only the statistics that the method and FP16 need are collected.

    Raises:
        CalibrationInputError: if the graph holds Q/DQ or no convolution, or a frame gives NaN or
            infinity.
    """
    from segdeploy.calibration.errors import CalibrationInputError
    from segdeploy.calibration.fp16_range import float_tensors, fp32_fallbacks_of
    from segdeploy.calibration.layers import fix_shape, read_insertion_points, with_names
    from segdeploy.calibration.quantize import refuse_quantized
    from segdeploy.calibration.ranges import Settling, check_weights, observe
    from segdeploy.calibration.thresholds import EXTREMES, METHODS, statistics

    refuse_quantized(model)
    named = with_names(model)
    fixed = fix_shape(named, shape)
    insertion_points = read_insertion_points(fixed)
    if not insertion_points.layers:
        raise CalibrationInputError(
            "calibration: the graph has no convolution to quantize; is it a segmentation network?"
        )
    check_weights(named)
    quantized = insertion_points.tensors(results=scheme.results) if method else []
    counted = [] if method in EXTREMES else quantized
    methods = METHODS if method == "auto" else {method or ""}
    # In graph order, so that an error names the first tensor that is not finite.
    floats = float_tensors(fixed)
    wanted = set(floats if half else ()) | set(quantized)
    watched = list(dict.fromkeys([*(name for name in floats if name in wanted), *quantized]))
    settled = 0
    if known is None or not _are_known(known, watched, quantized, methods):
        settling = Settling(quantized)
        histograms = observe(
            fixed,
            watched,
            frames,
            extremes_only=set(watched) - set(counted),
            on_frame=settling.look,
            any_size=named if any_size else None,
        )
        known = {name: statistics(one) for name, one in histograms.items()}
        settled = settling.settled_after
    fp32_fallbacks = fp32_fallbacks_of(fixed, known) if half == "fp16" else []
    # The inputs of an Add that is an FP32 fallback cannot be quantized either.
    nodes = {fallback.node for fallback in fp32_fallbacks}
    sums = tuple(one for one in insertion_points.additions if one.name not in nodes)
    insertion_points = replace(insertion_points, additions=sums)
    return Source(named, insertion_points, known, tuple(fp32_fallbacks), scheme, half), settled


def _are_known(
    known: Mapping[str, Statistics],
    watched: Sequence[str],
    quantized: Sequence[str],
    methods: Collection[str],
) -> bool:
    """Return whether a cache has every tensor, and every method for each quantized tensor."""
    return set(watched) <= set(known) and all(
        set(methods) <= set(known[name].thresholds) for name in quantized
    )
