"""Mixed precision: the search, the budget that it keeps, and the frames that it may see."""

from __future__ import annotations

import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import segdeploy
from segdeploy.artifact import OnnxFile
from segdeploy.calibration.errors import CalibrationInputError
from segdeploy.calibration.layers import Layer, relative_cost
from segdeploy.calibration.mixed_precision import (
    Score,
    cheapest_within,
    most_evaluations,
    order_of_return,
)
from segdeploy.content_keys import key_of_frames
from segdeploy.errors import InputError
from segdeploy.models.dataset import open_dataset
from segdeploy.onnx_graph.model_file import contract_of, load_onnx
from segdeploy.precision import assignment
from segdeploy.precision.cache import read_cache
from segdeploy.precision.evaluator import Evaluator
from segdeploy.precision.frames import choose_frames, coverage, evenly_spaced

from .conftest import check_one_line


def layer(name: str, macs: int) -> Layer:
    return Layer(name, "", "", "", "", macs, "inner")


def fewer_is_dearer(int8: frozenset[str]) -> float:
    return 100.0 - len(int8)


def test_mixed_precision_layers_return_by_noise_for_their_work() -> None:
    layers = [layer("a", 100), layer("b", 100), layer("c", 10_000), layer("d", 1)]
    snr = {"a": 30.0, "b": 20.0, "c": 20.0, "d": math.inf}
    assert [y.name for y in order_of_return(layers, snr)] == ["b", "a", "c", "d"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 5), st.integers(0, 2**16))
