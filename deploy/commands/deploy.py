"""`segdeploy deploy`: export, calibrate, build and bench in one command; write a folder to ship."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from segdeploy.artifact import open_artifact
from segdeploy.benchmark.latency import SECONDS
from segdeploy.benchmark.protocol import Protocol
from segdeploy.benchmark.report import write_report
from segdeploy.benchmark.verdict import Limits
from segdeploy.commands.bench import bench
from segdeploy.commands.build_engine import build_engine
from segdeploy.commands.calibrate import calibrate
from segdeploy.commands.export import export
from segdeploy.commands.predict import size_for
from segdeploy.content_keys import key_of_dataset, key_of_model, key_of_network
from segdeploy.contract import Precision
from segdeploy.device import current_gpu
from segdeploy.engine.bindings import open_bindings
from segdeploy.engine.manifest import manifest_path
from segdeploy.engine.options import BuildOptions, check_options
from segdeploy.errors import CheckFailed, InputError
from segdeploy.files import check_folder, write_atomically
from segdeploy.image_folder import is_image_folder, open_image_folder
from segdeploy.ledger import BENCH, STEPS, Ledger
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import DataSet, images_in, open_dataset
from segdeploy.models.strict_json import read_json
from segdeploy.network_loading import LoadedNetwork, load_network
from segdeploy.output_lock import one_writer, output_lock
from segdeploy.packages import versions
from segdeploy.proof.accuracy import check_labeled
from segdeploy.proof.golden_vectors import golden_path
from segdeploy.serve.client import takes_files
from segdeploy.templates import render

_MIOU_DROP = 0.5  # percentage points
_AGREEMENT = 0.99
OnProgress = Callable[[int, int, str], None]
# Relative cost of a candidate that cannot be timed here: the rank of its multiplication width.
_COST = {"int8": 0, "mixed": 1, "fp16": 2, "bf16": 2, "fp32": 3}


@dataclass(frozen=True)
class Step:
    """A step: its output files, the hash of its inputs (`key`), and whether it is already done."""

    name: str
    outputs: tuple[str, ...]
    key: str
    is_done: bool


@dataclass(frozen=True)
class Bundle:
    """The result of `deploy` in `folder`: `chosen` is the .onnx to ship, `engines` its engines."""

    folder: Path
    steps: tuple[Step, ...]
    chosen: Path | None
    engines: tuple[Path, ...]
    passes: bool
    why: str
    notes: tuple[str, ...] = ()


@one_writer
def deploy(
    model: str | Path | ModelSpec,
    data: Path | str,
    out: Path | str,
    *,
    targets: Sequence[str],
    backend: str = "tensorrt-rtx",
    max_miou_drop: float | None = None,
    min_agreement: float | None = None,
    seconds: float = SECONDS,
    dry_run: bool = False,
    command: Sequence[str] = ("segdeploy", "deploy"),
    on_step: Callable[[str, str], None] = lambda name, message: None,
    on_progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Bundle:
    """Export, quantize within the budget, build and compare engines, and write a folder to ship.

    Completed steps with unchanged inputs and outputs are skipped; hashes identify both. With
    `dry_run` no step runs, and the returned steps show which would run. The chosen candidate meets
    the budget. It has the fastest engine of those timed on this machine, or, if no engine was
    timed, the cheapest arithmetic. The budget is `max_miou_drop`, by default 0.5 points. For `data`
    without masks, a folder of images, it is `min_agreement`, the share of labels that equal those
    of the FP32 network, by default 0.99. Each candidate is timed for `seconds`. The report quotes
    `command` as the command that made it.

    Raises:
        InputError, ModelInputError: for a model, data set or target that cannot be used.
    """
    spec, out = ModelSpec.of(model), check_folder(Path(out))
    has_masks = not is_image_folder(Path(data))
    limits = _limits(max_miou_drop, min_agreement, data, has_masks=has_masks)
    protocol = Protocol(seconds=seconds)
    protocol.check()
    bindings = open_bindings(backend)
    check_options(BuildOptions(targets=tuple(one.lower() for one in targets)), bindings)
    dataset = open_dataset(Path(data)) if has_masks else None
    loaded, split = _network(spec, dataset, Path(data))
    if dataset is None:
        dataset = open_image_folder(Path(data), loaded.contract)
    tools = versions("torch", "torchvision", "numpy", "pillow", "onnx", "onnxscript", "onnxruntime")
    common = {"tools": tools | {backend: bindings.version}, "data": key_of_dataset(dataset)}
    steps = Steps(out, common, dry_run, on_step)
    network = {"network": key_of_network(loaded), "spec": vars(spec)}
    del loaded
    candidates = _candidates(steps, spec, data, network, limits, on_progress, has_masks=has_masks)
    engines = _engines(steps, candidates, data, backend, targets, on_progress)
    files = [*candidates, *engines.values()]
    _compare(steps, (spec, data, split), files, limits, protocol, command, on_progress)
    if dry_run:
        return Bundle(out, tuple(steps.done), None, (), True, "nothing was done", ())
    return _bundle(steps, candidates, engines, limits)


def _limits(
    max_miou_drop: float | None, min_agreement: float | None, data: Path | str, *, has_masks: bool
) -> Limits:
    """Return the budget: of mIoU, or without masks of equal labels.

    Raises:
        InputError: for both, for a budget of mIoU without masks, or values out of range.
    """
    if max_miou_drop is not None and min_agreement is not None:
        raise InputError("--max-miou-drop and --min-agreement: give one of the two")
    if max_miou_drop is not None and not has_masks:
        raise InputError(
            f"--max-miou-drop: {data} has no masks, so no mIoU can be measured; give "
            "--min-agreement SHARE instead"
        )
    if not has_masks and min_agreement is None:
        min_agreement = _AGREEMENT
    elif max_miou_drop is None and min_agreement is None:
        max_miou_drop = _MIOU_DROP
    limits = Limits(max_miou_drop=max_miou_drop, min_agreement=min_agreement)
    limits.check()
    return limits


def _network(spec: ModelSpec, dataset: DataSet | None, data: Path) -> tuple[LoadedNetwork, str]:
    """The network at the frames' size, and the split that candidates are compared on.

    Raises:
        InputError: if every pixel of every mask is ignored.
    """
    if dataset is None:  # images without masks
        return load_network(spec, None, size_for(spec, images_in(data)[0])), "images"
    split = "val" if "val" in dataset.splits else dataset.splits[-1]
    frames = dataset.frames(split)
    check_labeled(frames, "--max-miou-drop")
    first = frames[0].read()[0]
    return load_network(spec, dataset, (first.shape[0], first.shape[1])), split


def _candidates(
    steps: Steps,
    spec: ModelSpec,
    data: Path | str,
    network: Mapping[str, Any],
    limits: Limits,
    on_progress: OnProgress,
    *,
    has_masks: bool,
) -> list[Path]:
    """The FP32 graph, the FP16 graph, and the INT8 graph if one keeps the budget."""
    fp32 = steps.folder / "model.onnx"
    steps.run(
        "export", [fp32], network, lambda: export(spec, fp32, data=data if has_masks else None)
    )
    candidates, exported = [fp32], steps.key
    budgets: dict[Precision, Limits] = {"fp16": Limits(), "int8": limits}
    for precision, budget in budgets.items():
        path = steps.folder / f"model.{precision}.onnx"
        quantize = partial(
            calibrate,
            fp32,
            data,
            path,
            precision=precision,
            max_miou_drop=budget.max_miou_drop,
            min_agreement=budget.min_agreement,
            on_progress=on_progress,
        )
        inputs = {
            "of": exported,
            "graph": steps.hash_of(fp32),
            "max_miou_drop": budget.max_miou_drop,
            "min_agreement": budget.min_agreement,
        }
        if steps.run(f"calibrate to {precision}", [path], inputs, quantize):
            candidates.append(path)
    return candidates


def _engines(
    steps: Steps,
    candidates: Sequence[Path],
    data: Path | str,
    backend: str,
    targets: Sequence[str],
    on_progress: OnProgress,
) -> dict[Path, Path]:
    """The engine of each candidate."""
    engines = {}
    for path in candidates:
        engine = path.with_suffix(".engine")
        build = partial(
            build_engine,
            path,
            engine,
            backend=backend,
            targets=targets,
            data=data,
            on_progress=on_progress,
        )
        files = [engine, manifest_path(engine), golden_path(engine)]
        inputs = {"of": steps.hash_of(path), "targets": list(targets), "backend": backend}
        if steps.run(f"build {engine.name}", files, inputs, build):
            engines[path] = engine
    return engines


def _compare(
    steps: Steps,
    compared_with: tuple[ModelSpec, Path | str, str],
    files: Sequence[Path],
    limits: Limits,
    protocol: Protocol,
    command: Sequence[str],
    on_progress: OnProgress,
) -> None:
    """Bench the files against the reference, its data set and split, and write the report."""
    reference, data, split = compared_with
    report = steps.folder / "report"

    def compare() -> None:
        with output_lock(report):
            verdict = bench(
                files,
                reference=reference,
                data=data,
                split=split,
                limits=limits,
                protocol=protocol,
                ledger=report / BENCH,
                on_frame=lambda done, total: on_progress(done, total, "accuracy"),
                on_burst=lambda done, total: on_progress(done, total, "latency"),
            )
            write_report(verdict, report, command)

    inputs: dict[str, Any] = {
        "of": [(path.name, steps.hash_of(path)) for path in files],
        "budget": (limits.max_miou_drop, limits.min_agreement),
        "seconds": protocol.seconds,
        "gpu": str(current_gpu()),
    }
    steps.run("bench", [report / "index.html", report / "bench.json"], inputs, compare)


def _bundle(
    steps: Steps, candidates: Sequence[Path], engines: Mapping[Path, Path], limits: Limits
) -> Bundle:
    """Choose a candidate by the report, and write what a reader of the folder needs."""
    folder = steps.folder
    rows = {row["name"]: row for row in read_json(folder / "report" / "bench.json")["rows"]}
    chosen, why = _chosen(rows, candidates, engines)
    contract = open_artifact(candidates[0]).contract
    labels = "".join(f"{name}\n" for name in contract.classes)
    write_atomically(folder / "labels.txt", labels.encode())
    engine = engines.get(chosen) if chosen else None
    if chosen is not None:
        page = render(
            "bundle.md.j2",
            graph=chosen.name,
            engine=engine.name if engine else None,
            why=why,
            budget=limits.max_miou_drop,
            agreement=limits.min_agreement,
            image='"image.jpg"' if takes_files(contract) else "image",
            bit_planes=contract.has_bit_planes,
        )
        write_atomically(folder / "README.md", page.encode())
    else:  # the README of an earlier run would still name a candidate to ship
        (folder / "README.md").unlink(missing_ok=True)
    return Bundle(
        folder=folder,
        steps=tuple(steps.done),
        chosen=chosen,
        engines=(engine,) if engine else (),
        passes=chosen is not None,
        why=why,
        notes=tuple(steps.notes),
    )


class Steps:
    """Steps that write into a folder; completed ones with unchanged inputs and outputs are skipped.

    `steps.ledger` in the folder records the hashes of inputs and outputs.
    """

    def __init__(
        self,
        folder: Path,
        common: Mapping[str, Any],
        dry_run: bool,
        on_step: Callable[[str, str], None],
    ):
        self.folder, self._common, self._dry_run = folder, common, dry_run
        self._on_step = on_step
        self.done: list[Step] = []
        self.notes: list[str] = []
        self.key = ""
        self._ledger = Ledger(folder / STEPS, "")
        if not dry_run:
            folder.mkdir(exist_ok=True)

    def run(
        self, name: str, outputs: Sequence[Path], inputs: Mapping[str, Any], work: Callable[[], Any]
    ) -> bool:
        """Run a step unless it is done with the same inputs; return False if a check failed."""
        text = json.dumps({**self._common, **inputs}, sort_keys=True, default=str)
        self.key = hashlib.sha256(text.encode()).hexdigest()
        done = self._is_done(name, outputs)
        names = tuple(path.name for path in outputs)
        self.done.append(Step(name, names, self.key, done))
        self._on_step(name, "is done" if done else "would be done" if self._dry_run else "...")
        if done or self._dry_run:
            return True
        try:
            work()
        except CheckFailed as error:
            self.notes.append(f"{name}: {error}")
            return False
        hashes = {path.name: key_of_model(path) for path in outputs}
        self._ledger.put(name, {"key": self.key, "outputs": hashes})
        return True

    def _is_done(self, name: str, outputs: Sequence[Path]) -> bool:
        recorded = self._ledger.get(name)
        if not isinstance(recorded, dict) or recorded.get("key") != self.key:
            return False
        try:
            return recorded.get("outputs") == {path.name: key_of_model(path) for path in outputs}
        except InputError:  # an output is missing or damaged
            return False

    def hash_of(self, path: Path) -> str:
        """Return the content hash of an earlier step's output, or the last key in a dry run."""
        return key_of_model(path) if path.is_file() else self.key


def _chosen(
    rows: Mapping[str, Any], candidates: Sequence[Path], engines: Mapping[Path, Path]
) -> tuple[Path | None, str]:
    """Return the candidate to ship and the reason: the fastest engine, or the cheapest arithmetic.

    `rows` are the rows of `bench.json`, by name.
    """
    passing = [path for path in candidates if rows[path.name]["passes"]]
    if not passing:
        return None, "no candidate keeps the budget"
    timed = {
        path: row["latency"]["median_ms"]
        for path, engine in engines.items()
        if (row := rows[engine.name])["passes"] and row["latency"] and path in passing
    }
    if timed:
        return min(
            timed, key=timed.__getitem__
        ), "its engine is the fastest passing engine on this GPU"
    cheapest = min(passing, key=lambda path: _COST[rows[path.name]["precision"]])
    return cheapest, (
        "it keeps the budget with the cheapest arithmetic; no engine was timed, because this "
        "machine has no matching GPU: run `segdeploy bench` on the target"
    )
