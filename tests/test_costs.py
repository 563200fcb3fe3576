"""Sweeps, claims, the roofline, and the machine: what a candidate costs, and what it could."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import segdeploy
from segdeploy.artifact import open_artifact
from segdeploy.benchmark import peak_performance
from segdeploy.benchmark.accuracy import Evaluation
from segdeploy.benchmark.agreement import Agreement
from segdeploy.benchmark.latency import Latency, Ratio
from segdeploy.benchmark.machine import GpuState, MachineState, machine_state, warnings
from segdeploy.benchmark.peak_performance import measured_peak, stated_peak
from segdeploy.benchmark.process import Candidate, Process
from segdeploy.benchmark.protocol import Protocol
from segdeploy.benchmark.reliability import BINS, expected_calibration_error, reliability
from segdeploy.benchmark.roofline import Work, roofline, work_of, work_of_network
from segdeploy.benchmark.rounds import burst
from segdeploy.benchmark.serialization import supported_shapes_text
from segdeploy.benchmark.sweep import Sweep
from segdeploy.benchmark.verdict import Row, as_fast, ranked, recommended
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.onnx_graph.model_file import contract_of, load_onnx, set_contract
from segdeploy.proof.accuracy import Accuracy

from .conftest import check_one_line


@pytest.mark.parametrize(
    "sweeps",
    [["batch"], ["batch=0"], ["batch=a"], ["width=1"], ["batch=1,"], ["batch=1", "batch=2"]],
)
def test_costs_a_sweep_that_means_nothing_is_refused(sweeps: list[str]) -> None:
    with pytest.raises(InputError, match=r"--sweep (batch|width).*(give batch=1,2,4|given twice)"):
        Sweep.of(sweeps)


def test_costs_a_claim_that_does_not_hold_fails_the_candidate(
    dynamic_graph: Path, checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    model = load_onnx(dynamic_graph)
    last = model.graph.node[-1]
    name, last.output[0] = last.output[0], "any"
    shape = numpy_helper.from_array(np.array([1, 8, 48, 64]), "shape")  # of one size inside
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("Reshape", ["any", "shape"], [name]))
    path = tmp_path / "liar.onnx"
    onnx.save(model, path)
    found = segdeploy.bench(
        [path], reference=checkpoint, data=dataset, limit=1, protocol=Protocol(seconds=0.1)
    )
    assert not found.passes
    assert "declared input " in found.rows[1].failures[0]


def convolution(read: int, given: int, **attributes: object) -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c", **attributes)
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", floats, (1, 3, read, read))],
        [helper.make_tensor_value_info("y", floats, (1, 5, given, given))],
        [helper.make_tensor("w", floats, (5, 3, 3, 3), np.zeros(135, np.float32))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("rate", [1, 4, 12])
def test_costs_work_counts_pixels_and_not_padding(graph: Path, tmp_path: Path, rate: int) -> None:
    model = convolution(16, 16, dilations=[rate] * 2, pads=[rate] * 4)
    contract = contract_of(load_onnx(graph), graph)
    set_contract(model, replace(contract, size=(16, 16)))
    path = tmp_path / "one.onnx"
    onnx.save(model, path)
    work = work_of(open_artifact(path))
    by_hand = sum(
        0 <= place - rate + tap * rate < 16 for place in range(16) for tap in range(3)
    ) ** 2  # fmt: skip
    assert work.macs == {"fp32": 15 * by_hand}
    assert work.bytes == 4 * (3 * 256 + 135 + 5 * 256)


def test_costs_the_roof_is_the_lower_of_two() -> None:
    peak = replace(measured_peak(1), gmacs={"fp32": 100.0, "int8": 400.0}, gbytes=10.0)
    computing = roofline(Work({"fp32": 10**9}, 10**6), 20.0, peak)
    assert (computing.bound, computing.share) == ("compute", pytest.approx(0.5))
    moving = roofline(Work({"int8": 10**9}, 10**8), 20.0, peak)
    assert (moving.bound, moving.share) == ("memory", pytest.approx(0.5))
    assert computing.gmacs_per_second == pytest.approx(50)
    assert roofline(Work({"bf16": 1}, None), 1.0, peak) is None
    assert roofline(None, 1.0, peak) is None


def test_costs_peaks_are_measured_or_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that says 1 ms of everything, the figures are those of the work alone."""

    def timed(work: Callable[[], object]) -> float:
        work()
        return 1e-3

    monkeypatch.setattr(peak_performance, "_timed", timed)
    peak = measured_peak(1)
    largest = max(peak_performance._SIDES)
    assert peak.gmacs["fp32"] == peak.gmacs["int8"] == pytest.approx(largest**3 / 1e-3 / 1e9)
    assert peak.gbytes == pytest.approx(2 * peak_performance._COPIED / 1e-3 / 1e9)
    stated = stated_peak("NVIDIA GeForce RTX 3090")
    assert (stated.gmacs["fp16"], stated.gbytes) == (35500, 936)
    assert stated_peak("Matrox Mystique") is None


