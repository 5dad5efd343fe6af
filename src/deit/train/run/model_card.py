"""The page that a model directory is read by: `README.md`, as the model hub shows it."""

from __future__ import annotations

import json
import shlex
from typing import Any

from torch import nn

from deit.core.file_names import CURVES_NAME, RECONSTRUCTION_NAME
from deit.core.labels import distinct_names
from deit.core.printable import counted, markdown_code, markdown_text, printable
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.metrics import score_text, score_title
from deit.models.pretrained import PreTrainedModel

_SHOWN_CLASSES = 10


def model_card(
    name: str, student: nn.Module, classes: list[str], processor: DeiTImageProcessor, record: dict[str, Any]
) -> str:
    """Returns what a model is, how it came about, how good it is and how it is used: metadata in YAML, then Markdown.

    Args:
        name: Of the model, as the heading.
        student: A model of this package or of timm.
        classes: Class names; none for a model of masked images.
        processor: The student's preprocessing.
        record: Of `training.json`.
    """
    import yaml

    own = isinstance(student, PreTrainedModel)
    metadata: dict[str, Any] = {
        "library_name": "transformers" if own else "timm",  # what the hub can open the files with
        "tags": ["deit", *(["distillation"] if record["teacher"] else []), *([] if classes else ["simmim"])],
    }
    if classes:
        metadata |= {"pipeline_tag": "image-classification", "metrics": sorted(_metrics(record))}
    count = sum(parameter.numel() for parameter in student.parameters())
    height, width = processor.output_size
    what = type(student).__name__ if own else f"{student.pretrained_cfg['architecture']} of timm"  # type: ignore[index]
    size = f"{count / 1e6:.1f} million parameters, for images of {width} x {height} pixels"
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {markdown_text(name)}",
        f"{markdown_code(what)}, {size}. {_origin(record, classes)}",
        _merging(student),
        _classes(classes) if classes else "",
        f"## Scores\n\n{_scores(record, classes)}",
        f"## Use\n\n{_use(name, own, classes)}",
        f"## Training\n\n{_training(record)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metrics(record: dict[str, Any]) -> set[str]:
    scores: dict[str, Any] = next(iter(record["scores"].values()), {})
    return {"accuracy" if key in ("top1", "top5") else key for key in scores if key not in ("images", "loss")}


def _origin(record: dict[str, Any], classes: list[str]) -> str:
    data = record["data"]
    images = counted(data["train_images"], "image")
    if not classes:
        return (
            f"{_beginning(record)}It learned from {images} without labels, by reconstructing hidden patches (SimMIM)."
        )
    if "train_labels" in data:
        images += f", of which {data['train_labels']} have a label,"
    taught = f" and from the teacher {markdown_code(record['teacher'])}" if record["teacher"] else ""
    return f"{_beginning(record)}It learned from {images}{taught}."


def _beginning(record: dict[str, Any]) -> str:
    init = record["recipe"].get("init")
    return f"It began with the weights {markdown_code(init)}. " if init else ""


def _merging(student: Any) -> str:
    merged = student.config.token_merging if isinstance(student, PreTrainedModel) else {}
    if not merged:
        return ""
    return (
        f"It merges similar patch tokens (`token_merging` of `config.json`: `{json.dumps(merged)}`); the scores are "
        "those with merging. transformers ignores the field: there it is slower, and its answers differ a little."
    )


def _classes(classes: list[str]) -> str:
    shown = ", ".join(markdown_code(name) for name in distinct_names(classes)[:_SHOWN_CLASSES])
    more = f" and {len(classes) - _SHOWN_CLASSES} more (`config.json`)" if len(classes) > _SHOWN_CLASSES else ""
    return f"{counted(len(classes), 'class', 'classes')}: {shown}{more}."


