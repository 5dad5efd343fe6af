"""`deit.Client` and `deit.AsyncClient` against a server that does what each test says."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
from PIL import Image

import deit
from deit.client import budget as budgets, errors
from deit.core.errors import ImageError, UserError
from tests.client import scripted_server as server
from tests.client.scripted_server import good, json_reply, label_of, refusal, reply, scripted


def photo(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def unreadable(message: str) -> dict[str, object]:
    return {"error": {"reason": "unreadable_image", "message": message, "status": 422}}


def classify(kind: str, url: str, images, call=None, **settings):
    """Asks with either client; the tests that take `kind` hold for both."""
    if kind == "sync":
        with deit.Client(url, **settings) as client:
            return client.classify(images, **(call or {}))

    async def ask():
        async with deit.AsyncClient(url, **settings) as client:
            return await client.classify(images, **(call or {}))

    return asyncio.run(ask())


def broken(change):
    def tell(received):
        values = server.good_values(received)
        change(values)
        return json_reply(200, values)

    return tell


both = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(budgets, "_FIRST_PAUSE", 0.01)


# --- what it loads ------------------------------------------------------------------------------------


def test_asking_a_server_loads_no_framework():
    code = (
        "import sys, deit\n"
        "deit.Client('http://127.0.0.1:1').close(); deit.AsyncClient\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'torchvision', 'timm', 'keras', 'rich', "
        "'typer', 'transformers', 'pyarrow', 'openvino', 'onnxruntime'}))\n"
        "print(sorted({'.'.join(m.split('.')[:2]) for m in sys.modules if m.startswith('deit.')}))"
    )
    told = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert told.stdout.splitlines() == ["[]", "['deit.client', 'deit.core']"], told.stderr


def test_without_httpx2_it_says_how_to_install_it():
    code = "import sys; sys.modules['httpx2'] = None; import deit; deit.Client"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.stderr.splitlines()[-1].endswith('Install it with: pip install "deit[client]"')


# --- images and results -------------------------------------------------------------------------------


@both
def test_one_image_gives_its_predictions_and_several_a_list_in_their_order(kind, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(photo(1))
    with scripted() as running:
        one = classify(kind, running.url, str(path))
        several = classify(kind, running.url, [photo(i) for i in range(40)], {"batch_size": 7})
    assert [(p.label, p.score) for p in one] == [(label_of(photo(1)), 0.75), ("other", 0.25)]
    assert (one.name, one.error, one.judgement, one.origin.model, one.origin.version) == (
        str(path), "", None, "birds", "1",
    )  # fmt: skip
    assert [told[0].label for told in several] == [label_of(photo(i)) for i in range(40)]
    assert sorted(len(request.files) for request in running.received) == [1, 5, *[7] * 5]


def test_every_kind_of_image_is_sent_as_the_pixels_that_the_predictor_would_see(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    grey = pixels[:, :, 0]
    picture = Image.fromarray(pixels)
    path = tmp_path / "a.png"
    picture.save(path)
    text = base64.b64encode(path.read_bytes()).decode()
    with path.open("rb") as opened, scripted() as running, deit.Client(running.url) as client:
        client.classify([path, opened, text, path.read_bytes(), picture, pixels, np.moveaxis(pixels, 2, 0), grey])
    sent = [np.asarray(Image.open(io.BytesIO(content))) for _, content in running.received[0].files]
    for values in sent[:7]:
        assert np.array_equal(values, pixels)
    assert np.array_equal(sent[7], np.stack([grey] * 3, 2))


def test_pil_images_of_other_modes_travel_as_the_core_reads_them():
    pictures = [
        Image.new("CMYK", (4, 4), (9, 80, 200, 30)),
        Image.new("RGBA", (4, 4), (9, 80, 200, 30)),
        Image.new("P", (4, 4), 3),
    ]
    with scripted() as running, deit.Client(running.url) as client:
        client.classify(pictures)
    for picture, (_, content) in zip(pictures, running.received[0].files, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(deit.load_image(picture)))


def test_the_server_learns_no_path_and_is_asked_what_was_wished():
    wishes = {"top_k": 3, "coverage": 95, "abstain": True, "heads": True, "embedding": True, "explain": "relevance"}
    with scripted() as running, deit.Client(running.url, token="secret", model="birds", version="2") as client:
        client.classify([photo(1)], **wishes)
    (request,) = running.received
    assert (request.method, request.path) == ("POST", "/v1/classify")
    assert request.query == {
        "model": "birds", "version": "2", "top_k": "3", "coverage": "95", "sets": "lac", "abstain": "true",
        "heads": "true", "embedding": "true", "explain": "relevance",
    }  # fmt: skip
    assert request.headers["authorization"] == "Bearer secret"
    assert [name for name, _ in request.files] == ["image-0"]


def test_all_that_a_server_tells_is_in_the_result():
    def tell(received):
        values = server.good_values(received)
        values["results"][0] |= {
            "calibrated": True, "set": ["cat", "dog"], "outlier_score": 1.5, "is_outlier": True, "named": ["cat"],
            "heads": {"class": [{"label": "cat", "score": 0.5}], "distillation": [{"label": "dog", "score": 0.4}]},
            "embedding": [0.5, 1], "explanation": {"method": "relevance", "grid": [14, 14]},
        }  # fmt: skip
        return json_reply(200, values)

    with scripted(tell) as running:
        told = classify("sync", running.url, photo(1))
    assert (told.judgement.prediction_set, told.judgement.is_outlier) == (("cat", "dog"), True)
    assert told.judgement.named == ("cat",)
    assert {head: rows[0].label for head, rows in told.heads.items()} == {"class": "cat", "distillation": "dog"}
    assert told.embedding.tolist() == [0.5, 1.0]
    assert told.explanation["grid"] == [14, 14]
    assert told.origin.timing_ms == {"total": 1.5}


def test_a_coverage_of_other_sets_is_asked_for():
    with scripted() as running:
        classify("sync", running.url, photo(1), {"coverage": deit.Coverage(percent=90, sets="aps", per_class=True)})
    wanted = {"coverage": "90", "sets": "aps", "per_class": "true"}
    assert wanted.items() <= running.received[0].query.items()


def test_an_answer_of_a_server_that_was_overloaded_says_so():
    with scripted(broken(lambda values: values["results"][0].update(merged=8))) as running:
        assert classify("sync", running.url, photo(1)).merged == 8
        assert classify("sync", running.url, photo(1)).merged == 0


@both
def test_a_model_whose_answers_are_no_numbers_is_an_error_of_the_server(kind):
    error = {"error": {"reason": "no_number", "message": "The model answers with NaN.", "status": 500}}
    failed = json_reply(500, {"results": [{"image": "image-0", **error}]})
    with scripted(failed) as running, pytest.raises(errors.RefusedError, match="The model answers with NaN") as caught:
        classify(kind, running.url, [photo(1)])
    assert caught.value.reason == "no_number"


def test_a_model_that_abstains_names_no_class():
    def abstain(received):
        result = {"image": "image-0", "predictions": [], "calibrated": True, "set": [], "abstained": "2 are possible"}
        return json_reply(200, {"results": [result]})

    with scripted(abstain) as running:
        told = classify("sync", running.url, photo(1), {"abstain": True})
    assert (list(told), told.abstained) == ([], "2 are possible")
    with pytest.raises(IndexError, match="2 are possible"):
        told[0]


@both
def test_images_that_cannot_be_read_here_have_an_error_in_their_place(kind, tmp_path):
    with scripted() as running:
        told = classify(kind, running.url, [photo(1), tmp_path / "none.png", b"", photo(2)])
        with pytest.raises(FileNotFoundError):
            classify(kind, running.url, tmp_path / "none.png")
        with pytest.raises(FileNotFoundError):
            classify(kind, running.url, [photo(1), tmp_path / "none.png"], {"strict": True})
        with pytest.raises(ImageError, match="a folder"):
            classify(kind, running.url, tmp_path)
        with pytest.raises(ImageError, match="web address"):
            classify(kind, running.url, "http://example.org/a.png")
    assert [result.error for result in told] == [
        "",
        f"{tmp_path}/none.png is not there.",
        "standard input is empty.",
        "",
    ]
    assert told[3][0].label == label_of(photo(2))
    assert len(running.received[0].files) == 2


@both
def test_images_that_the_server_cannot_read_have_its_error_under_their_name(kind, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"no image")

    def tell(received):
        values = server.good_values(received)
        values["results"][1] = {"image": "image-1", "predictions": [], **unreadable("The image is not an image.")}
        return json_reply(200, values)

    alone = {"image": "image-0", **unreadable("The image is not an image.")}
    refused = json_reply(422, {"results": [alone]})
    with scripted(tell, refused) as running:
        told = classify(kind, running.url, [photo(1), path])
        with pytest.raises(ImageError, match=f"^{path} is not an image.$"):
            classify(kind, running.url, path)
    assert [result.error for result in told] == ["", f"{path} is not an image."]


@both
def test_a_request_that_is_too_large_is_sent_in_halves(kind):
    def at_most_two(received):
        return refusal(413, "too_many_images") if len(received.files) > 2 else good(received)

    images = [photo(i) for i in range(9)]
    with scripted(then=at_most_two) as running:
        told = classify(kind, running.url, images)
    assert [result[0].label for result in told] == [label_of(image) for image in images]


@both
def test_an_image_that_is_too_large_alone_has_an_error_and_the_others_answers(kind):
    def small(received):
        too_large = any(content == photo(3) for _, content in received.files)
        return refusal(413, "too_many_pixels", "The image has 10^9 pixels.") if too_large else good(received)

    with scripted(then=small) as running:
        told = classify(kind, running.url, [photo(i) for i in range(5)])
    assert [result.error for result in told] == ["", "", "", "standard input has 10^9 pixels.", ""]


def test_requests_have_a_limit_of_bytes():
    images = [photo(i) for i in range(6)]
    with scripted() as running, deit.Client(running.url, batch_bytes=2 * len(photo(0)) + 50) as client:
        client.classify(images)
    assert [len(request.files) for request in running.received] == [2, 2, 2]


def test_results_are_yielded_while_later_images_are_still_unread():
    def endless():
        yield photo(1)
        yield photo(2)
        pytest.fail("the third image was asked for too early")

    with scripted() as running, deit.Client(running.url) as client:
        results = client.classify_each(endless(), batch_size=2)
        assert next(results)[0].label == label_of(photo(1))


# --- refusals, retries, deadlines ---------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "fault",
    [refusal(429, "queue_full"), refusal(503, "starting"), server.RESET, server.CLOSE,
     reply(503, b"busy", "text/plain")],
    ids=["429", "503", "reset", "closed", "503 of a proxy"],
)  # fmt: skip
def test_what_is_safe_is_tried_again(kind, fault):
    with scripted(fault, fault) as running:
        told = classify(kind, running.url, photo(1))
    assert told[0].label == label_of(photo(1))
    assert len(running.received) == 3


@both
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 415, 422, 500, 502, 504])
def test_everything_else_is_not(kind, status):
    with scripted(refusal(status, "some_reason", "Because.")) as running, pytest.raises((UserError, OSError)):
        classify(kind, running.url, photo(1))
    assert len(running.received) == 1


@both
def test_a_refused_connection_is_tried_again_until_the_server_is_there(kind):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(errors.NoAnswerError, match=r"accepts no connection .* Gave up after 3 attempt\(s\)"):
        classify(kind, f"http://127.0.0.1:{port}", photo(1), retries=2)


@both
def test_retry_after_is_waited_for(kind):
    begin = time.monotonic()
    with scripted(refusal(429, "queue_full", Retry_After="1")) as running:
        classify(kind, running.url, photo(1))
    assert 1 <= time.monotonic() - begin < 3
    assert len(running.received) == 2


def test_a_date_of_retry_after_is_read_by_the_clock_of_the_server():
    then = datetime(2020, 1, 1, tzinfo=UTC)
    headers = {"Retry-After": format_datetime(then + timedelta(seconds=90), usegmt=True)}
    assert budgets.retry_after(headers) == 0  # by our own clock it is long past
    assert budgets.retry_after({**headers, "Date": format_datetime(then, usegmt=True)}) == 90
    future = datetime.now(UTC) + timedelta(seconds=30)
    assert budgets.retry_after({"Retry-After": format_datetime(future, usegmt=True)}) == pytest.approx(30, abs=2)


@pytest.mark.parametrize(
    ("text", "seconds"), [("3", 3), ("0", 0), ("1.5", 1.5), ("", None), ("soon", None), ("-1", None), ("1e9", None)]
)
def test_other_values_of_retry_after(text, seconds):
    assert budgets.retry_after({"Retry-After": text}) == seconds


@both
def test_a_wait_that_the_deadline_does_not_allow_is_not_begun(kind):
    begin = time.monotonic()
    refused = refusal(429, "queue_full", "100 images wait.", Retry_After="30")
    message = "100 images wait. The server asks to wait 30 s[.]"
    with scripted(refused) as running, pytest.raises(errors.ServerBusyError, match=message) as caught:
        classify(kind, running.url, photo(1), deadline=2)
    assert time.monotonic() - begin < 1
    assert (caught.value.status, caught.value.reason, caught.value.retry_after) == (429, "queue_full", 30)


@both
def test_a_server_that_stays_silent_ends_with_the_deadline(kind):
    begin = time.monotonic()
    with scripted(server.SILENCE) as running, pytest.raises(TimeoutError, match=r"no answer after 0\.5 s"):
        classify(kind, running.url, photo(1), deadline=0.5)
    assert 0.5 <= time.monotonic() - begin < 2


def test_the_server_is_told_what_is_left_of_the_deadline():
    with scripted(refusal(503, "starting", Retry_After="1")) as running, deit.Client(running.url, deadline=5) as client:
        client.classify(photo(1))
    first, second = (int(request.headers["x-deadline-ms"]) for request in running.received)
    assert 4500 < first <= 5000
    assert second <= first - 1000


def test_pauses_are_random_and_grow_to_a_limit(monkeypatch):
    monkeypatch.setattr(budgets, "_FIRST_PAUSE", 0.1)
    monkeypatch.setattr(budgets.random, "uniform", lambda low, high: high)
    budget = budgets.Budget(1000, 20)
    pauses = []
    for _ in range(8):
        budget.attempt()
        pauses.append(budget.pause(errors.NoAnswerError("refused")))
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


# --- answers that are none ----------------------------------------------------------------------------

GZIP_BOMB = gzip.compress(bytes(300 * 2**20), 1)


def swap(values):
    values["results"].reverse()


def not_a_number(values):
    values["results"][0]["predictions"][0]["score"] = float("nan")


@both
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (reply(200, b"<html>hello</html>", "text/html"), "not with JSON. Is it the address of a `deit serve`?"),
        (reply(200, b'{"results": ['), "it is no JSON"),
        (reply(200, b"[" * 100_000), "it is no JSON"),
        (json_reply(200, ["results"]), "answers with"),
        (json_reply(200, {}), "'results' is missing"),
        (json_reply(200, {"results": []}), "are not the results of 2 image"),
        (broken(swap), "a result is of 'image-1', where that of 'image-0' belongs"),
        (broken(not_a_number), "nan is no number"),
        (broken(lambda values: values["results"][0].pop("predictions")), "no list of predictions"),
        (broken(lambda values: values["results"][0].update(predictions=[])), "names no class"),
        (broken(lambda values: values["results"][0]["predictions"][0].pop("label")), "'label' is missing"),
        (reply(200, b'{"results"', Content_Length="1000", Connection="close"), "ends early"),
        (reply(200, b"not gzip", Content_Encoding="gzip"), "damaged"),
        (reply(200, GZIP_BOMB, Content_Encoding="gzip"), "has more than"),
        (b"SSH-2.0-OpenSSH_9.2\r\nInvalid SSH identification string.\r\n\r\n", "does not answer as HTTP"),
        (reply(302, b"", Location="https://login.example"), "sends on to 'https://login.example'"),
        (reply(404, b"<h1>Not Found</h1>", "text/html"), "is not there"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_refused_with_the_reason(kind, answer, message):
    with scripted(answer) as running, pytest.raises(UserError, match=message.replace("?", r"\?")):
        classify(kind, running.url, [photo(1), photo(2)])
    assert len(running.received) == 1


@both
def test_a_token_that_is_refused_or_missing(kind):
    refused = refusal(401, "unauthorized", "The token is wrong.")
    with scripted(then=lambda received: refused) as running:
        with pytest.raises(errors.RefusedError, match="does not accept the token") as caught:
            classify(kind, running.url, photo(1), token="wrong")
        with pytest.raises(errors.RefusedError, match="wants a token: pass token="):
            classify(kind, running.url, photo(1))
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8080", "ftp://host", "http://", "http://host:port", "http://host:99999", "http://user:word@host", 8080,
     "http://host/v1/classify", "http://host?top_k=3", "file:///etc/passwd"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_at_once(url):
    with pytest.raises(UserError, match="url"):
        deit.Client(url)


@both
def test_a_host_that_is_unknown_is_not_tried_again(kind, monkeypatch):
    def unknown(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    begin = time.monotonic()
    with pytest.raises(errors.UnreachableError, match="the host is unknown"):
        classify(kind, "http://no-such-host.invalid", photo(1), retries=50, deadline=5)
    assert time.monotonic() - begin < 2


@both
def test_a_server_without_https_is_not_tried_again(kind):
    message = "does not speak HTTPS"
    with scripted(then=lambda _: reply(400, b"")) as running, pytest.raises(errors.UnreachableError, match=message):
        classify(kind, running.url.replace("http:", "https:"), photo(1), retries=50, deadline=5)


@pytest.mark.parametrize(
    "settings",
    [{"deadline": 0}, {"deadline": float("inf")}, {"deadline": "5"}, {"retries": -1}, {"retries": 1.5},
     {"token": "a b"}, {"token": "a\r\nX-Evil: 1"}, {"token": ""}, {"batch_bytes": 0}],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        deit.Client("http://127.0.0.1:1", **settings)


@pytest.mark.parametrize(
    "call",
    [{"top_k": 0}, {"top_k": True}, {"batch_size": 0}, {"coverage": 0.95}],
)
def test_arguments_that_mean_nothing_are_refused_before_anything_is_sent(call):
    with scripted() as running, deit.Client(running.url) as client:
        with pytest.raises(UserError):
            client.classify([photo(1)], **call)
        with pytest.raises(UserError, match="uint8"):
            client.classify(np.zeros((4, 4, 3)))
        with pytest.raises(UserError, match="An image must be"):
            client.classify([3])
    assert running.received == []


# --- several at a time --------------------------------------------------------------------------------


def test_the_async_client_sends_several_requests_at_a_time_but_no_more_and_keeps_the_order():
    active, most, lock = 0, 0, threading.Lock()

    def slow(received):
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        time.sleep(0.05 if received.files[0][1] in images[::3] else 0.01)  # later ones overtake
        with lock:
            active -= 1
        return good(received)

    images = [photo(i) for i in range(24)]
    with scripted(then=slow) as running:
        told = classify("async", running.url, images, {"batch_size": 2}, concurrency=4)
    assert [result[0].label for result in told] == [label_of(image) for image in images]
    assert 2 <= most <= 4


def test_calls_at_the_same_time_share_the_limit_and_keep_their_answers():
    async def ask(url):
        async with deit.AsyncClient(url, concurrency=3) as client:
            calls = [client.classify([photo(i), photo(i + 1)]) for i in range(20)]
            return await asyncio.gather(*calls)

    with scripted() as running:
        told = asyncio.run(ask(running.url))
        assert running.connections <= 3
    assert [[result[0].label for result in results] for results in told] == [
        [label_of(photo(i)), label_of(photo(i + 1))] for i in range(20)
    ]


def test_a_refusal_ends_the_other_requests_of_a_call():
    def refuse(received):
        time.sleep(0.05)
        return refusal(400, "bad_option", "No such method.")

    with scripted(then=refuse) as running, pytest.raises(errors.RefusedError, match="No such method"):
        classify("async", running.url, [photo(i) for i in range(8)], {"batch_size": 1}, concurrency=2)
    assert len(running.received) <= 4


def test_threads_may_share_a_client():
    told = {}

    def ask(i):
        told[i] = client.classify(photo(i))[0].label

    with scripted() as running, deit.Client(running.url) as client:
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert told == {i: label_of(photo(i)) for i in range(8)}


def test_the_models_of_a_server():
    models = [{"name": "birds", "version": "1", "classes": ["a"]}]
    script = json_reply(200, {"models": models}), json_reply(200, {"models": 3})
    with scripted(*script) as running, deit.Client(running.url) as client:
        assert client.models() == models
        with pytest.raises(errors.DamagedAnswerError):
            client.models()
    assert [(request.method, request.path) for request in running.received] == [("GET", "/v1/models")] * 2
