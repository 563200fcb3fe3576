"""`segdeploy deploy`: the whole path in one command, and a folder to ship."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.benchmark.journal import NAME as JOURNAL
from segdeploy.benchmark.latency import SECONDS
from segdeploy.benchmark.protocol import Protocol
from segdeploy.benchmark.report import write_report
from segdeploy.benchmark.verdict import Limits
from segdeploy.commands.bench import bench
from segdeploy.commands.build_engine import build_engine
from segdeploy.commands.calibrate import calibrate
from segdeploy.commands.export import export
from segdeploy.content_keys import key_of_dataset, key_of_model, key_of_network
from segdeploy.device import current_gpu
from segdeploy.engine.bindings import open_bindings
from segdeploy.engine.manifest import manifest_path
from segdeploy.engine.options import BuildOptions, check_options
from segdeploy.errors import CheckFailed, InputError
from segdeploy.files import check_folder, write_atomically
from segdeploy.model_spec import ModelSpec, load_network
from segdeploy.models.dataset import open_dataset
from segdeploy.models.strict_json import read_json
from segdeploy.onnx_graph.model_file import contract_of, load_onnx
from segdeploy.output_lock import one_writer, output_lock
from segdeploy.packages import versions
from segdeploy.proof.accuracy import check_judgeable
from segdeploy.proof.golden_vectors import golden_path

_LEDGER = "steps.json"
# What a candidate costs where nobody can time it: the width of its multiplications.
_COST = {"int8": 0, "mixed": 1, "fp16": 2, "bf16": 2, "fp32": 3}


@dataclass(frozen=True)
class Step:
    """A part of the way: what it makes, of what (`key`), and whether that is there already."""

    name: str
    outputs: tuple[str, ...]
    key: str
    is_done: bool


@dataclass(frozen=True)
class Shipment:
    """What `deploy` leaves in `folder`; `chosen` is the .onnx to ship, `engines` its engines."""

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
    max_miou_drop: float = 0.5,
    seconds: float = SECONDS,
    dry_run: bool = False,
    command: Sequence[str] = ("segdeploy", "deploy"),
    on_step: Callable[[str, str], None] = lambda name, told: None,
    on_progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Shipment:
    """Export, quantise within the budget, build engines, compare, and leave a folder to ship.

    A step whose inputs are those of an earlier run is not done again: what it made is known by its
    hash. With `dry_run` nothing is done, and the steps say what would be. The candidate that is
    chosen keeps the budget and, of those, has the cheapest arithmetic: that of a GPU is timed where
    the GPU is, by `segdeploy bench`. Each candidate is timed for `seconds`. `command`
    is what the report says that it was made with.

    Raises:
        InputError, ModelInputError: for a model, data set or target that cannot be used.
    """
    spec, out = ModelSpec.of(model), check_folder(Path(out))
    limits, protocol = Limits(max_miou_drop=max_miou_drop), Protocol(seconds=seconds)
    limits.check()
    protocol.check()
    bindings = open_bindings(backend)
    check_options(BuildOptions(targets=tuple(one.lower() for one in targets)), bindings)
    dataset = open_dataset(Path(data))
    split = "val" if "val" in dataset.splits else dataset.splits[-1]
    frames = dataset.frames(split)
    check_judgeable(frames, "--max-miou-drop")
    first = frames[0].read()[0]
    loaded = load_network(spec, dataset, (first.shape[0], first.shape[1]))
    tools = versions("torch", "torchvision", "numpy", "pillow", "onnx", "onnxscript", "onnxruntime")
    common = {"tools": tools | {backend: bindings.version}, "data": key_of_dataset(dataset)}
    ledger = Ledger(out, common, dry_run, on_step)
    described = {"network": key_of_network(loaded), "spec": vars(spec)}
    del loaded
    budget = {"max_miou_drop": limits.max_miou_drop}
    fp32 = out / "model.onnx"
    ledger.do("export", [fp32], described, lambda: export(spec, fp32, data=data))
    candidates = [fp32]
    for precision, options in (("fp16", {}), ("int8", budget)):
        path = out / f"model.{precision}.onnx"

        def quantise(path: Path = path, precision: str = precision, options: Any = options) -> None:
            calibrate(fp32, data, path, precision=precision, on_progress=on_progress, **options)

        if ledger.do(
            f"calibrate to {precision}",
            [path],
            {"of": ledger.key, "graph": ledger.hash_of(fp32), **options},
            quantise,
        ):
            candidates.append(path)
    engines: dict[Path, Path] = {}
    for path in candidates:
        engine = path.with_suffix(".engine")
        files = [engine, manifest_path(engine), golden_path(engine)]

        def build(path: Path = path, engine: Path = engine) -> None:
            build_engine(
                path, engine, backend=backend, targets=targets, data=data, on_progress=on_progress
            )

        asked = {"of": ledger.hash_of(path), "targets": list(targets), "backend": backend}
        if ledger.do(f"build {engine.name}", files, asked, build):
            engines[path] = engine
    report = out / "report"
    shipped = [*candidates, *engines.values()]

    def compare() -> None:
        with output_lock(report):
            verdict = bench(
                shipped,
                reference=spec,
                data=data,
                split=split,
                limits=limits,
                protocol=protocol,
                journal=report / JOURNAL,
                on_frame=lambda done, total: on_progress(done, total, "accuracy"),
                on_burst=lambda done, total: on_progress(done, total, "latency"),
            )
            write_report(verdict, report, command)

    compared: dict[str, Any] = {
        "of": [(path.name, ledger.hash_of(path)) for path in shipped],
        "budget": limits.max_miou_drop,
        "seconds": protocol.seconds,
        "gpu": str(current_gpu()),
    }
    ledger.do("bench", [report / "index.html", report / "bench.json"], compared, compare)
    if dry_run:
        return Shipment(out, tuple(ledger.steps), None, (), True, "nothing was done", ())
    rows = {row["name"]: row for row in read_json(report / "bench.json")["rows"]}
    chosen, why = _chosen(rows, candidates, engines)
    contract = contract_of(load_onnx(fp32), fp32)
    labels = "".join(f"{name}\n" for name in contract.classes)
    write_atomically(out / "labels.txt", labels.encode())
    chosen_engine = engines.get(chosen) if chosen else None
    if chosen is not None:
        page = _readme(chosen, chosen_engine, why, limits.max_miou_drop or 0.0)
        write_atomically(out / "README.md", page.encode())
    else:  # an earlier run's would still say what to ship
        (out / "README.md").unlink(missing_ok=True)
    return Shipment(
        folder=out,
        steps=tuple(ledger.steps),
        chosen=chosen,
        engines=(chosen_engine,) if chosen_engine else (),
        passes=chosen is not None,
        why=why,
        notes=tuple(ledger.notes),
    )


class Ledger:
    """What each step was made of, and the hashes of what it made: `steps.json` in the folder."""

    def __init__(
        self,
        folder: Path,
        common: Mapping[str, Any],
        dry_run: bool,
        on_step: Callable[[str, str], None],
    ):
        self._folder, self._common, self._dry_run = folder, common, dry_run
        self._on_step = on_step
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self.key = ""
        self._held: dict[str, Any] = {}
        with suppress(InputError):  # a first run, or a damaged ledger: everything is done
            held = read_json(folder / _LEDGER)
            self._held = held if isinstance(held, dict) else {}
        if not dry_run:
            folder.mkdir(exist_ok=True)

    def do(
        self, name: str, outputs: Sequence[Path], inputs: Mapping[str, Any], run: Callable[[], Any]
    ) -> bool:
        """Do a step unless it was done with the same inputs; False if a check of it failed."""
        told = json.dumps({**self._common, **inputs}, sort_keys=True, default=str)
        self.key = hashlib.sha256(told.encode()).hexdigest()
        done = self._is_done(name, outputs)
        names = tuple(path.name for path in outputs)
        self.steps.append(Step(name, names, self.key, done))
        self._on_step(name, "is done" if done else "would be done" if self._dry_run else "...")
        if done or self._dry_run:
            return True
        try:
            run()
        except CheckFailed as error:
            self.notes.append(f"{name}: {error}")
            return False
        made = {path.name: key_of_model(path) for path in outputs}
        self._held[name] = {"key": self.key, "made": made}
        write_atomically(self._folder / _LEDGER, json.dumps(self._held, indent=2).encode())
        return True

    def _is_done(self, name: str, outputs: Sequence[Path]) -> bool:
        held = self._held.get(name)
        if not isinstance(held, dict) or held.get("key") != self.key:
            return False
        made = held.get("made")
        try:
            return isinstance(made, dict) and all(
                key_of_model(path) == made.get(path.name) for path in outputs
            )
        except InputError:  # one is missing, or was damaged
            return False

    def hash_of(self, path: Path) -> str:
        """The content of what an earlier step made; its key where it is only planned."""
        return key_of_model(path) if path.is_file() else self.key


def _chosen(
    rows: Mapping[str, Any], candidates: Sequence[Path], engines: Mapping[Path, Path]
) -> tuple[Path | None, str]:
    """The candidate to ship, and why: its engine was the fastest here, or its arithmetic is.

    `rows` are those of `bench.json`, by name.
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
        ), "its engine is the fastest on this GPU that passes"
    cheapest = min(passing, key=lambda path: _COST[rows[path.name]["precision"]])
    return cheapest, (
        "it keeps the budget with the cheapest arithmetic; no engine was timed, since no such GPU "
        "is here: run `segdeploy bench` there"
    )


def _readme(chosen: Path, engine: Path | None, why: str, budget: float) -> str:
    name = engine.name if engine else chosen.name
    ship = f"`{chosen.name}`, and its engine `{name}`" if engine else f"`{name}`"
    return f"""# What to ship

{ship}: {why}.
It loses at most {budget:g} points of mIoU on the frames of `report/index.html`.
Ship it with its neighbours: `{name}.json` (the manifest), `{name}.golden.safetensors`
and `labels.txt`.

On the target, first prove the host:

    segdeploy selftest {name}

From Python:

    import segdeploy
    with segdeploy.load("{name}") as network:
        labels = network.predict("picture.jpg")  # (H, W) uint8, indices into labels.txt

From C++, `{name}` is a plain TensorRT plan for `IRuntime::deserializeCudaEngine`, and the
manifest holds the contract: size, mean, standard deviation, layout, classes.
"""
