"""`segdeploy calibrate`: a graph of lower precision, measured on the user's own frames."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.content_keys import key_of_frames, key_of_model
from segdeploy.contract import Contract
from segdeploy.errors import CheckFailed, InputError
from segdeploy.files import check_output, sha256_of_file
from segdeploy.model_spec import check_classes
from segdeploy.models.dataset import open_dataset
from segdeploy.onnx_graph.check import check_graph
from segdeploy.onnx_graph.model_file import contract_of, load_onnx, save_onnx, set_contract
from segdeploy.output_lock import one_writer
from segdeploy.packages import require, versions
from segdeploy.precision.assignment import (
    Assignment,
    Progress,
    choose_int8,
    cost_of,
    loss_by_block,
    reference_of,
    state_path,
    within_budget,
)
from segdeploy.precision.budget import Judged, plans_of, unkept, walked
from segdeploy.precision.cache import read_cache, write_cache
from segdeploy.precision.calibrated_graph import Source, learn
from segdeploy.precision.evaluator import Judge
from segdeploy.precision.frames import (
    FrameSets,
    check_pictures,
    choose_frames,
    coverage,
    inputs,
)
from segdeploy.precision.notes import notes_of
from segdeploy.precision.report import CalibrationReport, write_page
from segdeploy.proof.accuracy import check_judgeable, share_equal

if TYPE_CHECKING:
    import onnx

PRECISIONS = ("int8", "fp16", "bf16")


@one_writer
def calibrate(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    precision: str = "int8",
    max_miou_drop: float | None = None,
    method: str = "auto",
    flavour: str = "tensorrt",
    split: str = "train",
    check_split: str | None = None,
    limit: int | None = None,
    keep: Sequence[str] = (),
    cache: Path | str | None = None,
    half_ends: bool = False,
    blame: bool = False,
    page: Path | str | None = None,
    on_progress: Progress = lambda done, total, note: None,
) -> CalibrationReport:
    """Write an exported FP32 graph in INT8, FP16 or BF16, and measure what that costs.

    INT8 is explicit Q/DQ; around it the graph is FP16 for TensorRT, FP32 for the flavour `cpu`.
    With `max_miou_drop`, in percentage points, the convolutions that lose most for their work stay
    in FP16 until the budget is kept. `keep` names modules that stay, too. Ranges come from `limit`
    frames of `split`, by `method` or the best of all on held-back ones; accuracy is measured on
    `check_split`, or a block of frames that nothing else saw. `cache` is a file of ranges to reuse.
    With `half_ends` the input and output are half, too. `blame` measures what each block of the
    network loses alone; `page` is an HTML file to write that and the ranges to.

    Raises:
        InputError, ModelInputError, CalibrationInputError: for files that cannot be used.
        CheckFailed: if the budget cannot be kept; nothing is written.
    """
    started = time.perf_counter()
    model = Path(model)
    out = check_output(Path(out), ".onnx", read_from=model)
    _check_options(precision, max_miou_drop, method, flavour)
    if precision != "int8" and (keep or blame or method != "auto"):
        raise InputError(f"--keep, --blame and --method are for INT8, not {precision}")
    if half_ends and flavour == "cpu":
        raise InputError("--half-io: with --for cpu the graph is FP32 where it is not INT8")
    for beside, suffix in ((page, ".html"), (cache, ".json")):
        if beside:
            check_output(Path(beside), suffix)
    graph = load_onnx(model)
    check_graph(graph, model)
    contract = contract_of(graph, model)
    dataset = open_dataset(Path(data))
    check_classes(contract, dataset, str(model))
    if contract.precision != "fp32":
        raise InputError(
            f"{model}: is {contract.precision} already; calibrate the FP32 graph that it came from"
        )
    require("onnxruntime")
    before = graph.ByteSize()  # weights beside the file are in it by now
    graph, rewrites = _optimised(graph, contract)
    frames = choose_frames(dataset, split, check_split, limit)
    bad = check_pictures(frames.calibration)
    if max_miou_drop is not None:
        if frames.note:
            raise InputError(
                f"--max-miou-drop: {frames.note}; give more frames, or a smaller --limit"
            )
        for judged in (frames.check, frames.held_back):
            check_judgeable(judged, "--max-miou-drop")
    source, settled = _learn(
        *(model, graph, frames, precision, method, flavour, cache, on_progress)
    )
    judge = Judge(model, frames.check)
    assignment = Assignment(frozenset(), {}, None)
    search: Callable[[], Assignment] | None = None
    if precision == "int8":
        kept = _named_layers(source, keep, model) | source.in_fp32
        reference = reference_of(source, contract, frames.held_back)
        assignment = choose_int8(source, reference, method, kept)

        def searched() -> Assignment:
            assert max_miou_drop is not None
            try:
                return within_budget(
                    *(source, reference, assignment, kept, max_miou_drop),
                    *(model, out, frames, on_progress),
                )
            except KeyboardInterrupt as stop:
                if not state_path(out).exists():
                    raise
                told = f"the same command goes on from {state_path(out)}"
                raise KeyboardInterrupt(told) from stop

        search = None if max_miou_drop is None else searched
    tried = []
    for plan in plans_of(assignment, search):
        written_as = Judged.of(source, plan, judge, half_ends=half_ends)
        tried.append(written_as)
        if max_miou_drop is None or written_as.accuracy.miou_drop <= max_miou_drop:
            break
    else:
        raise CheckFailed(unkept(out, tried, max_miou_drop or 0.0, frames, source))
    assignment, typed = written_as.assignment, written_as.typed
    labels, accuracy, chosen = written_as.labels, written_as.accuracy, assignment.int8
    named = "mixed" if assignment.searched and len(chosen) < len(source.sites.layers) else precision
    if precision == "int8" and not chosen:
        named = source.half or "fp32"
    derived = contract.derived(
        sha256_of_file(model), versions("onnx", "onnxruntime"), precision=named
    )
    set_contract(typed.model, derived)
    # What `predict` opens may round otherwise, and a CPU's integers may saturate.
    kernels: float | None = None
    if precision != "bf16":  # which ONNX Runtime has no kernels for
        kernels = share_equal(labels, judge.labels(typed.model, literal=False))
    written = save_onnx(typed.model, out)
    if assignment.searched:
        assignment.searched.state.unlink(missing_ok=True)
    blocks: dict[str, float] = {}
    if chosen and (blame or page):
        blocks = loss_by_block(source, reference, assignment)
    modules = source.modules()
    report = CalibrationReport(
        path=out,
        precision=named,
        flavour=flavour,
        method=assignment.method,
        frames=len(frames.calibration),
        convolutions=len(source.sites.layers),
        int8=tuple(modules[y.name] for y in source.sites.layers if y.name in chosen),
        kept={modules[name]: reason for name, reason in assignment.kept.items()},
        islands=tuple(
            f"{i.node}: {i.tensor} {i.reason}; {i.values_cast:,} values are cast for it an image"
            for i in source.islands
        ),
        clamped=typed.clamped,
        cost=cost_of(source, chosen),
        bytes=written,
        bytes_before=before,
        accuracy=accuracy,
        check_split=frames.check_split,
        classes_missing=coverage(frames.calibration, contract),
        rewrites=tuple(rewrites),
        settled_after=settled,
        snr_db=assignment.snr_db,
        searched=assignment.searched,
        block_snr_db=blocks,
        kernel_agreement=kernels,
        odd_channels=source.odd_channels(),
        notes=notes_of(
            *(frames, bad, settled, source, assignment, typed, accuracy, kernels, half_ends)
        )
        + walked(tried, max_miou_drop, frames),
        seconds=time.perf_counter() - started,
    )
    if page:
        write_page(report, source, Path(page))
    return report


def _optimised(graph: onnx.ModelProto, contract: Contract) -> tuple[onnx.ModelProto, list[str]]:
    """The graph after the exact rewrites that `export` would have done, and a line for each.

    Folding first leaves less to round; once there are Q/DQ between them, layers stay apart.
    """
    from segdeploy.optimizer.optimize import against_itself, optimize_graph
    from segdeploy.proof.graph_session import random_input

    image = random_input(graph, (1, *contract.picture_shape))
    rewritten, account = optimize_graph(graph, check=against_itself(graph, [image]))
    return (rewritten, list(account.rewrites)) if account.rewrites else (graph, [])


def _check_options(precision: str, max_miou_drop: float | None, method: str, flavour: str) -> None:
    from segdeploy.calibration.quantize import FLAVOURS
    from segdeploy.calibration.thresholds import METHODS

    if precision not in PRECISIONS:
        raise InputError(f"--precision {precision}: there are {', '.join(PRECISIONS)}")
    if method != "auto" and method not in METHODS:
        raise InputError(f"--method {method}: there are auto, {', '.join(METHODS)}")
    if flavour not in FLAVOURS:
        raise InputError(f"--for {flavour}: there are {', '.join(FLAVOURS)}")
    if flavour == "cpu" and precision != "int8":
        raise InputError(f"--for cpu: CPUs gain nothing from {precision}; it is for INT8")
    if max_miou_drop is not None and not 0 <= max_miou_drop <= 100:
        raise InputError(f"--max-miou-drop {max_miou_drop}: must be 0 to 100 percentage points")


def _learn(
    model: Path,
    graph: onnx.ModelProto,
    frames: FrameSets,
    precision: str,
    method: str,
    flavour: str,
    cache: Path | str | None,
    on_progress: Progress,
) -> tuple[Source, int]:
    """Take ranges over the calibration frames, or from a cache that was made of the same."""
    from segdeploy.calibration.quantize import FLAVOURS

    contract = contract_of(graph, model)
    half = {"int8": "fp16" if flavour == "tensorrt" else None}.get(precision, precision)
    count = len(frames.calibration)

    def counted() -> Iterator[tuple[str, Any]]:
        started = time.perf_counter()
        for done, pair in enumerate(inputs(frames.calibration, contract), 1):
            yield pair
            speed = done / (time.perf_counter() - started)
            on_progress(done, count, f"ranges, {speed:.1f} images/s")

    keys = ("", "")
    if cache:
        tools = json.dumps(versions("onnx", "onnxruntime", "numpy"))
        keys = (f"{key_of_model(model)} by {tools}", key_of_frames(frames.calibration))
    known = read_cache(Path(cache), *keys) if cache else None
    source, settled = learn(
        graph,
        (1, *contract.picture_shape),
        counted(),
        flavour=FLAVOURS[flavour],
        half=half,
        method=method if precision == "int8" else None,
        known=known[0] if known else None,
    )
    settled = settled or (known[1] if known else 0)
    if cache and (known is None or source.statistics is not known[0]):
        write_cache(Path(cache), *keys, source.statistics, settled)
    return source, settled


def _named_layers(source: Source, keep: Sequence[str], model: Path) -> dict[str, str]:
    """The nodes of the modules that `keep` names, each with why it stays."""
    modules = source.modules()

    def is_in(module: str, name: str) -> bool:
        path = module.split(" (")[0]  # behind it is the node, where a module has several
        return path == name or path.startswith(f"{name}.")

    for name in keep:
        if not any(is_in(module, name) for module in modules.values()):
            raise InputError(
                f"--keep {name}: no convolution of {model} is in a module of that name; there are "
                f"{', '.join(list(source.blocks())[:8])}"
            )
    return {n: "--keep" for n, m in modules.items() if any(is_in(m, name) for name in keep)}
