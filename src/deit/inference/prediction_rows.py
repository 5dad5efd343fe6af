"""Turns results into the rows of a table of predictions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from deit.core.printable import as_unicode

if TYPE_CHECKING:
    import pyarrow as pa

    from deit.inference.predictor import Classified

# Columns that a calibration adds; lists are JSON.
_JUDGED = ("set", "interval", "named", "outlier_score", "abstained")
_NUMBERS = ("score_", "outlier_score")


def columns_of(top_k: int, *, judged: bool) -> list[str]:
    """Returns the names of the columns: image, label_1, score_1, ..., what a calibration adds, and error.

    Args:
        top_k: Classes of each image.
        judged: Whether answers are judged by a calibration.
    """
    pairs = [name for number in range(1, top_k + 1) for name in (f"label_{number}", f"score_{number}")]
    return ["image", *pairs, *(_JUDGED if judged else ()), "error"]


def cells_of(result: Classified, top_k: int, *, judged: bool) -> list[Any]:
    """Returns the row of an image, with None in empty cells.

    Args:
        result: Of the image.
        top_k: See `columns_of`.
        judged: See `columns_of`.
    """
    found: list[Any] = [value for p in result.predictions for value in (as_unicode(p.label), p.score)]
    found += [None] * (2 * top_k - len(found))
    if judged:
        told = {} if result.judgement is None else result.judgement.to_dict()
        cells = {k: json.dumps(v) if isinstance(v, list) else v for k, v in told.items()}
        found += [as_unicode(v) if isinstance(v := cells.get(name), str) else v for name in _JUDGED]
    return [as_unicode(result.name), *found, as_unicode(result.error) or None]


def schema_of(top_k: int, *, judged: bool) -> pa.Schema:
    """Returns the types of these columns in a Parquet file.

    Args:
        top_k: See `columns_of`.
        judged: See `columns_of`.
    """
    import pyarrow as pa

    names = columns_of(top_k, judged=judged)
    return pa.schema([(name, pa.float64() if name.startswith(_NUMBERS) else pa.string()) for name in names])
