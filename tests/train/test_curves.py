"""The picture of a run: what is drawn, on which axes, and what is marked."""

from __future__ import annotations

from typing import Any

import matplotlib.figure
import pytest
from PIL import Image

from deit.train.run.curves import draw_curves


def rows(epochs: int, *, flat: bool = False, **more: Any) -> list[dict[str, Any]]:
    """A run whose accuracy is best in the epoch before the last."""
    made = []
    for epoch in range(1, epochs + 1):
        share = min(epoch, 2 * epochs - 2 - epoch) / epochs
        row = {"epoch": epoch, "step": 10 * epoch, "train_loss": 2 - share, "val_loss": 1.5 - share}
        row |= {"val_top1": 80 + share if flat else 90 * share, "val_class_top1": 70 + share if flat else 80 * share}
        made.append({**row, "val_top5": 100.0, "seconds": 1.0, **more})
    return made


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws, and returns the figure that was saved."""
    figures: list[Any] = []
    save = matplotlib.figure.Figure.savefig

    def watched(figure: Any, *args: Any, **kwargs: Any) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    def draw(runs: Any, **options: Any) -> Any:
        monkeypatch.setattr(matplotlib.figure.Figure, "savefig", watched)
        draw_curves(runs, tmp_path / "curves.png", **options)
        with Image.open(tmp_path / "curves.png") as picture:
            assert picture.format == "PNG"
        return figures[-1]

    return draw


def lines(axis: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axis.get_lines() if not line.get_label().startswith("_")}


def test_labels_are_words_and_training_is_told_from_validation(drawn):
    losses, scores = drawn({"": rows(5, train_class_loss=1.0, train_distillation_loss=2.0)}).axes
    shown = lines(losses)
    assert list(shown) == [
        "training", "validation", "training, loss on labels", "training, loss on the teacher",
    ]  # fmt: skip
    assert (shown["training"].get_linestyle(), shown["validation"].get_linestyle()) == ("--", "-")
    assert shown["training"].get_color() != shown["validation"].get_color()
    assert list(lines(scores)) == ["the model's answer", "class head alone", "best: 72.0 % at epoch 4"]
    assert (losses.get_ylabel(), scores.get_ylabel(), scores.get_xlabel()) == (
        "loss (nats)", "top-1 accuracy (%)", "epoch",
    )  # fmt: skip


def test_axes_are_whole_and_epochs_are_whole_numbers(drawn):
    losses, scores = drawn({"": rows(3)}).axes
    assert scores.get_ylim() == (0.0, 100.0)
    assert losses.get_ylim()[0] == 0.0
    for axis in (losses, scores):
        assert all(float(tick).is_integer() for tick in axis.get_xticks())
        assert axis.child_axes == []  # nothing is flat: no inset


def test_what_is_nearly_flat_is_shown_larger_beside_the_whole(drawn):
    _, scores = drawn({"": [{**row, "val_class_top1": row["val_top1"] - 1} for row in rows(20, flat=True)]}).axes
    (inset,) = scores.child_axes
    low, high = inset.get_ylim()
    later = [row["val_top1"] - shift for row in rows(20, flat=True)[9:] for shift in (0, 1)]
    assert low < min(later) < max(later) < high < 82
    assert inset.get_xlim() == (10.0, 20.0)
    assert scores.get_ylim() == (0.0, 100.0)


def test_the_best_epoch_is_marked_where_less_is_better_too(drawn):
    numbers = [
        {"epoch": e, "step": e, "train_loss": 1.0, "val_mean_absolute_error": m} for e, m in enumerate([3, 1, 2], 1)
    ]
    _, errors = drawn({"": numbers}).axes
    assert "best: 1 at epoch 2" in lines(errors)
    (masked,) = drawn({"": [{k: v for k, v in row.items() if "top" not in k} for row in rows(4)]}).axes
    assert "best: 0.75 at epoch 3" in lines(masked)
    assert masked.get_ylabel() == "mean absolute error"


def test_several_runs_show_one_curve_each_under_their_names(drawn):
    losses, scores = drawn({"teacher": rows(4), "costs $5 or $6": rows(4)}, over="step").axes
    assert list(lines(losses)) == list(lines(scores)) == ["teacher", "costs $5 or $6"]
    assert losses.get_title(loc="left") == "Training loss"
    colors = [line.get_color() for line in lines(scores).values()]
    assert colors == [line.get_color() for line in lines(losses).values()]
    assert len(set(colors)) == 2


def test_one_epoch_is_a_point_and_no_epoch_an_empty_picture(drawn):
    losses, scores = drawn({"": rows(1)}).axes
    assert {line.get_marker() for axis in (losses, scores) for line in lines(axis).values()} == {"o"}
    assert len(drawn({"": []}).axes) == 1
