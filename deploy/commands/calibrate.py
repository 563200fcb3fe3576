"""`segdeploy calibrate`: convert a graph to lower precision, and measure the loss of accuracy."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.artifact import OnnxFile, open_graph
from segdeploy.calibration.difference import mean_label_agreement
from segdeploy.content_keys import key_of_frames
from segdeploy.contract import Contract, Precision
from segdeploy.errors import CheckFailed, InputError
from segdeploy.files import check_output, sha256_of_file
from segdeploy.image_folder import ImageFolder
from segdeploy.models.errors import first_line
from segdeploy.network_loading import open_frames
from segdeploy.onnx_graph.model_file import opset_of, save_onnx, set_contract, takes_any_size
from segdeploy.onnx_graph.opset import with_opset
from segdeploy.output_lock import one_writer
from segdeploy.packages import require, versions
from segdeploy.precision.assignment import (
    Assignment,
    Progress,
    choose_int8,
    loss_by_block,
    reference_of,
)
from segdeploy.precision.budget import (
    EvaluatedPlan,
    budget_failure,
    plans_of,
    search_notes,
)
from segdeploy.precision.cache import read_cache, write_cache
from segdeploy.precision.calibrated_graph import Source, learn
from segdeploy.precision.evaluator import Evaluator
from segdeploy.precision.frames import (
    check_images,
    choose_frames,
    inputs,
)
from segdeploy.precision.notes import notes_of
from segdeploy.precision.options import CalibrationOptions
from segdeploy.precision.report import (
    CalibrationReport,
    described_frames,
    described_plan,
    write_page,
)
from segdeploy.precision.search import BudgetSearch
from segdeploy.precision.task import Task
from segdeploy.proof.accuracy import check_labeled

if TYPE_CHECKING:
    import onnx

    from segdeploy.calibration.reference_execution import Reference


@one_writer
def calibrate(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    precision: Precision = "int8",
    max_miou_drop: float | None = None,
    method: str = "auto",
    scheme: str = "tensorrt",
    split: str = "train",
    check_split: str | None = None,
    limit: int | None = None,
    exclude: Sequence[str] = (),
    cache: Path | str | None = None,
    fp16_io: bool = False,
    sensitivity: bool = False,
    min_agreement: float | None = None,
    page: Path | str | None = None,
    on_progress: Progress = lambda done, total, note: None,
) -> CalibrationReport:
    """Convert an exported FP32 graph to INT8, FP16 or BF16, and measure the loss of accuracy.

    INT8 uses explicit Q/DQ nodes. The rest of the graph is FP16 for the scheme `tensorrt` and FP32
    for the scheme `cpu`. With `max_miou_drop`, in percentage points, the convolutions with the
    largest loss for their work stay in FP16 until the budget is met. `min_agreement`, a share, is a
    budget of labels that equal FP32's. `data` may be a folder of images without masks: the FP32
    graph's own labels then stand for the masks, so that mIoU is that between the two graphs'
    labels. The modules named in `exclude`
    also stay in FP16. Ranges come from `limit` frames of `split`, by `method` or, for `auto`, by
    the best method on held-back frames. Accuracy is measured on `check_split`, or on a block of
    frames that is used for nothing else. `cache` is a file of ranges to reuse. With `fp16_io` the
    input and output also have the 16-bit type. `sensitivity` measures the loss of each block of the
    network alone. `page` is an HTML file with these losses and the ranges.

    Raises:
        InputError, ModelInputError, CalibrationInputError: for files that cannot be used.
        CheckFailed: if the budget cannot be met; nothing is written.
    """
    started = time.perf_counter()
    file = open_graph(model)
    model = file.path
    out = check_output(Path(out), ".onnx", read_from=model)
    options = CalibrationOptions(
        precision,
        method,
        scheme,
        tuple(exclude),
        max_miou_drop,
        fp16_io,
        sensitivity,
        min_agreement,
    )
    options.check()
    for beside, suffix in ((page, ".html"), (cache, ".json")):
        if beside:
            check_output(Path(beside), suffix)
    task = _opened(file, Path(data), (split, check_split, limit), options)
    source, stable_after = _learn(task, options, cache, on_progress)
    evaluator = Evaluator(file, task.frames.check)  # after the weights were checked
    reference = None
    if precision == "int8":
        reference = reference_of(source, task.contract, task.frames.held_back)
    plan, tried = _chosen(task, source, evaluator, reference, options, out, on_progress)
    named = _precision_of(plan.assignment, source, options)
    set_contract(
        plan.typed.model,
        task.contract.derived(
            sha256_of_file(model), versions("onnx", "onnxruntime"), precision=named
        ),
    )
    kernels = _kernel_agreement(evaluator, plan, options)
    written = save_onnx(plan.typed.model, out)
    if plan.assignment.searched:
        plan.assignment.searched.state.unlink(missing_ok=True)
    notes = notes_of(
        *(task, stable_after, source, plan, kernels),
        fp16_io=fp16_io,
    )
    report = CalibrationReport(
        path=out,
        precision=named,
        scheme=scheme,
        bytes=written,
        bytes_before=task.bytes_before,
        rewrites=task.rewrites,
        stable_after=stable_after,
        kernel_agreement=kernels,
        block_snr_db=loss_by_block(source, reference, plan.assignment)
        if reference and plan.assignment.int8 and (sensitivity or page)
        else {},
        notes=notes + search_notes(tried, options.budget, task.frames),
        **described_frames(task.frames, task.contract, file),
        **described_plan(plan, source),
        seconds=time.perf_counter() - started,
    )
    if page:
        write_page(report, source, Path(page))
    return report


def _opened(
    file: OnnxFile,
    data: Path,
    chosen: tuple[str, str | None, int | None],
    options: CalibrationOptions,
) -> Task:
    """Read the graph, choose the frames (`chosen`: split, split to check on, limit), check both."""
    file.check(is_run_alone=False)
    model, graph = file.path, file.graph
    contract = file.contract
    dataset = open_frames(data, contract, str(model))
    has_masks = not isinstance(dataset, ImageFolder)
    if not has_masks:
        chosen = (dataset.splits[0], None, chosen[2])
    if contract.precision != "fp32":
        raise InputError(
            f"{model}: is {contract.precision} already; calibrate the FP32 graph that it came from"
        )
    require("onnxruntime")
    before = graph.ByteSize()  # includes external weights, which are loaded by now
    graph, notes = _converted(graph, contract, options, model)
    graph, rewrites = _optimized(graph, contract)
    frames = choose_frames(dataset, *chosen)
    bad = check_images(frames.calibration)
    if options.budget is not None:
        if frames.note:
            raise InputError(
                f"{options.budget.option}: {frames.note}; give more frames, or a smaller --limit"
            )
        for evaluated in (frames.check, frames.held_back) if has_masks else ():
            check_labeled(evaluated, options.budget.option)
    return Task(file, graph, contract, frames, before, (*notes, *rewrites), tuple(bad))


def _chosen(
    task: Task,
    source: Source,
    evaluator: Evaluator,
    reference: Reference | None,
    options: CalibrationOptions,
    out: Path,
    on_progress: Progress,
) -> tuple[EvaluatedPlan, list[EvaluatedPlan]]:
    """The first plan that keeps the budget, and all plans that were tried.

    Raises:
        CheckFailed: if none keeps the budget.
    """
    default, search = Assignment(frozenset(), {}, None), None
    if reference is not None:
        kept = _named_layers(source, options.exclude, task.file.path) | source.in_fp32
        default = choose_int8(source, reference, options.method, kept)
        if options.budget is not None:
            budget = options.budget
            search = BudgetSearch(
                task, source, reference, default, kept, out, budget, on_progress
            ).within
    tried = []
    for assignment in plans_of(default, search):
        plan = EvaluatedPlan.of(source, assignment, evaluator, fp16_io=options.fp16_io)
        tried.append(plan)
        if options.budget is None or options.budget.loss(plan.accuracy) <= options.budget.limit:
            return plan, tried
    assert options.budget is not None
    raise CheckFailed(budget_failure(out, tried, options.budget, task.frames, source))


def _precision_of(assignment: Assignment, source: Source, options: CalibrationOptions) -> Precision:
    """The precision that the contract states."""
    if options.precision == "int8" and not assignment.int8:
        return source.half or "fp32"
    is_mixed = assignment.searched and len(assignment.int8) < len(source.insertion_points.layers)
    return "mixed" if is_mixed else options.precision


def _kernel_agreement(
    evaluator: Evaluator, plan: EvaluatedPlan, options: CalibrationOptions
) -> float | None:
    """Share of the labels that an ordinary session gives, too: its kernels may round otherwise."""
    if options.precision == "bf16":  # ONNX Runtime has no BF16 kernels on CPUs
        return None
    found = evaluator.labels(plan.typed.model, reference_execution=False)
    return mean_label_agreement(plan.labels, found)


def _converted(
    graph: onnx.ModelProto, contract: Contract, options: CalibrationOptions, model: Path
) -> tuple[onnx.ModelProto, list[str]]:
    """Return the graph in the opset that the precision needs, and a note on a conversion.

    Raises:
        InputError: if the conversion fails, or changes the output.
    """
    from segdeploy.optimizer.optimize import against_itself
    from segdeploy.proof.graph_session import random_input

    before, wanted = opset_of(graph), options.least_opset
    if before >= wanted:
        return graph, []
    try:
        converted = with_opset(graph, wanted)
        image = random_input(graph, (1, *contract.image_shape))
        _, problem = against_itself(graph, [image])(converted)
    except ValueError as error:
        problem = first_line(error)
    if problem:
        raise InputError(
            f"{model}: has opset {before}, {options.precision} needs opset {wanted}, and the "
            f"conversion failed ({problem}); use --precision fp16, which needs no conversion"
        )
    return converted, [f"converted from opset {before} to {wanted}, with equal output"]


def _optimized(graph: onnx.ModelProto, contract: Contract) -> tuple[onnx.ModelProto, list[str]]:
    """Return the graph after the exact rewrites of `export`, and one line for each rewrite.

    Folding before quantization leaves fewer values to round. Afterwards, Q/DQ nodes between layers
    would prevent folding.
    """
    from segdeploy.optimizer.optimize import against_itself, optimize_graph
    from segdeploy.proof.graph_session import random_input

    image = random_input(graph, (1, *contract.image_shape))
    rewritten, optimization = optimize_graph(graph, check=against_itself(graph, [image]))
    return (rewritten, list(optimization.rewrites)) if optimization.rewrites else (graph, [])


def _learn(
    task: Task, options: CalibrationOptions, cache: Path | str | None, on_progress: Progress
) -> tuple[Source, int]:
    """Collect ranges on the calibration frames, or read them from a cache of the same content."""
    from segdeploy.calibration.quantize import SCHEMES

    contract, frames = task.contract, task.frames
    count = len(frames.calibration)
    given = inputs(frames.calibration, contract, any_size=takes_any_size(task.graph))

    def counted() -> Iterator[tuple[str, Any]]:
        started = time.perf_counter()
        for done, pair in enumerate(given, 1):
            yield pair
            speed = done / (time.perf_counter() - started)
            on_progress(done, count, f"ranges, {speed:.1f} images/s")

    keys = ("", "")
    if cache:
        tools = json.dumps(versions("onnx", "onnxruntime", "numpy"))
        keys = (f"{task.file.key} by {tools}", key_of_frames(frames.calibration))
    known = read_cache(Path(cache), *keys) if cache else None
    source, stable_after = learn(
        task.graph,
        (1, *contract.image_shape),
        counted(),
        scheme=SCHEMES[options.scheme],
        half=options.float_type,
        method=options.method if options.precision == "int8" else None,
        known=known[0] if known else None,
        any_size=contract.follows_image,
    )
    stable_after = stable_after or (known[1] if known else 0)
    if cache and (known is None or source.statistics is not known[0]):
        write_cache(Path(cache), *keys, source.statistics, stable_after)
    return source, stable_after


def _named_layers(source: Source, exclude: Sequence[str], model: Path) -> dict[str, str]:
    """Return the nodes in the modules that `exclude` names, each with its reason."""
    modules = source.modules()

    def is_in(module: str, name: str) -> bool:
        path = module.split(" (")[0]  # the node's name follows if a module has several nodes
        return path == name or path.startswith(f"{name}.")

    for name in exclude:
        if not any(is_in(module, name) for module in modules.values()):
            raise InputError(
                f"--exclude {name}: no convolution of {model} is in a module of that name; use "
                f"{', '.join(list(source.blocks())[:8])}"
            )
    return {n: "--exclude" for n, m in modules.items() if any(is_in(m, name) for name in exclude)}
