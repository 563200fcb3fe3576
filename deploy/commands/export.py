"""`segdeploy export`: trace a network to ONNX, verify the graph against PyTorch, and write it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import OUTPUTS, Contract, check_pixels, listed
from segdeploy.contract_checks import contradiction
from segdeploy.errors import CheckFailed, InputError
from segdeploy.exporter.pre_post_processing import (
    append_output,
    cut_last_upsampling,
    prepend_preprocessing,
)
from segdeploy.exporter.sizes import fit, stepped
from segdeploy.exporter.tracing import OPSET, OPSETS, trace
from segdeploy.files import check_output
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import DataSet, open_dataset
from segdeploy.models.errors import first_line
from segdeploy.network_loading import LoadedNetwork, load_network, matched
from segdeploy.onnx_graph.convolutions import ConvProof
from segdeploy.onnx_graph.external_data import is_too_large
from segdeploy.onnx_graph.model_file import save_onnx, set_contract, set_rejected
from segdeploy.optimizer.optimize import RewriteReport, optimize_graph
from segdeploy.output_lock import one_writer
from segdeploy.packages import require, versions
from segdeploy.preprocessing.fit import placement
from segdeploy.preprocessing.preprocess import preprocess as preprocess_image
from segdeploy.profiles import Bounds
from segdeploy.proof.dilation import TraceProof, modules_left_out, prove_dilations, prove_trace
from segdeploy.proof.divergence import first_divergence
from segdeploy.proof.image_parity import check_ends
from segdeploy.proof.parity import Parity, check_parity, check_steadiness
from segdeploy.proof.test_inputs import Shape, breaking_inputs, probe_shapes, random_images

if TYPE_CHECKING:
    import onnx
    from torch import nn


@dataclass(frozen=True)
class ExportReport:
    """The file that `export` wrote, and the results of its checks.

    `convolutions` are the convolutions that PyTorch executed on a path to the output. `left_out`
    are the modules whose convolutions reach no output. `unmatched_convolutions` are convolutions of
    the graph that match no PyTorch call; they are verified only by output parity.
    """

    path: Path
    bytes: int
    seconds: float
    convolutions: tuple[ConvProof, ...]
    unmatched_convolutions: tuple[str, ...]
    parity: tuple[Parity, ...]
    optimization: RewriteReport | None
    contract: Contract
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class _ExportTarget:
    """The network to export, the module that is traced (`run`), and the inputs to compare on."""

    network: nn.Module
    run: nn.Module
    contract: Contract
    shapes: Sequence[Shape]
    images: Mapping[str, NDArray[np.float32]]

    def parity(self, graph: onnx.ModelProto) -> list[Parity]:
        """Compare a graph with PyTorch on all shapes and images."""
        per_class = self.contract.has_bit_planes
        return check_parity(self.run, graph, self.shapes, self.images, per_class=per_class)

    def check(self, rewritten: onnx.ModelProto) -> tuple[list[Parity], str]:
        """Compare a rewritten graph with PyTorch; return the parity and a text of the failures."""
        try:
            parity = self.parity(rewritten)
        except CheckFailed as error:
            return [], str(error)
        return parity, failures_of((), parity)


@dataclass(frozen=True)
class _VerifiedGraph:
    """A graph, the results of its checks, and a text of the failures."""

    graph: onnx.ModelProto
    trace: TraceProof
    convolutions: tuple[ConvProof, ...]
    unmatched_convolutions: tuple[str, ...]
    parity: list[Parity]
    optimization: RewriteReport | None
    failures: str


@one_writer
def export(
    model: str | Path | ModelSpec,
    out: Path | str,
    *,
    dynamic: bool = False,
    bounds: Bounds | None = None,
    multiple_of: int | None = None,
    optimized: bool = True,
    data: Path | str | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fuse: str = "mean",
    output: str = "logits",
    late_upsampling: bool = False,
    source_size: tuple[int, int] | None = None,
    preprocess: str | Sequence[str] | None = None,
    opset: int = OPSET,
) -> ExportReport:
    """Export a network to ONNX: input `image` (N, C, H, W) float32, output `logits`.

    The graph is static at the contract's size and batch 1, or `dynamic` in batch, height and width
    within `bounds`. Height and width are multiples of `multiple_of`, which is determined by trial
    if None. `optimized` applies the exact rewrites. `scales`, `flip` and `fuse` embed multi-scale
    and flip test-time augmentation. `output` is `logits`, `probabilities` or `labels`. With
    `late_upsampling` the graph ends at the low-resolution logits that the labels are computed from.
    With `preprocess`, names of channels such as `RGB` or `("gray",)`, the graph takes images
    `(N, H, W, C)` in that channel order, uint8 or float32. With `source_size` (H, W) the images
    have this size, and the graph fits them to the network's input as the contract says. `data` is a
    data set that names the classes of a network without a checkpoint, and provides a real frame for
    the comparison.

    The graph that PyTorch's exporter writes is compared with PyTorch's execution, convolution by
    convolution. Its outputs are compared with PyTorch's on noise at several shapes and on edge-case
    images. Only then is the graph rewritten, and compared again.

    Raises:
        InputError, ModelInputError: for a network that cannot be built, or not exported with these
            options.
        CheckFailed: if a check fails; the graph is then kept as `NAME.rejected.onnx`.
    """
    started = time.perf_counter()
    out = check_output(Path(out), ".onnx")
    spec = ModelSpec.of(model)
    _check_options(output, late_upsampling, opset)
    if source_size is not None and not preprocess:
        raise InputError("--source-size: goes with --preprocess, such as --preprocess RGB")
    if source_size is not None:
        check_pixels(source_size, "--source-size: the image")
    require("torch", "onnxscript", "onnxruntime")
    dataset = open_dataset(Path(data)) if data else None
    loaded = load_network(spec, dataset)
    if reason := contradiction(replace(loaded.contract, output=output)):
        raise InputError(reason)
    size = loaded.contract.size
    scales = tuple(float(scale) for scale in scales)
    bounds, step, notes = stepped(loaded, bounds, multiple_of, scales, dynamic=dynamic)
    shapes = probe_shapes(size, bounds, len(loaded.contract.channels))
    run = _multi_scale(loaded, scales, step, flip=flip, fuse=fuse)
    fit(loaded, {shape[2:] for shape in shapes}, scales, bounds, step)
    graph = trace(
        run,
        size,
        dynamic=dynamic,
        name=spec.model,
        channels=len(loaded.contract.channels),
        bounds=bounds,
        opset=opset,
    )
    contract = replace(
        loaded.contract.derived(loaded.sha256 or "", versions("torch", "onnx", "onnxscript")),
        scales=scales,
        flip=flip,
        fuse=fuse,
        bounds=(bounds.smallest, bounds.largest, bounds.batch) if bounds else None,
        multiple=step,
    )
    images = breaking_inputs(contract) | _frame(dataset, contract, spec.model)
    subject = _ExportTarget(loaded.network.module, run, contract, shapes, images)
    proven = _proven(subject, graph, notes, optimized=optimized)
    graph, parity, failures = proven.graph, proven.parity, proven.failures
    if not failures:
        contract = _with_output(graph, contract, output, late_upsampling, notes)
        if preprocess:
            contract = _with_images(graph, contract, preprocess, source_size)
            notes += _rounded(contract)
        if preprocess or contract.output != "logits":
            parity += check_ends(
                run,
                graph,
                contract,
                shapes,
                of_network=loaded.contract,
                has_softmax=loaded.contract.output == "probabilities",
            )
            failures = failures_of((), parity)
    set_contract(graph, contract)
    if failures:
        rejected = out.with_name(f"{out.stem}.rejected.onnx")
        set_rejected(graph, failures)
        save_onnx(graph, rejected)
        advice = "; a static graph (without --dynamic) may pass" if dynamic else ""
        raise CheckFailed(
            f"{out}: not written; {failures}{advice}; the graph is kept as {rejected}"
        )
    left_out = modules_left_out(proven.trace, loaded.network.module)
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        leads = "leads" if len(left_out) == 1 else "lead"
        notes.append(f"{', '.join(left_out[:3])}{more} {leads} to no output; not exported")
    written = save_onnx(graph, out)
    return ExportReport(
        path=out,
        bytes=written,
        seconds=time.perf_counter() - started,
        convolutions=proven.convolutions,
        unmatched_convolutions=proven.unmatched_convolutions,
        parity=tuple(parity),
        optimization=proven.optimization,
        contract=contract,
        notes=tuple(notes),
        left_out=left_out,
    )


def _rounded(contract: Contract) -> list[str]:
    """Return a note if images are rounded before a graph that takes bytes."""
    is_resized = contract.fit not in ("none", "center-crop", "pad-to-multiple")
    is_exact = not contract.resize.startswith("torch-") or "nearest" in contract.resize
    takes_bytes = contract.input_dtype == "uint8" and contract.source_size is None
    if is_exact or not is_resized or not takes_bytes:
        return []
    return [
        f"the graph takes uint8 images, so images that {contract.resize} resizes in float32 are "
        "rounded before it, by up to half a level; --source-size resizes in the graph, unrounded"
    ]


def _proven(
    subject: _ExportTarget, graph: onnx.ModelProto, notes: list[str], *, optimized: bool
) -> _VerifiedGraph:
    """Verify the traced graph, rewrite it, and verify the result."""
    import onnx
    import torch

    image = torch.from_numpy(random_images((1, *subject.shapes[0][1:])))
    trace = TraceProof((), (), (), ())
    optimization = None
    unmatched_convolutions: tuple[str, ...] = ()
    try:
        trace = prove_trace(subject.network, subject.run, graph, image)
        parity = check_steadiness(subject.run, subject.shapes[0]) or subject.parity(graph)
    except CheckFailed as error:  # ONNX Runtime cannot run the graph
        failures = "; ".join([*trace.failures, str(error)])
        return _VerifiedGraph(
            graph, trace, trace.convolutions, unmatched_convolutions, [], optimization, failures
        )
    convolutions = trace.convolutions
    failures = failures_of(trace.failures, parity)
    if failures:
        failures += _where(subject, graph, parity)
    elif is_too_large(graph):
        notes.append("rewrites left out: ONNX infers no shapes in a graph over 2 GiB")
    elif not optimized:
        graph = onnx.shape_inference.infer_shapes(graph, data_prop=True)
    else:
        graph, optimization = optimize_graph(graph, check=subject.check)
        parity = list(optimization.parity) or parity
        convolutions, unmatched_convolutions = prove_dilations(trace.calls, graph, image)
        failures = failures_of([p.failure() for p in convolutions if not p.holds], parity)
    return _VerifiedGraph(
        graph, trace, convolutions, unmatched_convolutions, parity, optimization, failures
    )


def _frame(
    dataset: DataSet | None, contract: Contract, source: str
) -> dict[str, NDArray[np.float32]]:
    """Return the first frame of the last split; a real frame shows errors that noise does not."""
    if dataset is None:
        return {}
    frame = matched(contract, dataset, source).frames(dataset.splits[-1], 1)[0]
    image, _ = frame.read()
    return {
        f"the frame {frame.name}": preprocess_image(image, contract.stretched_to(contract.size))
    }


def _with_output(
    graph: onnx.ModelProto, contract: Contract, output: str, late: bool, notes: list[str]
) -> Contract:
    """Append what `output` asks for to a graph of logits or probabilities; return its contract."""
    is_activated, has_sigmoid = contract.output == "probabilities", contract.head != "multiclass"
    if is_activated:
        last = "sigmoid" if has_sigmoid else "softmax"
        notes.append(f"the network already ends in a {last}; no second {last} is added")
        output = "probabilities" if output == "logits" else output
    # A threshold of low-resolution probabilities is not that of the upsampled logits.
    may_be_late = late and not (is_activated and has_sigmoid)
    alignment = cut_last_upsampling(graph) if may_be_late else None
    if late and not may_be_late:
        notes.append(
            "--late-upsampling left out, the graph computes the labels: the network ends in a "
            "sigmoid, and a threshold of low-resolution probabilities gives other labels"
        )
    elif late and alignment is None:
        notes.append(
            "--late-upsampling left out, the graph computes the labels: it does not end in "
            "one bilinear Resize of logits to a given size (a graph of several scales does "
            "not; one of --flip does if it is static, optimized and fused by the mean)"
        )
    if output != contract.output and alignment is None:
        append_output(graph, output, contract)
    return replace(contract, output=output, upsampling=alignment)


def _check_source(contract: Contract, source_size: tuple[int, int]) -> None:
    """Refuse images of a size that the contract does not bring to the network's size."""
    made = placement(source_size, contract).size
    if made != contract.size:
        raise InputError(
            f"--source-size {source_size[0]}x{source_size[1]}: becomes {made[0]}x{made[1]} by "
            f"--fit {contract.fit}, and the network is exported for "
            f"{contract.size[0]}x{contract.size[1]}; give --size {made[0]}x{made[1]}"
        )


