"""All that a bench can be asked for, and its report in a browser: on a phone, offline."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segdeploy
from segdeploy.benchmark.protocol import Protocol
from segdeploy.benchmark.report import write_report
from segdeploy.benchmark.serialization import to_json, to_junit, to_markdown
from segdeploy.benchmark.sweep import Sweep

from .conftest import skip

PHONE = {"width": 390, "height": 844}
SCALES = (0.75, 1.0)


@pytest.fixture(scope="module")
def verdict(graph: Path, dynamic_graph: Path, int8_graph: Path, checkpoint: Path, dataset: Path):
    """With everything that a bench can be asked for."""
    sweep = Sweep.of(["batch=1,3", "clients=2"])
    protocol = Protocol(seconds=0.2, layers=True, ece=True, scales=SCALES, sweep=sweep)
    return segdeploy.bench(
        [graph, dynamic_graph, int8_graph],
        reference=checkpoint,
        data=dataset,
        limit=3,
        protocol=protocol,
    )


@pytest.fixture(scope="module")
def page(verdict, tmp_path_factory: Any) -> Path:
    return write_report(verdict, tmp_path_factory.mktemp("page") / "report", ["segdeploy"])


@pytest.fixture(scope="module")
def calibration(graph: Path, dataset: Path, tmp_path_factory: Any) -> Path:
    """The page of a calibration with everything that it can show."""
    folder = tmp_path_factory.mktemp("calibration")
    page = folder / "page.html"
    segdeploy.calibrate(
        *(graph, dataset, folder / "m.onnx"), limit=6, method="min-max", sensitivity=True, page=page
    )
    return page


def test_page_scales_are_run_side_by_side(verdict, graph: Path, dynamic_graph: Path) -> None:
    modes = verdict.test_time_augmentation
    rows = {row.name: row for row in modes.rows}
    loop = f"{dynamic_graph.name}, loop"
    assert set(rows) == {"reference, loop", loop, "fused graph"}  # the others are static
    assert modes.rows[0].name == "reference, loop"
    for name in (loop, "fused graph"):
        row = rows[name]
        assert row.passes
        assert row.evaluation.agreement.max_rel < 1e-5  # of the reference at the same scales
        assert row.latency.ratio is not None
    single = verdict.reference.evaluation.accuracy.miou
    assert rows["reference, loop"].evaluation.accuracy.miou != single
    assert set(rows[loop].latency.scale_ms) == {"0.75", "1"}
    assert rows["fused graph"].latency.scale_ms is None
    assert any(note.startswith(f"{graph.name}: is static, so it cannot") for note in verdict.notes)
    read = json.loads(to_json(verdict))
    assert read["test_time_augmentation"]["scales"] == [0.75, 1]
    assert "Scales 0.75, 1: drop and labels against the reference" in to_markdown(verdict)
    assert f'name="{loop}"' in to_junit(verdict)


def test_page_the_sweep_varies_one_thing_at_a_time(
    verdict, graph: Path, dynamic_graph: Path
) -> None:
    points = {(point.candidate, point.kind, point.value): point for point in verdict.sweep}
    assert len(points) == 4 * 3
    three = points[dynamic_graph.name, "batch", 3]
    assert three.images_per_second > 0
    assert three.median_ms > 0
    assert "takes only batches of 1" in points[graph.name, "batch", 3].failure
    assert points["reference", "clients", 2].images_per_second > 0
    assert all(point.failure is None for point in verdict.sweep if point.kind != "batch")


def test_page_what_a_dynamic_graph_claims_is_tried(
    verdict, graph: Path, dynamic_graph: Path
) -> None:
    rows = {row.name: row for row in verdict.rows}
    assert rows[graph.name].supported_shapes == ()
    supported_shapes = rows[dynamic_graph.name].supported_shapes
    assert any(checked.shape[0] > 1 for checked in supported_shapes)
    assert any(checked.shape[1:] != (48, 64) for checked in supported_shapes)
    for checked in supported_shapes:
        assert checked.failure is None
        assert checked.agreement > 0.999
        assert checked.max_rel < 1e-4
        assert np.prod(checked.shape) <= 8 * 48 * 64
    assert verdict.passes
    assert rows["reference"].roofline.share > 0


def test_page_calibration_error_is_in_the_verdict(verdict, dynamic_graph: Path) -> None:
    rows = {row.name: row for row in verdict.rows}
    own = rows["reference"].evaluation.ece
    assert 0 < own < 1
    assert rows[dynamic_graph.name].evaluation.ece == pytest.approx(own, abs=1e-4)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if program is None:
        skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def on_a_phone(browser: Any, page: Path, scheme: str) -> Iterator[Any]:
    """A page on a phone, offline; what the console or the network says is a failure."""
    context = browser.new_context(viewport=PHONE, color_scheme=scheme, offline=True)
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on(
        "request", lambda asked: said.append(asked.url) if asked.url.startswith("http") else None
    )
    tab.goto(page.as_uri())
    yield tab
    assert [one for one in said if not one.startswith(("data:", "file:"))] == []
    context.close()


@pytest.fixture(params=["light", "dark"])
def opened(browser: Any, page: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    with on_a_phone(browser, page, request.param) as tab:
        yield tab


def check_accessible(tab: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    found = Axe().run(tab).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_of_a_calibration_fits_a_phone_and_is_accessible(
    browser: Any, calibration: Path, scheme: str
) -> None:
    with on_a_phone(browser, calibration, scheme) as tab:
        check_accessible(tab)
        assert "Loss by class" in tab.locator("h2").all_inner_texts()


def test_page_overlays_toggle(opened: Any) -> None:
    sample = opened.locator(".sample").first
    layers = sample.locator("img.layer")
    assert layers.count() >= 4
    assert [layers.nth(i).is_visible() for i in range(layers.count())] == [False] * layers.count()
    button = sample.get_by_role("button", name="truth", exact=True)
    button.click()
    assert sample.locator('img[data-name="truth"]').is_visible()
    assert button.get_attribute("aria-pressed") == "true"
    loaded = "image => image.complete && image.naturalWidth > 0"
    assert all(layers.nth(i).evaluate(loaded) for i in range(layers.count()))
    sample.get_by_role("button", name="reference", exact=True).press("Enter")
    assert not sample.locator('img[data-name="truth"]').is_visible()
    assert sample.locator('img[data-name="reference"]').is_visible()
    sample.get_by_role("button", name="image", exact=True).click()
    assert not sample.locator('img[data-name="reference"]').is_visible()


def test_page_it_fits_a_phone_and_is_accessible(opened: Any) -> None:
    check_accessible(opened)
    headings = opened.locator("h2").all_inner_texts()
    for wanted in ("Multi-scale inference", "Batch size, threads and clients", "IoU per class"):
        assert wanted in headings
    folder = os.environ.get("SEGDEPLOY_SCREENSHOTS")
    if folder:
        opened.screenshot(path=Path(folder) / "report.png", full_page=True)
