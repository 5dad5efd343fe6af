"""The targets, by name. A new one is a file here and a row of the table."""

from __future__ import annotations

from tests.fuzz.driver import Target
from tests.fuzz.targets import (
    bulk_jobs,
    images,
    models,
    parquet_files,
    pickles,
    recipes,
    records,
    requests,
    shards,
    states,
    tables,
    teacher_caches,
)

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (
        models, pickles, recipes, records, states, teacher_caches, shards, parquet_files, tables, images, requests,
        bulk_jobs
    )
    for target in module.TARGETS
}  # fmt: skip
