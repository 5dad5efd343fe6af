"""Decodes image files to upright RGB. All color conversions of this package are here."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TypeAlias, cast

from PIL import Image, UnidentifiedImageError, features
from PIL.AvifImagePlugin import AvifImageFile

from deit.core.errors import ImageError as ImageError, ValueRangeError as ValueRangeError
from deit.core.images.decoding_share import DecodingShare
from deit.core.images.heif_files import AVIF, HEIF, MOST_HEIF_PIXELS, begins_like_heif
from deit.core.images.image_files import MOST_FILE_BYTES, ImageBytes, read_content, read_image_bytes
from deit.core.images.image_inputs import is_file_object, name_of
from deit.core.images.pillow_warnings import pillow_warnings_ignored
from deit.core.images.sample_values import Samples, ValueRange as ValueRange, in_8_bits, samples_of

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".jpe", ".jfif", ".mpo", ".apng", ".dib", ".pbm", ".pnm"),
    *(".avif", ".heic", ".heif", ".hif"),
)
# Formats that Pillow may decode: those of photos. Others (PSD, EPS, FITS, ...) have a history of decoder bugs and are
# refused.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # JPEG includes MPO (two-lens photos)
KNOWN_FORMATS = (*IMAGE_FORMATS, "AVIF", "HEIC")  # their files are checked first, see `heif_files`
# 8192 x 8192, enough for cameras of 61 megapixels: 256 MiB decoded, twice that while colors are converted.
MOST_PIXELS = 2**26
# Limit of formats that Pillow decodes in Python, value by value.
MOST_PIXELS_IN_PYTHON = 2**23
_SLOW_DECODERS = ("ppm", "ppm_plain", "bmp_rle")

ImageFile: TypeAlias = str | os.PathLike[str] | bytes | IO[bytes]

# All threads together decode as many pixels as one image of the maximum size.
DECODING = DecodingShare(MOST_PIXELS)

_LONGEST_PATH = 4096  # characters; longer texts can only be base64
_STRIP_PIXELS = 1 << 22  # pixels that are composited on white at a time
# First bytes of the formats above. Text that decodes to other bytes is treated as a path that does not exist.
IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\x00", b"MM\x00*", b"P4", b"P5", b"P6")
_WORK_OF_HEIF = 2  # its decoder uses twice the memory of others
_REDUCIBLE = ("JPEG", "MPO")  # formats whose decoder can leave out pixels
_LYING = (5, 6, 7, 8)  # orientations that swap width and height
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def begins_like_an_image(head: bytes) -> bool:
    """Returns True if the first 12 bytes of a file are those of a supported format."""
    return head.startswith(IMAGE_SIGNATURES) or begins_like_heif(head)


def load_image(
    source: ImageFile | Image.Image,
    *,
    mode: str | None = "RGB",
    value_range: ValueRange | None = None,
    limit: int | None = None,
) -> Image.Image:
    """Reads an image upright and converts it to a color mode.

    Takes the first of several frames, rotates it by its EXIF orientation, scales gray values of more than 8 bits to 8
    by the rule in `sample_values`, composites transparency on white, and converts to `mode` as Pillow does. Metadata
    (EXIF, XMP, color profiles, comments) may be damaged: only the orientation is decoded.

    Args:
        source: A path, the bytes of a file, their base64 text ("data:image/png;base64,..." or bare), an open file
            (read from its start) or a Pillow image. Web addresses are refused, so that names of images cannot make
            this computer send requests.
        mode: "RGB", "L" for one channel, or None: "L" for gray images and "RGB" for all others.
        value_range: The values that become black and white in gray images of more than 8 bits.
        limit: Pixels of a file at most; None for what is safe to decode.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: The source is not a file, not an image of a known format, is truncated, or has too many pixels.
        ValueRangeError: The image has more than 8 bits, and their range is unknown; set `value_range`.
    """
    if isinstance(source, Image.Image):
        samples = samples_of(source)
        source.load()  # this rotates a TIFF
        orientation = _orientation(source)
        return _turned(_converted(source, samples, mode, value_range), orientation)
    return _read(source, mode, value_range, limit=limit)


def load_reduced(
    source: ImageFile,
    size_of: Callable[[int, int], tuple[int, int]],
    resample: int,
    *,
    value_range: ValueRange | None = None,
    limit: int | None = None,
) -> tuple[Image.Image, int]:
    """Reads an image for a resize; decodes a JPEG at 1/2, 1/4 or 1/8 of its size if that is twice the result or more.

    The decoder then computes fewer pixels of each block of 8 x 8 (scaled inverse DCT). The result is resized already,
    by the geometry of the whole image. All other images are those of `load_image`, at their full size.

    Args:
        source: See `load_image`.
        size_of: Returns the (height, width) to resize an upright image of (height, width) to.
        resample: Filter of Pillow for the resize.
        value_range: See `load_image`.
        limit: See `load_image`.

    Returns:
        The RGB image, and the divisor of its decoding: 1, 2, 4 or 8. If it is 1, the image is not resized.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: See `load_image`.
        ValueRangeError: See `load_image`.
    """
    divisor = 1

    def reduce(image: Image.Image, orientation: int) -> Callable[[Image.Image], Image.Image] | None:
        nonlocal divisor
        lies = orientation in _LYING
        upright = image.size if lies else image.size[::-1]
        size = size_of(*upright) if lies else size_of(*upright)[::-1]  # (width, height) as stored
        whole = image.size
        drafted = image.draft(None, (2 * size[0], 2 * size[1]))
        if drafted is None or image.size == whole:
            return None
        divisor = next(d for d in (2, 4, 8) if -(-whole[0] // d) == image.width)
        box = drafted[1]
        return lambda decoded: decoded.resize(size, resample, box)

    return _read(source, "RGB", value_range, reduce=reduce, limit=limit), divisor


def check_image(source: ImageFile, *, value_range: ValueRange | None = None) -> None:
    """Checks that `load_image` will succeed, as cheaply as the format allows.

    Args:
        source: See `load_image`.
        value_range: See `load_image`.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: See `load_image`.
        ValueRangeError: See `load_image`.
    """
    _read(source, "RGB", value_range, small=True)  # decodes JPEG at an eighth of its size, but reads every byte


def stored_bytes(source: ImageFile) -> bytes:
    """Returns the bytes of an image file as they are stored. Decodes nothing but base64.

    Args:
        source: See `load_image`.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: The source is not a file, or larger than `MOST_FILE_BYTES`.
    """
    source, name = _resolved(source)
    data = source if isinstance(source, bytes) else read_content(source, name)
    if len(data) > MOST_FILE_BYTES:
        raise ImageError(f"{name} is too large for an image: {len(data)} bytes, the limit is {MOST_FILE_BYTES}.")
    return data


def image_kind(source: ImageFile) -> tuple[str, str]:
    """Returns the format of an image file and the mode of its values, such as ("PNG", "RGBA"). Decodes nothing.

    Args:
        source: See `load_image`.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: See `load_image`.
    """
    source, name = _resolved(source)
    with _opened(read_image_bytes(source, name), name) as image:
        return image.format or "unknown", image.mode


def convert_image(
    image: Image.Image, mode: str | None = "RGB", *, value_range: ValueRange | None = None
) -> Image.Image:
    """Converts the colors of an image as `load_image` does, without rotating it.

    Args:
        image: Image of any mode.
        mode: See `load_image`.
        value_range: See `load_image`.

    Raises:
        ImageError: Pixels are NaN or infinite.
        ValueRangeError: See `load_image`.
    """
    return _converted(image, samples_of(image), mode, value_range)


def _converted(image: Image.Image, samples: Samples, mode: str | None, value_range: ValueRange | None) -> Image.Image:
    image = in_8_bits(image, samples, value_range)
    if image.mode in ("La", "RGBa"):  # Pillow's only conversion from these modes
        image = image.convert(image.mode.upper())
    if mode is None:
        mode = "L" if image.mode in ("L", "LA", "1") else "RGB"
    if "A" in image.getbands() or "transparency" in image.info:
        return _on_white(image, mode)
    if image.mode == "LAB" and mode != "RGB":  # Pillow converts LAB only to RGB
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _on_white(image: Image.Image, mode: str) -> Image.Image:
    """Composes an image over white, some rows at a time, to save memory."""
    rows = max(_STRIP_PIXELS // max(image.width, 1), 1)
    result = Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        result.paste(strip.convert(mode), (0, top))
    return result


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001  # damaged EXIF raises nearly any exception, and is ignored
        return 1
    return found if isinstance(found, int) else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


# --- files --------------------------------------------------------------------------------------------


def _read(
    source: ImageFile,
    mode: str | None,
    value_range: ValueRange | None,
    *,
    small: bool = False,
    reduce: Any = None,
    limit: int | None = None,
) -> Image.Image:
    """Reads a file; `small` decodes a JPEG as small as possible, and `reduce` as `load_reduced` says."""
    source, name = _resolved(source)
    found = read_image_bytes(source, name)
    with _opened(found, name, limit) as image:
        samples = samples_of(image)  # before decoding
        is_stepwise = bool(image.info.get("progressive"))  # decoded whole anyway
        pixels = image.width * image.height
        resized = None
        if image.format in _REDUCIBLE:
            with _pillow_errors(name):
                if small and not is_stepwise:
                    image.draft(None, (1, 1))
                elif reduce is not None:
                    resized = reduce(image, found.orientation)
            pixels = pixels if is_stepwise else image.width * image.height
        with DECODING.of(pixels * (_WORK_OF_HEIF if found.kind else 1)):
            with _pillow_errors(name):
                image.load()
            try:
                turn = found.orientation or _orientation(image)
                converted = _converted(image, samples, mode, value_range)
                return _turned(converted if resized is None else resized(converted), turn)
            except ImageError as error:
                text = str(error)
                raise type(error)(f"{name} cannot be read: {text[:1].lower()}{text[1:]}") from error


@contextmanager
def _opened(found: ImageBytes, name: str, most: int | None = None) -> Iterator[Image.Image]:
    if found.kind:
        image, limit = _opened_heif(found, name), MOST_HEIF_PIXELS
    else:
        with _pillow_errors(name):
            image = Image.open(found.file, formats=IMAGE_FORMATS)
        limit = MOST_PIXELS_IN_PYTHON if any(tile[0] in _SLOW_DECODERS for tile in image.tile) else MOST_PIXELS
    limit = min(limit, most or limit, Image.MAX_IMAGE_PIXELS or limit)  # Pillow only warns above its own limit
    with image:
        if image.width * image.height > limit:
            raise ImageError(
                f"{name} claims more pixels than are safe to decode: {image.width} x {image.height}, the limit is "
                f"{limit}. Reduce its size."
            )
        yield image


def _opened_heif(found: ImageBytes, name: str) -> Image.Image:
    """Opens HEIC, which the decoder rotates, or AVIF, for which Pillow reports the orientation as EXIF."""
    if found.kind == AVIF and not features.check("avif"):
        raise ImageError(f"{name} is an AVIF image, and this Pillow was built without AVIF. Convert it to JPEG.")
    opener: Any = AvifImageFile
    if found.kind == HEIF:
        try:
            from pillow_heif import HeifImageFile
        except ImportError as error:
            raise ImageError(
                f"{name} is a HEIC image, which needs the 'pillow-heif' package. Install it with: "
                'pip install "deit[heic]". Or convert it to JPEG.'
            ) from error
        opener = HeifImageFile
    with _pillow_errors(name):
        image: Image.Image = opener(found.file)
    return image


@contextmanager
def _pillow_errors(name: str) -> Iterator[None]:
    """Converts errors of Pillow to `ImageError`."""
    try:
        with pillow_warnings_ignored():
            yield
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image (known: {', '.join(KNOWN_FORMATS)}).") from error
    except Image.DecompressionBombError as error:
        claimed = re.search(r"\d+", str(error))  # Pillow's own limit comes before the size is known here
        found = f"{claimed[0]} pixels, " if claimed else ""
        raise ImageError(
            f"{name} claims more pixels than are safe to decode: {found}the limit is {MOST_PIXELS}. Reduce its size."
        ) from error
    except Exception as error:  # decoders raise nearly any exception on hostile bytes
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise ImageError(f"{name} cannot be read as an image ({reason}). It may be truncated.") from error


def _contents(file: IO[bytes]) -> bytes:
    """Reads an open file from its start if it can seek. Stops at the size limit."""
    with suppress(AttributeError, OSError):
        file.seek(0)
    contents = file.read(MOST_FILE_BYTES + 1)
    if not isinstance(contents, bytes):
        raise ImageError(f"{name_of(file)} is open as text. Open it with open(path, 'rb').")
    return contents


def _resolved(source: ImageFile) -> tuple[str | os.PathLike[str] | bytes, str]:
    """Returns the input for Pillow and its name in messages."""
    if isinstance(source, bytes):
        return source, "the given bytes"
    if is_file_object(source):
        return _contents(cast("IO[bytes]", source)), name_of(source)
    if not isinstance(source, str):
        path = cast("os.PathLike[str]", source)
        return path, os.fspath(path)
    if source.lower().startswith(("http://", "https://", "ftp://", "file://")):
        raise ImageError(f"{source} is a web address. Images are not downloaded: download the file and pass its path.")
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
            if begins_like_an_image(decoded[:12]):
                return decoded, "the given base64 text"
    return source, source


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"The text {text[:40]!r}... is neither a path nor base64 ({error}).") from error
