"""All exact rewrites, in order, with an account of what each saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segdeploy.errors import CheckFailed
from segdeploy.exporter.parity import Parity, compare_graphs
from segdeploy.optimizer.broadcast_resize import broadcast_resizes
from segdeploy.optimizer.clean_up import clean_up
from segdeploy.optimizer.commute_resize import commute_resizes
from segdeploy.optimizer.cost import Cost, cost_of
from segdeploy.optimizer.fold_linear_head import fold_linear_heads
from segdeploy.optimizer.outcome import Outcome
from segdeploy.optimizer.project_pooled_branch import project_pooled_branches
from segdeploy.optimizer.remove_dead_taps import remove_dead_taps

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

# A head is folded before what is left of it is looked at; kernels are cut once no pass needs them.
PASSES: tuple[tuple[str, Callable[[ir.Model], Outcome]], ...] = (
    ("commute resizes", commute_resizes),
    ("fold linear heads", fold_linear_heads),
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
    the input shapes `checked_at`, outputs are compared behind every pass that changed something.

    Raises:
        CheckFailed: naming the pass, if its outputs are not the graph's own.
    """
    import onnx
    import onnx_ir as ir

    copied = onnx.ModelProto()  # onnx-ir renames tensors in the message that it was given
    copied.CopyFrom(graph)
    start = onnx.shape_inference.infer_shapes(copied, data_prop=True)
    before = now = cost_of(ir.from_proto(start))
    steps: list[Step] = []
    parity: list[Parity] = []
    if clean:
        start = onnx.shape_inference.infer_shapes(clean_up(graph), data_prop=True)
        then, now = now, cost_of(ir.from_proto(start))
        steps.append(Step("clean up", (), (), then, now))
        parity = _checked("clean up", graph, start, checked_at)
    model = ir.from_proto(start)
    for name, rewrite in PASSES:
        outcome = rewrite(model)
        then, now = now, cost_of(model)
        steps.append(Step(name, tuple(outcome.rewrites), tuple(outcome.refusals), then, now))
        if outcome.rewrites and checked_at:
            parity = _checked(name, graph, ir.to_proto(model), checked_at)
    return ir.to_proto(model), Account(tuple(steps), before, now, tuple(parity))


def _checked(
    name: str,
    graph: onnx.ModelProto,
    rewritten: onnx.ModelProto,
    shapes: tuple[tuple[int, ...], ...],
) -> list[Parity]:
    parity = compare_graphs(graph, rewritten, shapes)
    for result in parity:
        if not result.holds:
            raise CheckFailed(
                f"optimize: the pass '{name}' is not exact here: {result.complaint()}"
            )
    return parity
