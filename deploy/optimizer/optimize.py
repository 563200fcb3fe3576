"""All exact rewrites, in order, with an account of what each saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segdeploy.exporter.parity import Outputs, Parity, compare_outputs, run_graph
from segdeploy.optimizer.broadcast_resize import broadcast_resizes
from segdeploy.optimizer.clean_up import clean_up
from segdeploy.optimizer.commute_resize import commute_resizes
from segdeploy.optimizer.cost import Cost, cost_of
from segdeploy.optimizer.delay_resizes import delay_resizes
from segdeploy.optimizer.fold_linear_head import fold_linear_heads
from segdeploy.optimizer.outcome import Outcome
from segdeploy.optimizer.project_pooled_branch import project_pooled_branches
from segdeploy.optimizer.remove_dead_taps import remove_dead_taps

if TYPE_CHECKING:
    import onnx

# A head is folded before its classifier may be moved away from it, behind a resize that shrinks,
# and again once one was moved to it. Kernels are cut when no pass needs them whole any more.
PASSES: tuple[tuple[str, Callable[[Any], Outcome]], ...] = (
    ("delay resizes", delay_resizes),
    ("fold linear heads", fold_linear_heads),
    ("commute resizes", commute_resizes),
    ("fold linear heads again", fold_linear_heads),
    ("project pooled branches", project_pooled_branches),
    ("broadcast resizes", broadcast_resizes),
    ("remove dead taps", remove_dead_taps),
)


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
    clean: bool = True,
    checked_at: tuple[tuple[int, ...], ...] = (),
) -> tuple[onnx.ModelProto, Account]:
    """Rewrite a graph into a cheaper one that computes the same; the argument is left alone.

    `clean` runs onnxslim first, which also finds shapes that the graph does not tell. At each of
    the input shapes `checked_at`, outputs are compared behind every pass that changed something. A
    pass that failed, changed an output or raised the multiply-accumulates is undone, and its
    refusals say so.
    """
    import onnx

    current = onnx.shape_inference.infer_shapes(graph, data_prop=True)
    references = run_graph(graph, checked_at) if checked_at else {}
    before = now = _cost(current)
    steps: list[Step] = []
    parity: list[Parity] = []
    for name, rewrite in (("clean up", clean_up), *PASSES) if clean else PASSES:
        try:
            candidate, outcome = _applied(rewrite, current)
        except Exception as error:  # a library's, or ours, on a graph that nobody foresaw
            steps.append(Step(name, (), (_undone(f"{type(error).__name__}: {error}"),), now, now))
            continue
        if not outcome.rewrites:
            steps.append(Step(name, (), tuple(outcome.refusals), now, now))
            continue
        then = _cost(candidate)
        checked, problem = _checked(references, candidate)
        if now.macs is not None and then.macs is not None and then.macs > now.macs:
            problem = f"multiply-accumulates rise from {now.macs:,} to {then.macs:,}"
        if problem:
            steps.append(Step(name, (), (*outcome.refusals, _undone(problem)), now, now))
            continue
        steps.append(Step(name, tuple(outcome.rewrites), tuple(outcome.refusals), now, then))
        current, now, parity = candidate, then, checked
    return current, Account(tuple(steps), before, now, tuple(parity))


def _applied(
    rewrite: Callable[..., Any], graph: onnx.ModelProto
) -> tuple[onnx.ModelProto, Outcome]:
    import onnx_ir as ir

    if rewrite is clean_up:
        return clean_up(graph)
    model = ir.from_proto(_copy(graph))
    outcome = rewrite(model)
    return (ir.to_proto(model) if outcome.rewrites else graph), outcome


def _cost(graph: onnx.ModelProto) -> Cost:
    import onnx_ir as ir

    return cost_of(ir.from_proto(_copy(graph)))


def _copy(graph: onnx.ModelProto) -> onnx.ModelProto:
    # onnx-ir renames tensors in the message that it was given.
    copied = type(graph)()
    copied.CopyFrom(graph)
    return copied


def _undone(reason: str) -> str:
    return f"undone: {' '.join(reason.split())}"


def _checked(
    references: Mapping[tuple[int, ...], Outputs], rewritten: onnx.ModelProto
) -> tuple[list[Parity], str]:
    """The outputs compared, and what is wrong with them."""
    if not references:
        return [], ""
    try:
        parity = compare_outputs(references, rewritten)
    except Exception as error:  # ONNX Runtime's classes share no base below Exception
        return [], f"the rewritten graph cannot be run ({error})"
    failed = [result.complaint() for result in parity if not result.holds]
    return parity, failed[0] if failed else ""
