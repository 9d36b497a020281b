"""The local worker: `FLEET_ENGINE=<model> celery -A workers.local.app worker -n local1@%h`."""

import os
import signal
from dataclasses import replace

from config.fleet import fleet_config
from config.settings import redis_url, settings
from config.startup import or_exit
from tasks import services
from tasks.privacy import Privacy
from tasks.services import Services
from workers.bootstrap import lane_worker
from workers.local import engines
from workers.local.server import LocalServer
from workers.runtime.fetching import prefix_affinity
from workers.stream_writer import StreamWriter

ENGINE = or_exit(lambda: fleet_config().engine(settings().engine))

#: Seconds for the shutdown after the engine died: messages go back, no request can finish.
DEAD_ENGINE_DRAIN_SECONDS = 2.0


async def start(shared: Services) -> LocalServer:
    """Load the engine and register it as the backend of the local tasks."""
    engine = await engines.start(ENGINE)
    privacy = Privacy.connect(fleet_config().requests, redis_url())
    server = LocalServer(
        ENGINE, engine, StreamWriter(redis_url(), settings().stream_ttl), stop_worker, privacy
    )
    server.start()
    services.install(replace(shared, backends={"local": server}))
    return server


def stop_worker() -> None:
    """Start a warm shutdown, as SIGTERM does, that does not wait for running requests."""
    app.conf.fleet_drain_timeout = DEAD_ENGINE_DRAIN_SECONDS
    os.kill(os.getpid(), signal.SIGTERM)


app = lane_worker("local", [ENGINE.queue], start)
# The worker reserves only what its engine has slots for; other workers can take the rest.
app.conf.worker_concurrency = ENGINE.slots
# vLLM logs on its own; Celery would repeat each line as a warning.
app.conf.worker_redirect_stdouts = False
if ENGINE.prefix_affinity:
    app.conf.broker_transport_options |= {"affinity": prefix_affinity.unique_name()}
