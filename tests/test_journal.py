"""An interrupted bench goes on where it was, and only where nothing has changed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import segdeploy
from segdeploy.benchmark.journal import NAME, Journal
from segdeploy.benchmark.protocol import Protocol
from segdeploy.benchmark.report import write_report
from segdeploy.benchmark.verdict import Verdict

from .test_cli import run  # noqa: F401

BRIEF = Protocol(seconds=0.1)


def test_values_survive_a_torn_line_and_another_key_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "new" / NAME
    journal = Journal(path, "key")
    journal.put("a", {"x": [1, 2.5]})
    journal.put("b", [3])
    with path.open("a") as file:
        file.write('["c", [1, 2')
    again = Journal(path, "key")
    assert (again.resumed, again.get("a"), again.get("b")) == (2, {"x": [1, 2.5]}, [3])
    again.put("c", 4)  # on a line of its own
    assert Journal(path, "key").get("c") == 4
    assert Journal(path, "other").resumed == 0
    path.write_bytes(b"\xff\x00[" * 99)
    assert Journal(path, "key").resumed == 0
    path.write_text("[" * 100_000)
    assert Journal(path, "key").resumed == 0


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
    return [(row.name, row.judgement, row.claims, row.failure) for row in rows]


def lines_of(journal: Path, kind: str) -> list[str]:
    places = [json.loads(line)[1] for line in journal.read_text().splitlines()]
    return [place for place in places if place.startswith(kind)]


def test_lines_of_another_run_beside_it_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / NAME
    ours, theirs = Journal(path, "ours"), Journal(path, "theirs")
    ours.put("a", 1)
    theirs.put("a", 2)
    ours.put("b", 3)
    assert Journal(path, "ours").get("a") == 1
    assert Journal(path, "theirs").resumed == 0  # dropped by the one before


def test_a_changed_value_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / NAME
    Journal(path, "key").put("a", [1, 2, 3])
    path.write_text(path.read_text().replace("[1, 2, 3]", "[1, 2, 4]"))
    assert Journal(path, "key").resumed == 0


def test_a_bench_goes_on_where_it_was(
    graph: Path, int8_graph: Path, dataset: Path, tmp_path: Path
) -> None:
    files = [graph, int8_graph]
    common = {"reference": graph, "data": dataset, "protocol": BRIEF}
    whole = segdeploy.bench(files, **common)
    journal = tmp_path / "report" / NAME
    with pytest.raises(KeyboardInterrupt):
        segdeploy.bench(files, **common, journal=journal, on_burst=_Stop(14))
    kept = dict(json.loads(line)[1:3] for line in journal.read_text().splitlines())
    rounds = [value for place, value in kept.items() if place.startswith("round")]
    assert len(rounds) == 4
    with pytest.raises(KeyboardInterrupt):
        segdeploy.bench(files, **common, journal=journal, on_frame=_Stop(2))
    assert len(lines_of(journal, "frame")) == 2 * 3
    verdict = segdeploy.bench(files, **common, journal=journal)
    assert figures(verdict) == figures(whole)
    medians = [1e3 * np.median(answers[0]["times"]["network"]) for answers in rounds]
    assert verdict.reference.latency.round_medians_ms[:4] == pytest.approx(medians)
    assert "goes on with an interrupted one" in verdict.notes[0]
    write_report(verdict, journal.parent, [])
    assert not journal.exists()


def test_what_was_found_of_another_file_is_not_taken(
    graph: Path, int8_graph: Path, dataset: Path, tmp_path: Path
) -> None:
    file = tmp_path / "m.onnx"
    shutil.copy(graph, file)
    journal = tmp_path / "report" / NAME
    common = {"reference": graph, "data": dataset, "limit": 2, "journal": journal}
    first = segdeploy.bench([file], **common, protocol=BRIEF)
    shutil.copy(int8_graph, file)
    second = segdeploy.bench([file], **common, protocol=BRIEF)
    assert first.rows[1].judgement.fidelity.max_rel < 1e-6
    assert second.rows[1].judgement.fidelity.max_rel > 1e-3
    assert second.reference.judgement == first.reference.judgement
    other = segdeploy.bench([file], **common, protocol=replace(BRIEF, ece=True))
    assert other.reference.judgement.ece is not None
    assert other.notes[:1] != second.notes[:1]


def test_ctrl_c_says_what_stays(
    run, graph: Path, dataset: Path, tmp_path: Path, monkeypatch  # noqa: F811
) -> None:  # fmt: skip
    from segdeploy.benchmark import measurement

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measurement, "judge", interrupted)
    ran = run("bench", graph, "--reference", graph, "--data", dataset, "--limit", 1,
              "--seconds", 0.1, "--report", tmp_path / "r")  # fmt: skip
    assert ran.code == 130
    assert f"what was found is kept in {tmp_path / 'r'}, and the same command goes on" in ran.err
    assert [path.name for path in (tmp_path / "r").iterdir()] == [NAME]


def test_rounds_are_kept_beside_a_candidate_that_cannot_run(
    graph: Path, dataset: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    engine = tmp_path / "m.engine"
    segdeploy.build_engine(graph, engine, targets=["sm75"])
    journal = tmp_path / "report" / NAME
    common = {"reference": graph, "data": dataset, "protocol": BRIEF, "journal": journal}
    with pytest.raises(KeyboardInterrupt):
        segdeploy.bench([engine, graph], **common, on_frame=_Stop(1))
    assert len(lines_of(journal, "round")) == 10
    row = segdeploy.bench([engine, graph], **common).rows[-1]
    assert (row.skipped, row.backend) == (True, "tensorrt-rtx")


def test_other_scales_are_other_figures(dynamic_graph: Path, dataset: Path, tmp_path: Path) -> None:
    journal = tmp_path / "report" / NAME
    common = {"reference": dynamic_graph, "data": dataset, "limit": 2, "journal": journal}
    mious = [
        segdeploy.bench([dynamic_graph], **common, protocol=replace(BRIEF, scales=scales))
        .modes.rows[0]
        .judgement.accuracy.miou
        for scales in ((0.75, 1.0), (1.0, 1.5))
    ]
    assert mious[0] != mious[1]
