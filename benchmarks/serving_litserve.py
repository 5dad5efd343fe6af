"""Runs LitServe with the same engine, for `serving.py`.

    python benchmarks/serving_litserve.py MODEL ENGINE PORT BATCH WAIT_MS

Written as its documentation shows: one worker, batches by size or time, uploads as a form. Reads and preprocesses the
images of a batch in threads, as `Predictor.classify` does.
"""

import sys
from typing import Any

import litserve
import numpy as np
from fastapi import Request


class Classifier(litserve.LitAPI):
    """Classifies the image of a form."""

    def setup(self, device: str) -> None:
        from deit.inference.predictor import Predictor

        self.predictor = Predictor.open(sys.argv[1], engine=sys.argv[2])
        batch = int(sys.argv[4])
        self.predictor.engine(np.zeros((batch, 3, 224, 224), "float32"))  # warm

    def decode_request(self, request: Request) -> bytes:
        return bytes(request["image"].file.read())  # LitServe passes the form of the request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, inputs: list[bytes]) -> list[Any]:
        return list(self.predictor.classify(inputs, batch_size=len(inputs)))

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        rows = [{"label": p.label, "score": p.score} for p in output]
        return {"results": [{"image": "image", "predictions": rows}]}


if __name__ == "__main__":
    api = Classifier(max_batch_size=int(sys.argv[4]), batch_timeout=float(sys.argv[5]) / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(
        host="127.0.0.1", port=int(sys.argv[3]), num_api_servers=1, log_level="warning", generate_client_file=False
    )
