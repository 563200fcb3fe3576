"""An interrupted bench goes on where it was, and only where nothing has changed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import segdeploy
from segdeploy.benchmark.protocol import Protocol
from segdeploy.benchmark.report import write_report
from segdeploy.benchmark.verdict import Verdict
from segdeploy.ledger import BENCH as NAME
from segdeploy.ledger import Ledger

BRIEF = Protocol(seconds=0.1)


def test_ledger_values_survive_a_torn_line_and_another_key_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "new" / NAME
    ledger = Ledger(path, "key")
    ledger.put("a", {"x": [1, 2.5]})
    ledger.put("b", [3])
    with path.open("a") as file:
        file.write('["c", [1, 2')
    again = Ledger(path, "key")
    assert (len(again), again.get("a"), again.get("b")) == (2, {"x": [1, 2.5]}, [3])
    again.put("c", 4)  # on a line of its own
    assert Ledger(path, "key").get("c") == 4
    assert len(Ledger(path, "other")) == 0
    path.write_bytes(b"\xff\x00[" * 99)
    assert len(Ledger(path, "key")) == 0
    path.write_text("[" * 100_000)
    assert len(Ledger(path, "key")) == 0


class _Stop:
    """Interrupts at a step, as Ctrl-C does."""

    def __init__(self, at: int):
        self.at = at

    def __call__(self, done: int, total: int) -> None:
        if done == self.at:
            raise KeyboardInterrupt


def figures(verdict: Verdict) -> list:
    """All that is not measured in time."""
    rows = sorted(verdict.rows, key=lambda row: row.name)
    return [(row.name, row.evaluation, row.supported_shapes, row.failure) for row in rows]


def lines_of(ledger: Path, kind: str) -> list[str]:
    places = [json.loads(line)[1] for line in ledger.read_text().splitlines()]
    return [place for place in places if place.startswith(kind)]


def test_ledger_lines_of_another_run_beside_it_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / NAME
    ours, theirs = Ledger(path, "ours"), Ledger(path, "theirs")
    ours.put("a", 1)
    theirs.put("a", 2)
    ours.put("b", 3)
    assert Ledger(path, "ours").get("a") in (None, 1)
    assert Ledger(path, "ours").get("b") == 3
    assert Ledger(path, "theirs").get("a") == 2


def test_ledger_a_changed_value_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / NAME
    Ledger(path, "key").put("a", [1, 2, 3])
    path.write_text(path.read_text().replace("[1, 2, 3]", "[1, 2, 4]"))
    assert len(Ledger(path, "key")) == 0


def test_ledger_a_bench_goes_on_where_it_was(
    graph: Path, int8_graph: Path, dataset: Path, tmp_path: Path
) -> None:
    files = [graph, int8_graph]
    common = {"reference": graph, "data": dataset, "protocol": BRIEF}
    whole = segdeploy.bench(files, **common)
    ledger = tmp_path / "report" / NAME
    with pytest.raises(KeyboardInterrupt):
        segdeploy.bench(files, **common, ledger=ledger, on_burst=_Stop(14))
    kept = dict(json.loads(line)[1:3] for line in ledger.read_text().splitlines())
    rounds = [value for place, value in kept.items() if place.startswith("round")]
    assert len(rounds) == 4
    with pytest.raises(KeyboardInterrupt):
        segdeploy.bench(files, **common, ledger=ledger, on_frame=_Stop(2))
    assert len(lines_of(ledger, "frame")) == 2 * 3
    verdict = segdeploy.bench(files, **common, ledger=ledger)
    assert figures(verdict) == figures(whole)
    medians = [1e3 * np.median(answers[0]["times"]["network"]) for answers in rounds]
    assert verdict.reference.latency.round_medians_ms[:4] == pytest.approx(medians)
    assert "resumed an interrupted bench" in verdict.notes[0]
    write_report(verdict, ledger.parent, [])
    assert not ledger.exists()


def test_ledger_what_was_found_of_another_file_is_not_taken(
    graph: Path, int8_graph: Path, dataset: Path, tmp_path: Path
) -> None:
    file = tmp_path / "m.onnx"
    shutil.copy(graph, file)
    ledger = tmp_path / "report" / NAME
    common = {"reference": graph, "data": dataset, "limit": 2, "ledger": ledger}
    first = segdeploy.bench([file], **common, protocol=BRIEF)
    shutil.copy(int8_graph, file)
    second = segdeploy.bench([file], **common, protocol=BRIEF)
    assert first.rows[1].evaluation.agreement.max_rel < 1e-6
    assert second.rows[1].evaluation.agreement.max_rel > 1e-3
    assert second.reference.evaluation == first.reference.evaluation
    other = segdeploy.bench([file], **common, protocol=replace(BRIEF, ece=True))
    assert other.reference.evaluation.ece is not None
    assert other.notes[:1] != second.notes[:1]


def test_ledger_ctrl_c_says_what_stays(
    run, graph: Path, dataset: Path, tmp_path: Path, monkeypatch
) -> None:  # fmt: skip
    from segdeploy.benchmark import measurement

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measurement, "evaluate", interrupted)
    ran = run("bench", graph, "--reference", graph, "--data", dataset, "--limit", 1,
              "--seconds", 0.1, "--report", tmp_path / "r")  # fmt: skip
    assert ran.code == 130
    assert (
        f"completed measurements are kept in {tmp_path / 'r'}; the same command resumes" in ran.err
    )
    assert [path.name for path in (tmp_path / "r").iterdir()] == [NAME]


def test_ledger_rounds_are_kept_beside_a_candidate_that_cannot_run(
    graph: Path, dataset: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    engine = tmp_path / "m.engine"
    segdeploy.build_engine(graph, engine, targets=["sm75"])
    ledger = tmp_path / "report" / NAME
    common = {"reference": graph, "data": dataset, "protocol": BRIEF, "ledger": ledger}
    with pytest.raises(KeyboardInterrupt):
        segdeploy.bench([engine, graph], **common, on_frame=_Stop(1))
    assert len(lines_of(ledger, "round")) == 10
    row = segdeploy.bench([engine, graph], **common).rows[-1]
    assert (row.skipped, row.backend) == (True, "tensorrt-rtx")


def test_ledger_other_scales_are_other_figures(
    dynamic_graph: Path, dataset: Path, tmp_path: Path
) -> None:
    ledger = tmp_path / "report" / NAME
    common = {"reference": dynamic_graph, "data": dataset, "limit": 2, "ledger": ledger}
    mious = [
        segdeploy.bench([dynamic_graph], **common, protocol=replace(BRIEF, scales=scales))
        .test_time_augmentation.rows[0]
        .evaluation.accuracy.miou
        for scales in ((0.75, 1.0), (1.0, 1.5))
    ]
    assert mious[0] != mious[1]
