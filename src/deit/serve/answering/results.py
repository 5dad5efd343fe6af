"""Says what the model's numbers for one image mean: predictions, judgement, heads, embedding."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from deit.inference.contract import FEATURES
from deit.inference.judgement import Judge
from deit.inference.predictor import Predictor
from deit.serve.answers import Answer, Timing, Wants
from deit.serve.batcher import Computed
from deit.serve.refusals import Refusal

_AVERAGE = "both"  # the mean of two heads, which is the answer itself


def result_of(predictor: Predictor, computed: Computed, wants: Wants, judge: Judge | None, decode: float) -> Answer:
    """Returns the answer for one image, by the rules of `Predictor.classify`.

    An answer of merged tokens is not judged: what was calibrated is the whole model.

    Args:
        predictor: The model.
        computed: Its outputs.
        wants: What to answer.
        judge: By the calibration; None without.
        decode: Seconds that the image took to be decoded.

    Raises:
        Refusal: The model answers with NaN or infinity, or has no features.
    """
    outputs = computed.outputs
    first = predictor.engine.contract.head_names[0]
    features = outputs.get(FEATURES)
    row = None if features is None else features[0]
    judge = None if computed.merged else judge
    classified = predictor.classified("", outputs[first], row, wants.top_k, judge)
    if classified.error:
        raise Refusal(500, "no_number", "The model answers with NaN or infinity. Its weights may be damaged.")
    if wants.embedding and row is None:
        raise Refusal(422, "no_embedding", f"A model in the engine {predictor.engine.name} gives no embedding here.")
    return Answer(
        classified=classified,
        outputs={name: values[0] for name, values in outputs.items()},
        scores=predictor.scores(outputs[first])[0],
        heads=_heads(predictor, computed, wants.top_k) if wants.heads else {},
        embedding=row if wants.embedding else None,
        calibrated=judge is not None,
        merged=computed.merged,
        timing=Timing(decode=decode, queue=computed.queued, compute=computed.seconds),
    )


def _heads(predictor: Predictor, computed: Computed, top_k: int) -> dict[str, list[dict[str, Any]]]:
    """Returns the classes with the highest scores of each single head, with its own temperature."""
    names = [name for name in predictor.engine.contract.head_names if name != _AVERAGE]
    scores = {name: predictor.scores(computed.outputs[name], name)[0] for name in names}
    return {name: [asdict(each) for each in predictor.best(row, top_k)] for name, row in scores.items()}
