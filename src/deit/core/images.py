"""Image files into upright RGB: decoding, and the one conversion of colours that everything uses."""

from __future__ import annotations

import base64
import binascii
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# What Pillow may decode: formats that people keep photos in. Others (PSD, EPS, FITS, ...) have a history of
# decoder bugs and are refused.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # JPEG brings MPO (two-lens photos)

ImageFile: TypeAlias = str | os.PathLike[str] | bytes

_LONGEST_PATH = 4096  # characters; what is longer can only be base64
# How files of the formats above begin. Text that decodes to something else is a path that does not exist.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\x00", b"MM\x00*", b"P4", b"P5", b"P6")


class ImageError(ValueError):
    """A file or its bytes cannot be read as an image."""


def load_image(source: ImageFile | Image.Image, *, mode: str | None = "RGB") -> Image.Image:
    """Reads an image upright and converts it to a colour mode.

    The conversion for every mode: turned as its EXIF tag says; of several frames the first; 16-bit grey is
    scaled to 8 bits; transparency is laid on white; then Pillow's own conversion to `mode`.

    Args:
        source: A path, the bytes of a file, base64 text of them ("data:image/png;base64,..." or bare), or an image.
            Addresses on the web are refused: whoever names an image could make this computer ask any other.
        mode: "RGB", "L" for one channel, or None: "L" for grey images and "RGB" for all others.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: It is not an image of a known format, is truncated, or claims too many pixels.
    """
    if isinstance(source, Image.Image):
        return convert_image(ImageOps.exif_transpose(source), mode)
    with _opened(source) as image:
        image.load()
        return convert_image(ImageOps.exif_transpose(image), mode)


def check_image(source: ImageFile) -> None:
    """Decodes an image as cheaply as its format allows, to find out whether it is whole.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: See `load_image`.
    """
    with _opened(source) as image:
        image.draft(None, (1, 1))  # JPEG: an eighth of the size, but every byte is read
        image.load()


def convert_image(image: Image.Image, mode: str | None = "RGB") -> Image.Image:
    """Converts the colours of an image as `load_image` does, without turning it.

    Args:
        image: Of any mode.
        mode: See `load_image`.

    Raises:
        ImageError: Pixels are NaN or infinite.
    """
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise ImageError("The image has pixels that are NaN or infinite. Repair or leave it out.")
    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(wide / 257.0 + 0.5, 0, 255).astype(np.uint8))
    if image.mode == "La":  # Pillow knows only this way out of it
        image = image.convert("LA")
    if mode is None:
        mode = "L" if image.mode in ("L", "LA", "1", "F") else "RGB"
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


@contextmanager
def _opened(source: ImageFile) -> Iterator[Image.Image]:
    source, name = _resolved(source)
    handle = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(handle, formats=IMAGE_FORMATS) as image:
                yield image
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image (known: {', '.join(IMAGE_FORMATS)}).") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} claims more pixels than are safe to decode ({error}).") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on broken files
        raise ImageError(f"{name} cannot be read as an image ({error}). It may be truncated.") from error


def _resolved(source: ImageFile) -> tuple[ImageFile, str]:
    """Returns what Pillow shall open and how to call it in a message."""
    if isinstance(source, bytes):
        return source, "the given bytes"
    if not isinstance(source, str):
        return source, os.fspath(source)
    if source.lower().startswith(("http://", "https://", "ftp://", "file://")):
        raise ImageError(f"{source} is an address: images are not fetched. Download the file and pass its path.")
    header, comma, text = source.partition(",")
    if header.startswith("data:image/") and comma:
        if not header.endswith(";base64"):
            raise ImageError(f"{header!r} is not base64. Pass 'data:image/png;base64,...', a path or bytes.")
        return _decoded(text), "the given base64 text"
    if len(source) > _LONGEST_PATH or not os.path.exists(source):
        try:
            decoded = _decoded(source)
        except ImageError:
            if len(source) > _LONGEST_PATH:
                raise
        else:
            if decoded.startswith(_SIGNATURES):
                return decoded, "the given base64 text"
    return source, source


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"The text {text[:40]!r}... is neither a path nor base64 ({error}).") from error