def test_costs_calibration_error_by_hand() -> None:
    scores = np.zeros((2, 1, 4), np.float32)
    scores[0] = [0.9, 0.9, 0.6, 0.6]
    scores[1] = 1 - scores[0]
    mask = np.array([[0, 1, 0, 255]], np.uint8)
    counts = reliability(scores, mask, 255)
    assert counts.shape == (BINS, 3)
    # 0.9 sure and right once of two; 0.6 sure and right
    assert expected_calibration_error(counts) == pytest.approx((0.8 + 0.4) / 3)
    assert expected_calibration_error(np.zeros((BINS, 3))) is None


CALM = MachineState(0.1, "performance", 3, 0, 10, 1000, None)
GPU = GpuState("H100", 1900, 1980, 60, 300.0, 700.0, 700.0, (), 0)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {}, None),
        ({"load": 2.0}, {}, "was busy before the bench"),
        ({"governor": "powersave"}, {}, "governor powersave"),
        ({}, {"throttled": 4}, "throttled by its CPU limit"),
        ({}, {"overheated": 1}, "thermally throttled"),
        ({}, {"steal": 200, "ticks": 2000}, "took 19% of this machine's CPU time"),
        ({}, {"gpu": GPU}, None),
        ({}, {"gpu": replace(GPU, reasons=("SwThermalSlowdown",))}, "throttled (SwThermal"),
        ({}, {"gpu": replace(GPU, clock=900)}, "not locked (900 of 1980"),
        ({}, {"gpu": replace(GPU, power_limit=400.0)}, "400 W instead of the default 700"),
        ({}, {"gpu": replace(GPU, others=2)}, "2 other processes"),
    ],
)
def test_costs_doubts_are_told(before: dict, after: dict, said: str | None) -> None:
    found = warnings(replace(CALM, **before), replace(CALM, **after))
    assert [said in one for one in found] == ([True] if said else [])


def test_costs_this_machine_has_a_state() -> None:
    state = machine_state()
    assert state.ticks > state.steal >= 0
    assert state.load == pytest.approx(os.getloadavg()[0] / os.cpu_count(), abs=0.5)


def test_costs_nvml_has_the_calls_that_are_made() -> None:
    import inspect

    import pynvml

    from segdeploy.benchmark import machine

    source = inspect.getsource(machine)
    names = {word.split("(")[0] for word in source.split("nvml.")[1:]}
    names = {name.split(",")[0].split(")")[0].split(":")[0].strip() for name in names}
    assert len(names) > 10
    for name in (*names, *(f"nvmlClocksEventReason{reason}" for reason in machine._REASONS)):
        assert hasattr(pynvml, name), name


def test_costs_bad_scales_are_refused(run, graph: Path, checkpoint: Path, dataset: Path) -> None:
    common = ("bench", graph, "--reference", checkpoint, "--data", dataset)
    check_one_line(run(*common, "--scales", 1), "--scales 1: scale 1 is always measured")
    check_one_line(run(*common, "--sweep", "batch=x"), "--sweep batch=x: give batch=1,2,4")


def test_costs_what_cannot_be_compared_is_refused_before_anything_is_measured(
    run, graph: Path, dynamic_graph: Path, checkpoint: Path, dataset: Path, monkeypatch
) -> None:  # fmt: skip
    from segdeploy.benchmark import measurement

    monkeypatch.setattr(measurement, "measure_latencies", None)
    common = ("--data", dataset, "--limit", 1)
    ran = run("bench", dynamic_graph, "--reference", graph, *common, "--scales", "0.75,1")
    check_one_line(ran, "is static at 48x64")
    ran = run("bench", graph, "--reference", checkpoint, *common, "--backend", "foo")
    check_one_line(ran, "foo: no such backend; there are onnxruntime")
    for option, must in (
        ("--max-latency-ms", "must be 0 or more, and finite"),
        ("--max-miou-drop", "must be 0 to 100 percentage points"),
        ("--min-speedup", "must be 0 or more, and finite"),
    ):
        ran = run("bench", graph, "--reference", checkpoint, *common, option, "nan")
        check_one_line(ran, f"{option} nan: {must}")
    ran = run("bench", graph, "--reference", checkpoint, *common, "--seconds", "inf")
    check_one_line(ran, "--seconds inf: must be above 0 and at most 3600")
    check_one_line(run("bench", graph, "--compare", graph, graph), "takes no candidates")


