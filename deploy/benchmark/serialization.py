"""Serialize the verdict: versioned JSON, Markdown for a pull request, and JUnit XML for CI."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from segdeploy.benchmark.agreement import MARGINS, QUANTILES
from segdeploy.benchmark.failure import Failure
from segdeploy.benchmark.layers import LayerReport
from segdeploy.benchmark.verdict import Row, Verdict, miou_drop
from segdeploy.models.names import escaped
from segdeploy.plain_json import plain

SCHEMA = 4


def to_json(verdict: Verdict, command: Sequence[str] = ()) -> str:
    """Return the verdict as JSON, without the images."""
    return json.dumps(plain(described(verdict, command)), indent=2, allow_nan=False)


def described(verdict: Verdict, command: Sequence[str] = ()) -> dict[str, Any]:
    """Return the verdict as a dictionary of plain values, without the images."""
    return {
        "schema": SCHEMA,
        "dataset": str(verdict.dataset.root),
        "split": verdict.split,
        "frames": verdict.frames,
        "size": list(verdict.size),
        "classes": list(verdict.dataset.classes),
        "command": list(command),
        "environment": asdict(verdict.environment),
        "limits": asdict(verdict.limits),
        "passes": verdict.passes,
        "recommended": verdict.recommended,
        "pareto_front": list(verdict.pareto_front),
        "notes": list(verdict.notes),
        "margins": MARGINS,
        "quantiles": QUANTILES,
        "rows": [describe_row(row, verdict.reference) for row in verdict.rows],
        "test_time_augmentation": {
            "scales": verdict.test_time_augmentation.scales,
            "rows": [
                describe_row(row, verdict.test_time_augmentation.rows[0])
                for row in verdict.test_time_augmentation.rows
            ],
        }
        if verdict.test_time_augmentation
        else None,
        "sweep": [asdict(point) for point in verdict.sweep],
        "peak": asdict(verdict.peak) if verdict.peak else None,
    }


def describe_row(row: Row, reference: Row) -> dict[str, Any]:
    """Return one row with all its measurements."""
    evaluation, latency = row.evaluation, row.latency
    values: dict[str, Any] = {
        "name": row.name,
        "backend": row.backend,
        "precision": row.precision,
        "bytes": row.bytes,
        "passes": row.passes,
        "skipped": row.skipped,
        "failure": row.failure,
        "failures": list(row.failures),
        "accuracy": None,
        "agreement": None,
        "latency": None,
        "kernel_agreement": None,
        "expected_calibration_error": None,
        "supported_shapes": [asdict(checked) for checked in row.supported_shapes],
        "roofline": asdict(row.roofline) if row.roofline else None,
        "layers": _layers(row.layers),
    }
    if evaluation is not None:
        confidence_intervals = evaluation.confidence_intervals
        values["accuracy"] = {
            **asdict(evaluation.accuracy),
            "miou_interval": asdict(confidence_intervals.miou)
            if confidence_intervals and confidence_intervals.miou
            else None,
            "miou_drop": miou_drop(reference, row),
            "miou_drop_interval": asdict(confidence_intervals.drop)
            if confidence_intervals and confidence_intervals.drop
            else None,
            "iou_intervals": {
                name: asdict(one) if one else None
                for name, one in zip(evaluation.accuracy.iou, confidence_intervals.iou, strict=True)
            }
            if confidence_intervals
            else None,
        }
        if evaluation.agreement is not None:
            interval = evaluation.agreement_interval
            values["agreement"] = {
                **asdict(evaluation.agreement),
                "labels_interval": asdict(interval) if interval else None,
            }
        values["kernel_agreement"] = evaluation.kernels
        values["expected_calibration_error"] = evaluation.ece
    if latency is not None:
        values["latency"] = asdict(latency)
        if latency.ratio is not None:
            values["latency"]["ratio"]["is_clear"] = latency.ratio.is_clear
    return values


def _layers(found: LayerReport | Failure | None) -> dict[str, Any] | None:
    if isinstance(found, Failure):
        return {"failure": found.reason}
    return asdict(found) if found else None


def to_markdown(verdict: Verdict) -> str:
    """Return the conclusion, the tables and the notes as Markdown, for a pull request."""
    head = ("candidate", "runtime", "precision", "mIoU", "drop", "labels equal", "median ms",
            "speed-up", "verdict")  # fmt: skip
    table = _table(head, verdict.rows)
    if verdict.test_time_augmentation:
        scales = ", ".join(f"{scale:g}" for scale in verdict.test_time_augmentation.scales)
        table += f"\n\nScales {scales}: drop and labels against the reference at the same scales, "
        augmented = _table(head, verdict.test_time_augmentation.rows)
        table += f"speed-up against the reference at one scale:\n\n{augmented}"
    message = "every candidate passes" if verdict.passes else "not every candidate passes"
    chosen = "no candidate is recommended"
    if verdict.recommended:
        chosen = f"recommended: **{_markdown(verdict.recommended)}**"
    notes = "".join(f"\n- {_markdown(note)}" for note in verdict.notes)
    frames = _markdown(f"{verdict.dataset.root.name}/{verdict.split}")
    return (
        f"**segdeploy bench**, {verdict.frames} frames of {frames}, "
        f"{verdict.size[0]}x{verdict.size[1]}: {message}; {chosen}\n\n" + f"{table}\n{notes}\n"
    )


def roofline_text(row: Row) -> str | None:
    """Return a candidate's work, throughput and share of the roofline in one clause."""
    roofline = row.roofline
    if roofline is None:
        return None
    moved = f", {roofline.bytes / 1e6:.0f} MB" if roofline.bytes else ""
    return (
        f"{roofline.macs / 1e9:.2f} GMAC without padding{moved} an image, "
        f"{roofline.gmacs_per_second:.0f} GMAC/s: "
        f"{roofline.share:.0%} of the roofline ({roofline.bound}-bound)"
    )


