"""A small student, a small teacher and a speed that is given: plans of a few steps."""

from __future__ import annotations

import pytest

from deit.planning import choice, designs, look, make_plan
from deit.planning.facts import Speed

STUDENT, TEACHER = "deit-digits-distilled-patch8-32", "timm/test_resnet"
# 24 images in batches of 8: an epoch of 3 steps takes 9 s, so half a minute allows 3 epochs of teacher and student.
GIVEN = Speed(step=2.99, light_view=0.001, strong_view=0.002, evaluation=0.0, memory=10**9)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes plans small and independent of the machine."""
    monkeypatch.setattr(designs, "_THUMBNAILS", (STUDENT,))
    monkeypatch.setattr(designs, "_THUMBNAILS_GPU", (STUDENT,))
    monkeypatch.setattr(designs, "_TEACHER", TEACHER)
    monkeypatch.setattr(designs, "_TEACHER_GPU", TEACHER)
    monkeypatch.setattr(choice, "_LEAST_STEPS_TAUGHT", 1)
    monkeypatch.setattr(choice, "OFTEN", 10**6)
    monkeypatch.setattr(look, "_is_cached", lambda _: False)
    monkeypatch.setattr(make_plan, "measure", lambda *_, **__: GIVEN)
