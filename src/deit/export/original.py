"""Opens the model that is exported, and says what an export of it must know."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.export_file import Export, ExportedFormat
from deit.core.scores.calibration_file import identity_of
from deit.core.scores.functions import function_name
from deit.export.pixels.geometry import Geometry, geometry_of
from deit.inference.contract import Contract
from deit.inference.engines.torch_engine import TorchEngine
from deit.inference.predictor import Predictor

PROBABILITIES, VALUES = "probabilities", "values"
_DONE = {"export": "exported", "quantize": "quantized"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Original:
    """A model that is exported.

    Attributes:
        predictor: Answers as everywhere in the package.
        model: The network.
        graph: The network as it is exported: pixels (B, C, H, W) to a tuple of logits (B, K).
        geometry: The preprocessing; None to export none.
    """

    predictor: Predictor
    model: Any
    graph: Any
    geometry: Geometry | None

    @property
    def contract(self) -> Contract:
        """What the model takes and what its answers mean."""
        return self.predictor.engine.contract

    @property
    def temperature(self) -> float | None:
        """What the logits of the answer are divided by; None without a calibration."""
        calibration = self.predictor.calibration
        return None if calibration is None else calibration.temperature(self.contract.head_names[0])

    @property
    def function(self) -> str:
        """What makes scores of logits, a name of `FUNCTIONS`."""
        return function_name(self.contract.problem_type, len(self.contract.label_names))

    @property
    def output_name(self) -> str:
        """Name of the scores in a classifier."""
        return VALUES if self.function == "none" else PROBABILITIES

    def logits(self, pixels: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """Returns the logits (B, K) of each head, of pixels (B, C, H, W)."""
        return dict(self.predictor.engine(pixels))

    @cached_property
    def _identity(self) -> dict[str, str]:
        contract, processor = self.contract, self.predictor.processor
        kinds = contract.problem_type, contract.head_average
        return asdict(identity_of(contract.folder, processor, contract.label_names, *kinds))

    def described(self, formats: dict[str, ExportedFormat], *, weights: str | None = None) -> Export:
        """Returns the content of `export.json`.

        Args:
            formats: Format -> what there is of it.
            weights: Identity of weights that answer otherwise than those of the model, to which no calibration of the
                model belongs; None for the same answers.
        """
        contract = self.contract
        assert contract.image_size is not None
        return Export(
            identity=self._identity if weights is None else {**self._identity, "weights": weights},
            preprocessing=self.predictor.processor.to_dict(),
            classes=list(contract.label_names),
            heads=contract.head_names,
            problem_type=contract.problem_type,
            image_size=contract.image_size,
            num_channels=contract.num_channels,
            temperature=self.temperature if weights is None else None,
            formats=formats,
        )

    @cached_property
    def metadata(self) -> dict[str, str]:
        """What is written into the files themselves: texts under the names that Ultralytics uses, and ours."""
        names = dict(enumerate(self.predictor.label_names))
        told = self.described({})
        ours = {name: value for name, value in asdict(told).items() if name not in ("formats", "classes")}
        assert told.image_size is not None
        return {
            "task": "classify",
            "names": str(names),
            "imgsz": str(list(told.image_size)),
            "description": "Written by deit export",
            "deit": json.dumps(ours, default=str),
        }


def open_original(
    model: str | os.PathLike[str], *, preprocessing: bool, calibrated: bool = True, verb: str = "export"
) -> Original:
    """Opens a model to be exported or quantized.

    Args:
        model: A model directory, or a name; see `open_engine`.
        preprocessing: Whether the export shall contain the preprocessing.
        calibrated: Whether to open the calibration too.
        verb: What is done to it, for errors: "export" or "quantize".

    Raises:
        OSError: See `open_engine`.
        UserError: See `open_engine` and `geometry_of`; or the model takes pixels of any size, or is an export itself.
    """
    from deit.inference.graph.classifier_graph import classifier_graph

    predictor = Predictor.open(model, device="cpu", engine="torch", precision="fp32", calibrated=calibrated)
    engine = predictor.engine
    if not isinstance(engine, TorchEngine):
        raise UserError(f"{model} is an export already. {verb.capitalize()} the model that it was made from.")
    contract = engine.contract
    if contract.image_size is None:
        raise UserError(f"{model} takes pixels of any size. A model with a fixed size can be {_DONE[verb]}.")
    geometry = None
    if preprocessing:
        geometry = geometry_of(predictor.processor, contract.image_size, contract.num_channels)
    graph = classifier_graph(engine.model, contract)
    return Original(predictor=predictor, model=engine.model, graph=graph, geometry=geometry)