def supported_shapes_text(row: Row) -> str | None:
    """Return how many other declared input shapes ran, and their lowest agreement."""
    held = [checked.agreement for checked in row.supported_shapes if checked.agreement is not None]
    if not held:
        return None
    least = f"at least {min(held):.3%} of labels equal"
    of = "" if len(held) == len(row.supported_shapes) else f" of {len(row.supported_shapes)}"
    return f"{len(held)}{of} other declared input shapes: {least}"


def scales_text(row: Row) -> str | None:
    """Return the time of each scale in a loop, and its share of the total."""
    scales = row.latency.scale_ms if row.latency else None
    if not scales:
        return None
    total = sum(scales.values())
    return ", ".join(f"scale {s} takes {ms:.1f} ms ({ms / total:.0%})" for s, ms in scales.items())


def sweep_text(verdict: Verdict) -> list[tuple[str, str, str, str]]:
    """Return candidate, setting, median and throughput of each point, or the failure."""
    return [
        (
            point.candidate,
            f"{point.kind} {point.value}",
            point.failure or f"{point.median_ms:.2f}",
            "-" if point.failure else f"{point.images_per_second:.1f}",
        )
        for point in verdict.sweep
    ]


def _table(head: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(map(_markdown, _cells(row, rows[0])))} |" for row in rows]
    return "\n".join(lines)


def _markdown(text: str) -> str:
    """Escape text for Markdown and HTML, so that names are shown verbatim."""
    shown = html.escape(escaped(text), quote=False)
    return re.sub(r"([\\`*_\[\]!|])", r"\\\1", shown)


def to_junit(verdict: Verdict) -> str:
    """Return JUnit XML with one test case per candidate: passed, failed, errored or skipped."""
    suite = ElementTree.Element("testsuite", name="segdeploy bench")
    rows = (
        *verdict.rows[1:],
        *(verdict.test_time_augmentation.rows[1:] if verdict.test_time_augmentation else ()),
    )
    for row in rows:
        case = ElementTree.SubElement(
            suite, "testcase", classname="segdeploy.bench", name=escaped(row.name), time="0"
        )
        if row.skipped:
            ElementTree.SubElement(case, "skipped", message=escaped(row.failure or ""))
        elif row.failure is not None:
            ElementTree.SubElement(case, "error", message=escaped(row.failure))
        elif row.failures:
            ElementTree.SubElement(case, "failure", message=escaped("; ".join(row.failures)))
    counts = {name: len(suite.findall(f".//{name}")) for name in ("failure", "error", "skipped")}
    suite.set("tests", str(len(rows)))
    suite.set("failures", str(counts["failure"]))
    suite.set("errors", str(counts["error"]))
    suite.set("skipped", str(counts["skipped"]))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def status(row: Row) -> str:
    """Return the verdict of a row as text."""
    if row.skipped:
        return "skipped"
    if row.failure is not None:
        return "failed"
    return "; ".join(row.failures) or "pass"


def speedup_text(row: Row) -> str:
    """Return the speed-up with its interval, or that the difference is not significant."""
    ratio = row.latency.ratio if row.latency else None
    if ratio is None:
        return "-"
    if not ratio.is_clear:
        return f"{ratio.speedup:.2f}x (not significant)"
    return f"{ratio.speedup:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"


def drop_text(row: Row, reference: Row) -> str:
    """Return the mIoU drop in percentage points, with its confidence interval over the frames."""
    drop = miou_drop(reference, row)
    if drop is None or row is reference:
        return "-"
    interval = (
        row.evaluation.confidence_intervals.drop
        if row.evaluation and row.evaluation.confidence_intervals
        else None
    )
    message = f" ({_points(interval.low)} to {_points(interval.high)})" if interval else ""
    return f"{_points(drop)}{message}"


def _points(share: float) -> str:
    return f"{100 * share + 0.0:.2f}".replace("-0.00", "0.00")


def _status_text(row: Row) -> str:
    return f"{status(row)}: {row.failure}" if row.failure else status(row)


def _cells(row: Row, reference: Row) -> list[str]:
    evaluation, latency = row.evaluation, row.latency
    miou = evaluation.accuracy.miou if evaluation else None
    agreement = evaluation.agreement if evaluation else None
    return [
        row.name,
        row.backend,
        row.precision,
        "-" if miou is None else f"{100 * miou:.2f}",
        drop_text(row, reference),
        "-" if agreement is None else f"{100 * agreement.labels:.3f} %",
        "-" if latency is None else f"{latency.median_ms:.2f}",
        speedup_text(row),
        "reference" if row is reference else _status_text(row),
    ]
