"""The report: whole in itself, escaped, with every number and picture, for each kind of model."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from deit.data.readers.image_folder import ImageFolder
from deit.data.sources import ArraySource
from deit.evaluate import report as evaluation_report
from deit.evaluate.evaluation import evaluate_model
from deit.evaluate.html_page import image_uri
from deit.evaluate.report import check_report_path, write_evaluation_report
from deit.inference.predictor import Predictor
from tests.evaluate.evaluation_cases import (
    CLASSES,
    TableEngine,
    known_teacher,
    numbered_images,
    single_source,
    two_heads,
)


def wilson(percent: float, images: int) -> tuple[float, float]:
    ends = binomtest(round(percent * images / 100), images).proportion_ci(method="wilson")
    return 100 * ends.low, 100 * ends.high


class Page(HTMLParser):
    """Reads tags, their attributes and the text between them; unclosed tags are counted."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text = " ".join(f"{self.text} {data}".split())

    def pictures(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]


def written(tmp_path, runner, source, **options):
    teacher = options.pop("teacher", None)
    result = evaluate_model(Predictor(runner), source, batch_size=8, teacher=teacher)
    path = write_evaluation_report(tmp_path / "r.html", result, source, model="m", data="d", **options)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?:|@import|url\(|<script", text)  # asks for nothing else
    assert all(picture["src"].startswith("data:image/") and picture["alt"] for picture in page.pictures())
    return result, page


def test_a_report_shows_scores_classes_mistakes_and_how_it_was_made(tmp_path):
    source = single_source()
    result, page = written(
        tmp_path, two_heads(source), source, teacher=known_teacher(source), command="deit evaluate m d", notes=["Look."]
    )
    assert "Look." in page.text
    assert "deit evaluate m d" in page.text
    for head in [*result.heads.values(), result.teacher]:
        low, high = wilson(head.scores.top1, len(source.labels))
        assert f"{head.scores.top1:.2f} {low:.2f} to {high:.2f} {head.scores.top5:.2f}" in page.text
        assert f"{head.scores.loss:.3f}" in page.text
        assert f"{100 * head.calibration_error:.2f}" in page.text
    for pair, share in result.agreement.items():
        assert f"{pair.replace(', ', ' and ')} {share:.2f}" in page.text
    said, true = result.heads[result.head].picks, source.labels
    scores = precision_recall_fscore_support(true, said, labels=range(len(CLASSES)), zero_division=np.nan)
    for row, precision, recall, f1, images in zip(result.per_class(), *scores, strict=True):
        low, high = wilson(100 * recall, int(images))
        counted = f"{row['class']} {images} {row['right']} {100 * recall:.1f} {low:.1f} to {high:.1f}"
        assert f"{counted} {100 * precision:.1f} {100 * f1:.1f}" in page.text
    assert f"{result.temperature.temperature:.3f}" in page.text
    assert len(page.pictures()) == 3 + len(result.mistakes())
    worst = result.mistakes()[0]
    assert f"{worst.said} {100 * worst.size:.1f} % is {worst.true} image {worst.index}" in page.text
    assert "NaN" not in page.text


def test_a_report_shows_curves_settings_and_where_the_mistakes_are(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    Image.new("RGB", (60, 40), "blue").save(folder / "curves.png")
    (folder / "recipe.yaml").write_text("seed: 3\nstudent: <b>tiny</b>\n")
    (folder / "preprocessor_config.json").write_text('{"size": 77}')
    for i, name in enumerate(CLASSES):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (9, 9), (40 * i, 90 * k, 0)).save(tmp_path / "photos" / name / f"{k}.png")
    photos = ImageFolder(tmp_path / "photos")
    numbered = ArraySource(numbered_images(len(photos.labels)), photos.labels, CLASSES)
    wrong = np.eye(len(CLASSES))[(photos.labels + 1) % len(CLASSES)] * 5
    result = evaluate_model(Predictor(TableEngine({"class": wrong}, CLASSES)), numbered, batch_size=8)
    options = {"model": "m", "data": "d", "folder": folder}
    settings = {"batch size": "8", "head": "class"}
    write_evaluation_report(tmp_path / "r.html", result, photos, **options, settings=settings)
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert len(result.mistakes()) == len(photos.labels)
    for mistake in result.mistakes():
        name = CLASSES[photos.labels[mistake.index]]
        assert str(tmp_path / "photos" / name / f"{mistake.index % 2}.png") in page.text
    for shown in ("batch size 8", "head class", "seed: 3", "<b>tiny</b>", '{"size": 77}', "recipe.yaml"):
        assert shown in page.text
    assert "b" not in {tag for tag, _ in page.tags}
    assert [p["alt"] for p in page.pictures()].count("Losses and scores over the epochs of the training") == 1
    (folder / "curves.png").write_bytes(b"no picture")
    write_evaluation_report(tmp_path / "r.html", result, photos, **options)
    assert "How it was trained" not in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_names_are_text_and_never_tags(tmp_path):
    names = ["<b>bold</b>", "a & b", '"quoted"', "<script>alert(1)</script>"]
    source = single_source(classes=names)
    _, page = written(tmp_path, two_heads(source), source, command="deit evaluate '<i>' d", notes=["<u>"])
    assert not {"b", "script", "i", "u"} & {tag for tag, attributes in page.tags if not attributes}
    for name in [*names, "<i>", "<u>"]:
        assert name in page.text


@pytest.mark.parametrize(("count", "pictures"), [(50, 2), (51, 1)])
def test_above_50_classes_the_confused_pairs_replace_the_picture(tmp_path, count, pictures):
    source = single_source(classes=[f"class number {i}" for i in range(count)])
    result, page = written(tmp_path, two_heads(source), source)
    assert len(page.pictures()) == 1 + pictures + len(result.mistakes())
    true, said, times = result.confused_pairs()[0]
    assert f"{true} {said} {times}" in page.text
    assert "Most often confused" in page.text


def test_images_without_an_answer_and_classes_without_images_are_shown_as_such(tmp_path):
    source = single_source()
    source.labels[source.labels == 2] = 1
    runner = two_heads(source)
    runner.tables["both"][:] = np.nan
    _, page = written(tmp_path, runner, source)
    assert "NaN" in page.text
    assert "both 0.00 0.00 to 3.66 0.00 0.00 to 3.66 - - 101" in page.text
    assert "cow 0 0 -" in page.text


def test_several_labels_have_precision_for_each_class_and_no_confusion(tmp_path):
    labels = (np.random.default_rng(0).random((40, 4)) < 0.4).astype(np.float32)
    source = ArraySource(numbered_images(40), labels, CLASSES, problem_type="multi_label_classification")
    table = np.random.default_rng(1).normal(size=(40, 4)) + labels
    result, page = written(tmp_path, TableEngine({"class": table}, CLASSES, source.problem_type), source)
    for row in result.per_class():
        said, true = table[:, CLASSES.index(row["class"])] > 0, labels[:, CLASSES.index(row["class"])] == 1
        precision, recall, f1, _ = precision_recall_fscore_support(true, said, average="binary")
        scores = f"{100 * precision:.1f} {100 * recall:.1f} {100 * f1:.1f}"
        assert f"{row['class']} {row['images']} {scores} {100 * row['average_precision']:.1f}" in page.text
    assert f"{100 * result.mean_average_precision:.2f} %" in page.text
    assert page.pictures() == []


def test_numbers_have_a_picture_of_errors_and_the_largest_of_them(tmp_path):
    true = np.linspace(-3, 3, 20).astype(np.float32)
    source = ArraySource(numbered_images(20), true, ["size"], problem_type="regression")
    said = (true + np.linspace(0, 1, 20) ** 2)[:, None]
    result, page = written(tmp_path, TableEngine({"class": said}, ["size"], "regression"), source)
    assert len(page.pictures()) == 1 + 20
    assert "4 is 3 , off by 1" in page.text
    assert f"{result.heads['class'].scores.mean_absolute_error:.3f}" in page.text


def test_large_images_become_thumbnails():
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    assert len(image_uri(Image.fromarray(noise))) < 60_000
    assert image_uri(Image.new("RGB", (8, 8))).startswith("data:image/png")


def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(IsADirectoryError, match=r"is a folder\. Pass a file"):
        check_report_path(tmp_path)
    with pytest.raises(FileNotFoundError, match="for the report does not exist"):
        check_report_path(tmp_path / "nowhere" / "r.html")
    check_report_path(tmp_path / "r.html")
    monkeypatch.setattr(evaluation_report, "find_spec", lambda name: None if name == "jinja2" else object())
    with pytest.raises(ModuleNotFoundError) as caught:
        check_report_path(tmp_path / "r.html")
    assert caught.value.name == "jinja2"
