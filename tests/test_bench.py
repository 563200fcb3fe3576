"""The verdict: its figures, its report, and what it refuses to compare."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import segdeploy
from segdeploy.artifact import EngineFile, OnnxFile
from segdeploy.benchmark.comparison import compare_verdicts
from segdeploy.benchmark.failure import Failure
from segdeploy.benchmark.latency import measure_latencies
from segdeploy.benchmark.layers import compare_layers
from segdeploy.benchmark.process import Candidate
from segdeploy.benchmark.protocol import Protocol
from segdeploy.benchmark.report import write_report
from segdeploy.benchmark.serialization import describe_row, to_json, to_junit, to_markdown
from segdeploy.benchmark.verdict import Row
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.models.errors import ModelInputError
from segdeploy.models.metrics import LabelCounts
from segdeploy.onnx_graph.model_file import contract_of, load_onnx, set_contract
from segdeploy.proof.accuracy import summarize

from .conftest import check_one_line

BRIEF = Protocol(seconds=0.3)


@pytest.fixture(scope="module")
def verdict(graph: Path, int8_graph: Path, checkpoint: Path, dataset: Path):
    return segdeploy.bench([graph, int8_graph], reference=checkpoint, data=dataset, protocol=BRIEF)


def test_bench_rows_hold_accuracy_parity_and_latency(verdict, graph: Path, dataset: Path) -> None:
    rows = {row.precision if row is not verdict.reference else "reference": row
            for row in verdict.rows}  # fmt: skip
    reference, fp32, int8 = rows["reference"], rows["fp32"], rows["int8"]
    assert (reference.backend, fp32.backend) == ("torch", "onnxruntime")
    assert reference.evaluation.agreement is None
    assert reference.latency.ratio is None
    near = fp32.evaluation.agreement
    assert near.max_rel < 1e-5
    assert near.labels == pytest.approx(1, abs=1e-3)
    assert near.snr_db > 90
    assert near.cosine == pytest.approx(1)
    assert near.by_margin[-1] == 1
    assert near.mean_abs < near.max_abs
    far = int8.evaluation.agreement
    assert 1e-4 < far.max_rel < 0.3
    assert far.boundary <= far.labels
    assert near.quantiles[-1] < far.quantiles[0]
    assert far.worst.agreement <= far.labels
    assert fp32.evaluation.kernels is None
    assert int8.evaluation.kernels > 0.9
    for row in verdict.rows:
        latency = row.latency
        assert 0 < latency.median_ms <= latency.p90_ms <= latency.p99_ms
        assert len(latency.round_medians_ms) == 10
        assert set(latency.stages_ms) == {"preprocessing", "network", "postprocessing"}
        assert latency.load_s > 0
        assert latency.first_ms > 0
        assert latency.peak_mib > 50
        interval = row.evaluation.confidence_intervals.miou
        assert interval.low <= row.evaluation.accuracy.miou <= interval.high
    ratio = fp32.latency.ratio
    assert ratio.low <= ratio.speedup <= ratio.high
    alone = segdeploy.evaluate(graph, dataset)
    assert alone.miou == fp32.evaluation.accuracy.miou
    assert fp32.bytes == graph.stat().st_size
    assert verdict.recommended == verdict.rows[1].name
    assert verdict.passes
    assert set(verdict.pareto_front) <= {row.name for row in verdict.rows}


def test_bench_the_json_has_every_figure(verdict) -> None:
    read = json.loads(to_json(verdict, ["segdeploy", "bench"]))
    assert (read["schema"], read["frames"], read["size"]) == (4, 4, [48, 64])
    assert read["rows"][1]["latency"]["ratio"]["speedup"] > 0
    assert set(read["rows"][2]["accuracy"]["iou"]) == set(verdict.dataset.classes)
    assert read["rows"][2]["accuracy"]["miou_drop_interval"]["low"] <= 1
    assert read["environment"]["packages"]["onnxruntime"]
    assert read["command"] == ["segdeploy", "bench"]


def test_bench_markdown_and_junit_say_the_same(verdict, int8_graph: Path, tmp_path: Path) -> None:
    text = to_markdown(verdict)
    assert f"| {int8_graph.name} | onnxruntime | int8 |" in text
    assert "recommended: **" in text
    failing = replace(
        verdict,
        rows=(
            verdict.rows[0],
            replace(verdict.rows[1], failures=("too slow",)),
            replace(verdict.rows[2], failure="it crashed"),
            replace(verdict.rows[2], name="engine", failure="no GPU", skipped=True),
        ),
    )
    assert not failing.passes
    suite = ElementTree.fromstring(to_junit(failing))
    counts = [suite.get(name) for name in ("tests", "failures", "errors", "skipped")]
    assert counts == ["3", "1", "1", "1"]
    assert suite.find(".//failure").get("message") == "too slow"
    assert "too slow" in to_markdown(failing)
    assert "failed: it crashed" in to_markdown(failing)
    page = write_report(failing, tmp_path / "failing", [])
    assert "Not every candidate passes." in page.read_text()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


def test_bench_the_page_stands_alone_and_shows_overlays(verdict, tmp_path: Path) -> None:
    page = write_report(verdict, tmp_path / "report", ["segdeploy", "bench", "<x>"])
    text = page.read_text()
    parsed = _Page()
    parsed.feed(text)
    # the image under truth, reference, two candidates and their differences, in each of four frames
    assert parsed.tags.count("img") == 4 * 7
    kinds = ("data:image/jpeg;base64,", "data:image/png;base64,")
    assert all(source.startswith(kinds) for source in parsed.sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "&lt;x&gt;" in text
    assert len(text) < 3_000_000
    names = sorted(path.name for path in page.parent.iterdir())
    assert names == ["bench.json", "bench.md", "index.html", "junit.xml", "samples.jpg"]


def test_bench_a_named_network_is_a_reference_too(
    graph: Path, checkpoint: Path, dataset: Path
) -> None:
    spec = ModelSpec("deeplabv3", None, {"width": 8, "stride": 2}, checkpoint, (48, 64))
    verdict = segdeploy.bench(
        [graph],
        reference=spec,
        data=dataset,
        limit=1,
        backends=["openvino"],
        protocol=BRIEF,
    )
    assert verdict.frames == 1
    assert verdict.rows[1].backend == "openvino"
    assert verdict.rows[1].evaluation.agreement.max_rel < 1e-4


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", (32, 32)), ("mean", (0.0, 0.0, 0.0)), ("classes", tuple("abcdefgh"))],
)
def test_bench_a_candidate_of_another_contract_is_refused_with_the_difference(
    dynamic_graph: Path, checkpoint: Path, dataset: Path, tmp_path: Path, field: str, value: tuple
) -> None:
    from dataclasses import replace

    model = onnx.load(dynamic_graph)
    set_contract(model, replace(contract_of(model, dynamic_graph), **{field: value}))
    other = tmp_path / "other.onnx"
    onnx.save(model, other)
    with pytest.raises(
        InputError, match=rf"other\.onnx: its {field} (is|are) .* cannot be compared"
    ):
        segdeploy.bench([other], reference=checkpoint, data=dataset, limit=1)


def test_bench_two_candidates_of_one_name_are_told_apart_by_their_paths(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    other = tmp_path / graph.name
    other.write_bytes(graph.read_bytes())
    options = {"reference": graph, "data": dataset, "limit": 1}
    with pytest.raises(InputError, match="a candidate is given twice"):
        segdeploy.bench([graph, graph], **options)
    verdict = segdeploy.bench([graph, other], protocol=BRIEF, **options)
    assert {row.name for row in verdict.rows} == {"reference", str(graph), str(other)}


def test_bench_files_in_the_current_folder_are_not_run(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random", "click", "queue"):
        (tmp_path / f"{name}.py").write_text("from pathlib import Path; Path('ran').touch()")
    monkeypatch.chdir(tmp_path)
    candidate = Candidate("m", ModelSpec(str(graph)), "onnxruntime")
    (latency,) = measure_latencies([candidate], seconds=0.1)
    assert latency.calls >= 3
    assert not (tmp_path / "ran").exists()


def test_bench_a_process_that_dies_says_its_last_words_and_the_others_go_on(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segdeploy.benchmark import process

    true_start = process.START
    started = []

    def start(*arguments: object, **options: object):
        started.append(arguments)
        code = "raise SystemExit('no more memory')" if len(started) == 2 else true_start
        return popen([sys.executable, "-c", code], **options)

    popen = subprocess.Popen
    monkeypatch.setattr(process.subprocess, "Popen", start)
    candidate = Candidate("m", ModelSpec(str(graph)), "onnxruntime")
    first, second, third = measure_latencies([candidate] * 3, seconds=0.1)
    assert second.reason.startswith("m: its process ended with code 1")
    assert second.reason.endswith("no more memory")
    assert first.calls >= 6
    assert third.calls >= 6


def test_bench_a_candidate_that_cannot_be_timed_is_named(tmp_path: Path) -> None:
    candidate = Candidate("lost", ModelSpec(str(tmp_path / "lost.onnx")), "onnxruntime")
    (failure,) = measure_latencies([candidate])
    assert re.match(r"lost: cannot be run: .*no such file", failure.reason)


def test_bench_calls_can_be_paced(graph: Path) -> None:
    candidate = Candidate("m", ModelSpec(str(graph)), "onnxruntime")
    (latency,) = measure_latencies([candidate], seconds=0.4, fps=50)
    assert latency.calls <= 0.4 * 50 + len(latency.round_medians_ms)
    assert latency.fps == 50


@pytest.fixture(scope="module")
def broken(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph with an output that is not a number."""
    model = load_onnx(graph)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("bias"):
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(np.nan), tensor.name))
    path = tmp_path_factory.mktemp("broken") / "nan.onnx"
    onnx.save(model, path)
    return path


