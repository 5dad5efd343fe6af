"""One training of `small_data.py`, in a process of its own: `METHOD FOLDER RUN --minutes N --seed S`.

Learns from FOLDER/train, uses at most the given minutes from the start of the process, and writes RUN/result.json with
the top-1 accuracy on FOLDER/test in percent. What each method does by default:

* deit: `deit train FOLDER/train --minutes N`, no other option. Gets FOLDER/train.csv if there are unlabeled images.
* svm-pixels: RBF-SVM of scikit-learn on the standardized pixels of 16 x 16 images; C and gamma by 5-fold search.
* svm-hog: the same on HOG features of scikit-image, 32 x 32 pixels, cells of 8.
* timm: ResNet-18 of timm without weights, AdamW with a cosine schedule, random crops and flips, mixup 0.2.
* transformers: ViT of DeiT-tiny's sizes by the Trainer with its defaults, 224 pixels; from FOLDER's start if given.
* ultralytics: YOLO11n-cls without weights, its own defaults and its own option `time`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

BEGIN = time.monotonic()
RESERVE = 0.08  # share of the time that a network leaves for the end: the test is not counted, but saving may be


def files(folder: Path, part: str) -> tuple[list[Path], npt.NDArray[np.int64], list[str]]:
    """Returns the paths and labels of a part, and the names of the classes."""
    classes = sorted(p.name for p in (folder / "train").iterdir())
    paths = [(path, i) for i, name in enumerate(classes) for path in sorted((folder / part / name).glob("*.png"))]
    return [p for p, _ in paths], np.array([i for _, i in paths]), classes


def pixels(paths: list[Path], side: int) -> npt.NDArray[np.float32]:
    """Returns (N, side, side, 3), values from 0 to 1."""
    size = (side, side)
    return np.stack([np.asarray(Image.open(p).convert("RGB").resize(size), np.float32) / 255 for p in paths])


def top1(predicted: Any, labels: npt.NDArray[np.int64]) -> float:
    return 100 * float((np.asarray(predicted) == labels).mean())


def deit(options: argparse.Namespace) -> float:
    table, unlabeled = options.folder / "train.csv", any((options.folder / "unlabeled").iterdir())
    run = options.run / "model"
    command = [sys.executable, "-m", "deit", "train", str(table if unlabeled else options.folder / "train")]
    command += ["--out", str(run), "--minutes", str(options.minutes), "--seed", str(options.seed)]
    command += ["--init", str(options.start)] if options.start else []
    subprocess.run(command, check=True)
    options.trained = time.monotonic()
    from deit import Predictor

    paths, labels, classes = files(options.folder, "test")
    predictor = Predictor.open(str(run))
    answers = predictor.classify(paths, top_k=1, batch_size=256)
    predicted = [classes.index(answer[0].label) for answer in answers]
    return top1(predicted, labels)


def svm(options: argparse.Namespace, features: Callable[[list[Path]], npt.NDArray[Any]]) -> float:
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    paths, labels, _ = files(options.folder, "train")
    grid = {"svc__C": [1, 3, 10, 30], "svc__gamma": ["scale", 3e-4, 1e-3, 3e-3]}
    folds = min(5, int(np.bincount(labels).min()))
    search = GridSearchCV(make_pipeline(StandardScaler(), SVC()), grid, cv=folds, n_jobs=options.threads)
    search.fit(features(paths), labels)
    options.trained = time.monotonic()
    tests, test_labels, _ = files(options.folder, "test")
    return top1(search.predict(features(tests)), test_labels)


def svm_pixels(options: argparse.Namespace) -> float:
    return svm(options, lambda paths: pixels(paths, 16).reshape(len(paths), -1))


def svm_hog(options: argparse.Namespace) -> float:
    from skimage.feature import hog

    def features(paths: list[Path]) -> npt.NDArray[Any]:
        settings: dict[str, Any] = {"pixels_per_cell": (8, 8), "cells_per_block": (2, 2), "channel_axis": -1}
        return np.stack([hog(image, **settings) for image in pixels(paths, 32)])

    return svm(options, features)


def timm_resnet(options: argparse.Namespace) -> float:
    import timm
    import torch
    from timm.data import Mixup
    from timm.loss import SoftTargetCrossEntropy
    from torchvision.transforms import v2

    torch.manual_seed(options.seed)
    paths, labels, classes = files(options.folder, "train")
    side = 64 if Image.open(paths[0]).width <= 64 else 160
    images, targets = torch.from_numpy(pixels(paths, side)).permute(0, 3, 1, 2), torch.from_numpy(labels)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    images = (images - mean) / std
    view = v2.Compose([v2.RandomResizedCrop(side, scale=(0.5, 1.0)), v2.RandomHorizontalFlip()])
    model = timm.create_model("resnet18", num_classes=len(classes), pretrained=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    mixup, loss_of = Mixup(mixup_alpha=0.2, num_classes=len(classes)), SoftTargetCrossEntropy()
    end, step, batch = options.deadline, 0, 32
    while time.monotonic() < end:
        chosen = torch.randint(len(images), (batch,))
        views, soft = mixup(torch.stack([view(images[i]) for i in chosen]), targets[chosen])
        done = (time.monotonic() - BEGIN) / (end - BEGIN)
        for group in optimizer.param_groups:  # a cosine over the time instead of the steps, with a short warm-up
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        loss = loss_of(model(views), soft)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    options.trained = time.monotonic()
    model.eval()
    tests, test_labels, _ = files(options.folder, "test")
    with torch.inference_mode():
        held = (torch.from_numpy(pixels(tests, side)).permute(0, 3, 1, 2) - mean) / std
        return top1(torch.cat([model(part).argmax(1) for part in held.split(256)]).numpy(), test_labels)


def transformers_vit(options: argparse.Namespace) -> float:
    import torch
    import transformers

    transformers.set_seed(options.seed)
    paths, labels, classes = files(options.folder, "train")
    if options.start:
        processor = transformers.AutoImageProcessor.from_pretrained(options.start)
        # Their class with a distillation head returns no loss, so it cannot be trained by the Trainer.
        model = transformers.DeiTForImageClassification.from_pretrained(
            options.start, num_labels=len(classes), ignore_mismatched_sizes=True
        )
    else:
        processor = transformers.ViTImageProcessor()
        model = transformers.ViTForImageClassification(
            transformers.ViTConfig(
                hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=len(classes)
            )
        )

    def read(path: Path) -> Any:
        return processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"][0]

    data = [{"pixel_values": read(path), "labels": int(label)} for path, label in zip(paths, labels, strict=True)]
    batch = 16
    begin = time.monotonic()  # the Trainer knows no minutes: a user times a few steps, and sets the number of them
    for i in range(4):
        stacked = torch.stack([data[j % len(data)]["pixel_values"] for j in range(batch * i, batch * (i + 1))])
        model(stacked).logits.sum().backward()
    model.zero_grad()
    seconds = 1.1 * (time.monotonic() - begin) / 4
    settings = transformers.TrainingArguments(
        output_dir=str(options.run / "trainer"), max_steps=max(int((options.deadline - time.monotonic()) / seconds), 1),
        per_device_train_batch_size=batch, save_strategy="no", report_to="none", seed=options.seed, use_cpu=True,
    )  # fmt: skip
    transformers.Trainer(model=model, args=settings, train_dataset=data).train()
    options.trained = time.monotonic()
    tests, test_labels, _ = files(options.folder, "test")
    model.eval()
    predicted: list[int] = []
    with torch.inference_mode():
        for i in range(0, len(tests), 32):
            stacked = torch.stack([read(path) for path in tests[i : i + 32]])
            predicted += model(stacked).logits.argmax(1).tolist()
    return top1(predicted, test_labels)


def ultralytics_classify(options: argparse.Namespace) -> float:
    from ultralytics import YOLO

    hours = (options.deadline - time.monotonic()) / 3600
    model = YOLO("yolo11n-cls.yaml")
    paths, _, _ = files(options.folder, "train")
    side = 64 if Image.open(paths[0]).width <= 64 else 224
    model.train(
        data=str(options.folder.resolve()), time=hours, imgsz=side, seed=options.seed, workers=0, plots=False,
        val=False, project=str(options.run.resolve()), device="cpu", batch=32,
    )  # fmt: skip
    options.trained = time.monotonic()
    tests, labels, classes = files(options.folder, "test")
    names = model.names
    predicted = [
        classes.index(names[r.probs.top1]) for r in model.predict(tests, imgsz=side, stream=True, verbose=False)
    ]
    return top1(predicted, labels)


METHODS: dict[str, Callable[[argparse.Namespace], float]] = {
    "deit": deit,
    "svm-pixels": svm_pixels,
    "svm-hog": svm_hog,
    "timm": timm_resnet,
    "transformers": transformers_vit,
    "ultralytics": ultralytics_classify,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path)
    options = parser.parse_args()
    options.threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    options.deadline = BEGIN + 60 * options.minutes * (1 - RESERVE)
    score = METHODS[options.method](options)
    result = {"top1": score, "training minutes": (options.trained - BEGIN) / 60}
    (options.run / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
