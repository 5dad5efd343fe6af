"""Defines a plan: the recipe that was chosen, the reasons and the forecast."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deit.core.errors import DamagedFileError
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.values import plain


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """How long a training will take, in seconds, and how much memory.

    Attributes:
        planning: What the plan itself took.
        teacher: Training of the teacher, its evaluations included.
        student: Training of the student, its evaluations included.
        memory: Bytes at the peak; 0 where it is not known.
    """

    planning: float = 0.0
    teacher: float = 0.0
    student: float = 0.0
    memory: int = 0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.planning + self.teacher + self.student


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was chosen for a training.

    Attributes:
        recipe: Of the student. With `teacher_recipe` its own `teacher` is empty until the teacher is trained.
        teacher_recipe: Of the teacher that is trained first; None for none.
        reasons: Why, a sentence for each choice.
        forecast: Time and memory.
        minutes: The time that the plan was made for.
    """

    recipe: Recipe
    teacher_recipe: Recipe | None = None
    reasons: tuple[str, ...] = ()
    forecast: Forecast = dataclasses.field(default_factory=Forecast)
    minutes: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns nested plain values, for JSON."""
        return {
            "minutes": self.minutes,
            "reasons": list(self.reasons),
            "forecast": {**dataclasses.asdict(self.forecast), "seconds": self.forecast.seconds},
            "recipe": plain(self.recipe.to_dict()),
            "teacher_recipe": None if self.teacher_recipe is None else plain(self.teacher_recipe.to_dict()),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Builds a plan from what `to_dict` returned.

        Raises:
            DamagedFileError: They are the values of no plan.
            ValueError: A recipe cannot be used.
        """
        try:
            forecast = {f.name: values["forecast"][f.name] for f in dataclasses.fields(Forecast)}
            teacher = values["teacher_recipe"]
            return cls(
                recipe=Recipe.from_dict(values["recipe"]),
                teacher_recipe=None if teacher is None else Recipe.from_dict(teacher),
                reasons=tuple(map(str, values["reasons"])),
                forecast=Forecast(**forecast),
                minutes=float(values["minutes"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedFileError(f"It is no plan of a training: {type(error).__name__} {error}.") from error