def test_bench_a_broken_frame_is_refused_before_anything_is_timed(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(dataset, tmp_path / "set"))
    last = open_dataset(root).frames("val")[-1]
    last.mask.unlink()
    bursts: list[int] = []
    with pytest.raises(ModelInputError, match=f"{last.mask.name}: no such mask"):
        segdeploy.bench([graph], reference=graph, data=root, protocol=BRIEF,
                        on_burst=lambda done, total: bursts.append(done))  # fmt: skip
    assert bursts == []


def briefly(reference: Path, dataset: Path, limit: int) -> tuple[object, ...]:
    """What every bench of these tests is told beside its candidates."""
    return ("--reference", reference, "--data", dataset, "--limit", limit, "--seconds", 0.2)


def test_bench_one_that_fails_is_told_and_the_others_go_on(
    run, graph: Path, broken: Path, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    ran = run("bench", graph, broken, *briefly(graph, dataset, 1))
    assert ran.code == 1
    assert "nan.onnx: failed: frame val_0000: onnxruntime: output 'logits' holds NaN" in ran.out
    assert f"recommended: {graph.name}" in ran.out


def test_bench_an_engine_for_another_machine_is_skipped(
    run, graph: Path, dataset: Path, tmp_path: Path, tensorrt_rtx
) -> None:  # fmt: skip
    engine = tmp_path / "m.engine"
    segdeploy.build_engine(graph, engine, targets=["sm75"])
    common = (graph, engine, *briefly(graph, dataset, 1))
    ran = run("bench", *common)
    assert ran.code == 0
    assert "m.engine: skipped: " in ran.out
    assert run("bench", *common, "--fail-on-skip").code == 1


def test_bench_limits_decide(
    run, graph: Path, int8_graph: Path, dataset: Path
) -> None:  # fmt: skip
    common = (graph, int8_graph, *briefly(graph, dataset, 2))
    ran = run("bench", *common, "--min-agreement", 0.99999, "--json")
    assert ran.code == 1
    read = json.loads(ran.out)
    by_name = {row["name"]: row for row in read["rows"]}
    assert by_name[graph.name]["passes"]
    assert "of labels are equal (limit 99.999%)" in by_name[int8_graph.name]["failures"][0]
    assert read["recommended"] == graph.name
    check_one_line(run("bench", *common, "--min-agreement", 99), "must be a share from 0 to 1")
    check_one_line(run("bench", *common, "--fps", 0), "--fps 0.0")
    check_one_line(run("bench"), "give CANDIDATES, --reference and --data, or --compare")


def test_bench_without_masks_compares_labels_with_those_of_the_reference(
    graph: Path, int8_graph: Path, dataset: Path, tmp_path: Path
) -> None:
    for frame in open_dataset(dataset).frames("val", 2):
        shutil.copy(frame.image, tmp_path)
    verdict = segdeploy.bench([int8_graph], reference=graph, data=tmp_path, protocol=BRIEF)
    first, row = verdict.rows
    assert first.evaluation.accuracy.miou == 1  # its own labels stand for the masks
    counts = LabelCounts.of(open_dataset(dataset))
    with (
        segdeploy.load(graph) as fp32,
        segdeploy.load(int8_graph, reference_execution=True) as quantized,
    ):
        shares = []
        for path in sorted(tmp_path.glob("*.jpg")):
            image = np.asarray(Image.open(path))
            theirs, ours = fp32.predict(image), quantized.predict(image)
            counts.add(theirs, ours)
            shares.append((theirs == ours).mean())
    expected = summarize(counts, first.evaluation.accuracy.iou.keys(), 2).miou
    assert row.evaluation.accuracy.miou == pytest.approx(expected)
    assert row.evaluation.agreement.labels == pytest.approx(np.mean(shares))
    interval = row.evaluation.agreement_interval
    assert interval.low <= np.mean(shares) <= interval.high
    assert verdict.notes[0].startswith("the images have no masks: mIoU is that between the labels")
    page = write_report(verdict, tmp_path / "report", ["segdeploy"])
    assert "IoU per class" not in page.read_text()


@pytest.mark.parametrize("ending", ["labels", "probabilities"])
def test_bench_a_reference_may_end_in_labels_or_probabilities(
    ending: str, checkpoint: Path, graph: Path, dataset: Path, tmp_path: Path
) -> None:
    reference = segdeploy.export(checkpoint, tmp_path / "r.onnx", output=ending).path
    verdict = segdeploy.bench([graph], reference=reference, data=dataset, protocol=BRIEF)
    first, row = verdict.rows
    assert first.evaluation.accuracy.miou > 0
    assert row.evaluation.agreement.labels > (0.99 if ending == "probabilities" else 0.9)
    assert row.evaluation.agreement.max_abs is None  # logits and another kind of output
    has_margins = any(row.evaluation.agreement.by_margin)
    assert has_margins == (ending == "probabilities")


def test_bench_two_verdicts_are_compared(run, verdict, tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(to_json(verdict))
    new.write_text(to_json(verdict))
    ran = run("bench", "--compare", old, new)
    assert (ran.code, ran.out.strip()) == (0, "no change beyond noise")
    values = json.loads(to_json(verdict))
    row = values["rows"][1]
    row["accuracy"]["miou"] -= 0.05
    row["latency"]["ratio"]["speedup"] *= 2
    new.write_text(json.dumps(values))
    changes = {change.figure: change for change in compare_verdicts(old, new)}
    assert changes["mIoU"].worse
    assert not changes["speed-up"].worse
    assert run("bench", "--compare", old, new).code == 1
    del values["rows"][1]
    new.write_text(json.dumps(values))
    assert any(one.figure == "candidate" and one.worse for one in compare_verdicts(old, new))
    new.write_text(json.dumps({**values, "frames": 9}))
    check_one_line(run("bench", "--compare", old, new), "its frames is 9")
    new.write_text("[]")
    check_one_line(run("bench", "--compare", old, new), "is not a verdict of segdeploy bench")


def test_bench_a_corrupted_layer_is_named(
    run, graph: Path, int8_graph: Path, checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    model = load_onnx(graph)
    for tensor in model.graph.initializer:
        if tensor.name == "backbone.1.conv2.weight":
            values = numpy_helper.to_array(tensor).copy()
            values[0] *= 3
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path = tmp_path / "corrupted.onnx"
    onnx.save(model, path)
    report = tmp_path / "report"
    ran = run("bench", graph, path, int8_graph, "--reference", checkpoint, "--data", dataset,
              "--limit", 1, "--seconds", 0.2, "--layers", "--report", report)  # fmt: skip
    assert ran.code == 1  # FP32's tolerance holds without being asked for
    entering = [line for line in ran.err.splitlines() if "the error enters" in line]
    said = [line for line in entering if line.startswith("note: corrupted.onnx: ")]
    assert re.search(r"the error enters at backbone\.1\.bn2 \(node ", said[0])
    assert not any(graph.name in line for line in entering)
    page = (report / "index.html").read_text()
    assert "corrupted.onnx, layer by layer" in page
    read = json.loads((report / "bench.json").read_text())
    followed = {row["name"]: row["layers"] for row in read["rows"][1:]}
    assert followed["corrupted.onnx"]["enters"]["module"] == "backbone.1.bn2"
    assert followed[graph.name]["enters"] is None
    assert len(followed[graph.name]["layers"]) > 10
    assert followed[int8_graph.name]["enters"] is not None  # where the first layer is rounded


def test_bench_layers_that_cannot_be_followed_say_why(
    graph: Path, checkpoint: Path, tmp_path: Path
) -> None:
    image = np.zeros((1, 3, 48, 64), np.float32)
    with segdeploy.load(checkpoint) as network, segdeploy.load(graph) as other:
        engine = compare_layers(network.session, EngineFile(tmp_path / "m.engine"), image)
        no_torch = compare_layers(other.session, OnnxFile(graph), image)
        several = segdeploy.export(checkpoint, tmp_path / "s.onnx", scales=(0.5, 1.0)).path
        two_scales = compare_layers(network.session, OnnxFile(several), image)
    for found, reason in (
        (engine, "an engine exposes no intermediate tensors"),
        (no_torch, "needs a PyTorch network"),
        (two_scales, "of one scale"),
    ):
        assert isinstance(found, Failure)
        assert reason in found.reason
        row = Row("candidate", "onnxruntime", "fp32", 1, None, None, layers=found)
        assert describe_row(row, row)["layers"] == {"failure": found.reason}
