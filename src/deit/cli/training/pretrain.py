"""`deit pretrain`: trains on unlabeled images; a classifier can start from the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit.cli.terminal.console import counted, reports_errors, say, say_lines
from deit.cli.terminal.parameters import (
    AutoResume,
    BatchSize,
    CacheSize,
    DetectAnomaly,
    Deterministic,
    Device,
    Epochs,
    GradientCheckpointing,
    ImageSize,
    InitialWeights,
    NoticeFile,
    Resume,
    RunFolder,
    Seed,
    Sharding,
    place,
    use_cache_size,
)
from deit.cli.terminal.settings import (
    check_freeze,
    check_steps,
    command_facts,
    describe_start,
    goes_on,
    named_settings,
    named_start,
    open_named_recipe,
    open_on_first,
    print_result,
    recipe_settings,
    resumed_settings,
    run_fit,
    training_processes,
)
from deit.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deit.data.sources import Data
    from deit.runtime.processes import Processes
    from deit.train.recipes.recipe import Recipe
    from deit.train.students.deit import Student

DEFAULT_RECIPE, DEFAULT_STUDENT = "simmim-100", "deit-tiny-distilled-patch16-224"

UnlabeledImages = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Images: any folder, Parquet, CSV or tar files, or a folder of datasets.save_to_disk. Labels are not "
        "used.",
        parser=place,
    ),
]
StudentName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"Architecture to train: a DeiT or ViT by name. [default: {DEFAULT_STUDENT}]"),
]
Fields = Annotated[
    str,
    typer.Option(
        metavar="FIELD=VALUE,...",
        help="Changes of the architecture, such as num_hidden_layers=4,patch_size=8.",
        show_default="none",
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        metavar="RECIPE",
        help=f"Training recipe: a name that deit recipes lists, or a YAML file. [default: {DEFAULT_RECIPE}]",
        parser=place,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Set any setting of the recipe, such as masking.patch=16. Can be repeated.",
    ),
]


@reports_errors
def pretrain(
    data: UnlabeledImages,
    out: RunFolder,
    student: StudentName = None,
    init: InitialWeights = None,
    config: Fields = "",
    recipe: RecipeName = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    image_size: ImageSize = None,
    set_: Settings = None,
    device: Device = "auto",
    sharding: Sharding = "none",
    gradient_checkpointing: GradientCheckpointing = False,
    detect_anomaly: DetectAnomaly = False,
    deterministic: Deterministic = False,
    cache_size: CacheSize = None,
    resume: Resume = False,
    auto_resume: AutoResume = False,
    notice_file: NoticeFile = None,
) -> None:
    """Train a model on unlabeled images by masking patches (SimMIM).

    Fine-tune it afterwards: deit train DATA --init OUT --out CLASSIFIER
    """
    from deit.core.file_names import RECONSTRUCTION_NAME
    from deit.train.build_task import build_task
    from deit.train.open_images import open_images
    from deit.train.run.folder import check_run_folder, is_finished, refuse_inside_data
    from deit.train.trial import try_start

    use_cache_size(cache_size)
    student, init = named_start(student, init, set_ or [])
    given = _open_recipe(recipe, init, config)
    settings = recipe_settings(given, epochs=epochs, batch_size=batch_size, seed=seed, given=set_ or [])
    chosen = given.with_settings(settings)
    free = _left_to_the_data(recipe, settings)
    resume = goes_on(out, resume=resume, auto_resume=auto_resume)
    if resume:
        chosen = resumed_settings(out, chosen, chosen=named_settings(epochs, set_ or []), free=free)
    how = {"sharding": sharding, "gradient_checkpointing": gradient_checkpointing}
    how |= {"detect_anomaly": detect_anomaly, "notice_file": notice_file}
    with training_processes(device, deterministic) as processes:
        processes.on_first(lambda: check_steps(how, chosen, processes))
        processes.must_agree(command_facts(chosen, student, init, how, resume=resume))
        processes.on_first(lambda: refuse_inside_data(out, data, "--out"))
        resolved = processes.on_first(lambda: _resolved(chosen, student, init, image_size))
        processes.on_first(lambda: check_run_folder(out, resolved, resume=resume))
        built = processes.on_each(lambda: try_start(resolved, device, processes, masked=True))
        images = open_on_first(processes, lambda update: open_images(data, resolved, labelled=False, progress=update))
        resolved = _fitted(resolved, images, built, [] if resume else free, processes)
        task = build_task(resolved, built)
        if processes.is_first and not (resume and is_finished(out, resolved)):
            _print_plan(images, resolved, built, task)
        options: dict[str, Any] = {"out": out, "device": device, "resume": resume, **how}
        result = run_fit(task, images, resolved, processes, **options)
        if processes.is_first:
            print_result(result)
            say(f"Reconstructions: {out / RECONSTRUCTION_NAME}")


def _left_to_the_data(name_or_path: str | None, chosen: Iterable[str]) -> list[str]:
    """Returns the names of settings to fit to the data: of a recipe for large data, none of a recipe from a file."""
    from deit.train.recipes.catalog import is_recipe_file

    if name_or_path is not None and is_recipe_file(name_or_path):
        return []
    return [name for name in ("batch_size", "masking.patch") if name not in chosen]


def _fitted(recipe: Recipe, images: Data, built: Student, free: list[str], processes: Processes) -> Recipe:
    """Returns the recipe with a batch size and a mask patch that fit the data, and prints the changes."""
    from deit.train.recipes.fitting import fitting_batch, fitting_mask_patch

    count, size = len(images.train.labels), built.processor.output_size
    patch_size: Any = built.model.config.grid_patch_size  # type: ignore[union-attr]
    fitted = {
        "batch_size": fitting_batch(count, recipe.batch_size, recipe.batch_multiple(processes.world_size)),
        "masking.patch": fitting_mask_patch(size, patch_size, recipe.masking.patch, recipe.masking.ratio),
    }
    wished = {"batch_size": recipe.batch_size, "masking.patch": recipe.masking.patch}
    why = {
        "batch_size": f"there are {counted(count, 'training image')} (--batch-size chooses another)",
        "masking.patch": f"the input has {size[0]} x {size[1]} pixels (--set masking.patch= chooses another)",
    }
    changed = {name: value for name, value in fitted.items() if name in free and value != wished[name]}
    for name, value in changed.items():
        if processes.is_first:
            say(f"{name}={value} in place of the recipe's {wished[name]}: {why[name]}.")
    return recipe.with_settings(changed)


def _print_plan(images: Data, recipe: Recipe, built: Student, task: Any) -> None:
    say(
        f"{len(images.train.labels)} training and {counted(len(images.val.labels), 'validation image')}, without "
        f"labels. "
        f"Student: {recipe.student or type(built.model).__name__}. Hidden: {task.masks.num_masked} of "
        f"{task.masks.num_patches} patches.",
    )
    for line in describe_start(recipe, images, built.processor):
        say(line)
    if built.report is not None:
        say_lines(built.report.describe())


def _open_recipe(name_or_path: str | None, init: str | None, config: str) -> Recipe:
    from deit.train.recipes.catalog import named_recipe

    if name_or_path is None:  # the settings alone: their student is meant for many GPUs
        recipe = named_recipe(DEFAULT_RECIPE).recipe.with_settings({"student": "", "image_size": 0})
    else:
        recipe = open_named_recipe(name_or_path, "pretrain")
    needs_one = not (recipe.student or recipe.init or init)
    return recipe.with_settings(
        ({"student": DEFAULT_STUDENT} if needs_one else {}) | ({"config": config} if config else {})
    )


def _resolved(recipe: Recipe, student: str | None, init: str | None, image_size: int | None) -> Recipe:
    """Returns the recipe with student and weights filled in. Checks that they exist, before any image is read."""
    from deit.train.students.start import resolved_start

    resolved = resolved_start(recipe, student=student, init=init, image_size=image_size, open_weights=True)
    _check_settings(resolved)
    return resolved


def _check_settings(recipe: Recipe) -> None:
    check_freeze(recipe)
    if recipe.data.labels_per_class or recipe.data.label_fraction < 1:
        raise UserError(
            "deit pretrain looks at no labels. Leave out data.labels_per_class and data.label_fraction; for fewer "
            "images pass data.max_train_images."
        )