def _with_images(
    graph: onnx.ModelProto,
    contract: Contract,
    given: str | Sequence[str],
    source_size: tuple[int, int] | None,
) -> Contract:
    """Prepend the preprocessing of images with the channels `given`; return the new contract."""
    channels = tuple(given.split(",")) if isinstance(given, str) and "," in given else tuple(given)
    if contract.gray is not None and sorted(channels) != sorted(contract.channels):
        raise InputError(
            f"--preprocess {listed(channels)}: the conversion to gray (--gray {contract.gray}) "
            "cannot be embedded; give --preprocess gray, and the runtime converts the image"
        )
    if sorted(channels) != sorted(contract.channels):
        raise InputError(
            f"--preprocess {listed(channels)}: names the channels of the images, which are "
            f"{','.join(contract.channels)} in any order"
        )
    if contract.normalization == "per-image":
        raise InputError(
            "--preprocess: a normalization by the image's own mean cannot be embedded; leave the "
            "option out"
        )
    if source_size is not None:
        _check_source(contract, source_size)
    prepend_preprocessing(graph, contract, channels, source_size)
    order = [contract.channels.index(name) for name in channels]
    images = replace(
        contract,
        layout="NHWC",
        source_size=source_size,
        channels=channels,
        source_channels=None,
        mean=tuple(contract.mean[at] for at in order),
        std=tuple(contract.std[at] for at in order),
        pad=None if contract.pad is None else tuple(contract.pad[at] for at in order),
    )
    if images.image_channels != contract.image_channels:
        images = replace(images, source_channels=contract.image_channels)
    if reason := contradiction(images):
        raise InputError(reason)
    return images


