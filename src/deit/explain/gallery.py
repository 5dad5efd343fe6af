"""Writes explained images: pictures, arrays and JSON for each, and one picture that shows all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deit.core.files import replaced_file, write_json_atomically
from deit.core.printable import printable
from deit.explain.explainer import ExplainedImage
from deit.explain.maps import METHODS
from deit.explain.overlay import color_bar

PAGE_NAME, SHEET_NAME = "index.html", "contact-sheet.png"
_TILE, _GAP, _TEXT = 192, 8, 30  # pixels of the contact sheet
_MOST_ROWS = 100  # of the contact sheet; the page shows all


@dataclass(frozen=True, kw_only=True)
class Written:
    """The files of one image, by their names in the folder.

    Attributes:
        explained: The image.
        pictures: For each head the map over the original image and over what the model sees; the first is the second
            where the original is not known.
        array: `.npy` file of `ExplainedImage.array`.
        values: `.json` file of `ExplainedImage.to_dict`.
    """

    explained: ExplainedImage
    pictures: dict[str, tuple[str, str]]
    array: str
    values: str


def file_stem(name: str, number: int) -> str:
    """Returns how the files of an image begin: its number and the letters of its name that every file system takes.

    Args:
        name: Path of the image.
        number: Counted from 1, so that two images of one name keep apart.
    """
    letters = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePath(name).stem)[:60].strip("-")
    return f"{number:04d}-{letters or 'image'}"


def write_explained(folder: Path, explained: ExplainedImage, stem: str) -> Written:
    """Writes pictures, array and JSON of one image; each file appears whole or not at all.

    Args:
        folder: Must exist.
        explained: The image.
        stem: See `file_stem`.

    Raises:
        WritingError: A file cannot be written.
    """
    pictures = {}
    for head in explained.explanation.heads:
        names = (f"{stem}.{head}.png", f"{stem}.{head}.seen.png")
        for name, original in zip(names, (True, False), strict=True):
            _save(folder / name, explained.draw(head, original=original))
        pictures[head] = names
    array, values = f"{stem}.npy", f"{stem}.json"
    with replaced_file(folder / array) as temporary, temporary.open("wb") as file:
        np.save(file, explained.array())
    write_json_atomically(folder / values, {**explained.to_dict(), "array": array, "pictures": pictures})
    return Written(explained=explained, pictures=pictures, array=array, values=values)


def _save(path: Path, picture: Image.Image) -> None:
    with replaced_file(path) as temporary:
        picture.save(temporary, format="PNG")


def page_values(written: Sequence[Written], model: str, command: str) -> dict[str, Any]:
    """Returns what the template `gallery.html.j2` shows.

    Args:
        written: The images.
        model: Name of the model.
        command: The command line.
    """
    first = written[0].explained.explanation
    method = METHODS[first.method]
    rows = [
        {
            "name": each.explained.name,
            "label": each.explained.explanation.label,
            "heads": [
                {
                    "name": head, "label": maps.label, "probability": f"{100 * maps.probability:.1f}",
                    "over_original": each.pictures[head][0], "seen": each.pictures[head][1],
                    "verdict": each.explained.scores[head].describe() if head in each.explained.scores else "",
                }
                for head, maps in each.explained.explanation.heads.items()
            ],
            "json_file": each.values, "array_file": each.array,
        }
        for each in written
    ]  # fmt: skip
    notes = sorted({note for each in written for note in each.explained.explanation.notes})
    return {
        "model": model, "command": command, "title": method.title, "source": method.source, "rows": rows,
        "depends_on_class": method.depends_on_class, "signed": method.signed, "notes": notes, "sheet": SHEET_NAME,
    }  # fmt: skip


def write_contact_sheet(path: Path, written: Sequence[Written]) -> None:
    """Writes one picture: a row for each image with what the model sees, and the map of each head.

    Args:
        path: Of the PNG file.
        written: The images; of more than 100 the first ones.

    Raises:
        WritingError: It cannot be written.
    """
    shown = written[:_MOST_ROWS]
    columns = 1 + max(len(each.pictures) for each in shown)
    size = (_GAP + columns * (_TILE + _GAP), _GAP + len(shown) * (_TILE + _TEXT + _GAP) + _TEXT)
    sheet = Image.new("RGB", size, "white")
    for number, each in enumerate(shown):
        top = _GAP + number * (_TILE + _TEXT + _GAP)
        _tile(sheet, 0, top, each.explained.seen, [PurePath(each.explained.name).name, "as the model sees it"])
        for column, (head, maps) in enumerate(each.explained.explanation.heads.items(), start=1):
            score = each.explained.scores.get(head)
            words = f"{head}: {maps.label} {100 * maps.probability:.0f} %"
            verdict = "" if score is None else f"{score.score:+.2f}, {score.verdict} than random"
            if score is not None and score.verdict == "unknown":
                verdict = "not judged"
            _tile(sheet, column, top, each.explained.draw(head, original=False), [words, verdict])
    bar = color_bar(_TILE, 10)
    sheet.paste(bar, (_GAP, size[1] - _TEXT + 4))
    _write(sheet, (_GAP + _TILE + _GAP, size[1] - _TEXT + 2), "least to most, of each map")
    _save(path, sheet)


def _tile(sheet: Image.Image, column: int, top: int, picture: Image.Image, lines: Sequence[str]) -> None:
    left = _GAP + column * (_TILE + _GAP)
    scale = _TILE / max(picture.size)
    sampling = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BICUBIC
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    sheet.paste(picture.resize(size, sampling), (left, top))
    for number, line in enumerate(lines):
        _write(sheet, (left, top + _TILE + 2 + 13 * number), line)


def _write(sheet: Image.Image, place: tuple[int, int], text: str) -> None:
    font = ImageFont.load_default(11)
    text = printable(text, 60)
    while text and font.getlength(text) > _TILE:
        text = text[:-1]
    ImageDraw.Draw(sheet).text(place, text, fill=(28, 36, 48), font=font)
