"""Makes malformed requests by chance from a seed, for `serving_faults.py`: bodies, headers, images, wires.

A kind is a function from a random generator and a good image to a `Fault`. The names say what other servers stumbled
over or what the network does.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from PIL import Image

CLASSIFY = "/v1/classify"


@dataclass
class Fault:
    """A request that goes wrong.

    Attributes:
        pieces: What is sent, in turns with pauses.
        pause: Seconds after each piece but the last.
        hangs_up: Closes the connection after the last piece, without reading: "close" or "reset"; empty to read.
        may_succeed: Whether 200 is right as well, such as for an image that is still one after a byte was changed.
        stays_silent: Whether a closed connection without an answer is right: what was sent is no whole request.
    """

    pieces: list[bytes]
    pause: float = 0.0
    hangs_up: str = ""
    may_succeed: bool = False
    stays_silent: bool = False
    name: str = field(default="", compare=False)


Kind = Callable[[random.Random, bytes], Fault]


def post(body: bytes, kind: str = "image/png", path: str = CLASSIFY, extra: str = "", length: object = None) -> bytes:
    """Returns a POST; `length` in place of the right one."""
    size = len(body) if length is None else length
    return (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n{extra}\r\n".encode()
        + body
    )


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming(width: int, height: int, data: bytes, extra: bytes = b"") -> bytes:
    """Returns a PNG whose header claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def form(parts: list[tuple[str, str | None, bytes]], boundary: str = "x") -> bytes:
    """Returns a multipart body of (field, file name, content)."""
    body = b""
    for name, filename, content in parts:
        file = "" if filename is None else f'; filename="{filename}"'
        body += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
        )
    return body + f"--{boundary}--\r\n".encode()


MULTIPART = "multipart/form-data; boundary=x"

# --- images -------------------------------------------------------------------------------------------


def truncated_image(chance: random.Random, image: bytes) -> Fault:
    return Fault([post(image[: chance.randrange(1, len(image) - 20)])])


