"""What people do on the page, in Chromium, with a server and tiny models behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.serve.page.conftest import DESKTOP, PHONE, TOKEN, picture, until

PASTE = """async (url) => {
  const blob = await (await fetch(url)).blob();
  const data = new DataTransfer();
  data.items.add(new File([blob], "pasted.png", { type: "image/png" }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
}"""
DROP = """async (url) => {
  const blob = await (await fetch(url)).blob();
  const data = new DataTransfer();
  data.items.add(new File([blob], "dropped.png", { type: "image/png" }));
  for (const kind of ["dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
  }
}"""


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "otter <b>bold<b>.png"
    picture(5, (90, 60, 30), width=160, height=100).save(path)
    return path


def answered(page: Any) -> Any:
    """Waits for the answer and its map, and returns the page."""
    page.locator("#result").wait_for()
    page.locator("#map").wait_for()
    page.locator("#working").wait_for(state="hidden")
    return page


def upload(page: Any, path: Path) -> Any:
    page.set_input_files("#file", path)
    return answered(page)


def test_an_uploaded_image_gets_the_answer_of_the_server(visit, server, photo) -> None:
    page = upload(visit(server), photo)
    answer = json.loads(page.locator("#json").text_content())
    best = answer["results"][0]["predictions"]
    assert page.locator("#verdict").text_content() == best[0]["label"]
    assert page.locator("#top .name").all_text_contents() == [entry["label"] for entry in best]
    assert len(best) == 5
    assert page.locator("#top .share").first.text_content() == f"{100 * best[0]['score']:.1f} %"
    widths = page.locator("#top .track span").evaluate_all(
        "all => all.map(e => e.offsetWidth / e.parentElement.offsetWidth)"
    )
    assert widths == pytest.approx([max(entry["score"], 0.004) for entry in best], abs=0.01)
    assert "Calibrated on images that the model had not learned from" in page.locator("#calibration").text_content()
    assert page.locator("#set li").all_text_contents() == answer["results"][0]["set"]
    assert "training images" in page.locator("#outlier").text_content()
    assert page.locator("#time dt").all_text_contents() == ["Decode", "Queue", "Compute", "In the server", "Round trip"]
    assert page.locator("#file-facts").text_content().startswith(photo.name)
    assert page.locator("#said").text_content().startswith("Answer: ")


@pytest.mark.parametrize("script", [PASTE, DROP], ids=["pasted", "dropped"])
def test_an_image_may_be(visit, server, script) -> None:
    page = visit(server)
    page.locator("#example-list img").first.wait_for()
    page.evaluate(script, "v1/examples/0.png")
    assert answered(page).locator("#file-facts").text_content().startswith(("pasted.png", "dropped.png"))


def test_an_example_is_chosen_and_marked(visit, server) -> None:
    page = visit(server)
    button = page.get_by_role("button", name="2.png")
    button.click()
    answered(page)
    assert button.get_attribute("aria-pressed") == "true"
    assert page.locator("#file-facts").text_content().startswith("2.png")


def test_a_photo_is_taken_with_the_camera(visit, server) -> None:
    page = visit(server, permissions=["camera"])
    page.get_by_role("button", name="Take a photo").click()
    until(page, "document.getElementById('viewfinder').videoWidth > 0")
    page.get_by_role("button", name="Take the photo").click()
    assert answered(page).locator("#file-facts").text_content().startswith("photo.jpg")
    assert page.evaluate("document.getElementById('viewfinder').srcObject") is None


def test_the_slider_goes_over_the_blocks_to_all_of_them(visit, server, photo) -> None:
    page = upload(visit(server), photo)
    slider = page.locator("#block")
    assert slider.get_attribute("aria-valuetext") == "all blocks"
    pixels = "document.getElementById('map').toDataURL()"
    last = page.evaluate(pixels)
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext") == "after block 1 of 2"
    assert page.evaluate(pixels) != last
    page.get_by_label("Distillation head").check()
    assert "distillation head, after block 1 of 2" in page.locator("#map").get_attribute("aria-label")
    page.get_by_label("Image only").check()
    assert page.locator("#map").is_hidden()


def test_a_map_is_tested_on_request_with_the_keyboard(visit, server, photo) -> None:
    page = upload(visit(server), photo)
    button = page.get_by_role("button", name="Test the map")
    button.focus()
    with page.expect_response("**/v1/classify*explain_score=true*") as tested:
        button.press("Enter")
    scores = tested.value.json()["results"][0]["explanation"]["score"]
    score = page.locator("#map-score")
    score.wait_for()
    until(page, "document.activeElement.id === 'map-score'")  # where the button was
    for label, head in (("Both heads", "both"), ("Class head", "class"), ("Distillation head", "distillation")):
        page.get_by_role("radio", name=label).check()
        told = scores[head]
        assert score.text_content() == f"{label}, all blocks. {told['description']}"
        assert told["verdict"] == "unknown" or f"{told['score']:+.3f}" in told["description"]
    assert page.locator("#said").text_content().startswith("Both heads, all blocks.")


def test_another_coverage_gives_another_set_and_keeps_the_map(visit, server, photo) -> None:
    page = upload(visit(server), photo)
    before = page.locator("#set li").count()
    with page.expect_response("**/v1/classify*coverage=50*"):
        page.locator("#coverage").press("Home")
    until(page, "document.getElementById('set-words').textContent.includes('For at least 50 of 100')")
    assert page.locator("#set li").count() < before
    assert page.locator("#map").is_visible()


def test_everything_works_with_the_keyboard_alone(visit, server, photo) -> None:
    page = visit(server)
    choosers: list[Any] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))  # now: the browser takes a while to pass them on
    page.locator("#example-list img").first.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # the focus is visible
    page.keyboard.press("Enter")
    for _ in range(160):
        if not choosers:
            page.wait_for_timeout(50)
    choosers[0].set_files(photo)
    answered(page)
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.id || document.activeElement.name || document.activeElement.tagName")
        )
    assert {"photograph", "map-head", "block", "coverage", "SUMMARY", "BUTTON", "api-link"} <= reached


def test_the_answer_can_be_copied(visit, server, photo) -> None:
    page = upload(visit(server, permissions=["clipboard-read", "clipboard-write"]), photo)
    page.get_by_text("The answer as JSON").click()
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Copied.").wait_for()
    assert json.loads(page.evaluate("navigator.clipboard.readText()"))["results"][0]["predictions"]


def test_several_models_have_a_selector(visit, server, photo) -> None:
    page = upload(visit(server), photo)
    assert page.locator("#set-controls").is_visible()
    page.get_by_label("Model", exact=True).select_option(label="plain")
    until(page, "document.getElementById('calibration').textContent.startsWith('Not calibrated')")
    assert page.locator("#model-name").text_content() == "plain"
    assert page.locator("#set-controls").is_hidden()
    assert "Run deit calibrate" in page.locator("#set-words").text_content()


def test_a_server_with_a_token_is_asked_with_it(visit, with_token, photo) -> None:
    page = visit(with_token)
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Use the token").click()
    page.get_by_text("The server did not accept the token.").wait_for()
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    page.locator("#token-form").wait_for(state="hidden")
    assert page.evaluate("document.activeElement.id") == "choose"
    page.locator("#example-list img").first.wait_for()
    upload(page, photo)
    assert page.evaluate("Object.keys(localStorage).length + Object.keys(sessionStorage).length") == 0
    assert page.evaluate("document.cookie") == ""


def test_a_phone_shows_all_without_scrolling_sideways(visit, server, photo) -> None:
    page = upload(visit(server, viewport=PHONE, has_touch=True, is_mobile=True), photo)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    with page.expect_file_chooser() as chooser:  # the camera program of the phone
        page.get_by_role("button", name="Take a photo").click()
    assert chooser.value.element.get_attribute("capture") == "environment"


def test_at_200_percent_nothing_is_cut_off(visit, server, photo) -> None:
    half = {name: length // 2 for name, length in DESKTOP.items()}
    page = upload(visit(server, viewport=half, device_scale_factor=2), photo)
    assert page.evaluate("document.documentElement.scrollWidth") <= half["width"]
