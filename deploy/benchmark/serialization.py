"""The verdict for machines: JSON with a version, Markdown for a pull request, JUnit for CI."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from segdeploy.benchmark.agreement import MARGINS, QUANTILES
from segdeploy.benchmark.layers import LayerReport
from segdeploy.benchmark.verdict import Row, Verdict, miou_drop
from segdeploy.models.names import escaped
from segdeploy.plain_json import plain

SCHEMA = 3


def to_json(verdict: Verdict, command: Sequence[str] = ()) -> str:
    """Serialise everything but the pictures."""
    return json.dumps(plain(described(verdict, command)), indent=2, allow_nan=False)


def described(verdict: Verdict, command: Sequence[str] = ()) -> dict[str, Any]:
    """The verdict as plain values."""
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
        "front": list(verdict.front),
        "notes": list(verdict.notes),
        "margins": MARGINS,
        "quantiles": QUANTILES,
        "rows": [describe_row(row, verdict.reference) for row in verdict.rows],
        "modes": {
            "scales": verdict.modes.scales,
            "rows": [describe_row(row, verdict.modes.rows[0]) for row in verdict.modes.rows],
        }
        if verdict.modes
        else None,
        "sweep": [asdict(point) for point in verdict.sweep],
        "peak": asdict(verdict.peak) if verdict.peak else None,
    }


def describe_row(row: Row, reference: Row) -> dict[str, Any]:
    """One line, without the loss of anything that was measured."""
    judgement, latency = row.judgement, row.latency
    values: dict[str, Any] = {
        "name": row.name,
        "backend": row.backend,
        "precision": row.precision,
        "bytes": row.bytes,
        "passes": row.passes,
        "skipped": row.skipped,
        "failure": row.failure,
        "complaints": list(row.complaints),
        "accuracy": None,
        "fidelity": None,
        "latency": None,
        "kernel_agreement": None,
        "expected_calibration_error": None,
        "claims": [asdict(claim) for claim in row.claims],
        "roofline": asdict(row.roofline) if row.roofline else None,
        "layers": asdict(row.layers) if isinstance(row.layers, LayerReport) else row.layers,
    }
    if judgement is not None:
        spread = judgement.spread
        values["accuracy"] = {
            **asdict(judgement.accuracy),
            "miou_interval": asdict(spread.miou) if spread and spread.miou else None,
            "miou_drop": miou_drop(reference, row),
            "miou_drop_interval": asdict(spread.drop) if spread and spread.drop else None,
            "iou_intervals": {
                name: asdict(one) if one else None
                for name, one in zip(judgement.accuracy.iou, spread.iou, strict=True)
            }
            if spread
            else None,
        }
        values["fidelity"] = asdict(judgement.fidelity) if judgement.fidelity else None
        values["kernel_agreement"] = judgement.kernels
        values["expected_calibration_error"] = judgement.ece
    if latency is not None:
        values["latency"] = asdict(latency)
        if latency.ratio is not None:
            values["latency"]["ratio"]["is_clear"] = latency.ratio.is_clear
    return values


def to_markdown(verdict: Verdict) -> str:
    """A table and the conclusion, for a pull request."""
    head = ("candidate", "runtime", "precision", "mIoU", "drop", "labels equal", "median ms",
            "speed-up", "verdict")  # fmt: skip
    table = _table(head, verdict.rows)
    if verdict.modes:
        scales = ", ".join(f"{scale:g}" for scale in verdict.modes.scales)
        table += f"\n\nat scales {scales}, each against the reference at the same scales; "
        table += f"speed-up against the reference at one:\n\n{_table(head, verdict.modes.rows)}"
    told = "every candidate passes" if verdict.passes else "not every candidate passes"
    chosen = "none to ship"
    if verdict.recommended:
        chosen = f"recommended: **{_markdown(verdict.recommended)}**"
    notes = "".join(f"\n- {_markdown(note)}" for note in verdict.notes)
    frames = _markdown(f"{verdict.dataset.root.name}/{verdict.split}")
    return (
        f"**segdeploy bench**, {verdict.frames} frames of {frames}, "
        f"{verdict.size[0]}x{verdict.size[1]}: {told}; {chosen}\n\n" + f"{table}\n{notes}\n"
    )


def told_roofline(row: Row) -> str | None:
    """What a candidate reaches of the roof, in a clause."""
    roof = row.roofline
    if roof is None:
        return None
    moved = f", {roof.bytes / 1e6:.0f} MB" if roof.bytes else ""
    return (
        f"{roof.macs / 1e9:.2f} GMAC{moved} a picture, {roof.gmacs_per_second:.0f} GMAC/s: "
        f"{roof.share:.0%} of the roof ({roof.bound}-bound)"
    )


def told_claims(row: Row) -> str | None:
    """How many other batches and shapes were tried, and the least of what came out."""
    held = [claim.agreement for claim in row.claims if claim.agreement is not None]
    if not held:
        return None
    least = f"at least {min(held):.3%} of labels equal"
    of = "" if len(held) == len(row.claims) else f" of {len(row.claims)}"
    return f"{len(held)}{of} other batches and shapes that it claims: {least}"


def told_scales(row: Row) -> str | None:
    """The share of each scale in a loop's time."""
    scales = row.latency.scale_ms if row.latency else None
    if not scales:
        return None
    total = sum(scales.values())
    return ", ".join(f"scale {s} takes {ms:.1f} ms ({ms / total:.0%})" for s, ms in scales.items())


