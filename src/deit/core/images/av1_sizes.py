"""Reads picture sizes from an AV1 bitstream (AV1 Bitstream & Decoding Process Specification, section 5.5)."""

from __future__ import annotations

_SEQUENCE_HEADER = 1
_MOST_UNITS = 10_000  # a still picture has about ten
_MOST_HEADER_BYTES = 1024  # 32 operating points take 300


def largest_picture(data: bytes) -> int | None:
    """Returns the largest picture, in pixels, that the sequence headers of a bitstream allow; None without headers."""
    largest: int | None = None
    place = 0
    for _ in range(_MOST_UNITS):
        if place >= len(data):
            return largest
        head = data[place]
        place += 2 if head & 4 else 1
        size = len(data) - place
        if head & 2:
            size, place = _leb128(data, place)
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            width, height = _picture_size(data[place : place + min(size, _MOST_HEADER_BYTES)])
            largest = max(largest or 0, width * height)
        place += size
    return None


def _leb128(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for number in range(8):
        byte = data[place + number]
        value |= (byte & 127) << 7 * number
        if byte < 128:
            return value, place + number + 1
    raise IndexError


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """Returns the next bits as a number."""
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._value >> self._left & (1 << count) - 1

    def skip_uvlc(self) -> None:
        """Skips a variable-length number."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        if zeros < 32:
            self.take(zeros)


def _picture_size(header: bytes) -> tuple[int, int]:
    """Returns the largest (width, height) that a sequence header allows."""
    bits = _Bits(header)
    bits.take(4)  # profile, still picture
    if bits.take(1):  # reduced header, as in most files
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits, has_decoder_model = 0, 0
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):
            bits.skip_uvlc()
        has_decoder_model = bits.take(1)
        if has_decoder_model:
            delay_bits = bits.take(5) + 1
            bits.take(32 + 5 + 5)
    has_display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if has_decoder_model and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_display_delay and bits.take(1):
            bits.take(4)
