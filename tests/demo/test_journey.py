"""The demo, made short: what it leaves behind, and that nothing but the teacher differs between the two students."""

import html.parser
import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from deit.cli.app import app
from deit.demo.journey import LABELS_PER_CLASS, digits_data, run_journey
from deit.demo.report import write_report


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    return run_journey(tmp_path_factory.mktemp("demo") / "out", teacher_epochs=3, student_epochs=3)


def test_the_images_are_all_1797_scans_and_training_never_sees_a_test_image() -> None:
    data = digits_data()
    assert (len(data.train.labels), len(data.val.labels)) == (100, 1697)
    assert np.bincount(data.train.labels).tolist() == [LABELS_PER_CLASS] * 10
    assert not set(data.train.indices) & set(data.val.indices)


def test_both_students_start_equal_and_take_equal_steps(journey) -> None:
    alone, distilled = (
        json.loads((run.out / "training.json").read_text()) for run in (journey.alone, journey.distilled)
    )
    assert alone["recipe"] | {"teacher": [str(journey.teacher.out)]} == distilled["recipe"]
    assert alone["steps"] == distilled["steps"] == 6
    assert alone["data"]["train_fingerprint"] == distilled["data"]["train_fingerprint"]
    assert (alone["teacher"], distilled["teacher"]) == (None, str(journey.teacher.out))
    one, two = (load_file(run.out / "model.safetensors") for run in (journey.alone, journey.distilled))
    assert any(not np.array_equal(one[name], two[name]) for name in one)


def test_the_table_has_the_teacher_and_each_head_of_both_students(journey) -> None:
    rows = [(name, head) for name, head, _, _ in journey.table()]
    heads = ("class", "distillation", "both")
    students = [(name, head) for name in ("student, labels alone", "student, distilled") for head in heads]
    assert rows == [("teacher", "class"), *students]
    assert all(0 <= top1 <= 100 for _, _, top1, _ in journey.table())


def test_the_held_out_image_was_classified_by_the_saved_model(journey) -> None:
    assert journey.held_out.is_file()
    assert journey.held_out_label in journey.held_out.name
    runner = CliRunner()
    result = runner.invoke(app, ["classify", str(journey.distilled.out), str(journey.held_out), "--json"])
    said = json.loads(result.stdout)[0]["predictions"]
    assert [p["label"] for p in said] == [p.label for p in journey.answer.predictions]
    assert [p["score"] for p in said] == pytest.approx([p.score for p in journey.answer.predictions], abs=1e-5)


class _Sources(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href") and value]


def test_the_report_needs_nothing_but_itself(journey) -> None:
    text = write_report(journey).read_text()
    page = _Sources()
    page.feed(text)
    assert len(page.links) == 1 + 1 + 40 + 3 * 5  # curves, held-out image, grid, maps
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    for _, _, top1, _ in journey.table():
        assert f"{top1:.2f}" in text
    gain = journey.distilled.scores["both"].top1 - journey.alone.scores["both"].top1
    assert f"changed by {gain:+.2f} points in this run" in text


def test_a_folder_that_is_not_empty_is_refused(tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds files already" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
