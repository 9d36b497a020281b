"""A local worker: `FLEET_ENGINE=<model> celery -A workers.local.app worker -n local1@%h`."""

from config.fleet import fleet_config
from config.settings import settings
from tasks import servers
from workers.local import engines
from workers.local.server import LocalServer
from workers.start import lane_worker

ENGINE = fleet_config().engine(settings().engine)


async def start() -> LocalServer:
    """Load the engine and put it behind the local tasks."""
    server = LocalServer(ENGINE, await engines.start(ENGINE))
    servers.use("local", server)
    return server


app = lane_worker("local", [ENGINE.queue], start)
