"""Refuses a model with other classes in the place of one that clients rely on."""

from __future__ import annotations

import json
from pathlib import Path

from deit.core.errors import UserError
from deit.core.printable import some_of
from deit.serve.hosting.sources import ModelSource
from deit.serve.refusals import Refusal
from deit.serve.served_model import ServedModel


async def refuse_other_classes(old: ServedModel, new: ServedModel, source: ModelSource) -> None:
    """Compares the classes of a model with those of the one that it replaces; closes the new one if they are others.

    Raises:
        Refusal: They are others.
    """
    if list(old.class_names) == list(new.class_names):
        return
    await new.close()
    gone = [name for name in old.class_names if name not in set(new.class_names)]
    come = [name for name in new.class_names if name not in set(old.class_names)]
    difference = f"without {some_of(gone, 5)}" if gone else ""
    difference += (" and " if gone and come else "") + (f"with {some_of(come, 5)}" if come else "")
    raise Refusal(
        409,
        "other_classes",
        f"{source.path} has other classes now: {difference or 'the same in another order'}. Clients of "
        f"{source.label!r} rely on the old ones. Serve it under another name, or allow other classes in the reload.",
    )


def refuse_other_than_workers(folder: Path | None, served: ServedModel, source: ModelSource) -> None:
    """Compares the classes with those of the first worker: one that is replaced must not answer with others.

    Raises:
        UserError: They are others.
    """
    if folder is None:
        return
    file = folder / f"classes-{source.name}@{source.version}.json"
    classes = json.dumps(list(served.class_names))
    try:
        with file.open("x", encoding="utf-8") as written:
            written.write(classes)
    except FileExistsError:
        if file.read_text(encoding="utf-8") != classes:
            raise UserError(
                f"{source.path} has other classes now than the workers that opened {source.label!r} before. Clients "
                "rely on those. Serve it under another name, or start the server anew."
            ) from None
