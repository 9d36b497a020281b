"""The realtime worker: `celery -A workers.realtime.app worker -n realtime1@%h`."""

from dataclasses import replace

from config.fleet import fleet_config
from config.settings import redis_url
from primarch_fleet.contract import REALTIME_QUEUE
from tasks import services
from tasks.services import Services
from workers.bootstrap import lane_worker
from workers.realtime import litellm_import  # noqa: F401 - the first of its imports
from workers.realtime.server import RealtimeServer


async def start(shared: Services) -> RealtimeServer:
    """Build the Router and register it as the backend of the realtime tasks."""
    server = RealtimeServer(fleet_config(), redis_url())
    await server.warm_up()
    server.start()
    services.install(replace(shared, backends={"realtime": server}))
    return server


app = lane_worker("realtime", [REALTIME_QUEUE], start)
