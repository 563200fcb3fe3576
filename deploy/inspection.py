"""`segdeploy inspect`: what a checkpoint, an ONNX file or an engine says of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.engine.manifest import Manifest, read_manifest
from segdeploy.errors import InputError
from segdeploy.exporter.dilation import CONVOLUTIONS, node_geometry
from segdeploy.files import check_input, sha256_of_file
from segdeploy.models.errors import first_line
from segdeploy.network import CHECKPOINT_SUFFIX, ModelSpec, load_network
from segdeploy.onnx_file import find_contract, load_onnx, module_of, precision_of
from segdeploy.runtime.session import ENGINE_SUFFIXES
from segdeploy.spec import Contract

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class LayerInfo:
    """A convolution: its module, geometry, the precision that it computes in, and its work.

    `macs` are multiply-accumulates for one image at the contract's size, None where unknown.
    """

    module: str
    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int | str, ...]
    groups: int
    precision: str
    macs: int | None


@dataclass(frozen=True)
class Inspection:
    """A file, its contract, its convolutions, and where it came from, nearest parent first.

    `flops` are two for each multiply-accumulate of the convolutions. `engine` is what an engine's
    manifest says beyond that.
    """

    path: Path
    kind: str
    bytes: int
    sha256: str
    precision: str
    contract: Contract | None
    layers: tuple[LayerInfo, ...]
    parameters: int | None
    flops: int | None
    parents: tuple[str, ...]
    engine: dict[str, Any] | None = None

    @property
    def dilations(self) -> tuple[int, ...]:
        """The dilations of all convolutions, each once, in order."""
        return tuple(sorted({side for layer in self.layers for side in layer.dilation}))


def inspect(path: Path | str) -> Inspection:
    """Read a file without running it; of a checkpoint the network is built, and watched once.

    Raises:
        InputError: for a file that is none of the three, or damaged.
    """
    path = check_input(Path(path))
    if path.suffix == CHECKPOINT_SUFFIX:
        return _checkpoint(path)
    if path.suffix == ".onnx":
        return _graph(path)
    if path.suffix in ENGINE_SUFFIXES:
        return _engine(path)
    raise InputError(
        f"{path}: is neither a checkpoint ({CHECKPOINT_SUFFIX}), nor an .onnx file, nor an .engine"
    )


def differences(one: Inspection, other: Inspection) -> list[tuple[str, str, str]]:
    """What two files say differently: entry, the first's value, the second's."""
    found: list[tuple[str, Any, Any]] = []
    for name in ("kind", "precision", "bytes", "sha256", "parameters", "flops"):
        found.append((name, getattr(one, name), getattr(other, name)))
    contracts = [asdict(i.contract) if i.contract else {} for i in (one, other)]
    for name in dict.fromkeys([*contracts[0], *contracts[1]]):
        found.append((f"contract.{name}", contracts[0].get(name), contracts[1].get(name)))
    engines = [i.engine or {} for i in (one, other)]
    for name in dict.fromkeys([*engines[0], *engines[1]]):
        found.append((f"engine.{name}", engines[0].get(name), engines[1].get(name)))
    layers = [{layer.module: layer for layer in i.layers} for i in (one, other)]
    for module in dict.fromkeys([*layers[0], *layers[1]]):
        if module not in layers[0] or module not in layers[1]:
            there = ["there" if module in held else "missing" for held in layers]
            found.append((f"layer {module}", there[0], there[1]))
            continue
        before, after = (asdict(held[module]) for held in layers)
        for name in before:
            found.append((f"layer {module}.{name}", before[name], after[name]))
    return [(name, str(a), str(b)) for name, a, b in found if a != b]


def _checkpoint(path: Path) -> Inspection:
    loaded = load_network(ModelSpec(str(path)))
    from segdeploy.models.anatomy import anatomy

    seen = anatomy(loaded.network, loaded.contract.size)
    layers = tuple(
        LayerInfo(
            module=layer.name.removeprefix("module."),
            kernel=(layer.kernel, layer.kernel_width),
            dilation=(layer.dilation, layer.dilation_width),
            stride=(layer.stride,),
            padding=(),
            groups=1,
            precision="fp32",
            macs=layer.macs,
        )
        for layer in seen.layers
        if layer.kind.startswith("conv")
    )
    return Inspection(
        path=path,
        kind="checkpoint",
        bytes=path.stat().st_size,
        sha256=sha256_of_file(path),
        precision="fp32",
        contract=loaded.contract,
        layers=layers,
        parameters=sum(p.numel() for p in loaded.network.parameters()),
        flops=2 * seen.macs,
        parents=_parents(loaded.contract),
    )


def _graph(path: Path) -> Inspection:
    from segdeploy.calibration.layers import fix_shape, shapes_of

    graph = load_onnx(path)
    contract = find_contract(graph, path)
    size = graph.ByteSize()
    precision = precision_of(graph, contract) if contract else "fp32"
    parameters = sum(prod(tensor.dims) for tensor in graph.graph.initializer)
    try:
        if contract is not None:
            height, width = contract.size
            nhwc = contract.layout == "NHWC"
            graph = fix_shape(graph, (1, height, width, 3) if nhwc else (1, 3, height, width))
        weights = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
        layers = _layers(graph, {**weights, **shapes_of(graph)})
    except Exception as error:  # shape inference, and attributes of a kind that they cannot be
        raise InputError(f"{path}: is not sound ONNX ({first_line(error)})") from error
    known = [layer.macs for layer in layers if layer.macs is not None]
    return Inspection(
        path=path,
        kind="onnx",
        bytes=size,
        sha256=sha256_of_file(path),
        precision=precision,
        contract=contract,
        layers=layers,
        parameters=parameters,
        flops=2 * sum(known) if len(known) == len(layers) else None,
        parents=_parents(contract) if contract else (),
    )


def _engine(path: Path) -> Inspection:
    manifest = read_manifest(path)
    layers = tuple(
        LayerInfo(
            module=str(layer.get("module", "?")),
            kernel=tuple(layer.get("kernel", ())),
            dilation=tuple(layer.get("dilation", ())),
            stride=tuple(layer.get("stride", ())),
            padding=tuple(layer.get("padding", ())),
            groups=int(layer.get("groups", 1)),
            precision=str(layer.get("precision", manifest.precision)),
            macs=None,
        )
        for layer in manifest.convolutions
    )
    parents = _parents(manifest.contract)
    if manifest.parent_sha256:
        parents = (f"{manifest.parent}: {manifest.parent_sha256}", *parents)
    return Inspection(
        path=path,
        kind="engine",
        bytes=manifest.bytes,
        sha256=manifest.sha256,
        precision=manifest.precision,
        contract=manifest.contract,
        layers=layers,
        parameters=None,
        flops=None,
        parents=parents,
        engine=_beyond(manifest),
    )


def _beyond(manifest: Manifest) -> dict[str, Any]:
    values = asdict(manifest)
    for name in ("contract", "convolutions", "sha256", "bytes", "precision", "engine"):
        del values[name]
    return values


def _parents(contract: Contract) -> tuple[str, ...]:
    """The hashes of what a file was made from, nearest first."""
    named = [contract.provenance.get(key) for key in ("parent_sha256", "ancestors_sha256")]
    return tuple(one for text in named if text for one in str(text).split(","))


def _layers(graph: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> tuple[LayerInfo, ...]:
    """The convolutions in the order in which they run."""
    makers = {output: node.op_type for node in graph.graph.node for output in node.output}
    kinds = {t.name: t.data_type for t in graph.graph.initializer}
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        kinds.setdefault(value.name, value.type.tensor_type.elem_type)
    layers = []
    for node in graph.graph.node:
        if node.op_type not in CONVOLUTIONS:
            continue
        geometry = node_geometry(node, graph)
        reads = {makers.get(name) for name in node.input[:2]}
        given = kinds.get(node.output[0], kinds.get(node.input[0], 0))
        precision = {1: "fp32", 10: "fp16", 16: "bf16"}.get(given, "?")
        weight = shapes.get(node.input[1], ())
        out = shapes.get(node.output[0], ())
        layers.append(
            LayerInfo(
                module=module_of(node) or node.name,
                kernel=geometry.kernel,
                dilation=geometry.dilation,
                stride=geometry.stride,
                padding=geometry.padding,
                groups=geometry.groups,
                precision="int8" if reads == {"DequantizeLinear"} else precision,
                macs=_macs(out, weight) if node.op_type == "Conv" else None,
            )
        )
    return tuple(layers)


def _macs(out: tuple[int, ...], weight: tuple[int, ...]) -> int | None:
    if not out or not weight or not all(isinstance(side, int) and side > 0 for side in out):
        return None
    return prod(out) * prod(weight[1:])
