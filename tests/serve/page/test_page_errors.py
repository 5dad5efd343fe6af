"""What the page says when there is no answer, and what it does with answers that are hostile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.serve.page.canned import CLASSIFY, HOSTILE, MODELS, answer, error, model, models, replies, result, scored
from tests.serve.page.conftest import picture, until

SERVED = {MODELS: [(200, models(), {})]}


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "a.png"
    picture(1, (200, 80, 40)).save(path)
    return path


def alert(page: Any, text: str) -> str:
    """Waits for the alert and returns all of it."""
    page.get_by_role("alert").get_by_text(text).wait_for()
    return page.get_by_role("alert").text_content()


def test_a_file_above_the_limit_is_not_sent(visit, bare, photo) -> None:
    page = visit(bare, canned={MODELS: [(200, models(max_image_bytes=1000), {})], CLASSIFY: [(200, answer(), {})]})
    page.set_input_files("#file", photo)
    said = alert(page, "The image is too large for this server.")
    assert "the server takes 1000 bytes. It was not sent." in said
    assert page.asked == []


def test_an_overloaded_server_is_asked_again_after_its_time(visit, bare, photo) -> None:
    busy = (429, error(429, "queue_full", "The queue is full."), {"Retry-After": "1"})
    page = visit(bare, canned=SERVED | {CLASSIFY: [busy, (200, answer(), {})]})
    page.set_input_files("#file", photo)
    said = alert(page, "The server has more requests than it can answer just now.")
    assert "The page tries again in 1 second." in said
    page.locator("#result").wait_for()
    assert page.locator("#problem").is_hidden()
    assert page.locator("#top .share").all_text_contents() == ["> 99.9 %", "< 0.1 %"]


def test_waiting_can_be_stopped_or_cut_short(visit, bare, photo) -> None:
    busy = (503, error(503, "starting", "The model is warming up."), {"Retry-After": "50"})
    page = visit(bare, canned=SERVED | {CLASSIFY: [busy, busy, (200, answer(), {})]})
    page.set_input_files("#file", photo)
    assert "The model is warming up." in alert(page, "The server is starting or stopping.")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("button", name="Try now").click()
    page.locator("#result").wait_for()
    assert len(page.asked) >= 3


def test_a_server_that_went_away_is_named_and_asked_again(visit, bare, photo) -> None:
    page = visit(bare, canned=SERVED)
    page.route(CLASSIFY, lambda route: route.abort("connectionrefused"))
    page.set_input_files("#file", photo)
    alert(page, "The server cannot be reached.")
    page.unroute(CLASSIFY)
    replies(page, CLASSIFY, (200, answer(), {}))
    page.get_by_role("button", name="Try again").click()
    page.locator("#result").wait_for()


@pytest.mark.parametrize(
    ("reply", "first"),
    [
        ((413, error(413, "too_large", "At most 10 bytes."), {}), "The image is too large for this server."),
        ((404, error(404, "unknown_model", "There is no model 'birds'."), {}), "The server does not know this model"),
        ((504, error(504, "deadline", "Too late."), {}), "The server failed to answer."),
        ((502, "<html><b>Bad gateway</b></html>", {}), "The server failed to answer."),
        ((200, "<html>", {}), "The server failed to answer."),
        ((200, {"results": [{"image": "a", **error(422, "unreadable_image", HOSTILE)}]}, {}), "cannot read"),
        ((200, {"results": []}, {}), "The server failed to answer."),
    ],
    ids=["too large", "unknown model", "deadline", "proxy", "no JSON", "unreadable", "nothing"],
)  # fmt: skip
def test_each_error_has_plain_words(visit, bare, photo, reply, first) -> None:
    page = visit(bare, canned=SERVED | {CLASSIFY: [reply]})
    page.set_input_files("#file", photo)
    alert(page, first)
    assert page.locator("#result").is_hidden()
    assert page.locator("main b, main img[src='x']").count() == 0


def test_text_of_the_server_is_never_html(visit, bare, photo) -> None:
    hostile = answer(
        predictions=[{"label": HOSTILE, "score": 0.9}], set=[HOSTILE], image=HOSTILE,
        heads={HOSTILE: [{"label": HOSTILE, "score": 1}], "class": [{"label": "owl", "score": 1}]},
    )  # fmt: skip
    served = models(model(name=HOSTILE, version=HOSTILE), model(name=HOSTILE, version="2"))
    page = visit(bare, canned={MODELS: [(200, served, {})], CLASSIFY: [(200, hostile, {})]})
    page.set_input_files("#file", photo)
    page.locator("#result").wait_for()
    assert page.locator("#verdict").text_content() == page.locator("#model-name").text_content() == HOSTILE
    assert page.locator("img[src='x']").count() == 0


def test_an_outlier_and_heads_that_disagree_are_said(visit, bare, photo) -> None:
    strange = answer(outlier_score=1.8, is_outlier=True)
    page = visit(bare, canned=SERVED | {CLASSIFY: [(200, strange, {})]})
    page.set_input_files("#file", photo)
    page.get_by_text("Unlike the training images (distance 1.80; the limit is 1)").wait_for()
    said = page.locator("#heads-words").text_content()
    assert "the class head says owl (70.0 %) and the distillation head says kite (60.0 %)" in said


def test_a_coverage_that_the_calibration_cannot_promise_is_explained(visit, bare, photo) -> None:
    few = (400, error(400, "bad_option", "A coverage of 95 % needs at least 19 held-out images."), {})

    def reply(request: Any) -> Any:
        return few if "coverage=" in request.url else (200, answer(set=None), {})

    page = visit(bare, canned=SERVED | {CLASSIFY: [reply]})
    page.set_input_files("#file", photo)
    page.locator("#set-words").get_by_text("needs at least 19 held-out images").wait_for()
    assert page.locator("#verdict").text_content() == "owl"


def test_an_answer_of_a_changed_model_asks_for_the_models_anew(visit, bare, photo) -> None:
    told = answer(predictions=[{"label": "heron", "score": 0.5}])
    served = [(200, models(), {}), (200, models(model(version="2", classes=["heron", "owl"])), {})]
    page = visit(bare, canned={MODELS: served, CLASSIFY: [(200, told | {"version": "2"}, {})]})
    page.set_input_files("#file", photo)
    page.get_by_text("Version 2 · 2 classes").wait_for()


def test_an_answer_of_an_overloaded_model_says_that_tokens_were_merged(visit, bare, photo) -> None:
    page = visit(bare, canned=SERVED | {CLASSIFY: [(200, answer(calibrated=False, merged=8), {})]})
    page.set_input_files("#file", photo)
    page.get_by_text("The server was overloaded and merged 8 tokens in each block").wait_for()


def test_several_labels_have_thresholds_in_place_of_a_set(visit, bare, photo) -> None:
    served = models(model(problem_type="multi_label_classification"))
    page = visit(bare, canned={MODELS: [(200, served, {})], CLASSIFY: [(200, answer(set=None, named=["owl"]), {})]})
    page.set_input_files("#file", photo)
    page.get_by_text("1 label above the thresholds of the calibration.").wait_for()
    assert "coverage" not in page.asked[0].url


def test_an_answer_stands_without_its_map(visit, bare, photo) -> None:
    refused = (400, error(400, "no_explanation", "An exported model has no attention to look at."), {})

    def reply(request: Any) -> Any:
        return refused if "explain=" in request.url else (200, answer(), {})

    page = visit(bare, canned=SERVED | {CLASSIFY: [reply]})
    page.set_input_files("#file", photo)
    page.get_by_text("There is no map for this answer. An exported model has no attention").wait_for()
    assert page.locator("#verdict").text_content() == "owl"
    assert page.locator("#map").is_hidden()


def test_the_score_of_a_map_is_that_of_its_head(visit, bare, photo) -> None:
    page = visit(bare, canned=SERVED | {CLASSIFY: [(200, scored(), {})]})
    page.set_input_files("#file", photo)
    score = page.locator("#map-score")
    score.get_by_text("Class head, all blocks. Better than random: +0.200.").wait_for()
    assert score.get_attribute("class") == "remark good"
    page.get_by_label("Distillation head").check()
    assert HOSTILE in score.text_content()
    assert score.get_attribute("class") == "remark warn"
    assert page.locator("#test-map").is_hidden()
    page.get_by_label("Image only").check()
    assert score.is_hidden()


def test_a_map_that_could_not_be_tested_stays(visit, bare, photo) -> None:
    full = (429, error(429, "explain_full", "4 images wait, and 4 may."), {})

    def reply(request: Any) -> Any:
        return full if "explain_score=" in request.url else (200, answer(), {})

    page = visit(bare, canned=SERVED | {CLASSIFY: [reply]})
    page.set_input_files("#file", photo)
    page.get_by_role("button", name="Test the map").click()
    page.locator("#map-score").get_by_text("The map was not tested. 4 images wait, and 4 may.").wait_for()
    assert page.locator("#map").is_visible()
    assert page.get_by_role("button", name="Test the map").is_visible()  # to try again


def test_a_new_coverage_does_not_lose_a_map_that_is_on_its_way(visit, bare, photo) -> None:
    held: list[Any] = []

    def handle(route: Any) -> None:
        if "explain=" in route.request.url:
            held.append(route)
        else:
            route.fulfill(json=answer())

    page = visit(bare, canned=SERVED)
    page.route(CLASSIFY, handle)
    page.set_input_files("#file", photo)
    page.locator("#result").wait_for()
    for _ in range(100):
        if not held:
            page.wait_for_timeout(20)
    page.locator("#coverage").press("Home")
    page.locator("#set-words").get_by_text("For at least 50 of 100").wait_for()
    assert page.locator("#working").is_visible()
    held[0].fulfill(json=answer())
    page.locator("#map").wait_for()
    assert page.locator("#working").is_hidden()


def test_a_coverage_that_changes_while_an_image_is_asked_about_holds_for_its_answer(visit, bare, photo, tmp_path):
    picture(2, (10, 20, 200)).save(tmp_path / "second.png")
    held: list[Any] = []

    def handle(route: Any) -> None:
        if held == [None]:
            held[0] = route  # the first request of the second image waits
        else:
            route.fulfill(json=answer(predictions=[{"label": "second" if held else "first", "score": 0.5}]))

    page = visit(bare, canned=SERVED)
    page.route(CLASSIFY, handle)
    page.set_input_files("#file", photo)
    page.locator("#map").wait_for()
    held.append(None)
    page.set_input_files("#file", tmp_path / "second.png")
    until(page, "document.getElementById('said').textContent === 'Asking the model.'")
    page.locator("#coverage").press("Home")
    page.locator("#verdict").get_by_text("second").wait_for()
    assert "For at least 50 of 100" in page.locator("#set-words").text_content()


def test_a_late_answer_does_not_replace_that_of_a_newer_image(visit, bare, photo, tmp_path) -> None:
    picture(2, (10, 20, 200)).save(tmp_path / "second.png")
    page = visit(bare, canned=SERVED)
    held: list[Any] = []

    def handle(route: Any) -> None:
        if not held:
            held.append(route)  # the first request waits
        else:
            route.fulfill(json=answer(predictions=[{"label": "second", "score": 0.5}]))

    page.route(CLASSIFY, handle)
    page.set_input_files("#file", photo)
    until(page, "document.getElementById('said').textContent === 'Asking the model.'")
    page.set_input_files("#file", tmp_path / "second.png")
    page.locator("#verdict").get_by_text("second").wait_for()
    held[0].fulfill(json=answer(predictions=[{"label": "first", "score": 0.5}]))
    page.wait_for_timeout(100)
    assert page.locator("#verdict").text_content() == "second"


def test_the_page_works_below_a_prefix(visit, bare, photo) -> None:
    page = visit(f"{bare}birds/", canned={"**/birds/v1/models": [(200, models(), {})], CLASSIFY: [(200, answer(), {})]})
    page.set_input_files("#file", photo)
    page.locator("#map").wait_for()
    assert "/birds/v1/classify?" in page.asked[0].url


def test_a_number_is_no_percentage(visit, bare, photo) -> None:
    served = models(model(problem_type="regression", classes=["age"], heads=["class"]))
    number = answer(predictions=[{"label": "age", "score": 31.4159}], set=None, interval=[28.0, 35.0], heads=None)
    page = visit(bare, canned={MODELS: [(200, served, {})], CLASSIFY: [(200, number, {})]})
    page.set_input_files("#file", photo)
    page.get_by_text("age: 31.42").wait_for()
    assert "Between 28.00 and 35.00." in page.locator("#set-words").text_content()
    assert "%" not in page.locator("#top").text_content()


def test_a_file_that_is_no_image_is_refused_in_plain_words(visit, server, tmp_path) -> None:
    path = tmp_path / "notes <script>alert(1)<'script'>.jpg"
    path.write_text("no image")
    page = visit(server)
    page.set_input_files("#file", path)
    alert(page, "The server cannot read this file as an image.")
    assert page.locator("#no-picture").is_visible()
    assert page.locator("#result").is_hidden()
    assert page.locator("main script").count() == 0


def test_the_canned_answers_are_those_of_the_server(visit, server, photo) -> None:
    page = visit(server)
    with page.expect_response("**/v1/classify*explain*") as explained:
        page.set_input_files("#file", photo)
    real, canned = explained.value.json(), answer()
    assert set(canned) <= set(real)
    assert {"image", "predictions", "calibrated", "outlier_score", "is_outlier", "explanation"} <= set(
        real["results"][0]
    )
    assert set(result()["explanation"]) <= set(real["results"][0]["explanation"])
    kept = page.evaluate("fetch('v1/models').then(r => r.json())")
    assert set(models()) <= set(kept)
    assert set(model()) <= set(kept["models"][0])
