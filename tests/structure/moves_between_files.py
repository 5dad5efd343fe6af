"""Counts how often a forward pass moves from one file of the package to another: what a reader must follow.

    python -m tests.structure.moves_between_files [MODEL]   # by default DeiTForImageClassification

The model has one block and is in evaluation mode. Every line that runs in the package counts for its file, so a call
into another file and back is two moves; PyTorch and Python are not counted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import deit

SOURCE = Path(deit.__file__).parent
ONE_BLOCK: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
}


def visited_places(name: str, *, packed: bool = False) -> list[tuple[str, str]]:
    """Returns (file, function) at the start and after each move, in a forward pass without gradients.

    Args:
        name: Of a public model.
        packed: Whether its weights are packed.
    """
    model_class = getattr(deit, name)
    model = model_class(model_class.config_class(**ONE_BLOCK)).eval()
    if packed:
        model.pack_weights()
    pixels = torch.zeros(1, 3, 16, 16)
    places: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, argument: Any) -> Any:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(SOURCE):
            place = file.relative_to(SOURCE).as_posix()
            if not places or places[-1][0] != place:
                places.append((place, frame.f_code.co_qualname))
        return note

    before = sys.gettrace()
    with torch.no_grad():
        model(pixels)  # what happens once is no part of a pass
        sys.settrace(note)
        try:
            model(pixels)
        finally:
            sys.settrace(before)
    return places


def main() -> None:
    """Prints the places and the count."""
    places = visited_places(sys.argv[1] if len(sys.argv) > 1 else "DeiTForImageClassification")
    for file, function in places:
        print(f"{file:40} {function}")
    print(f"{len(places) - 1} moves between {len({file for file, _ in places})} files")


if __name__ == "__main__":
    main()