def test_mixed_precision_the_search_finds_the_cheapest_prefix_in_few_evaluations(
    losses: list[float], budget: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    layers = [layer(str(i), int(rng.integers(1, 1000))) for i in range(len(losses))]
    loss = {str(i): value for i, value in enumerate(losses)}
    evaluated = []

    def evaluate(int8: frozenset[str]) -> Score:
        evaluated.append(int8)
        drop = sum(loss[name] for name in int8)
        return Score(50 - drop, drop, 1 - drop / 100, drop)

    best, pareto_front = cheapest_within(budget, layers, layers, evaluate, fewer_is_dearer)
    assert best is not None
    assert best.score.miou_drop <= budget
    assert len(evaluated) == len(set(evaluated)) <= most_evaluations(len(layers))
    returned = len(layers) - len(best.int8)
    if returned:  # one more in INT8 would break it
        assert sum(losses[returned - 1 :]) > budget
    assert best in pareto_front
    costs = [point.cost for point in pareto_front]
    drops = [point.score.miou_drop for point in pareto_front]
    assert costs == sorted(costs, reverse=True)
    assert drops == sorted(drops)


def test_mixed_precision_a_cheaper_point_of_the_front_is_taken_where_accuracy_is_not_monotone() -> (
    None
):
    layers = [layer(str(i), 100) for i in range(8)]
    drops = {8: 0.4, 7: 0.4, 6: 0.01, 5: 0.4, 4: 0.4, 3: 0.4, 2: 0.05, 1: 0.0, 0: 0.0}

    def evaluate(int8: frozenset[str]) -> Score:
        return Score(50, drops[len(int8)], 1, drops[len(int8)])

    best, pareto_front = cheapest_within(0.1, layers, layers, evaluate, fewer_is_dearer)
    assert best is not None
    assert len(best.int8) == 6
    assert best in pareto_front


def test_mixed_precision_a_budget_that_not_even_fp16_keeps_is_none() -> None:
    layers = [layer("a", 1)]
    best, pareto_front = cheapest_within(
        0.1, layers, layers, lambda int8: Score(0, 0.2, 1, 0.2), fewer_is_dearer
    )
    assert best is None
    assert pareto_front[0].int8 == ()


def test_mixed_precision_cost_is_work_by_width() -> None:
    layers = [layer("a", 300), layer("b", 100)]
    assert relative_cost(layers, {"a": "fp32", "b": "fp32"}) == 1
    assert relative_cost(layers, {"a": "int8", "b": "fp16"}) == (300 + 200) / 1600


def test_mixed_precision_frames_are_spread_and_kept_apart(dataset: Path) -> None:
    data = open_dataset(dataset)
    sets = choose_frames(data, "train", None, 4)
    assert [f.name for f in sets.calibration] == [f"train_{i:04}" for i in (0, 4, 8, 12)]
    assert sets.check_split == "val"
    assert {f.name for f in sets.held_back}.isdisjoint(f.name for f in sets.calibration)
    assert sets.note is None
    block = choose_frames(data, "train", "train", 4)
    assert [f.name for f in block.check] == [f"train_{i:04}" for i in range(11, 16)]
    seen = {f.name for f in (*block.calibration, *block.held_back)}
    assert seen.isdisjoint(f.name for f in block.check)
    whole = choose_frames(data, "val", "val", 99)
    assert "no frame of 'val' is left to choose methods" in (whole.note or "")
    assert {f.name for f in whole.calibration}.isdisjoint(f.name for f in whole.check)
    assert len(choose_frames(data, "train", None, None).calibration) == 11  # two thirds
    assert len(evenly_spaced(sets.check, 1)) == 1
    assert key_of_frames(sets.check) == key_of_frames(sets.check[::-1])
    assert key_of_frames(sets.check) != key_of_frames(sets.calibration)


def test_mixed_precision_classes_that_no_frame_holds_are_told(graph: Path, dataset: Path) -> None:
    contract = contract_of(load_onnx(graph), graph)
    frames = open_dataset(dataset).frames("train")
    assert coverage(frames, contract) == ()
    held = set(np.unique(frames[0].read_mask())) - {contract.ignore_index}
    missing = [name for i, name in enumerate(contract.classes) if i not in held]
    assert list(coverage(frames[:1], contract)) == missing


@pytest.mark.parametrize("kind", ["noise", "flat"])
def test_mixed_precision_frames_that_are_no_images_are_refused(
    run, graph: Path, dataset: Path, tmp_path: Path, kind: str
) -> None:  # fmt: skip
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    rng = np.random.default_rng(0)
    for path in (copy / "train" / "images").iterdir():
        size = Image.open(path).size[::-1]
        values = rng.integers(0, 256, (*size, 3)) if kind == "noise" else np.full((*size, 3), 90)
        Image.fromarray(values.astype(np.uint8)).save(path.with_suffix(".png"))
        path.unlink()
    said = {"noise": "11 noise", "flat": "11 of one color"}[kind]
    ran = run("calibrate", graph, "--data", copy, "-o", tmp_path / "m.onnx")
    check_one_line(ran, "none of 11 frames is an image", said)
    assert not (tmp_path / "m.onnx").exists()


def test_mixed_precision_a_budget_is_kept_on_frames_that_the_search_did_not_see(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    """The network's default loses more than the budget, so that there is a search."""
    graph, out = unbalanced(graph, tmp_path / "unbalanced.onnx"), tmp_path / "m.onnx"
    report = segdeploy.calibrate(graph, dataset, out, max_miou_drop=0.5, **UNBALANCED)
    assert report.accuracy.miou_drop <= 0.005
    assert report.check_split == "val"
    assert report.searched is not None
    assert len(report.searched.layers) == report.convolutions
    worst = min(report.searched.layers.items(), key=lambda item: item[1].snr_db)
    assert worst[0] in report.kept
    assert all(0.5 < lost.agreement <= 1 for lost in report.searched.layers.values())
    said = r"budget of 0\.5 points of mIoU: \d+ layers in INT8 lost \d.* assignments were evaluated"
    assert any(re.match(said, note) for note in report.notes)
    assert report.searched.evaluations <= most_evaluations(report.convolutions)
    assert sorted(tmp_path.iterdir()) == [out, graph]  # the search's state is gone with its end
    assert 0.25 <= report.cost < 1
    assert set(report.kept) | set(report.int8) >= set(report.searched.layers)
    contract = contract_of(load_onnx(out), out)
    assert contract.precision == report.precision in ("int8", "mixed")


def test_mixed_precision_a_default_that_keeps_the_budget_is_delivered_at_once(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    report = segdeploy.calibrate(
        graph, dataset, tmp_path / "m.onnx", limit=6, max_miou_drop=5.0, method="min-max"
    )
    plain = segdeploy.calibrate(graph, dataset, tmp_path / "n.onnx", limit=6, method="min-max")
    assert report.searched is None
    assert report.precision == "int8"
    assert report.int8 == plain.int8
    assert report.accuracy == plain.accuracy


UNBALANCED = {"limit": 6, "method": "min-max", "scheme": "cpu"}


def unbalanced(graph: Path, path: Path) -> Path:
    """The same network, with one channel so large that INT8 leaves nothing of its neighbors."""
    model = load_onnx(graph)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        source = makers.get(node.input[0]) if node.op_type == "Conv" else None
        if source is None or source.op_type != "Relu":
            continue
        first = makers[source.input[0]]
        readers = [one for one in model.graph.node if source.output[0] in one.input]
        if first.op_type == "Conv" and all(one.op_type == "Conv" for one in readers):
            break
    for name in first.input[1:]:
        scale(weights[name], np.s_[0], 3000)
    for reader in readers:
        scale(weights[reader.input[1]], np.s_[:, 0], 1 / 3000)
    onnx.save(model, path)
    return path


def scale(tensor: onnx.TensorProto, place: object, factor: float) -> None:
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[place] *= factor
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def labeled_by(graph: Path, dataset: Path, folder: Path) -> Path:
    """The data set with the network's own labels as masks: whatever changes one loses mIoU."""
    copy = folder / "own"
    shutil.copytree(dataset, copy)
    with segdeploy.load(graph) as network:
        for mask in copy.glob("*/masks/*"):
            image = next((mask.parent.parent / "images").glob(f"{mask.stem}.*"))
            Image.fromarray(network.predict(image)).save(mask)
    return copy


def test_mixed_precision_a_broken_promise_writes_nothing_and_exits_with_1(
    run, graph: Path, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    """FP16 alone changes a few labels, and nothing may be lost."""
    own, out = labeled_by(graph, dataset, tmp_path), tmp_path / "m.onnx"
    options = ("--limit", 4, "--max-miou-drop", 0, "--method", "min-max")
    ran = run("calibrate", graph, "--data", own, "-o", out, *options)
    assert ran.code == 1
    assert "not written; " in ran.err
    assert "m.search.ledger" in ran.err
    assert "a smaller budget" not in ran.err
    assert not out.exists()


def test_mixed_precision_an_interrupted_search_goes_on(
    graph: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.onnx"
    graph = unbalanced(graph, tmp_path / "unbalanced.onnx")
    options = {"max_miou_drop": 0.5, **UNBALANCED}
    measured = []

    def stop(done: int, total: int, note: str) -> None:
        if note == "sensitivity":
            measured.append(done)
            if len(measured) == 5:
                raise KeyboardInterrupt

    state = tmp_path / "m.search.ledger"
    with pytest.raises(KeyboardInterrupt, match=re.escape(f"resumes from {state}")):
        segdeploy.calibrate(graph, dataset, out, on_progress=stop, **options)
    assert len(state.read_text().splitlines()) == 5
    calls = []
    true_snr = assignment.Source.in_int8
    monkeypatch.setattr(
        assignment.Source,
        "in_int8",
        lambda self, c, m, **options: calls.append(c) or true_snr(self, c, m, **options),
    )
    report = segdeploy.calibrate(graph, dataset, out, **options)
    alone = [chosen for chosen in calls if len(chosen) == 1]
    assert len(alone) == report.convolutions - 5
    assert not state.exists()


def test_mixed_precision_a_graph_is_optimized_before_it_is_quantized(
    run, checkpoint: Path, graph: Path, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    plain, out = tmp_path / "plain.onnx", tmp_path / "m.onnx"
    segdeploy.export(checkpoint, plain, optimized=False)
    ran = run("calibrate", plain, "--data", dataset, "--limit", 3, "-o", out)
    assert re.search(r"optimized first: .*aspp", ran.out)
    assert re.search(r"frames hold \d of 8 classes \(sky, .*\); missing: ", ran.out)
    ran = run("calibrate", graph, "--data", dataset, "--limit", 3, "-o", tmp_path / "n.onnx")
    assert "the exact rewrites found nothing to do" in ran.out

    def convolutions(path: Path) -> int:
        return sum(node.op_type == "Conv" for node in load_onnx(path).graph.node)

    assert convolutions(out) == convolutions(graph) < convolutions(plain)


def test_mixed_precision_modules_that_are_named_stay(
    run, graph: Path, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    report = segdeploy.calibrate(
        graph, dataset, tmp_path / "m.onnx", limit=3, exclude=["backbone"], method="min-max"
    )
    assert not any(name.startswith("backbone") for name in report.int8)
    assert {report.kept[n] for n in report.kept if n.startswith("backbone")} == {"--exclude"}
    wrong = ("--exclude", "head", "--limit", 2, "-o", tmp_path / "n.onnx")
    check_one_line(
        run("calibrate", graph, "--data", dataset, *wrong), "--exclude head", "use backbone"
    )


def test_mixed_precision_ranges_are_reused_for_the_same_graph_and_frames(
    graph: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, first, second = (tmp_path / name for name in ("ranges.json", "a.onnx", "b.onnx"))
    segdeploy.calibrate(graph, dataset, first, limit=3, cache=cache)
    assert cache.stat().st_size < 60_000
    content = cache.read_bytes()
    noted = []

    def note(done: int, total: int, what: str) -> None:
        noted.append(what)

    segdeploy.calibrate(graph, dataset, second, limit=3, cache=cache, on_progress=note)
    assert not any(what.startswith("ranges") for what in noted)
    assert first.read_bytes() == second.read_bytes()
    segdeploy.calibrate(graph, dataset, second, limit=2, cache=cache, on_progress=note)
    assert re.fullmatch(r"ranges, [0-9.]+ images/s", noted[0])
    assert cache.read_bytes() != content
    assert read_cache(cache, "another graph", "other frames") is None


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 9}', '{"schema": 1, "graph": 2}'])
def test_mixed_precision_a_file_that_is_no_cache_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"ranges\.json: is not a cache of ranges"):
        read_cache(path, "", "")


def test_mixed_precision_contradictions_are_refused(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    def refuse(said: str, **options: object) -> None:
        with pytest.raises(InputError, match=said):
            segdeploy.calibrate(graph, dataset, tmp_path / "m.onnx", **options)

    refuse("--scheme cpu: needs --precision int8, not fp16", scheme="cpu", precision="fp16")
    refuse("--max-miou-drop -1: must be 0 to 100 percentage points", max_miou_drop=-1)
    refuse("--method best: must be one of auto", method="best")
    refuse("--precision int4: must be one of int8", precision="int4")
    refuse(
        "no convolution of 14 is left for INT8: --exclude names 14",
        exclude=["backbone", "aspp"],
        limit=2,
    )


def test_mixed_precision_integers_for_cpus_agree_with_the_graph_as_written(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.onnx"
    report = segdeploy.calibrate(graph, dataset, out, scheme="cpu")
    assert report.fp32_fallbacks == report.clamped == ()
    assert report.kernel_agreement is not None
    assert report.kernel_agreement > 0.985
    image = open_dataset(dataset).frames("val")[0].read()[0]
    with segdeploy.load(out) as integers, segdeploy.load(out, reference_execution=True) as literal:
        assert np.mean(integers.predict(image) == literal.predict(image)) > 0.985


def test_mixed_precision_the_page_shows_blocks_classes_ranges_and_the_front(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    graph = unbalanced(graph, tmp_path / "unbalanced.onnx")
    report = segdeploy.calibrate(
        graph,
        dataset,
        tmp_path / "m.onnx",
        max_miou_drop=0.5,
        page=page,
        **{**UNBALANCED, "method": "percentile"},
    )
    assert report.block_snr_db
    assert all(10 < snr < 120 for snr in report.block_snr_db.values())
    text = page.read_text()
    for shown in (
        "Loss by block",
        "Loss by layer",
        "aspp.conv2",
        "Loss by class",
        "building",
        "Pareto front:",
        "percentile",
    ):
        assert shown in text
    assert "http" not in text
    main = text[text.index("<main>") : text.index("</main>") + len("</main>")]
    assert len(ElementTree.fromstring(main)) > 3
    with pytest.raises(InputError, match=r"must end in \.html"):
        segdeploy.calibrate(graph, dataset, tmp_path / "n.onnx", page=tmp_path / "page.txt")


def test_mixed_precision_frames_that_judge_are_not_among_those_that_calibrate(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    """VOC's `trainval` holds its `val`."""
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    for kind in ("images", "masks"):
        for path in (copy / "val" / kind).iterdir():
            (copy / "train" / kind / path.name).symlink_to(path)
    data = open_dataset(copy)

    class Overlapping:
        root, splits = data.root, data.splits

        def frames(self, split: str) -> list:
            frames = data.frames("val")
            return frames if split == "val" else [*data.frames("train")[:4], *frames]

    sets = choose_frames(Overlapping(), "train", "val", None)  # type: ignore[arg-type]
    evaluated = {frame.image for frame in sets.check}
    assert evaluated.isdisjoint(f.image for f in (*sets.calibration, *sets.held_back))
    whole = choose_frames(data, "train", None, 99)
    assert whole.note is not None
    with pytest.raises(InputError, match="--max-miou-drop: no frame of 'train' is left"):
        segdeploy.calibrate(graph, dataset, tmp_path / "m.onnx", limit=99, max_miou_drop=1.0)


def test_mixed_precision_a_cache_of_extremes_is_no_cache_of_ranges(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "ranges.json"
    segdeploy.calibrate(graph, dataset, tmp_path / "a.onnx", precision="fp16", limit=3, cache=cache)
    report = segdeploy.calibrate(graph, dataset, tmp_path / "b.onnx", limit=3, cache=cache)
    assert report.int8


def test_mixed_precision_a_weight_that_is_not_finite_is_named_before_anything_runs(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    model = load_onnx(graph)
    tensor = next(t for t in model.graph.initializer if t.name == "backbone.1.conv2.weight")
    values = np.frombuffer(tensor.raw_data, np.float32).copy()
    values[3] = np.nan
    tensor.raw_data = values.tobytes()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.SerializeToString())
    with pytest.raises(CalibrationInputError, match=r"weight backbone\.1\.conv2\.weight holds NaN"):
        segdeploy.calibrate(broken, dataset, tmp_path / "m.onnx", limit=2)


def test_mixed_precision_an_output_that_is_not_finite_returns_first() -> None:
    layers = [layer("a", 100), layer("b", 100), layer("c", 100), layer("d", 100)]
    snr = {"a": 40.0, "b": -math.inf, "c": 20.0, "d": math.inf}
    assert [y.name for y in order_of_return(layers, snr)] == ["b", "c", "a", "d"]


def test_mixed_precision_a_stray_pixel_of_a_class_that_no_mask_holds_decides_nothing(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    absent, frames = 6, []
    for frame in open_dataset(dataset).frames("val", 3):
        mask = frame.read_mask()
        mask[mask == absent] = 255
        Image.fromarray(mask).save(tmp_path / f"{frame.name}.png")
        frames.append(replace(frame, mask=tmp_path / f"{frame.name}.png"))
    evaluator = Evaluator(OnnxFile(graph), frames)
    labels = evaluator.labels(load_onnx(graph))
    assert not any((label == absent).any() for label in labels)
    labels[0][0, 0] = absent
    assert abs(evaluator.accuracy(labels).miou_drop) < 0.001


def test_mixed_precision_a_module_that_runs_several_times_can_be_kept(
    checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    graph = tmp_path / "scales.onnx"
    segdeploy.export(checkpoint, graph, scales=(0.5, 1.0))
    out = tmp_path / "m.onnx"
    report = segdeploy.calibrate(
        graph, dataset, out, limit=3, method="min-max", exclude=["backbone.1"]
    )
    kept = [name for name, reason in report.kept.items() if reason == "--exclude"]
    assert len(kept) >= 2
    assert all(name.startswith("backbone.1") for name in kept)


def test_mixed_precision_few_frames_are_told(graph: Path, dataset: Path, tmp_path: Path) -> None:
    report = segdeploy.calibrate(graph, dataset, tmp_path / "m.onnx", limit=2, method="mse")
    assert "2 calibration frames are too few to determine ranges (" in report.notes[0]
    report = segdeploy.calibrate(graph, dataset, tmp_path / "m.onnx", limit=8, method="mse")
    assert not any("calibration frames are too few" in note for note in report.notes)
