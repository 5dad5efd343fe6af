"""All hostile inputs by name."""

from __future__ import annotations

from tests.hostile import image_cases, model_cases, run_cases, table_cases

CASES = {**model_cases.CASES, **image_cases.CASES, **table_cases.CASES, **run_cases.CASES}
