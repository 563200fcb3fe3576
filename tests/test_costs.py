"""Sweeps, claims, the roof, and the machine: what a candidate costs, and what it could."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import segdeploy
from segdeploy.benchmark.machine import GpuState, MachineState, doubts, machine_state
from segdeploy.benchmark.measuring import Protocol
from segdeploy.benchmark.peak import measured_peak, stated_peak
from segdeploy.benchmark.reliability import BINS, expected_calibration_error, reliability
from segdeploy.benchmark.roofline import Work, roofline, work_of
from segdeploy.benchmark.sweep import Sweep
from segdeploy.errors import InputError
from segdeploy.onnx_file import contract_of, load_onnx, set_contract

from .test_cli import check_one_line, run  # noqa: F401


@pytest.mark.parametrize(
    "told", [["batch"], ["batch=0"], ["batch=a"], ["width=1"], ["batch=1,"], ["batch=1", "batch=2"]]
)
def test_a_sweep_that_means_nothing_is_refused(told: list[str]) -> None:
    with pytest.raises(InputError, match=r"--sweep (batch|width).*(give batch=1,2,4|given twice)"):
        Sweep.of(told)


def test_a_claim_that_does_not_hold_fails_the_candidate(
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
    assert "it claims to take" in found.rows[1].complaints[0]


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
def test_work_counts_pixels_and_not_padding(graph: Path, tmp_path: Path, rate: int) -> None:
    model = convolution(16, 16, dilations=[rate] * 2, pads=[rate] * 4)
    contract = contract_of(load_onnx(graph), graph)
    set_contract(model, replace(contract, size=(16, 16)))
    path = tmp_path / "one.onnx"
    onnx.save(model, path)
    work = work_of(path)
    by_hand = sum(
        0 <= place - rate + tap * rate < 16 for place in range(16) for tap in range(3)
    ) ** 2  # fmt: skip
    assert work.macs == {"fp32": 15 * by_hand}
    assert work.bytes == 4 * (3 * 256 + 135 + 5 * 256)


def test_the_roof_is_the_lower_of_two() -> None:
    peak = replace(measured_peak(1), gmacs={"fp32": 100.0, "int8": 400.0}, gbytes=10.0)
    computing = roofline(Work({"fp32": 10**9}, 10**6), 20.0, peak)
    assert (computing.bound, computing.share) == ("compute", pytest.approx(0.5))
    moving = roofline(Work({"int8": 10**9}, 10**8), 20.0, peak)
    assert (moving.bound, moving.share) == ("memory", pytest.approx(0.5))
    assert computing.gmacs_per_second == pytest.approx(50)
    assert roofline(Work({"bf16": 1}, None), 1.0, peak) is None
    assert roofline(None, 1.0, peak) is None


def test_peaks_are_measured_or_stated() -> None:
    peak = measured_peak(1)
    assert peak.gmacs["fp32"] > 1
    assert peak.gbytes > 0.1
    stated = stated_peak("NVIDIA GeForce RTX 3090")
    assert (stated.gmacs["fp16"], stated.gbytes) == (35500, 936)
    assert stated_peak("Matrox Mystique") is None


def test_calibration_error_by_hand() -> None:
    scores = np.zeros((2, 1, 4), np.float32)
    scores[0] = [0.9, 0.9, 0.6, 0.6]
    scores[1] = 1 - scores[0]
    mask = np.array([[0, 1, 0, 255]], np.uint8)
    counts = reliability(scores, mask, 255, are_logits=False)
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
        ({"load": 2.0}, {}, "was busy before this began"),
        ({"governor": "powersave"}, {}, "governor powersave"),
        ({}, {"throttled": 4}, "CPU limit cut in"),
        ({}, {"overheated": 1}, "throttled by heat"),
        ({}, {"steal": 200, "ticks": 2000}, "gave 19% of this machine's time"),
        ({}, {"gpu": GPU}, None),
        ({}, {"gpu": replace(GPU, reasons=("SwThermalSlowdown",))}, "held down (SwThermal"),
        ({}, {"gpu": replace(GPU, clock=900)}, "not locked (900 of 1980"),
        ({}, {"gpu": replace(GPU, power_limit=400.0)}, "400 W, by default 700"),
        ({}, {"gpu": replace(GPU, others=2)}, "2 other processes"),
    ],
)
def test_doubts_are_told(before: dict, after: dict, said: str | None) -> None:
    found = doubts(replace(CALM, **before), replace(CALM, **after))
    assert [said in one for one in found] == ([True] if said else [])


def test_this_machine_has_a_state() -> None:
    state = machine_state()
    assert state.ticks > state.steal >= 0
    assert state.load is None or state.load >= 0


def test_nvml_has_the_calls_that_are_made() -> None:
    import inspect

    import pynvml

    from segdeploy.benchmark import machine

    source = inspect.getsource(machine)
    names = {word.split("(")[0] for word in source.split("nvml.")[1:]}
    names = {name.split(",")[0].split(")")[0].split(":")[0].strip() for name in names}
    assert len(names) > 10
    for name in (*names, *(f"nvmlClocksEventReason{reason}" for reason in machine._REASONS)):
        assert hasattr(pynvml, name), name


def test_bad_scales_are_refused(run, graph: Path, checkpoint: Path, dataset: Path) -> None:  # noqa: F811
    common = ("bench", graph, "--reference", checkpoint, "--data", dataset)
    check_one_line(run(*common, "--scales", 1), "--scales 1: is what is measured anyway")
    check_one_line(run(*common, "--sweep", "batch=x"), "--sweep batch=x: give batch=1,2,4")
