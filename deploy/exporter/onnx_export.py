"""`segdeploy export`: trace, annotate, prove, and only then write."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.errors import CheckFailed, InputError
from segdeploy.exporter.dilation import ConvProof, prove_dilations
from segdeploy.exporter.divergence import first_divergence
from segdeploy.exporter.end_parity import check_ends
from segdeploy.exporter.ends import append_output, cut_last_upsampling, prepend_preprocessing
from segdeploy.exporter.parity import (
    Parity,
    check_parity,
    compare_on,
    probe_shapes,
    random_images,
)
from segdeploy.exporter.tracing import OPSET, OPSETS, Bounds, trace
from segdeploy.external_data import is_too_large
from segdeploy.files import check_output
from segdeploy.models.dataset import DataSet, open_dataset
from segdeploy.models.errors import ModelInputError, first_line
from segdeploy.models.scales import checked_scaled_size
from segdeploy.network import LoadedNetwork, ModelSpec, load_network
from segdeploy.onnx_file import save_onnx, set_contract
from segdeploy.optimizer.optimize import Account, optimize_graph
from segdeploy.packages import require, versions
from segdeploy.runtime.preprocess import preprocess as preprocess_image
from segdeploy.spec import OUTPUTS, Contract

if TYPE_CHECKING:
    import onnx
    from torch import nn


@dataclass(frozen=True)
class ExportReport:
    """What `export` proved of the file that it wrote.

    `strangers` are convolutions of the graph that no module made: parity alone speaks for them.
    """

    path: Path
    bytes: int
    seconds: float
    convolutions: tuple[ConvProof, ...]
    strangers: tuple[str, ...]
    parity: tuple[Parity, ...]
    account: Account | None
    contract: Contract
    notes: tuple[str, ...] = ()


def export(
    model: str | Path | ModelSpec,
    out: Path | str,
    *,
    dynamic: bool = False,
    bounds: Bounds | None = None,
    optimized: bool = True,
    data: Path | str | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fuse: str = "mean",
    output: str = "logits",
    late_upsampling: bool = False,
    preprocess: str | None = None,
    opset: int = OPSET,
) -> ExportReport:
    """Export a network to ONNX: input `image` (N, 3, H, W) float32, output `logits`.

    The graph is static at the contract's size and batch 1, or `dynamic` in batch, height and
    width within `bounds`; `optimized` applies the exact rewrites. `scales`, `flip` and `fuse` put
    multi-scale inference into it. `output` is `logits`, `probabilities` or `labels`, and with
    `late_upsampling` it ends at the class scores of the small map that labels are made of. With
    `preprocess` (`RGB` or `BGR`) it takes the camera's bytes `(N, H, W, 3) uint8`. `data` is a
    data set that names the classes of a network without a checkpoint.

    Every convolution is compared with its PyTorch module, and the outputs with PyTorch's, at
    several shapes where the graph is dynamic.

    Raises:
        InputError, ModelInputError: for a network that cannot be made or exported so.
        CheckFailed: if a proof fails; the graph is then kept as `NAME.rejected.onnx`.
    """
    started = time.perf_counter()
    notes: list[str] = []
    out = check_output(Path(out), ".onnx")
    spec = ModelSpec.of(model)
    _check_options(output, late_upsampling, preprocess, opset)
    require("torch", "onnxscript", "onnxruntime", "onnxslim")
    dataset = open_dataset(Path(data)) if data else None
    loaded = load_network(spec, dataset)
    size = loaded.contract.size
    bounds = (bounds or Bounds().around(size)) if dynamic else None
    if bounds:
        bounds.check(size)
    run = _multi_scale(loaded, tuple(scales), flip=flip, fuse=fuse)
    shapes = probe_shapes(size, bounds)
    _fit(loaded, {shape[2:] for shape in shapes}, scales)
    graph = trace(run, size, dynamic=dynamic, name=spec.model, bounds=bounds, opset=opset)
    traced, account = graph, None
    if optimized and is_too_large(graph):
        notes.append("rewrites left out: over 2 GiB, shapes cannot be inferred")
    elif optimized:
        graph, account = optimize_graph(graph)
    contract = replace(
        loaded.contract.derived(loaded.sha256 or "", versions("torch", "onnx", "onnxscript")),
        scales=tuple(float(scale) for scale in scales),
        flip=flip,
        fuse=fuse,
        bounds=(bounds.smallest, bounds.largest, bounds.batch) if bounds else None,
    )
    network = loaded.network.module
    dilations = prove_dilations(network, size, graph, run)
    parity = check_parity(run, graph, shapes)
    if dataset is not None:
        parity += _check_frame(run, graph, dataset, loaded.contract)
    failures = _failures(dilations.convolutions, parity)
    if failures:
        worst = next((p for p in parity if not p.holds and p.against == "PyTorch"), None)
        if worst:
            failures += f"; {_where(network, run, traced, worst)}"
    else:
        alignment = cut_last_upsampling(graph) if late_upsampling else None
        if late_upsampling and alignment is None:
            notes.append(
                "--late-upsampling left out, the labels are made in the graph: it does not end in "
                "one bilinear Resize of class scores to a told size (several scales do not; --flip "
                "does in a static, rewritten graph with the mean)"
            )
        if output != "logits" and alignment is None:
            append_output(graph, output)
        contract = replace(contract, output=output, upsampling=alignment)
        if preprocess:
            contract = replace(contract, layout="NHWC", colour=preprocess)
            prepend_preprocessing(graph, contract)
        if preprocess or output != "logits":
            parity += check_ends(run, graph, contract, shapes)
            failures = _failures((), parity)
    set_contract(graph, contract)
    if failures:
        rejected = out.with_name(f"{out.stem}.rejected.onnx")
        save_onnx(graph, rejected)
        raise CheckFailed(f"{out}: not written; {failures}; the graph is kept as {rejected}")
    written = save_onnx(graph, out)
    return ExportReport(
        path=out,
        bytes=written,
        seconds=time.perf_counter() - started,
        convolutions=dilations.convolutions,
        strangers=dilations.strangers,
        parity=tuple(parity),
        account=account,
        contract=contract,
        notes=tuple(notes),
    )


def _check_frame(
    run: nn.Module, graph: onnx.ModelProto, dataset: DataSet, contract: Contract
) -> list[Parity]:
    """Compare on the first frame of the last split, which noise does not stand for."""
    frame = dataset.frames(dataset.splits[-1], 1)[0]
    image, _ = frame.read()
    return [compare_on(run, graph, preprocess_image(image, contract), f"PyTorch, on {frame.name}")]


def _where(network: nn.Module, run: nn.Module, traced: onnx.ModelProto, worst: Parity) -> str:
    """Where the graph, as it was traced, leaves PyTorch; a search must not hide what it is for."""
    try:
        plain = compare_on(run, traced, random_images(worst.shape), worst.against)
        if plain.max_rel <= worst.limit and not plain.wrong_labels:
            return "as it was traced the graph agrees, so a rewrite is wrong; try --no-optimize"
        found, compared = first_divergence(network, run, traced, worst.shape, worst.limit)
    except Exception as error:  # of a user's module, or of ONNX Runtime
        return f"the layer was not found ({type(error).__name__}: {first_line(error)})"
    if found is not None:
        return found.complaint()
    return f"the {compared} layers that can be compared agree: look at a resize, sum or function"


def _check_options(output: str, late_upsampling: bool, preprocess: str | None, opset: int) -> None:
    if output not in OUTPUTS:
        raise InputError(f"--output {output}: there are {', '.join(OUTPUTS)}")
    if late_upsampling and output != "labels":
        raise InputError("--late-upsampling: is for --output labels")
    if preprocess not in (None, "RGB", "BGR"):
        raise InputError(f"--preprocess {preprocess}: there are RGB and BGR")
    if opset not in OPSETS:
        raise InputError(f"--opset {opset}: PyTorch's exporter writes {OPSETS[0]} to {OPSETS[-1]}")


def _multi_scale(
    loaded: LoadedNetwork, scales: tuple[float, ...], *, flip: bool, fuse: str
) -> nn.Module:
    from segdeploy.models.multi_scale import MultiScaleInput

    if scales == (1.0,) and not flip:
        return loaded.network
    try:
        return MultiScaleInput(loaded.network, scales=scales, flip=flip, fuse=fuse).eval()
    except ValueError as error:
        raise InputError(f"--scales: {error}") from error


def _fit(
    loaded: LoadedNetwork, sizes: Collection[tuple[int, ...]], scales: Sequence[float]
) -> None:
    """Try every size that the network will be shown, so that a graph holds no branch."""
    try:
        given = [checked_scaled_size(loaded.contract.size, scale) for scale in scales]
    except ValueError as error:
        raise InputError(f"--scales: {error}") from error
    for one, other in itertools.combinations(range(len(scales)), 2):
        if given[one] == given[other]:
            raise InputError(
                f"--scales: {scales[one]} and {scales[other]} both give "
                f"{given[one][0]}x{given[one][1]}; leave one out"
            )
    wanted = set()
    for height, width in sizes:
        for scale in scales:
            try:
                wanted.add(checked_scaled_size((height, width), scale))
            except ValueError as error:
                raise InputError(f"--scales: {error}; give a larger --min-size or scale") from error
    for size in sorted(wanted - {loaded.contract.size}):  # its own was tried when it was loaded
        try:
            loaded.network.fit(size)
        except ModelInputError as error:
            raise InputError(f"{error} or --min-size") from error


def _failures(convolutions: Sequence[ConvProof], parity: Sequence[Parity]) -> str:
    said = [proof.complaint() for proof in convolutions if not proof.holds]
    said += [result.complaint() for result in parity if not result.holds]
    return "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")