def changed_bytes(chance: random.Random, image: bytes) -> Fault:
    changed = bytearray(image)
    for _ in range(chance.choice((1, 3, 30))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return Fault([post(bytes(changed))], may_succeed=True)


def random_bytes(chance: random.Random, image: bytes) -> Fault:
    head = chance.choice(
        (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF", b"II*\0", b"BM", b"P6 9 9 255\n")
    )
    return Fault([post(head + chance.randbytes(chance.randrange(1, 3000)))], may_succeed=head.startswith(b"P6"))


def no_body(chance: random.Random, image: bytes) -> Fault:
    return Fault([post(b"", chance.choice(("image/png", MULTIPART, "application/json", "")))])


def claimed_pixels(chance: random.Random, image: bytes) -> Fault:
    side = chance.choice((9_000, 60_000, 2**31 - 1))
    return Fault([post(png_claiming(side, side, bytes(100)))])


def pixel_bomb(chance: random.Random, image: bytes) -> Fault:
    return Fault([post(_BOMB)])


def metadata_bomb(chance: random.Random, image: bytes) -> Fault:
    name = chance.choice((b"zTXt", b"iCCP"))
    extra = png_chunk(name, b"k\0\0" + _packed_zeros())
    return Fault([post(png_claiming(8, 8, bytes(8 * 25), extra))], may_succeed=True)


@cache
def _packed_zeros() -> bytes:
    return zlib.compress(bytes(50 * 2**20))


@cache
def _gzip_bomb() -> bytes:
    return gzip.compress(bytes(50 * 2**20))


def gzip_body(chance: random.Random, image: bytes) -> Fault:
    body = chance.choice((gzip.compress(image), _gzip_bomb()))
    return Fault([post(body, extra="Content-Encoding: gzip\r\n")])


def one_pixel_or_animated(chance: random.Random, image: bytes) -> Fault:
    file = io.BytesIO()
    if chance.random() < 0.5:
        Image.new("RGB", (1, 1)).save(file, "PNG")
    else:
        frames = [Image.new("P", (9, 9), i) for i in range(5)]
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return Fault([post(file.getvalue())], may_succeed=True)


def svg_or_script(chance: random.Random, image: bytes) -> Fault:
    text = chance.choice(
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"#!/bin/sh\nid\n")
    )
    return Fault([post(text, chance.choice(("image/svg+xml", "image/png")))])


# --- bodies -------------------------------------------------------------------------------------------


def wrong_json(chance: random.Random, image: bytes) -> Fault:
    data = base64.b64encode(image).decode()
    values = [
        "{", "[]", "null", '"a"', "[" * 50_000, '{"images": 3}', '{"images": []}', '{"images": [3]}',
        '{"images": [{"data": "/etc/passwd"}]}', '{"images": [{"data": "http://127.0.0.1/a.png"}]}',
        '{"images": [{"path": "/etc/passwd"}]}', '{"images": [{"data": "file:///etc/passwd"}]}',
        json.dumps({"images": [{"data": data, "name": 3}]}), json.dumps({"images": [{"data": data[:-3]}]}),
        json.dumps({"images": [{"data": data}], "top_k": 0}), json.dumps({"images": [{"data": data}], "top_k": "many"}),
        json.dumps({"images": [{"data": data}], "top_k": 1e400}), json.dumps({"images": [{"data": data}], "other": 1}),
        json.dumps({"images": [{"data": data}], "coverage": [95]}), json.dumps({"images": {"data": data}}),
        '{"images": [{"data": "\\ud800"}]}', '{"images": ' + "9" * 5000 + "}", "\ufeff{}", "NaN",
    ]  # fmt: skip
    return Fault([post(chance.choice(values).encode("utf-8", "surrogatepass"), "application/json")])


def wrong_text(chance: random.Random, image: bytes) -> Fault:
    return Fault([post(chance.choice((b"\xff\xfe{}", b"\x00" * 100, b"\xc3\x28")), "application/json")])


def wrong_form(chance: random.Random, image: bytes) -> Fault:
    good = form([("image", "a.png", image)])
    body, kind = chance.choice(
        [
            (good, "multipart/form-data"),
            (good, "multipart/form-data; boundary=other"),
            (good[: len(good) // 2], MULTIPART),
            (form([("image", None, b"a")] * 40), MULTIPART),
            (form([(f"f{i}", None, b"1") for i in range(500)]), MULTIPART),
            (form([("top_k", None, b"9" * 100_000), ("image", "a.png", image)]), MULTIPART),
            (form([("image", "a.png", b"")]), MULTIPART),
            (b"--x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n\r\n--x--\r\n", MULTIPART),
            (b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n", MULTIPART),
            (form([("top_k", None, b"1"), ("top_k", None, b"2"), ("image", "a.png", image)]), MULTIPART),
            (chance.randbytes(500), MULTIPART),
        ]
    )
    return Fault([post(body, kind)])


def hostile_name(chance: random.Random, image: bytes) -> Fault:
    name = chance.choice(("../../etc/passwd", "a" * 5000, "<script>alert(1)</script>", "\x1b[31mred", 'a\\" b', "%00"))
    return Fault([post(form([("image", name, image)]), MULTIPART)], may_succeed=True)


def too_many_images(chance: random.Random, image: bytes) -> Fault:
    return Fault([post(form([("image", f"{i}.png", image) for i in range(chance.choice((33, 64, 300)))]), MULTIPART)])


def many_images_some_broken(chance: random.Random, image: bytes) -> Fault:
    parts = [
        ("image", f"{i}.png", image if chance.random() < 0.5 else image[:40]) for i in range(chance.randrange(2, 33))
    ]
    return Fault([post(form(parts), MULTIPART)], may_succeed=True)


def wrong_type(chance: random.Random, image: bytes) -> Fault:
    kind = chance.choice(
        ("text/html", "application/xml", "application/x-www-form-urlencoded", "video/mp4", "a/b/c", "\x7f")
    )
    return Fault([post(image, kind)])


def wrong_option(chance: random.Random, image: bytes) -> Fault:
    query = chance.choice(
        ("top_k=0", "top_k=-1", "top_k=nan", "top_k=1.5", "coverage=0.95", "coverage=100", "coverage=x", "other=1",
         "top_k=1&top_k=2", "explain=nonsense", "abstain=perhaps", "model=none", "version=none", "token=secret",
         "api_key=secret", "sets=aps", "model=" + "a" * 3000)
    )  # fmt: skip
    return Fault([post(image, path=f"{CLASSIFY}?{query}")])


def wrong_deadline(chance: random.Random, image: bytes) -> Fault:
    value = chance.choice(("0", "-5", "soon", "nan", "inf", "1e999", ""))
    return Fault([post(image, extra=f"X-Deadline-Ms: {value}\r\n")])


def short_deadline(chance: random.Random, image: bytes) -> Fault:
    return Fault([post(image, extra=f"X-Deadline-Ms: {chance.choice(('0.01', '1', '3'))}\r\n")], may_succeed=True)


def wrong_v2(chance: random.Random, image: bytes) -> Fault:
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["a"]}]
    values: list[object] = [
        {}, {"inputs": []}, {"inputs": 3}, {"inputs": inputs * 50}, {"inputs": [{"name": "image"}]},
        {"inputs": [{**inputs[0], "shape": [-1]}]}, {"inputs": [{**inputs[0], "shape": [2**62, 2**62]}]},
        {"inputs": [{**inputs[0], "datatype": "FP128"}]}, {"inputs": [{**inputs[0], "data": 3}]},
        {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [1.0]}]},
        {"inputs": [{**inputs[0], "parameters": {"binary_data_size": 10**12}}]},
    ]  # fmt: skip
    body = json.dumps(chance.choice(values)).encode()
    extra = chance.choice(
        ("", "Inference-Header-Content-Length: 999999\r\n", "Inference-Header-Content-Length: -3\r\n")
    )
    return Fault([post(body, "application/octet-stream", "/v2/models/model/infer", extra)])


