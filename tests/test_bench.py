"""The verdict: its figures, its report, and what it refuses to compare."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import onnx
import pytest

import segdeploy
from segdeploy.benchmark.latency import Candidate, measure_latencies
from segdeploy.benchmark.report import to_json, write_report
from segdeploy.errors import InputError
from segdeploy.network import ModelSpec
from segdeploy.onnx_file import contract_of, set_contract


@pytest.fixture(scope="module")
def verdict(graph: Path, int8_graph: Path, checkpoint: Path, dataset: Path):
    return segdeploy.bench(
        [graph, int8_graph], reference=checkpoint, data=dataset, burst_seconds=0.05
    )


def test_rows_hold_accuracy_parity_and_latency(verdict, graph: Path, dataset: Path) -> None:
    reference, fp32, int8 = verdict.rows
    assert [row.precision for row in verdict.rows] == ["fp32", "fp32", "int8"]
    assert [row.backend for row in verdict.rows] == ["torch", "onnxruntime", "onnxruntime"]
    assert reference.judgement.fidelity is None
    assert fp32.judgement.fidelity.max_rel < 1e-5
    assert fp32.judgement.fidelity.agreement == pytest.approx(1, abs=1e-3)
    assert 1e-4 < int8.judgement.fidelity.max_rel < 0.3
    assert fp32.judgement.kernels is None
    assert int8.judgement.kernels > 0.9
    for row in verdict.rows:
        assert 0 < row.latency.median_ms <= row.latency.p90_ms
        assert len(row.latency.round_medians_ms) == 5
    alone = segdeploy.evaluate(graph, dataset)
    assert alone.miou == fp32.judgement.accuracy.miou
    assert fp32.bytes == graph.stat().st_size


def test_the_json_has_every_figure(verdict) -> None:
    read = json.loads(to_json(verdict))
    assert (read["schema"], read["frames"], read["size"]) == (1, 4, [48, 64])
    assert read["rows"][1]["latency"]["speedup"] > 0
    assert set(read["rows"][2]["iou"]) == set(verdict.dataset.classes)
    assert read["environment"]["packages"]["onnxruntime"]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_stands_alone_and_shows_overlays(verdict, tmp_path: Path) -> None:
    page = write_report(verdict, tmp_path / "report", ["segdeploy", "bench", "<x>"])
    text = page.read_text()
    parsed = _Page()
    parsed.feed(text)
    # image, truth, reference and two candidates, for each of the four frames
    assert parsed.tags.count("img") == 4 * 5
    assert all(source.startswith("data:image/jpeg;base64,") for source in parsed.sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "&lt;x&gt;" in text
    assert len(text) < 3_000_000
    names = sorted(path.name for path in page.parent.iterdir())
    assert names == ["bench.json", "index.html", "samples.jpg"]


def test_a_named_network_is_a_reference_too(graph: Path, checkpoint: Path, dataset: Path) -> None:
    spec = ModelSpec("deeplabv3", None, {"width": 8, "stride": 2}, checkpoint, (48, 64))
    verdict = segdeploy.bench(
        [graph], reference=spec, data=dataset, limit=1, backends=["openvino"], burst_seconds=0.05
    )
    assert verdict.frames == 1
    assert verdict.rows[1].backend == "openvino"
    assert verdict.rows[1].judgement.fidelity.max_rel < 1e-4


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", (32, 32)), ("mean", (0.0, 0.0, 0.0)), ("classes", tuple("abcdefgh"))],
)
def test_a_candidate_of_another_contract_is_refused_with_the_difference(
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


def test_two_candidates_of_one_name_are_told_apart_by_their_paths(
    graph: Path, checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    other = tmp_path / graph.name
    other.write_bytes(graph.read_bytes())
    options = {"reference": checkpoint, "data": dataset, "limit": 1}
    with pytest.raises(InputError, match="a candidate is named twice"):
        segdeploy.bench([graph, graph], **options)
    verdict = segdeploy.bench([graph, other], burst_seconds=0.01, **options)
    assert [row.name for row in verdict.rows] == ["reference", str(graph), str(other)]


def test_files_in_the_current_folder_are_not_run(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random", "click", "queue"):
        (tmp_path / f"{name}.py").write_text("from pathlib import Path; Path('ran').touch()")
    monkeypatch.chdir(tmp_path)
    candidate = Candidate("m", ModelSpec(str(graph)), "onnxruntime")
    (latency,) = measure_latencies([candidate], rounds=1, burst_seconds=0.01)
    assert latency.calls >= 3
    assert not (tmp_path / "ran").exists()


def test_a_process_that_dies_says_its_last_words(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segdeploy.benchmark import latency

    monkeypatch.setattr(latency, "START", "raise SystemExit('no more memory')")
    candidate = Candidate("m", ModelSpec(str(graph)), "onnxruntime")
    with pytest.raises(InputError, match="m: its process ended with code 1 .*: no more memory"):
        measure_latencies([candidate])


def test_a_candidate_that_cannot_be_timed_is_named(tmp_path: Path) -> None:
    candidate = Candidate("lost", ModelSpec(str(tmp_path / "lost.onnx")), "onnxruntime")
    with pytest.raises(InputError, match=r"lost: cannot be timed: InputError: .*no such file"):
        measure_latencies([candidate])
