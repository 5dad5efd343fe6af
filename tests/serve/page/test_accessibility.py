"""axe finds nothing to complain of in any state of the page, on a desktop and on a phone, dark and light."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serve.page.canned import CLASSIFY, MODELS, answer, error, model, models, scored
from tests.serve.page.conftest import PHONE, picture

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

AGREED = {name: [{"label": "owl", "score": 0.5}] for name in ("class", "distillation")}
# State -> what the page waits for, and the answers.
STATES = {
    "empty": ("#model-choice", {MODELS: [(200, models(model(), model(name="fish")), {})]}),
    "answered": ("#map", {CLASSIFY: [(200, answer(is_outlier=True, outlier_score=2.0), {})]}),
    "tested": ("#map-score", {CLASSIFY: [(200, scored(), {})]}),
    "plain": ("#where", {CLASSIFY: [(200, answer(explanation=None, set=None, heads=AGREED), {})]}),
    "refused": ("#problem", {CLASSIFY: [(422, error(422, "unreadable_image", "No image."), {})]}),
    "busy": ("#problem", {CLASSIFY: [(429, error(429, "queue_full", "The queue is full."), {"Retry-After": "60"})]}),
    "token": ("#token-form", {MODELS: [(401, error(401, "unauthorized", "A token is needed."), {})]}),
}


def violations(page: Any) -> list[str]:
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html'][:120]} {node['failureSummary']}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize("state", STATES)
def test_axe_finds_no_violation(visit, bare, tmp_path, state) -> None:
    waited_for, canned = STATES[state]
    page = visit(bare, canned={MODELS: [(200, models(model(calibrated=state != "plain")), {})]} | canned)
    if CLASSIFY in canned:
        picture(1, (200, 80, 40)).save(tmp_path / "a.png")
        page.set_input_files("#file", tmp_path / "a.png")
    page.locator(waited_for).wait_for()
    for details in page.locator("details:visible").all():
        details.locator("summary").click()
    assert violations(page) == []
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme="dark")
    assert violations(page) == []
