"""Lists the recipes for small data sets. Their settings are our own choice."""

from __future__ import annotations

from typing import Any

from deit.train.recipes.named_recipe import NamedRecipe, recipe_of

_SOURCE = "our own choice"
_TOP1_NOTE = "Depends on your images."
_TIME = "not measured; grows with the number of your images"

_MILD_VIEWS: dict[str, Any] = {"augment.crop_scale": (0.3, 1.0), "augment.erase_rate": 0.0, "augment.mix_rate": 0.0}
# The soft loss was better than the hard one in the demo's short trainings: docs/results.md.
_SOFT: dict[str, Any] = {"distillation.kind": "soft", "distillation.temperature": 3.0, "distillation.weight": 0.5}


def _teacher_note(name: str) -> str:
    return (
        f"To distill from a teacher, train one (deit train DATA --student timm/resnet18 --recipe {name} --out TEACHER) "
        "and add --teacher TEACHER. The distillation is soft, which was better than hard in the demo "
        "(docs/results.md)."
    )


RECIPES = (
    NamedRecipe(
        name="small-data-cpu",
        summary="DeiT-tiny from nothing on some hundred or thousand images of your own, on a CPU, 100 epochs.",
        recipe=recipe_of(
            "deit-tiny-distilled-patch16-224",
            {
                **_MILD_VIEWS,
                **_SOFT,
                "optimizer.reference_batch_size": 64,
                "schedule.epochs": 100,
                "schedule.warmup_epochs": 5,
                "drop_path_rate": 0.0,
                "eval_epochs": 5,
            },
            image_size=112,
        ),
        hardware="a CPU",
        expected_time=_TIME,
        top1_note=_TOP1_NOTE,
        source=_SOURCE,
        notes=(
            _teacher_note("small-data-cpu"),
            "112 pixels cost a quarter of 224. Views are milder than the paper's, whose blends and erasing need "
            "hundreds of epochs. If you may start from published weights, try fine-tune first.",
        ),
    ),
    NamedRecipe(
        name="small-data-gpu",
        summary="DeiT-tiny from nothing on some thousand images of your own, on a GPU, 300 epochs.",
        recipe=recipe_of(
            "deit-tiny-distilled-patch16-224",
            {
                **_SOFT,
                "batch_size": 128,
                "optimizer.reference_batch_size": 128,
                "schedule.warmup_epochs": 10,
                "eval_epochs": 5,
            },
        ),
        hardware="one GPU",
        expected_time=_TIME,
        top1_note=_TOP1_NOTE,
        source=_SOURCE,
        notes=(
            _teacher_note("small-data-gpu"),
            "Views and blends are the paper's. If you may start from published weights, try fine-tune first.",
        ),
    ),
    NamedRecipe(
        name="fine-tune",
        summary="Your own images from published weights, 20 epochs.",
        recipe=recipe_of(
            "deit-small-distilled-patch16-224",
            {
                **_MILD_VIEWS,
                "schedule.epochs": 20,
                "schedule.warmup_epochs": 2,
                "schedule.min_lr": 1e-6,
                "optimizer.layer_decay": 0.75,
            },
            init="facebook/deit-small-distilled-patch16-224",
        ),
        hardware="one GPU, or a CPU and patience",
        expected_time=_TIME,
        top1_note=_TOP1_NOTE,
        source=_SOURCE,
        notes=(
            "AdamW at 5e-4 for 512 images, so 6.25e-5 for 64; each block learns at three quarters of the rate of "
            "the next, since early blocks need little change.",
        ),
    ),
)
