"""Runs the unmodified clients of Triton and KServe against a server, and records their requests byte for byte.

The clients need other versions of protobuf than the rest of the tests, so they live in an environment of their own:

    python -m venv build/clients
    build/clients/bin/python -m pip install "tritonclient[http]==2.73.*" "kserve==0.21.*"
    python -m tests.serve.v2_conformance build/clients/bin/python [--record]
    python -m tests.serve.v2_conformance build/clients/bin/python --model DIRECTORY --images A.jpg B.jpg

The first form asks a model of three colors whose answers are known by hand; `--record` writes `v2_requests.json`, which
`test_v2_recorded.py` sends again. The second one runs `deit serve` and compares with `Predictor`.
"""

from __future__ import annotations

import argparse
import base64
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from tests.serve.live_server import CLASSES, expected_scores, live_server, solid

RECORDED = Path(__file__).with_name("v2_requests.json")
COLORS = ((200, 10, 10), (10, 20, 220))


def write_colors(folder: Path) -> None:
    for name, color in zip(("first.png", "second.png"), COLORS, strict=True):
        (folder / name).write_bytes(solid(color))
    pixels = np.broadcast_to(np.array(COLORS)[:, :, None, None] / 255, (2, 3, 8, 8)).astype(np.float32)
    np.save(folder / "pixels.npy", pixels)
    write_expected(folder, "colors", CLASSES, expected_scores(*COLORS))


def write_expected(folder: Path, model: str, classes: list[str], scores: np.ndarray) -> None:
    text = json.dumps({"model": model, "classes": classes, "scores": scores.tolist()})
    (folder / "expected.json").write_text(text, encoding="utf-8")


class Recorder:
    """Hands bytes on between clients and a server, and keeps those of each connection."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.streams: list[tuple[bytearray, bytearray]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._socket.accept()
            server = socket.create_connection(("127.0.0.1", self._target))
            streams = (bytearray(), bytearray())
            self.streams.append(streams)
            for source, target, kept in ((client, server, streams[0]), (server, client, streams[1])):
                threading.Thread(target=self._pump, args=(source, target, kept), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        with suppress(OSError):
            while part := source.recv(65536):
                kept += part
                target.sendall(part)
            target.shutdown(socket.SHUT_WR)

    def exchanges(self) -> Iterator[tuple[bytes, bytes]]:
        """Yields requests and answers."""
        for sent, received in self.streams:
            yield from zip(messages(bytes(sent)), messages(bytes(received)), strict=True)


def messages(stream: bytes) -> Iterator[bytes]:
    """Yields the messages of HTTP/1.1 in a stream; each has a Content-Length or no body."""
    while stream:
        head, _, rest = stream.partition(b"\r\n\r\n")
        fields = [line.split(b":", 1) for line in head.lower().split(b"\r\n")[1:]]
        size = next((int(value) for name, value in fields if name == b"content-length"), 0)
        yield head + b"\r\n\r\n" + rest[:size]
        stream = rest[size:]


def ask(python: str, url: str, folder: Path) -> None:
    subprocess.run([python, str(Path(__file__).with_name("v2_clients.py")), url, str(folder)], check=True, timeout=300)


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """Runs `deit serve` on a free port; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "deit", "serve", f"model={directory}", "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=5)
                break
            except OSError:
                assert server.poll() is None, "The server ended."
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        assert server.wait(60) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--images", type=Path, nargs=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if given.model:
            from deit.core.processing.reduced_reading import ReducedReader
            from deit.inference.predictor import Predictor

            predictor = Predictor.open(given.model)
            for name, image in zip(("first.png", "second.png"), given.images, strict=True):
                (folder / name).write_bytes(image.read_bytes())
            told = next(predictor.answers(given.images, 2, read=ReducedReader(predictor.processor)))
            scores = predictor.scores(next(iter(told.outputs.values())))
            np.save(folder / "pixels.npy", told.batch.pixels)
            write_expected(folder, "model", predictor.label_names, scores)
            with served(given.model) as url:
                ask(given.python, url, folder)
            return
        write_colors(folder)
        with live_server() as server:
            recorder = Recorder(server.port)
            ask(given.python, f"http://127.0.0.1:{recorder.port}", folder)
        if given.record:
            kept = [[base64.b64encode(part).decode() for part in exchange] for exchange in recorder.exchanges()]
            RECORDED.write_text(json.dumps(kept, indent=0) + "\n", encoding="utf-8")
            print(f"Recorded {len(kept)} requests in {RECORDED}.")


if __name__ == "__main__":
    main()
