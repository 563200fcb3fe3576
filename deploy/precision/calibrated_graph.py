"""The FP32 graph with what calibration learnt of it: graphs of any precision are made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from segdeploy.onnx_graph.model_file import module_of

if TYPE_CHECKING:
    import onnx

    from segdeploy.calibration.fp16_range import Island
    from segdeploy.calibration.half_precision import HalfGraph
    from segdeploy.calibration.layers import Layer, Sites
    from segdeploy.calibration.quantize import Flavour
    from segdeploy.calibration.thresholds import Statistics

_MOST_BLOCKS = 20


@dataclass(frozen=True)
class Source:
    """`islands` stay FP32 in a half graph; `half` is the type beside INT8, or None for FP32."""

    model: onnx.ModelProto
    sites: Sites
    statistics: Mapping[str, Statistics]
    islands: tuple[Island, ...]
    flavour: Flavour
    half: str | None

    def in_int8(
        self, chosen: Collection[str], method: str, *, weights_only: Collection[str] = ()
    ) -> onnx.ModelProto:
        """The convolutions `chosen` by node name in INT8, everything else in FP32.

        Those of `weights_only` compute in FP32, too, with weights stored as int8.
        """
        from segdeploy.calibration.quantize import Range, quantize

        ranges = {
            name: Range(one.thresholds[method], one.lowest, one.highest)
            for name in self.sites.activations(chosen, results=self.flavour.results)
            for one in (self.statistics[name],)
        }
        return quantize(
            self.model, self.sites, chosen, ranges, self.flavour, weights_only=weights_only
        )

    @property
    def in_fp32(self) -> dict[str, str]:
        """The convolutions that are islands, by node, with why: they cannot be INT8 either.

        Their data or weight does not fit FP16, and so no scale that a half graph can hold.
        """
        islands = {island.node: island.reason for island in self.islands}
        return {y.name: islands[y.name] for y in self.sites.layers if y.name in islands}

    def typed(self, graph: onnx.ModelProto, *, keep_ends: bool = True) -> HalfGraph:
        """The graph with what is FP32 in it in `half`, but for the islands."""
        from segdeploy.calibration.half_precision import HalfGraph, to_half

        if self.half is None:
            return HalfGraph(graph, (), ())
        kept = [island.node for island in self.islands]
        return to_half(graph, precision=self.half, kept=kept, keep_ends=keep_ends)

    def odd_channels(self) -> dict[str, str]:
        """The modules with dead or outlying output channels, and how many they have."""
        from onnx import numpy_helper

        from segdeploy.calibration.quantize import odd_channels

        weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        found, modules = {}, self.modules()
        for layer in self.sites.layers:
            values = numpy_helper.to_array(weights[layer.weight])
            dead, outliers = odd_channels(values)
            if dead or outliers:
                found[modules[layer.name]] = f"{dead} dead, {outliers} outlying of {len(values)}"
        return found

    def modules(self) -> dict[str, str]:
        """The module that each convolution came from, by node name; its own name if unknown.

        Where a module has several, the node is named, too.
        """
        told = {node.name: module_of(node) for node in self.model.graph.node}
        names = {layer.name: told[layer.name] or layer.name for layer in self.sites.layers}
        often = Counter(names.values())  # at several scales, a module has several convolutions
        return {n: m if often[m] == 1 else f"{m} ({n})" for n, m in names.items()}

    def blocks(self) -> dict[str, list[Layer]]:
        """The layers by block: backbone stage, branch of the head, at most 20 of each part.

        A block is a module's path, cut where the part that it begins with has not too many.
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
        for layer in self.sites.layers:
            path = modules[layer.name].split(".")
            blocks.setdefault(".".join(path[: depths[path[0]]]), []).append(layer)
        return blocks


def learn(
    model: onnx.ModelProto,
    shape: Sequence[int],
    frames: Iterator[tuple[str, Any]],
    *,
    flavour: Flavour,
    half: str | None,
    method: str | None,
    known: Mapping[str, Statistics] | None,
) -> tuple[Source, int]:
    """Take statistics over `frames`, unless they are `known`; returns when ranges had settled.

    `shape` is one input's. `method` is that of INT8 ranges, or None without INT8: only what it and
    FP16 need is counted.

    Raises:
        CalibrationInputError: if the graph holds Q/DQ, or no convolution, or a frame gives NaN.
    """
    from segdeploy.calibration.errors import CalibrationInputError
    from segdeploy.calibration.fp16_range import float_tensors, fp16_islands
    from segdeploy.calibration.layers import fix_shape, read_sites, with_names
    from segdeploy.calibration.quantize import refuse_quantised
    from segdeploy.calibration.ranges import Settling, check_weights, observe
    from segdeploy.calibration.thresholds import EXTREMES, METHODS, statistics

    refuse_quantised(model)
    named = with_names(model)
    fixed = fix_shape(named, shape)
    sites = read_sites(fixed)
    if not sites.layers:
        raise CalibrationInputError(
            "calibration: the graph has no convolution to quantise; is it a segmentation network?"
        )
    check_weights(named)
    quantised = sites.tensors(results=flavour.results) if method else []
    counted = [] if method in EXTREMES else quantised
    methods = METHODS if method == "auto" else {method or ""}
    # In the graph's order, so that the first tensor that is not finite is the one that is named.
    floats = float_tensors(fixed)
    wanted = set(floats if half else ()) | set(quantised)
    watched = list(dict.fromkeys([*(name for name in floats if name in wanted), *quantised]))
    settled = 0
    if known is None or not _are_known(known, watched, quantised, methods):
        settling = Settling(quantised)
        histograms = observe(
            fixed,
            watched,
            frames,
            extremes_only=set(watched) - set(counted),
            on_frame=settling.look,
        )
        known = {name: statistics(one) for name, one in histograms.items()}
        settled = settling.settled_after
    islands = fp16_islands(fixed, known) if half == "fp16" else []
    # What an island adds cannot be quantised either.
    nodes = {island.node for island in islands}
    sums = tuple(one for one in sites.additions if one.name not in nodes)
    sites = replace(sites, additions=sums)
    return Source(named, sites, known, tuple(islands), flavour, half), settled


def _are_known(
    known: Mapping[str, Statistics],
    watched: Sequence[str],
    quantised: Sequence[str],
    methods: Collection[str],
) -> bool:
    """Whether a cache holds every tensor, with each of the methods where it is quantised."""
    return set(watched) <= set(known) and all(
        set(methods) <= set(known[name].thresholds) for name in quantised
    )