def _scores(record: dict[str, Any], classes: list[str]) -> str:
    parts = [_measured(record)] if record["scores"] else ["No images were held out to measure on."]
    pictures = [f"![Losses and scores over the epochs]({CURVES_NAME})"]
    if not classes:
        pictures.append(f"![Images, what the model sees of them, what it makes of that]({RECONSTRUCTION_NAME})")
    return "\n\n".join([*parts, *record.get("notes", ()), *_out_of_fold(record), *pictures])


def _out_of_fold(record: dict[str, Any]) -> list[str]:
    """Returns what models of folds scored, which learned in the same way from parts of the images."""
    found = record.get("out_of_fold")
    if not found:
        return []
    intervals = found["intervals"]
    names = [name for name in found if name not in ("folds", "images", "intervals", "epoch_chosen")]
    shown = ", ".join(f"{score_title(name)} {_cell(name, found[name], intervals)}" for name in names)
    return [
        f"Out-of-fold, by {found['folds']} models that learned in the same way, each about the images that it did not "
        f"learn from: {shown}; {counted(found['images'], 'image')}."
    ]


def _measured(record: dict[str, Any]) -> str:
    """Returns the table of scores, each share of images with its 95 % interval, and what they were measured on."""
    rows, intervals = record["scores"], record.get("intervals", {})
    columns = [name for name in next(iter(rows.values())) if name != "images"]
    cells = {
        head: [_cell(name, values[name], intervals.get(head, {})) for name in columns] for head, values in rows.items()
    }
    lines = [
        f"| head | {' | '.join(map(score_title, columns))} |",
        "|---" * (len(columns) + 1) + "|",
        *(f"| {head} | {' | '.join(shown)} |" for head, shown in cells.items()),
    ]
    images = counted(record["data"]["val_images"], "image")
    weights = {"average": "the average of the weights", "best": "the weights of the best evaluation"}
    with_weights = weights.get(record["weights"], "the last weights")
    return "\n".join(lines) + f"\n\nMeasured on {images}{_met_before(record)}, with {with_weights}."


def _cell(name: str, value: float, intervals: dict[str, Any]) -> str:
    low, high = intervals.get(name, (None, None))
    return score_text(name, value) + ("" if low is None else f" ({low:.1f} to {high:.1f})")


def _met_before(record: dict[str, Any]) -> str:
    """Says of the validation images whether they are new to the model."""
    seen = (record.get("images") or {}).get("validation") or {}
    known = {
        "the model was itself trained on": seen.get("learnt", 0),
        "the weights it began with were trained on": seen.get("initial", 0),
        "its teacher was trained on": seen.get("taught", 0),
    }
    parts = [f"{count} of which {words}" for words, count in known.items() if count]
    return f" ({'; '.join(parts)})" if parts else " that it did not learn from"


def _use(name: str, own: bool, classes: list[str]) -> str:
    if printable(name) != name or "`" in name:  # no command and no code block can hold it
        name = "MODEL"
    word = shlex.quote(name)
    if not classes:
        return f"The start of a classifier:\n\n```bash\ndeit train DATA --init {word} --out classifier\n```"
    command = f"```bash\ndeit classify {word} photo.jpg\n```"
    if not own:
        return command
    code = [
        "from deit import pipeline  # or: from transformers import pipeline",
        "",
        f'classify = pipeline("image-classification", model={json.dumps(name, ensure_ascii=False)})',
        'print(classify("photo.jpg"))',
    ]
    return "\n".join([command, "", "```python", *code, "```"])


def _training(record: dict[str, Any]) -> str:
    recipe = record["recipe"]
    epochs, batch = recipe["schedule"]["epochs"], recipe["batch_size"]
    early = ", stopped early" if "stopped_early" in record or recipe["schedule"].get("stop_epoch") else ""
    processes = counted(record["processes"], "process", "processes")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"{counted(epochs, 'epoch')}{early}, {counted(record['steps'], 'step')} of {counted(batch, 'image')}, "
        f"seed {recipe['seed']}, {processes} on "
        f"{markdown_text(record['device'])}. All settings are in `recipe.yaml`, every evaluation in `metrics.csv`, "
        f"fingerprints of the images in `training.json`. Written with {versions}."
    )
