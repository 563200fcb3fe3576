"""`segdeploy inspect`: describe a checkpoint, an ONNX file or an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.artifact import EngineFile, OnnxFile, is_artifact, open_artifact
from segdeploy.contract import Contract, Precision
from segdeploy.engine.manifest import Manifest
from segdeploy.errors import InputError
from segdeploy.files import check_input, sha256_of_file
from segdeploy.model_spec import CHECKPOINT_SUFFIX, ModelSpec
from segdeploy.network_loading import load_network
from segdeploy.onnx_graph.check import check_graph
from segdeploy.onnx_graph.convolutions import ConvGeometry, module_geometry
from segdeploy.onnx_graph.layers import LayerInfo, read_layers
from segdeploy.tensor_spec import TensorSpec

if TYPE_CHECKING:
    import onnx
from segdeploy.onnx_graph.model_file import input_values, opset_of, tensor_spec_of


@dataclass(frozen=True)
class Inspection:
    """A file, its contract, its convolutions, and where it came from, nearest parent first.

    `macs` are the multiply-accumulates of the convolutions for one image. `engine` is what an
    engine's manifest says beyond that. `inputs`, `outputs` and `opset` are those of an ONNX graph,
    and `needed` are the options that `adopt` needs for one without a contract.
    """

    path: Path
    kind: str
    bytes: int
    sha256: str
    precision: Precision
    contract: Contract | None
    layers: tuple[LayerInfo, ...]
    parameters: int | None
    macs: int | None
    parents: tuple[str, ...]
    engine: dict[str, Any] | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    opset: int | None = None
    needed: tuple[str, ...] = ()

    @property
    def dilations(self) -> tuple[int, ...]:
        """The distinct dilations of all convolutions, in ascending order."""
        return tuple(sorted({side for layer in self.layers for side in layer.dilation}))


def inspect(path: Path | str) -> Inspection:
    """Describe a file; only a checkpoint is executed: its network is built and run once.

    Raises:
        InputError: for a damaged file, or one that is no checkpoint, ONNX file or engine.
    """
    path = check_input(Path(path))
    if path.suffix == CHECKPOINT_SUFFIX:
        return _checkpoint(path)
    if not is_artifact(path):
        raise InputError(
            f"{path}: is neither a checkpoint ({CHECKPOINT_SUFFIX}), nor an .onnx file, nor an "
            ".engine"
        )
    file = open_artifact(path)
    return _graph(file) if isinstance(file, OnnxFile) else _engine(file)


def differences(one: Inspection, other: Inspection) -> list[tuple[str, str, str]]:
    """Return the entries that differ: the name, the value of `one` and the value of `other`."""
    found: list[tuple[str, Any, Any]] = []
    for name in ("kind", "precision", "bytes", "sha256", "parameters", "macs"):
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
            there = ["present" if module in held else "missing" for held in layers]
            found.append((f"layer {module}", there[0], there[1]))
            continue
        before, after = (asdict(held[module]) for held in layers)
        for name in before:
            found.append((f"layer {module}.{name}", before[name], after[name]))
    return [(name, str(a), str(b)) for name, a, b in found if a != b]


def _checkpoint(path: Path) -> Inspection:
    loaded = load_network(ModelSpec(str(path)))
    from segdeploy.models.summary import anatomy

    seen = anatomy(loaded.network, loaded.contract.size)
    modules = dict(loaded.network.named_modules())
    layers = tuple(
        LayerInfo(
            module=layer.name.removeprefix("module."),
            kernel=geometry.kernel if geometry else (layer.kernel, layer.kernel_width),
            dilation=geometry.dilation if geometry else (layer.dilation, layer.dilation_width),
            stride=geometry.stride if geometry else (layer.stride, layer.stride),
            padding=geometry.padding if geometry else (),
            groups=geometry.groups if geometry else 1,
            precision="fp32",
            macs=layer.macs,
        )
        for layer in seen.layers
        if layer.kind.startswith("conv")
        for geometry in (_geometry(modules.get(layer.name)),)
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
        macs=seen.macs,
        parents=_parents(loaded.contract),
    )


def _graph(file: OnnxFile) -> Inspection:
    check_graph(file.graph, file.path, is_run_alone=True)
    graph, contract = file.graph, file.own_contract
    layers = read_layers(graph, contract, file.path)
    return Inspection(
        path=file.path,
        kind="onnx",
        bytes=graph.ByteSize(),
        sha256=sha256_of_file(file.path),
        precision=file.precision,
        contract=contract,
        layers=layers,
        parameters=sum(prod(tensor.dims) for tensor in graph.graph.initializer),
        macs=_macs(layers),
        parents=_parents(contract) if contract else (),
        inputs=tuple(map(tensor_spec_of, input_values(graph))),
        outputs=tuple(map(tensor_spec_of, graph.graph.output)),
        opset=opset_of(graph),
        needed=() if contract else _needed(graph),
    )


def _needed(graph: onnx.ModelProto) -> tuple[str, ...]:
    """Return the options that `adopt` needs for a graph without a contract."""
    image, *_ = map(tensor_spec_of, input_values(graph))
    needed = ["--data DIR or --num-classes N"]
    if len(graph.graph.output) > 1:
        needed.append("--take NAME")
    if len(image.shape) != 4 or any(isinstance(side, str) for side in image.shape[2:3]):
        needed.append("--size HxW")
    if image.dtype in ("float", "float16", "bfloat16", "double"):
        needed.append("--mean and --std, or --normalization none")
    return tuple(needed)


def _engine(file: EngineFile) -> Inspection:
    manifest = file.manifest
    layers = manifest.convolutions
    parents = _parents(manifest.contract)
    if manifest.parent_sha256:
        parents = (f"{manifest.parent}: {manifest.parent_sha256}", *parents)
    return Inspection(
        path=file.path,
        kind="engine",
        bytes=manifest.bytes,
        sha256=manifest.sha256,
        precision=manifest.precision,
        contract=manifest.contract,
        layers=layers,
        parameters=None,
        macs=_macs(layers),
        parents=parents,
        engine=_beyond(manifest),
    )


def _beyond(manifest: Manifest) -> dict[str, Any]:
    values = asdict(manifest)
    for name in ("contract", "convolutions", "sha256", "bytes", "precision", "engine"):
        del values[name]
    return values


def _parents(contract: Contract) -> tuple[str, ...]:
    """Return the SHA-256 of each ancestor of a file, nearest first."""
    named = [contract.provenance.get(key) for key in ("parent_sha256", "ancestors_sha256")]
    return tuple(one for text in named if text for one in str(text).split(","))


def _geometry(module: Any) -> ConvGeometry | None:
    """Return the geometry of a convolution module; None for a functional convolution."""
    from torch import nn

    return module_geometry(module) if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) else None


def _macs(layers: Sequence[LayerInfo]) -> int | None:
    known = [layer.macs for layer in layers if layer.macs is not None]
    return sum(known) if layers and len(known) == len(layers) else None