# --- heads and addresses ------------------------------------------------------------------------------


def wrong_address(chance: random.Random, image: bytes) -> Fault:
    path = chance.choice(
        ("/../../etc/passwd", "/page/../../../etc/passwd", "/page/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/v1",
         "/%00", "/v1/classify/", "/file=/etc/passwd", "/static/../../x", "/" + "a" * 5000,
         "/v2/models/..%2f..%2fx/infer", "/\xff")
    )  # fmt: skip
    return Fault([f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode("latin-1")])


def wrong_method(chance: random.Random, image: bytes) -> Fault:
    method = chance.choice(("GET", "PUT", "DELETE", "PATCH", "TRACE", "BREW"))
    return Fault([f"{method} {CLASSIFY} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode()])


def large_head(chance: random.Random, image: bytes) -> Fault:
    head = chance.choice(
        (b"X: " + b"a" * 200_000 + b"\r\n", b"".join(b"X-%d: a\r\n" % i for i in range(20_000)), b"X:" + b" " * 100_000)
    )
    return Fault([b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n"], stays_silent=True)


def long_address(chance: random.Random, image: bytes) -> Fault:
    return Fault([b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"], stays_silent=True)


def wrong_head(chance: random.Random, image: bytes) -> Fault:
    line = f"POST {CLASSIFY} HTTP/1.1\r\nHost: a\r\n".encode()
    size = b"Content-Length: %d\r\n" % len(image)
    head = chance.choice(
        (b"Content-Length: -5\r\n", b"Content-Length: five\r\n", b"Content-Length: 99999999999999999999999\r\n",
         size + b"Content-Length: 3\r\n", size + b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: other\r\n",
         b"No colon here\r\n", b"X\0Y: 1\r\n", b" folded: 1\r\n", b"\xff\xfe: 1\r\n")
    )  # fmt: skip
    return Fault([line + head + b"\r\n" + image], stays_silent=True)


def wrong_protocol(chance: random.Random, image: bytes) -> Fault:
    data = chance.choice(
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes.fromhex("16030100fa010000f60303") + bytes(200), b"\0" * 500,
         b"GET / HTTP/9.9\r\n\r\n", b"SSH-2.0-a\r\n\r\n", b"\r\n" * 50 + b"x\r\n\r\n", b"GET\r\n\r\n",
         b"*1\r\n$4\r\nPING\r\n")
    )  # fmt: skip
    return Fault([data], stays_silent=True)


def wrong_chunks(chance: random.Random, image: bytes) -> Fault:
    head = (
        f"POST {CLASSIFY} HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )
    body = chance.choice(
        (b"zz\r\nabc\r\n0\r\n\r\n", b"-1\r\n\r\n", b"fffffffffffffffff\r\na", b"3\r\nabcdef\r\n0\r\n\r\n")
    )
    return Fault([head + body])


def upgrade(chance: random.Random, image: bytes) -> Fault:
    extra = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YQ==\r\n"
    return Fault([f"GET {CLASSIFY} HTTP/1.1\r\nHost: a\r\n{extra}\r\n".encode()])


def other_site(chance: random.Random, image: bytes) -> Fault:
    return Fault([post(image, extra="Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n")])


def claims_too_much(chance: random.Random, image: bytes) -> Fault:
    extra = chance.choice(("", "Expect: 100-continue\r\n"))
    return Fault([post(image, extra=extra, length=chance.choice((10**9, 10**12)))])


# --- wires --------------------------------------------------------------------------------------------


def gone_in_head(chance: random.Random, image: bytes) -> Fault:
    data = post(image)
    end = data.index(b"\r\n\r\n")
    return Fault([data[: chance.randrange(0, end)]], hangs_up=chance.choice(("close", "reset")))


def gone_in_body(chance: random.Random, image: bytes) -> Fault:
    data = post(image)
    return Fault(
        [data[: chance.randrange(data.index(b"\r\n\r\n") + 4, len(data))]], hangs_up=chance.choice(("close", "reset"))
    )


def gone_before_answer(chance: random.Random, image: bytes) -> Fault:
    return Fault([post(image)], hangs_up=chance.choice(("close", "reset")))


def gone_with_many_images(chance: random.Random, image: bytes) -> Fault:
    body = form([("image", f"{i}.png", image) for i in range(32)])
    return Fault([post(body, MULTIPART)], hangs_up=chance.choice(("close", "reset")))


def gone_in_answer(chance: random.Random, image: bytes) -> Fault:
    return Fault([post(image, path=f"{CLASSIFY}?embedding=true")], hangs_up="first byte", may_succeed=True)


def slow_but_whole(chance: random.Random, image: bytes) -> Fault:
    data = post(image)
    cut = sorted(chance.sample(range(1, len(data)), 4))
    pieces = [data[a:b] for a, b in zip([0, *cut], [*cut, len(data)], strict=True)]
    return Fault(pieces, pause=0.1, may_succeed=True)


def pipelined(chance: random.Random, image: bytes) -> Fault:
    return Fault([post(image) * 3], may_succeed=True)


def too_slow(chance: random.Random, image: bytes) -> Fault:
    data = post(image)
    end = chance.choice((data.index(b"\r\n\r\n") - 3, len(data) - 3))
    return Fault([data[:end]], stays_silent=True)  # and then nothing


_BOMB = png_claiming(12_000, 12_000, bytes(12_000 * (1 + 3 * 12_000) // 40))

KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        truncated_image, changed_bytes, random_bytes, no_body, claimed_pixels, pixel_bomb, metadata_bomb, gzip_body,
        one_pixel_or_animated, svg_or_script, wrong_json, wrong_text, wrong_form, hostile_name, too_many_images,
        many_images_some_broken, wrong_type, wrong_option, wrong_deadline, short_deadline, wrong_v2, wrong_address,
        wrong_method, large_head, long_address, wrong_head, wrong_protocol, wrong_chunks, upgrade, other_site,
        claims_too_much, gone_in_head, gone_in_body, gone_before_answer, gone_with_many_images, gone_in_answer,
        slow_but_whole, pipelined,
    )
}  # fmt: skip
SLOW = too_slow  # takes as long as the server's patience, so only a few are sent


def faults(count: int, seed: int, images: list[bytes]) -> list[Fault]:
    """Returns faults of all kinds in turns, in a random order; one of 200 is too slow."""
    chance = random.Random(seed)
    names = list(KINDS)
    found = []
    for number in range(count):
        name = "too_slow" if number % 200 == 199 else names[number % len(names)]
        fault = (SLOW if name == "too_slow" else KINDS[name])(chance, chance.choice(images))
        fault.name = name
        found.append(fault)
    chance.shuffle(found)
    return found
