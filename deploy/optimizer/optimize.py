"""All exact rewrites, in order, with an account of what each saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray

from segdeploy.optimizer.cost import Cost, cost_of
from segdeploy.optimizer.pass_result import Outcome
from segdeploy.optimizer.passes.broadcast_resize import broadcast_resizes
from segdeploy.optimizer.passes.commute_resize import commute_resizes
from segdeploy.optimizer.passes.delay_resizes import delay_resizes
from segdeploy.optimizer.passes.fold_constants import fold_constants
from segdeploy.optimizer.passes.fold_linear_head import fold_linear_heads
from segdeploy.optimizer.passes.fold_pads import fold_pads
from segdeploy.optimizer.passes.fuse_channel_affine import fuse_channel_affine
from segdeploy.optimizer.passes.project_pooled_branch import project_pooled_branches
from segdeploy.optimizer.passes.remove_dead_taps import remove_dead_taps
from segdeploy.proof.graph_session import run_graph
from segdeploy.proof.parity import Parity, compare_outputs

if TYPE_CHECKING:
    import onnx

# Constants first: the other passes look for them. A head is folded before its classifier may be
# moved away from it, behind a resize that shrinks, and again once one was moved to it. Kernels are
# cut when no pass needs them whole any more.
PASSES: tuple[tuple[str, Callable[[ir.Model], Outcome]], ...] = (
    ("fold constants", fold_constants),
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


# Compares a rewritten graph: the comparisons, and what does not hold.
Check = Callable[["onnx.ModelProto"], tuple[list[Parity], str]]


@dataclass(frozen=True)
class Step:
    """What one pass did, where it declined, and the graph's cost around it."""

    name: str
    rewrites: tuple[str, ...]
    refusals: tuple[str, ...]
    before: Cost
    after: Cost


@dataclass(frozen=True)
class Account:
    """What `optimize` did, pass by pass; `parity` compares the outputs where it was asked for."""

    steps: tuple[Step, ...]
    before: Cost
    after: Cost
    parity: tuple[Parity, ...] = ()

    @property
    def rewrites(self) -> tuple[str, ...]:
        """A line for each rewrite."""
        return tuple(line for step in self.steps for line in step.rewrites)


def optimize_graph(
    graph: onnx.ModelProto,
    *,
    passes: Sequence[tuple[str, Callable[[ir.Model], Outcome]]] | None = None,
    check: Check | None = None,
) -> tuple[onnx.ModelProto, Account]:
    """Rewrite a graph into a cheaper one that computes the same; the argument is left alone.

    `passes` are all of ours if None. `check` compares the outputs. A pass that failed, changed an
    output or raised the multiply-accumulates is undone, and its refusals say so. Where the passes
    together changed an output, they are run once more with a comparison behind each, which finds
    the one that did.
    """
    passes = PASSES if passes is None else passes
    rewritten, account = _run(graph, passes, lambda _: ([], ""))
    if check is None or not account.rewrites:
        return rewritten, account
    parity, problem = check(rewritten)
    if problem:
        return _run(graph, passes, check)
    return rewritten, replace(account, parity=tuple(parity))


def against_itself(graph: onnx.ModelProto, inputs: Sequence[NDArray[Any]]) -> Check:
    """Compare a rewritten graph with what the graph itself gives for each of `inputs`."""
    references = run_graph(graph, inputs)

    def check(rewritten: onnx.ModelProto) -> tuple[list[Parity], str]:
        try:
            parity = compare_outputs(inputs, references, rewritten)
        except Exception as error:  # ONNX Runtime's classes share no base below Exception
            return [], f"the rewritten graph cannot be run ({error})"
        failed = [result.complaint() for result in parity if not result.holds]
        return parity, failed[0] if failed else ""

    return check


def _run(
    graph: onnx.ModelProto,
    passes: Sequence[tuple[str, Callable[[ir.Model], Outcome]]],
    check: Check,
) -> tuple[onnx.ModelProto, Account]:
    """Every pass in turn, each undone if it fails, costs more, or does not pass `check`."""
    import onnx

    current = onnx.shape_inference.infer_shapes(graph, data_prop=True)
    before = now = _cost(current)
    steps: list[Step] = []
    parity: list[Parity] = []
    for name, rewrite in passes:
        try:
            candidate, outcome = _applied(rewrite, current)
        except Exception as error:  # a library's, or ours, on a graph that nobody foresaw
            steps.append(Step(name, (), (_undone(f"{type(error).__name__}: {error}"),), now, now))
            continue
        if not outcome.rewrites:
            steps.append(Step(name, (), tuple(outcome.refusals), now, now))
            continue
        then = _cost(candidate)
        checked, problem = check(candidate)
        if now.macs is not None and then.macs is not None and then.macs > now.macs:
            problem = f"multiply-accumulates rise from {now.macs:,} to {then.macs:,}"
        if problem:
            steps.append(Step(name, (), (*outcome.refusals, _undone(problem)), now, now))
            continue
        steps.append(Step(name, tuple(outcome.rewrites), tuple(outcome.refusals), now, then))
        current, now, parity = candidate, then, checked
    return current, Account(tuple(steps), before, now, tuple(parity))


def _applied(
    rewrite: Callable[[ir.Model], Outcome], graph: onnx.ModelProto
) -> tuple[onnx.ModelProto, Outcome]:
    import onnx

    model = ir.from_proto(_copy(graph))
    outcome = rewrite(model)
    if not outcome.rewrites:
        return graph, outcome
    rewritten = ir.to_proto(model)
    if rewrite is fold_constants:
        del rewritten.graph.value_info[:]  # shapes that were unknown are known now
        rewritten = onnx.shape_inference.infer_shapes(rewritten, data_prop=True)
    return rewritten, outcome


def _cost(graph: onnx.ModelProto) -> Cost:
    return cost_of(ir.from_proto(_copy(graph)))


def _copy(graph: onnx.ModelProto) -> onnx.ModelProto:
    # onnx-ir renames tensors in the message that it was given.
    copied = type(graph)()
    copied.CopyFrom(graph)
    return copied


def _undone(reason: str) -> str:
    return f"undone: {' '.join(reason.split())}"
