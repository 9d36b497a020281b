"""A local worker: `FLEET_ENGINE=<model> celery -A workers.local.app worker -n local1@%h`."""

import os
import signal

from config.fleet import fleet_config
from config.settings import redis_url, settings
from tasks import serving
from workers.bootstrap import lane_worker
from workers.local import engines
from workers.local.server import LocalServer
from workers.runtime import prefix_affinity
from workers.stream_writer import StreamWriter

ENGINE = fleet_config().engine(settings().engine)

#: Seconds to give messages back when the engine has died: nothing can finish any more.
GIVE_BACK_TIMEOUT = 2.0


async def start() -> LocalServer:
    """Load the engine and put it behind the local tasks."""
    server = LocalServer(ENGINE, await engines.start(ENGINE), StreamWriter(redis_url()), end_worker)
    server.start()
    serving.use("local", server)
    return server


def end_worker() -> None:
    """A warm shutdown, as by SIGTERM, that waits for nobody."""
    app.conf.fleet_drain_timeout = GIVE_BACK_TIMEOUT
    os.kill(os.getpid(), signal.SIGTERM)


app = lane_worker("local", [ENGINE.queue], start)
# It holds what the engine has places for: the rest of the queue is there for other workers.
app.conf.worker_concurrency = ENGINE.places
# vLLM logs by itself; Celery would repeat each line as a warning.
app.conf.worker_redirect_stdouts = False
if ENGINE.prefix_affinity:
    app.conf.broker_transport_options |= {"affinity": prefix_affinity.unique_name()}
