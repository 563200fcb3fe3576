"""Apply all exact rewrites in order, and report the cost before and after each pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray

from segdeploy.optimizer.cost import Cost, cost_of
from segdeploy.optimizer.pass_result import PassResult
from segdeploy.optimizer.passes.broadcast_resize import broadcast_resizes
from segdeploy.optimizer.passes.commute_resize import commute_resizes
from segdeploy.optimizer.passes.delay_resizes import delay_resizes
from segdeploy.optimizer.passes.fold_constants import fold_constants, fold_shapes
from segdeploy.optimizer.passes.fold_linear_head import fold_linear_heads
from segdeploy.optimizer.passes.fold_pads import fold_pads
from segdeploy.optimizer.passes.fuse_channel_affine import fuse_channel_affine
from segdeploy.optimizer.passes.project_pooled_branch import project_pooled_branches
from segdeploy.optimizer.passes.remove_dead_taps import remove_dead_taps
from segdeploy.optimizer.passes.restore_dilations import restore_dilations
from segdeploy.proof.graph_session import run_graph
from segdeploy.proof.parity import Parity, compare_outputs

if TYPE_CHECKING:
    import onnx

# Shapes and constants are folded first, since the other passes look for constants. Linear heads are
# folded before `commute resizes`, which may move a classifier away from its head (behind a resize
# that shrinks), and again after it, when a classifier may have moved to its head. Dead taps are
# removed last, since other passes need whole kernels.
PASSES: tuple[tuple[str, Callable[[ir.Model], PassResult]], ...] = (
    ("fold shapes", fold_shapes),
    ("fold constants", fold_constants),
    ("restore dilations", restore_dilations),
    ("fold pads", fold_pads),
    ("fuse channel affine", fuse_channel_affine),
    ("delay resizes", delay_resizes),
    ("fold linear heads", fold_linear_heads),
    ("commute resizes", commute_resizes),
    ("fold linear heads again", fold_linear_heads),
    ("project pooled branches", project_pooled_branches),
    ("broadcast resizes", broadcast_resizes),
    ("remove dead taps", remove_dead_taps),
)


# Compares a rewritten graph; returns the comparisons and the first failure, empty if there is none.
Check = Callable[["onnx.ModelProto"], tuple[list[Parity], str]]


@dataclass(frozen=True)
class Step:
    """The rewrites and skipped candidates of one pass, and the graph's cost before and after it."""

    name: str
    rewrites: tuple[str, ...]
    skipped: tuple[str, ...]
    before: Cost
    after: Cost


@dataclass(frozen=True)
class RewriteReport:
    """The steps of `optimize_graph`; `parity` holds the output comparisons if a check was given."""

    steps: tuple[Step, ...]
    before: Cost
    after: Cost
    parity: tuple[Parity, ...] = ()

    @property
    def rewrites(self) -> tuple[str, ...]:
        """One line for each rewrite."""
        return tuple(line for step in self.steps for line in step.rewrites)


def optimize_graph(
    graph: onnx.ModelProto,
    *,
    passes: Sequence[tuple[str, Callable[[ir.Model], PassResult]]] | None = None,
    check: Check | None = None,
) -> tuple[onnx.ModelProto, RewriteReport]:
    """Rewrite a graph into a cheaper graph that computes the same; `graph` is not modified.

    `passes` are `PASSES` if None. `check` compares the outputs. A pass that raises an exception,
    changes an output or increases the multiply-accumulates is undone, and its step states the
    reason in `skipped`. If the passes together change an output, they run once more with a
    comparison after each pass, to find and undo the pass that changes it.
    """
    passes = PASSES if passes is None else passes
    rewritten, optimization = _run(graph, passes, lambda _: ([], ""))
    if check is None or not optimization.rewrites:
        return rewritten, optimization
    parity, problem = check(rewritten)
    if problem:
        return _run(graph, passes, check)
    return rewritten, replace(optimization, parity=tuple(parity))


def against_itself(graph: onnx.ModelProto, inputs: Sequence[NDArray[Any]]) -> Check:
    """Return a check that compares a rewritten graph with the original graph on `inputs`."""
    references = run_graph(graph, inputs)

    def check(rewritten: onnx.ModelProto) -> tuple[list[Parity], str]:
        try:
            parity = compare_outputs(inputs, references, rewritten)
        except Exception as error:  # ONNX Runtime's classes share no base below Exception
            return [], f"the rewritten graph cannot be run ({error})"
        failed = [result.failure() for result in parity if not result.holds]
        return parity, failed[0] if failed else ""

    return check


def _run(
    graph: onnx.ModelProto,
    passes: Sequence[tuple[str, Callable[[ir.Model], PassResult]]],
    check: Check,
) -> tuple[onnx.ModelProto, RewriteReport]:
    """Run the passes in order; undo a pass that raises, costs more or does not pass `check`."""
    import onnx

    current = onnx.shape_inference.infer_shapes(graph, data_prop=True)
    before = now = _cost(current)
    steps: list[Step] = []
    parity: list[Parity] = []
    for name, rewrite in passes:
        try:
            candidate, result = _applied(rewrite, current)
        except Exception as error:  # raised by a library or a pass on an unforeseen graph
            steps.append(Step(name, (), (_undone(f"{type(error).__name__}: {error}"),), now, now))
            continue
        if not result.rewrites:
            steps.append(Step(name, (), tuple(result.skipped), now, now))
            continue
        then = _cost(candidate)
        checked, problem = check(candidate)
        if now.macs is not None and then.macs is not None and then.macs > now.macs:
            problem = f"multiply-accumulates rise from {now.macs:,} to {then.macs:,}"
        if problem:
            steps.append(Step(name, (), (*result.skipped, _undone(problem)), now, now))
            continue
        steps.append(Step(name, tuple(result.rewrites), tuple(result.skipped), now, then))
        current, now, parity = candidate, then, checked
    return current, RewriteReport(tuple(steps), before, now, tuple(parity))


def _applied(
    rewrite: Callable[[ir.Model], PassResult], graph: onnx.ModelProto
) -> tuple[onnx.ModelProto, PassResult]:
    import onnx

    model = ir.from_proto(_copy(graph))
    result = rewrite(model)
    if not result.rewrites:
        return graph, result
    rewritten = ir.to_proto(model)
    if rewrite in (fold_shapes, fold_constants):
        del rewritten.graph.value_info[:]  # shapes that were unknown are known now
        rewritten = onnx.shape_inference.infer_shapes(rewritten, data_prop=True)
    return rewritten, result


def _cost(graph: onnx.ModelProto) -> Cost:
    return cost_of(ir.from_proto(_copy(graph)))


def _copy(graph: onnx.ModelProto) -> onnx.ModelProto:
    # onnx-ir renames tensors in the protobuf message that it reads.
    copied = type(graph)()
    copied.CopyFrom(graph)
    return copied


def _undone(reason: str) -> str:
    return f"undone: {' '.join(reason.split())}"
