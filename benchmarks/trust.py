"""Whether calibrated answers keep their promises: 20 random splits of labelled images that the model has not seen.

    python benchmarks/trust.py --model FOLDER --data IMAGES [--training IMAGES --unlike IMAGES]

Each split calibrates on `--images` of them and judges on the rest: the expected calibration error before and after, the
coverage of the sets of each kind at 90 and 95 %, their size, and what abstaining leaves. The band is where the coverage
of a split lies with a probability of 95 %: that of the calibration (beta) and of counting (binomial) together. With
`--unlike`, images of other things: how many of them are marked as outliers, and the area under that curve.

The model of docs/trust.md is a small one that was trained on 2,000 images for long, so that it is too sure; then, with
`--init FOLDER --epochs 16`, once more:

    deit train cifar --student deit-mini-distilled-patch4-32 --recipe small-data-cpu --image-size 32 --epochs 20 \
        --batch-size 50 --set label_smoothing=0 --set augment.rand_augment= --set augment.mixup_alpha=0 \
        --set augment.cutmix_alpha=0 --set "augment.crop_scale=[1,1]" --set "augment.crop_ratio=[1,1]" \
        --set crop_ratio=1 --set optimizer.lr=0.001 --set optimizer.weight_decay=0 --out FOLDER
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from deit.core.scores.calibration import confidences, expected_calibration_error, fit_temperature, reliability
from deit.core.scores.conformal import SETS, class_scores, threshold
from deit.core.scores.outliers import FeatureClouds
from deit.data.open_data import open_labelled
from deit.evaluate.calibration_images import answers_to
from deit.inference.predictor import Predictor


def calibration_error(logits: Any, labels: Any, temperature: float) -> float:
    """Returns the expected calibration error in percent."""
    right = logits.argmax(axis=1) == labels
    return 100 * expected_calibration_error(reliability(confidences(logits, temperature), right))


def band(images: int, rest: int, percent: float) -> tuple[float, float]:
    """Returns where the coverage of one split lies with a probability of 95 %, by drawing 100,000 of them."""
    random = np.random.default_rng(0)
    rank = int(np.ceil((images + 1) * percent / 100 - 1e-9))
    covered = random.binomial(rest, random.beta(rank, images + 1 - rank, 100_000))
    low, high = np.quantile(100 * covered / rest, [0.025, 0.975])
    return float(low), float(high)


def spread(values: list[float]) -> str:
    """Returns mean and range."""
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def report_splits(logits: Any, labels: Any, images: int, splits: int) -> None:
    """Prints what the splits gave."""
    rest = len(labels) - images
    raw, after, temperatures = [], [], []
    orders = [np.random.default_rng(seed).permutation(len(labels)) for seed in range(splits)]
    for order in orders:
        known, new = order[:images], order[images:]
        temperatures.append(fit_temperature(logits[known], labels[known]))
        raw.append(calibration_error(logits[new], labels[new], 1.0))
        after.append(calibration_error(logits[new], labels[new], temperatures[-1]))
    print(f"temperature {spread(temperatures)}; ECE raw {spread(raw)} %, calibrated {spread(after)} %")
    print("sets  asked  covered, mean (range)    band of one split  inside  classes  one class %  wrong of those %")
    for percent in (90.0, 95.0):
        low, high = band(images, rest, percent)
        for sets in SETS:
            scores = class_scores(sets, logits)
            covered, sizes, single, wrong = [], [], [], []
            for order in orders:
                known, new = order[:images], order[images:]
                inside = scores[new] <= threshold(scores[known, labels[known]], percent)
                held, alone = inside[np.arange(rest), labels[new]], inside.sum(axis=1) == 1
                covered.append(100 * float(held.mean()))
                sizes.append(float(inside.sum(axis=1).mean()))
                single.append(100 * float(alone.mean()))
                wrong.append(100 * float((~held[alone]).mean()) if alone.any() else float("nan"))
            mistakes = np.nanmean(wrong) if max(single) else float("nan")
            within = sum(low <= each <= high for each in covered)
            print(
                f"{sets:5} {percent:5g}  {spread(covered):24} {low:.1f} to {high:.1f}       {within:2} of {splits}  "
                f"{np.mean(sizes):7.2f}  {np.mean(single):11.1f}  {mistakes:.1f}"
            )


def report_outliers(training: Any, labels: Any, held_out: Any, unlike: Any) -> None:
    """Prints how well the distance of features tells images of other things apart."""
    clouds = FeatureClouds.fit(training, labels)
    own, other = clouds.distances(held_out), clouds.distances(unlike)
    limit = threshold(own, 95)
    ranks = np.argsort(np.argsort(np.concatenate([own, other])))[len(own) :]
    area = (ranks.sum() - len(other) * (len(other) - 1) / 2) / (len(own) * len(other))
    print(f"outliers: {100 * (other > limit).mean():.1f} % of {len(other)} unlike images are marked; AUROC {area:.3f}")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model directory")
    parser.add_argument("--data", required=True, help="labelled images that the model has not learnt from")
    parser.add_argument("--training", help="images that it was trained on, for outliers")
    parser.add_argument("--unlike", help="images of other things, in two folders or more")
    parser.add_argument("--images", type=int, default=1000, help="of them that each split calibrates on")
    parser.add_argument("--splits", type=int, default=20)
    given = parser.parse_args()
    predictor = Predictor.open(given.model, calibrated=False)
    names = predictor.engine.contract.label_names
    source = open_labelled(given.data, classes=names)
    seen = answers_to(predictor, source, 64, None)
    logits, labels = next(iter(seen.logits.values())), source.labels[seen.indices]
    print(f"{len(labels)} images, top-1 {100 * (logits.argmax(axis=1) == labels).mean():.1f} %")
    report_splits(logits, labels, given.images, given.splits)
    if given.training and given.unlike:
        training = open_labelled(given.training, part="train", classes=names)
        known = answers_to(predictor, training, 64, None)
        other = answers_to(predictor, open_labelled(given.unlike), 64, None)
        report_outliers(known.features, training.labels[known.indices], seen.features, other.features)


if __name__ == "__main__":
    main()
