"""`deit serve` as a deployment of Ray Serve: all its routes, batching, limits and metrics, on several replicas.

    serve run deploy.ray_serve.classifier:application model=/path/to/model

or, on a cluster, with a file: `serve deploy deploy/ray_serve/config.yaml`. Ray hands the requests to the replicas; each
has the whole server inside, so that batches are made where the model is.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ray import serve

REPLICA_CORES = 2


def application(arguments: dict[str, str]) -> Any:
    """Returns the application.

    Args:
        arguments: "model": a model directory that every node can read; "replicas", "cores" of each, "engine".
    """
    model, engine = arguments["model"], arguments.get("engine", "auto")
    cores = int(arguments.get("cores", REPLICA_CORES))

    def build() -> Any:
        return classifier(model, engine)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name="Classifier",
        num_replicas=int(arguments.get("replicas", 1)),
        # More than the server lets wait (max_queue), so that it answers 429 itself and at once.
        max_ongoing_requests=256,
        graceful_shutdown_timeout_s=30,
        ray_actor_options={"num_cpus": cores, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(cores)}}},
    )
    return deployment.bind()


def classifier(model: str, engine: str) -> Any:
    """Returns the ASGI application of the server. Runs in the replica: models are opened there."""
    from deit.serve.app import make_app
    from deit.serve.decoding import DecodingPool
    from deit.serve.hosting.models import Models
    from deit.serve.hosting.sources import read_sources
    from deit.serve.metrics import Metrics
    from deit.serve.running import Opening
    from deit.serve.settings import ServeSettings

    settings = ServeSettings()
    pool, measures = DecodingPool(settings.decode_threads), Metrics()
    opening = Opening(settings=settings, pool=pool, measures=measures, engine=engine)
    models = Models(read_sources([f"model={model}"]), opening.open, measures)
    app = make_app(models, settings, pool=pool, measures=measures)
    serving = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(owner: Any) -> AsyncIterator[None]:
        await models.start()
        async with serving(owner):
            yield

    app.router.lifespan_context = lifespan
    return app
