"""Writes self-contained HTML pages: fills templates, and encodes pictures as data URIs."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from deit.core.files import write_text_atomically
from deit.core.images.reading import ImageError
from deit.core.printable import printable

if TYPE_CHECKING:
    from deit.data.sources import Source

# A larger picture becomes this many pixels wide or high; a smaller one stays as it is.
_THUMBNAIL = 192
_TINY = 48  # images up to this size are shown with hard pixels


def write_page(path: Path, package: str, template: str, /, **values: Any) -> Path:
    """Fills a template and writes the page; escapes all text, and raises an error for missing values.

    Args:
        path: Path of the page; its folder must exist.
        package: Name of the package that holds the template, below `deit`.
        template: Its file name.
        values: For the template.

    Returns:
        `path`.

    Raises:
        ModuleNotFoundError: Jinja is not installed.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader("deit", name) for name in dict.fromkeys([package, "evaluate"])])  # the style
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=_visible,
    )  # fmt: skip
    write_text_atomically(path, environment.get_template(template).render(**values))
    return path


def _visible(value: Any) -> Any:
    """Makes control characters in a text visible; data URIs of pictures pass unchanged."""
    return printable(value, 10 * len(value) + 10) if type(value) is str else value


def figure_uri(figure: Any) -> str:
    """Returns a matplotlib figure as a data URI."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # an empty box for a letter: its font is not ours
        figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return png_uri(buffer.getvalue())


def picture_of(source: Source, index: int) -> tuple[str, bool]:
    """Returns an image as a data URI, empty if it can no longer be read; and whether to show it with hard pixels."""
    try:
        image = source.image(index)
    except (ImageError, OSError):  # it was there a moment ago
        return "", False
    return image_uri(image), max(image.size) <= _TINY


def image_uri(image: Image.Image) -> str:
    """Returns an image, reduced to a thumbnail if it is large, as a data URI."""
    small = image.convert("RGB")
    buffer = io.BytesIO()
    if max(image.size) > _THUMBNAIL:
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        small.save(buffer, format="JPEG", quality=85)
        return _uri(buffer.getvalue(), "jpeg")
    small.save(buffer, format="PNG")
    return png_uri(buffer.getvalue())


def picture_uri(image: Image.Image) -> str:
    """Returns an image in its full size as a data URI, without the metadata of its file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return png_uri(buffer.getvalue())


def png_uri(content: bytes) -> str:
    """Returns the bytes of a PNG file as a data URI."""
    return _uri(content, "png")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")