def _where(subject: _ExportTarget, graph: onnx.ModelProto, parity: Sequence[Parity]) -> str:
    """Describe where a graph diverges from PyTorch; a failed search must not hide the failure."""
    worst = next((p for p in parity if not p.holds and p.against == "PyTorch"), None)
    if worst is None:
        return ""
    images = subject.images.get(worst.image)
    try:
        found, compared = first_divergence(
            subject.network,
            subject.run,
            graph,
            random_images(worst.shape) if images is None else images,
            worst.limit,
        )
    except Exception as error:  # raised by a user's module or by ONNX Runtime
        return f"; the layer was not found ({type(error).__name__}: {first_line(error)})"
    if found is not None:
        return f"; {found.failure()}"
    return (
        f"; the {compared} layers that can be compared agree; check resizes, sums and functional "
        "calls"
    )


def _check_options(output: str, late_upsampling: bool, opset: int) -> None:
    if output not in OUTPUTS:
        raise InputError(f"--output {output}: must be one of {', '.join(OUTPUTS)}")
    if late_upsampling and output != "labels":
        raise InputError("--late-upsampling: needs --output labels")
    if opset not in OPSETS:
        raise InputError(f"--opset {opset}: PyTorch's exporter writes {OPSETS[0]} to {OPSETS[-1]}")


def _multi_scale(
    loaded: LoadedNetwork, scales: tuple[float, ...], step: int, *, flip: bool, fuse: str
) -> nn.Module:
    from segdeploy.models.multi_scale import MultiScaleInput

    if scales == (1.0,) and not flip:
        return loaded.network
    try:
        run = MultiScaleInput(loaded.network, scales=scales, flip=flip, fuse=fuse, multiple=step)
    except ValueError as error:
        raise InputError(f"--scales: {error}") from error
    return run.eval()


def failures_of(message: Sequence[str], parity: Sequence[Parity]) -> str:
    """Join the first failures into one line, which is empty if there are none."""
    clauses = list(message[:2])
    if len(message) > len(clauses):
        clauses.append(f"and {len(message) - len(clauses)} more")
    failed = [result for result in parity if not result.holds]
    if failed:
        clauses.append(failed[0].failure())
    if len(failed) > 1:
        clauses.append(f"and on {len(failed) - 1} of {len(parity) - 1} other inputs")
    return "; ".join(clauses)