def told_sweep(verdict: Verdict) -> list[tuple[str, str, str, str]]:
    """A line for each point: candidate, setting, median and throughput, or why there are none."""
    return [
        (
            point.candidate,
            f"{point.kind} {point.value}",
            point.failure or f"{point.median_ms:.2f}",
            "-" if point.failure else f"{point.pictures_per_second:.1f}",
        )
        for point in verdict.sweep
    ]


def _table(head: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(map(_markdown, _cells(row, rows[0])))} |" for row in rows]
    return "\n".join(lines)


def _markdown(text: str) -> str:
    """Text as Markdown that shows it, whatever a name in it would mean there or in HTML."""
    shown = html.escape(escaped(text), quote=False)
    return re.sub(r"([\\`*_\[\]!|])", r"\\\1", shown)


def to_junit(verdict: Verdict) -> str:
    """A test case for each candidate: failed, skipped or passed."""
    suite = ElementTree.Element("testsuite", name="segdeploy bench")
    rows = (*verdict.rows[1:], *(verdict.modes.rows[1:] if verdict.modes else ()))
    for row in rows:
        case = ElementTree.SubElement(
            suite, "testcase", classname="segdeploy.bench", name=escaped(row.name), time="0"
        )
        if row.skipped:
            ElementTree.SubElement(case, "skipped", message=escaped(row.failure or ""))
        elif row.failure is not None:
            ElementTree.SubElement(case, "error", message=escaped(row.failure))
        elif row.complaints:
            ElementTree.SubElement(case, "failure", message=escaped("; ".join(row.complaints)))
    counts = {name: len(suite.findall(f".//{name}")) for name in ("failure", "error", "skipped")}
    suite.set("tests", str(len(rows)))
    suite.set("failures", str(counts["failure"]))
    suite.set("errors", str(counts["error"]))
    suite.set("skipped", str(counts["skipped"]))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def outcome(row: Row) -> str:
    """The verdict of a line, in words."""
    if row.skipped:
        return "skipped"
    if row.failure is not None:
        return "failed"
    return "; ".join(row.complaints) or "pass"


def told_speedup(row: Row) -> str:
    """The ratio to the reference with its interval, or that none can be seen."""
    ratio = row.latency.ratio if row.latency else None
    if ratio is None:
        return "-"
    if not ratio.is_clear:
        return f"{ratio.speedup:.2f}x (no difference seen)"
    return f"{ratio.speedup:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"


def told_drop(row: Row, reference: Row) -> str:
    """Percentage points of mIoU lost, with the interval over frames."""
    drop = miou_drop(reference, row)
    if drop is None or row is reference:
        return "-"
    interval = row.judgement.spread.drop if row.judgement and row.judgement.spread else None
    told = f" ({_points(interval.low)} to {_points(interval.high)})" if interval else ""
    return f"{_points(drop)}{told}"


def _points(share: float) -> str:
    return f"{100 * share + 0.0:.2f}".replace("-0.00", "0.00")


def _told_outcome(row: Row) -> str:
    return f"{outcome(row)}: {row.failure}" if row.failure else outcome(row)


def _cells(row: Row, reference: Row) -> list[str]:
    judgement, latency = row.judgement, row.latency
    miou = judgement.accuracy.miou if judgement else None
    fidelity = judgement.fidelity if judgement else None
    return [
        row.name,
        row.backend,
        row.precision,
        "-" if miou is None else f"{100 * miou:.2f}",
        told_drop(row, reference),
        "-" if fidelity is None else f"{100 * fidelity.agreement:.3f} %",
        "-" if latency is None else f"{latency.median_ms:.2f}",
        told_speedup(row),
        "reference" if row is reference else _told_outcome(row),
    ]