def test_costs_a_static_reference_cannot_try_what_a_graph_claims(
    graph: Path, dynamic_graph: Path, dataset: Path
) -> None:
    protocol = Protocol(seconds=0.1, sweep=Sweep.of(["batch=40", "clients=2", "threads=1"]))
    found = segdeploy.bench(
        [dynamic_graph], reference=graph, data=dataset, limit=1, protocol=protocol
    )
    assert found.passes
    row = found.rows[1]
    untried = [checked for checked in row.supported_shapes if checked.untried]
    assert len(untried) == 6
    assert all("the reference cannot run it" in checked.untried for checked in untried)
    assert supported_shapes_text(row).startswith("2 of 8 other declared input shapes")
    points = {(one.candidate, one.kind): one for one in found.sweep}
    failed = points[row.name, "batch"]
    assert failed.failure is None
    assert points[row.name, "clients"].failure is None  # what came before does not take it out
    # One frame says nothing of how frames differ.
    assert row.evaluation.confidence_intervals.miou is None
    assert any("1 frames are few" in note for note in found.notes)
    assert work_of(open_artifact(graph)) == work_of(open_artifact(dynamic_graph))


def test_costs_a_candidate_that_is_wrong_in_a_batch_alone_fails(
    dynamic_graph: Path, checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    """Its first image is right; every other one has scores of another sign."""
    model = load_onnx(dynamic_graph)
    logits = model.graph.output[0]
    for node in model.graph.node:
        node.output[:] = ["right" if name == logits.name else name for name in node.output]
    numbers = {"zero": np.array(0), "one": np.array(1), "apart": np.array([-1, 1, 1, 1])}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in numbers.items())
    made = [
        ("Shape", ["right"], "count", {"start": 0, "end": 1}),
        ("Squeeze", ["count"], "batch", {}),
        ("Range", ["zero", "batch", "one"], "index", {}),
        ("Greater", ["index", "zero"], "later", {}),
        ("Cast", ["later"], "number", {"to": TensorProto.FLOAT}),
        ("Reshape", ["number", "apart"], "shaped", {}),
        ("Mul", ["right", "shaped"], "once", {}),
        ("Sub", ["right", "once"], "less", {}),
        ("Sub", ["less", "once"], logits.name, {}),
    ]
    for kind, inputs, output, attributes in made:
        model.graph.node.append(
            helper.make_node(kind, inputs, [output], f"n_{output}", **attributes)
        )
    path = tmp_path / "wrong.onnx"
    onnx.save(model, path)
    found = segdeploy.bench(
        [path], reference=checkpoint, data=dataset, limit=1, protocol=Protocol(seconds=0.1)
    )
    (row,) = found.rows[1:]
    assert not row.passes
    assert not found.passes
    assert found.recommended is None
    assert row.evaluation.agreement.labels > 0.999  # one image at a time is right
    assert any(line.startswith("declared input 2x48x64: ") for line in row.failures)
    assert not any(line.startswith("declared input 1x") for line in row.failures)


def test_costs_clients_time_all_that_they_call(graph: Path) -> None:
    candidate = Candidate("m", ModelSpec(str(graph)), "onnxruntime")
    process = Process(candidate, None)
    answer = process.ask(burst(0.2, clients=3))
    process.close()
    inside = sum(sum(times) for times in answer["times"].values())
    assert 0.8 < inside / (3 * answer["wall"]) < 1.05  # nothing uncounted is in the time


def test_costs_a_network_does_what_its_graph_does(checkpoint: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.onnx"
    segdeploy.export(checkpoint, plain, optimized=False)
    with segdeploy.load(checkpoint) as network:
        watched = work_of_network(network.session, network.contract.size)
    assert watched.macs == work_of(open_artifact(plain)).macs
    assert watched.bytes == work_of(open_artifact(plain)).bytes


def row_of(name: str, speedup: float, low: float, high: float, agreement: float) -> Row:
    latency = Latency(1, 1, 1, 0, 2, (1,), {}, 0, 0, 0, True, ratio=Ratio(speedup, low, high))
    agreement = Agreement(agreement, None, (1,), 0, 0, 0, 0, 0, (), None)
    accuracy = Accuracy(20, 0.5, None, None, None, {}, {})
    evaluation = Evaluation(accuracy, None, agreement)
    return Row(name, "onnxruntime", "fp32", 1, evaluation, latency)


def test_costs_of_those_that_are_as_fast_the_most_faithful_is_recommended() -> None:
    rows = [
        row_of("fast", 3.0, 2.9, 3.1, 0.98),
        row_of("near", 2.9, 2.8, 3.0, 0.99),
        row_of("slow", 2.0, 1.9, 2.1, 1.0),
    ]
    assert recommended(rows) == "near"
    assert [row.name for row in as_fast(rows)] == ["fast", "near"]
    rows[1] = row_of("near", 2.7, 2.6, 2.8, 0.99)
    assert recommended(rows) == "fast"
    assert [row.name for row in ranked(rows)] == ["fast", "near", "slow"]
