"""The choice of a training, as a function of facts and measured speeds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from deit.core.errors import UserError
from deit.core.published import VARIANTS
from deit.planning.choice import OFTEN, STEPS_FOR_STRONG, Measured, choose, default_minutes, has_time_to_spare
from deit.planning.designs import designs, fitting_memory
from deit.planning.facts import DataFacts, MachineFacts, Reachable, Speed, Wishes
from deit.planning.memory import training_memory
from deit.planning.plan import Plan
from deit.train.recipes.recipe import Recipe

THUMBNAILS = DataFacts(labelled=720, val_images=180, classes=6, smallest_class=120, largest_class=120, side=32)
PHOTOS = dataclasses.replace(THUMBNAILS, side=500)
CPU = MachineFacts(device="cpu", name="a CPU", cores=2, memory=8 * 2**30)
GPU = MachineFacts(device="cuda", name="a GPU", cores=16, workers=12, memory=80 * 2**30, precision="bf16")
SPEED = Speed(step=0.05, light_view=0.0005, strong_view=0.001, evaluation=0.002, saving=0.05, memory=10**9)
FAST = dataclasses.replace(SPEED, step=0.004, light_view=0.0001, strong_view=0.0002)
SLOW = dataclasses.replace(SPEED, step=30.0)
CACHED = Reachable(students=("deit-tiny-distilled-patch16-224", "deit-small-distilled-patch16-224"))


def planned(
    data: DataFacts = THUMBNAILS,
    machine: MachineFacts = CPU,
    *,
    speed: Speed = SPEED,
    minutes: float | None = 5,
    reachable: Reachable = Reachable(),  # noqa: B008
    **settings: Any,
) -> Plan:
    """Plans as `plan` does, with every design at the same speed."""
    wishes = Wishes(settings={name.replace("__", "."): value for name, value in settings.items()}, minutes=minutes)
    measured: list[Measured] = []
    for design in designs(data, machine, wishes, reachable):
        measured.append(Measured(design=design, speed=speed, of_teacher=speed if design.teacher else None))
        if not has_time_to_spare(data, machine, wishes, measured[-1]):
            break
    return choose(data, machine, wishes, measured)


SITUATIONS = {
    "thumbnails on a CPU": (
        {},
        {"student": "deit-mini-distilled-patch4-32", "image_size": 32, "augment.crop_scale": (0.5, 1.0), "init": ""},
    ),
    "thumbnails with time to spare": ({"speed": FAST}, {"student": "deit-micro-distilled-patch4-32"}),
    "thumbnails on a GPU": (
        {"machine": GPU, "speed": FAST}, {"student": "deit-tiny-distilled-patch4-32", "precision": "bf16"},
    ),
    "photos on a CPU": ({"data": PHOTOS}, {"student": "deit-mini-distilled-patch8-64", "augment.crop": "resized"}),
    "photos and published weights": (
        {"data": PHOTOS, "reachable": CACHED, "speed": dataclasses.replace(SPEED, step=0.2)},
        {"init": "facebook/deit-tiny-distilled-patch16-224", "optimizer.layer_decay": 0.75},
    ),
    "photos, published weights and time to spare": (
        {"data": PHOTOS, "reachable": CACHED, "speed": FAST}, {"student": "deit-small-distilled-patch16-224"},
    ),
    "thumbnails have no use for published weights of photos": ({"reachable": CACHED}, {"init": ""}),
    "weights of the user": ({"init": "mine"}, {"init": "mine", "student": "", "optimizer.layer_decay": 0.75}),
    "a linear probe": ({"init": "mine", "freeze": "trunk"}, {"freeze": "trunk", "optimizer.lr": 1e-3}),
    "a student of the user": (
        {"student": "deit-small-distilled-patch16-224", "data": PHOTOS},
        {"student": "deit-small-distilled-patch16-224", "image_size": 224},
    ),
    "a convnet": ({"student": "timm/resnet10t"}, {"student": "timm/resnet10t", "optimizer.lr": 2e-3}),
    "settings of the user": (
        {"batch_size": 10, "optimizer__lr": 0.5, "image_size": 64},
        {"batch_size": 10, "optimizer.lr": 0.5, "image_size": 64},
    ),
    "uneven classes": ({"data": dataclasses.replace(THUMBNAILS, smallest_class=30)}, {"class_weights": "sqrt"}),
    "even classes": ({}, {"class_weights": "none"}),
    "validation images that can tell": ({"data": dataclasses.replace(THUMBNAILS, val_images=500)}, {"keep": "best"}),
    "too few of them": ({}, {"keep": "last"}),
    "few images": (
        {"data": dataclasses.replace(THUMBNAILS, labelled=40, val_images=10, smallest_class=5)}, {"batch_size": 8},
    ),
    "eighty images": ({"data": dataclasses.replace(THUMBNAILS, labelled=80, val_images=20)}, {"batch_size": 16}),
    "images like their mirror images": ({}, {"augment.flip_rate": 0.5, "initialization": "mimetic"}),
    "images unlike them": ({"data": dataclasses.replace(THUMBNAILS, mirrored=0.05)}, {"augment.flip_rate": 0.0}),
    "flips of the user": (
        {"data": dataclasses.replace(THUMBNAILS, mirrored=0.05), "augment__flip_rate": 0.5},
        {"augment.flip_rate": 0.5},
    ),
    "epochs of the user": ({"schedule__epochs": 7, "minutes": None}, {"schedule.epochs": 7}),
}  # fmt: skip


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_situation_leads_to_these_settings(name):
    given, expected = SITUATIONS[name]
    plan = planned(**given)
    assert {key: plan.recipe.setting(key) for key in expected} == expected
    plan.recipe.check_learning_rates()
    assert all(reason.endswith(".") for reason in plan.reasons)


@pytest.mark.parametrize("minutes", [2, 5, 30, 300])
@pytest.mark.parametrize("data", [THUMBNAILS, PHOTOS, dataclasses.replace(PHOTOS, labelled=50_000, val_images=10_000)])
@pytest.mark.parametrize("machine", [CPU, GPU])
def test_a_forecast_fills_the_time_and_does_not_exceed_it(minutes, data, machine):
    speed = FAST if data.images > 10_000 else SPEED
    plan = planned(data, machine, minutes=minutes, speed=speed)
    assert plan.forecast.seconds <= 60 * minutes
    assert plan.forecast.seconds >= 0.6 * 60 * minutes


def test_a_teacher_is_trained_first_where_the_student_starts_from_nothing():
    plan = planned()
    assert plan.teacher_recipe is not None
    assert plan.teacher_recipe.student == "timm/resnet10t"
    assert plan.teacher_recipe.image_size == plan.recipe.image_size
    assert (plan.recipe.distillation.kind, plan.recipe.teacher) == ("soft", ())
    assert plan.forecast.teacher > 0


@pytest.mark.parametrize(
    "given",
    [
        {"teacher": ()},
        {"teacher": ("mine",)},
        {"init": "mine"},
        {"student": "timm/resnet10t"},
        {"student": "deit-tiny-patch16-224"},
        {"data": PHOTOS, "reachable": CACHED},
        {"data": dataclasses.replace(THUMBNAILS, problem_type="multi_label_classification")},
    ],
    ids=str,
)
def test_no_teacher_is_trained_where_one_is_named_or_none_can_serve(given):
    assert planned(**given).teacher_recipe is None


def test_a_teacher_helps_a_start_for_thumbnails_and_not_one_for_photos():
    own, large = Reachable(taught_side=32), Reachable(taught_side=224)
    plan = planned(init="mine", reachable=own)
    assert plan.teacher_recipe is not None
    assert plan.teacher_recipe.image_size == 32
    assert (plan.recipe.init, plan.recipe.optimizer.layer_decay, plan.recipe.optimizer.lr) == ("mine", 1.0, 1e-3)
    assert (plan.recipe.distillation.guidance, plan.recipe.initialization) == (10.0, "normal")
    resized = planned(init="mine", reachable=large, image_size=32)
    assert resized.teacher_recipe is not None
    assert resized.teacher_recipe.image_size == 32
    for other in (
        planned(init="mine", reachable=large),
        planned(init="mine", reachable=own, data=PHOTOS),
        planned(init="mine", reachable=own, freeze="trunk"),
        planned(init="mine", reachable=own, speed=dataclasses.replace(SPEED, step=1.0)),
    ):
        assert other.teacher_recipe is None
        assert not other.recipe.distillation.guidance
    assert other.recipe.optimizer.layer_decay == 0.75


def test_published_weights_of_a_convnet_start_the_teacher():
    plan = planned(reachable=Reachable(convnets=("timm/resnet18",)))
    assert plan.teacher_recipe is not None
    assert (plan.teacher_recipe.student, plan.teacher_recipe.init) == ("timm/resnet18", "timm/resnet18")


def test_the_teacher_takes_what_was_set_of_views_data_and_seed_and_nothing_of_the_student():
    plan = planned(seed=3, augment__flip_rate=0.0, optimizer__lr=0.5, data__val_fraction=0.3)
    teacher = plan.teacher_recipe
    assert teacher is not None
    assert (teacher.seed, teacher.augment.flip_rate, teacher.data.val_fraction) == (3, 0.0, 0.3)
    assert teacher.optimizer.lr != 0.5


def test_views_are_strong_where_an_image_is_shown_often():
    often, rarely = planned(minutes=60), planned(minutes=2)
    assert often.recipe.schedule.epochs > OFTEN >= rarely.recipe.schedule.epochs
    assert often.recipe.augment.rand_augment
    assert not rarely.recipe.augment.rand_augment
    assert (rarely.recipe.augment.mix_rate, rarely.teacher_recipe.augment.mix_rate) == (0.5, 0)
    assert planned(minutes=2, teacher="somebody").recipe.augment.mix_rate == 0


def test_a_teacher_of_the_plan_guides_the_patches_unless_the_user_decides():
    assert planned().recipe.distillation.guidance == 10
    assert any(reason.startswith("Guidance: ") for reason in planned().reasons)
    assert planned(distillation__guidance=2.0).recipe.distillation.guidance == 2
    for wishes in ({"token_merging": 2}, {"teacher": "somebody"}, {"distillation__guidance": 0.0}):
        plan = planned(**wishes)
        assert plan.recipe.distillation.guidance == 0
        assert not any(reason.startswith("Guidance: ") for reason in plan.reasons)


def test_views_are_light_where_steps_are_few_however_often_an_image_is_shown():
    few = dataclasses.replace(THUMBNAILS, labelled=80)
    recipe = planned(few, minutes=2).recipe
    assert recipe.schedule.epochs > OFTEN
    assert recipe.schedule.epochs * (80 // recipe.batch_size) < STEPS_FOR_STRONG
    assert not recipe.augment.rand_augment


def test_where_a_teacher_gets_no_time_the_student_has_all_of_it_and_needs_no_answers():
    speed = dataclasses.replace(SPEED, step=1.0, answers=0.6, light_view=0.0, strong_view=0.0)
    plan = planned(speed=speed, minutes=4)
    assert plan.teacher_recipe is None
    assert plan.recipe.schedule.epochs == pytest.approx(240 / (45 * 0.4), abs=2)
    assert any(reason.startswith("No teacher: ") for reason in plan.reasons)


def test_unlabelled_images_are_shown_to_the_student_and_not_to_the_teacher():
    data = dataclasses.replace(THUMBNAILS, unlabelled=7200)
    alone, more = planned(), planned(data, minutes=30)
    assert any("7200 more without a label" in reason for reason in more.reasons)
    assert more.teacher_recipe is not None
    assert more.teacher_recipe.schedule.epochs > alone.teacher_recipe.schedule.epochs
    assert more.recipe.schedule.epochs < planned(minutes=30).recipe.schedule.epochs


def test_little_time_leaves_out_images_without_a_label_that_it_could_not_show_often_enough():
    data = dataclasses.replace(THUMBNAILS, unlabelled=10**6)
    plan = planned(data, minutes=3)
    used = plan.recipe.data.max_unlabelled_images
    assert plan.teacher_recipe is not None
    assert 0.25 * 720 <= used < 20_000
    assert any(reason.startswith(f"Uses {used} of the 1000000 images without a label") for reason in plan.reasons)
    assert 8 <= plan.recipe.schedule.epochs <= 10
    assert plan.forecast.seconds == pytest.approx(180, rel=0.1)
    assert planned(data, minutes=6).recipe.data.max_unlabelled_images > used
    assert planned(dataclasses.replace(data, unlabelled=100), minutes=3).recipe.data.max_unlabelled_images == 0
    kept = planned(dataclasses.replace(data, unlabelled=4000), minutes=3, data__max_unlabelled_images=4000)
    assert kept.recipe.data.max_unlabelled_images == 4000
    assert not any(reason.startswith("Uses ") for reason in kept.reasons)
    assert kept.forecast.seconds == pytest.approx(180, rel=0.2)


def test_a_convnet_that_sees_images_very_often_gets_strong_views_however_few_the_steps():
    few = planned(dataclasses.replace(THUMBNAILS, labelled=80), minutes=4)
    assert few.teacher_recipe.augment.rand_augment
    assert not few.recipe.augment.rand_augment
    assert few.teacher_recipe.schedule.epochs * 5 < STEPS_FOR_STRONG
    assert not planned(minutes=2).teacher_recipe.augment.rand_augment
    alone = planned(dataclasses.replace(THUMBNAILS, labelled=80), minutes=2, student="timm/resnet10t")
    assert alone.recipe.augment.rand_augment


def test_a_guided_student_takes_larger_steps_where_it_sees_images_seldom():
    rarely, oftener = planned(dataclasses.replace(THUMBNAILS, labelled=2000), minutes=4), planned(minutes=4)
    assert rarely.recipe.schedule.epochs <= 25 < oftener.recipe.schedule.epochs
    assert (rarely.recipe.optimizer.lr, oftener.recipe.optimizer.lr) == (2e-3, 1e-3)
    assert planned(dataclasses.replace(THUMBNAILS, labelled=2000), minutes=4, teacher=()).recipe.optimizer.lr == 1e-3


def test_on_a_cpu_the_labeled_images_decide_the_batches_of_student_and_teacher():
    data = dataclasses.replace(THUMBNAILS, labelled=2000, unlabelled=23_000)
    plan = planned(data, minutes=10)
    assert (plan.recipe.batch_size, plan.teacher_recipe.batch_size) == (16, 32)
    assert planned(data, GPU, minutes=10).recipe.batch_size == 256
    few = planned(dataclasses.replace(data, labelled=200), GPU, speed=FAST, minutes=10)
    assert (few.recipe.batch_size, few.teacher_recipe.batch_size) == (200, 200)  # the teacher has no more images
    own = planned(data, minutes=10, batch_size=24)
    assert (own.recipe.batch_size, own.teacher_recipe.batch_size) == (24, 24)


def test_a_given_teacher_is_counted_and_none_is_not():
    speed = dataclasses.replace(SPEED, answers=0.025)
    given, none = planned(speed=speed, teacher=("mine",)), planned(speed=speed, teacher=())
    assert none.recipe.schedule.epochs > 1.5 * given.recipe.schedule.epochs
    assert given.recipe.distillation != none.recipe.distillation
    assert none.recipe.distillation == Recipe().distillation


def test_a_plan_gives_no_reason_for_what_the_user_set():
    uneven = dataclasses.replace(THUMBNAILS, smallest_class=30)
    said, silent = planned(uneven), planned(uneven, class_weights="balanced", keep="best")
    for begin in ("Class weights: ", "The model will be that of "):
        assert any(reason.startswith(begin) for reason in said.reasons)
        assert not any(reason.startswith(begin) for reason in silent.reasons)
    assert "Kept as you set them: class_weights, keep." in silent.reasons


def test_a_number_of_epochs_of_the_user_decides_warm_up_views_and_forecast():
    free, few, many = planned(), planned(schedule__epochs=7), planned(schedule__epochs=1000)
    assert (few.recipe.schedule.epochs, few.recipe.schedule.warmup_epochs) == (7, 0.7)
    assert few.forecast.student < 7 / free.recipe.schedule.epochs * free.forecast.student + 10
    assert many.forecast.student > 1000 / free.recipe.schedule.epochs * free.forecast.student - 10
    assert (few.recipe.augment.rand_augment, bool(many.recipe.augment.rand_augment)) == ("", True)
    assert few.recipe.eval_epochs <= 7
    assert any(reason.startswith("7 epochs of 45 steps in batches of 16: as you set them,") for reason in few.reasons)


def test_a_number_of_epochs_of_the_user_decides_how_many_unlabelled_images_fit():
    data = dataclasses.replace(THUMBNAILS, unlabelled=20_000)
    free, many = planned(data), planned(data, schedule__epochs=16)
    assert many.recipe.data.max_unlabelled_images < free.recipe.data.max_unlabelled_images
    assert any("more would be shown fewer than 16 times in this time." in reason for reason in many.reasons)
    assert many.forecast.seconds <= 300


def test_a_reason_for_views_says_that_the_user_set_some_of_them():
    (reason,) = [each for each in planned(augment__rand_augment="rand-m9-n1").reasons if each.startswith("Views: ")]
    assert ", apart from what you set, because " in reason


def test_too_little_time_is_refused_with_the_time_that_is_enough():
    with pytest.raises(UserError, match=r"The time is too short: .* Pass --minutes [\d.]+ or more\.") as refused:
        planned(speed=SLOW, minutes=0.1)
    enough = float(str(refused.value).split("--minutes ")[1].split(" ")[0])
    assert planned(speed=SLOW, minutes=enough).recipe.schedule.epochs >= 3


@pytest.mark.parametrize(
    ("data", "machine", "minutes"),
    [
        (THUMBNAILS, CPU, 5),
        (dataclasses.replace(THUMBNAILS, labelled=3000), CPU, 15),
        (dataclasses.replace(THUMBNAILS, labelled=10**6), CPU, 30),
        (THUMBNAILS, GPU, 3),
        (dataclasses.replace(THUMBNAILS, labelled=10**6), GPU, 20),
    ],
)
def test_without_minutes_the_number_of_images_decides(data, machine, minutes):
    assert default_minutes(data, machine) == minutes


def test_batches_shrink_to_the_memory_and_too_little_of_it_is_refused():
    name = "deit-base-distilled-patch16-224"
    small = dataclasses.replace(CPU, memory=6 * 2**30)
    fitting = fitting_memory(name, 224, 64, small)
    assert 2 <= fitting < 64
    assert training_memory(name, fitting).total <= small.memory
    with pytest.raises(UserError, match=r"too little memory to train deit-base.* Pass a smaller --student"):
        designs(PHOTOS, dataclasses.replace(CPU, memory=2**29), Wishes(settings={"student": name}), Reachable())
    assert fitting_memory(name, 224, 64, dataclasses.replace(CPU, memory=0)) == 64  # the system does not say


@pytest.mark.parametrize("processes", [1, 3, 4])
def test_batches_can_be_shared_by_the_processes_and_paired(processes):
    machine = dataclasses.replace(CPU, processes=processes)
    batch = planned(machine=machine).recipe.batch_size
    assert batch % 2 == 0
    assert batch % processes == 0


def test_every_student_that_is_chosen_exists():
    names = {design.student for data in (THUMBNAILS, PHOTOS) for machine in (CPU, GPU)
             for design in designs(data, machine, Wishes(), Reachable())}  # fmt: skip
    assert names <= set(VARIANTS)


def test_a_plan_survives_json():
    plan = planned()
    assert Plan.from_dict(plan.to_dict()) == plan
    with pytest.raises(UserError, match="no plan of a training"):
        Plan.from_dict({"recipe": {}})


def test_a_plan_speaks_of_missing_mirror_images_only_where_none_are_shown() -> None:
    one_sided = dataclasses.replace(THUMBNAILS, mirrored=0.05)
    told = [
        any(reason.startswith("No mirror images: only 5 %") for reason in plan.reasons)
        for plan in (planned(one_sided), planned(one_sided, augment__flip_rate=0.5), planned())
    ]
    assert told == [True, False, False]
