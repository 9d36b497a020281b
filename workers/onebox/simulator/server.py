"""Runs the simulator on the caller's event loop or on its own thread."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeVar

from aiohttp import web

from workers.onebox.simulator.app import App
from workers.onebox.simulator.clock import Clock, SystemClock
from workers.onebox.simulator.control_routes import ControlRoutes
from workers.onebox.simulator.errors import JsonObject
from workers.onebox.simulator.profile import Profile
from workers.onebox.simulator.provider import Provider
from workers.onebox.simulator.script import Script

_T = TypeVar("_T")
_BACKLOG = 4_096  # a benchmark opens all its connections at once
_TIMEOUT_SECONDS = 10.0
#: How long a call in flight may take to end at shutdown; aiohttp takes 0 as no limit.
_SHUTDOWN_SECONDS = 0.01


class Server:
    """An app that listens on one port, on the running event loop."""

    def __init__(self, app: App) -> None:
        application = app.application()
        ControlRoutes(app).add_to(application)
        self._runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS
        )

    async def start(self, host: str, port: int) -> str:
        """Listen, and return the URL for clients, ending in /v1. Port 0 takes a free port."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=_BACKLOG).start()
        bound_port = self._runner.addresses[0][1]
        url_host = f"[{host}]" if ":" in host else host
        return f"http://{url_host}:{bound_port}/v1"

    async def stop(self) -> None:
        """Close the port and all connections, without waiting for responses."""
        await self._runner.cleanup()


class Simulator:
    """A simulator that runs on its own thread during a `with` block.

    Its methods can be called from any other thread, after the block too, and include every call
    that was answered before. A second block needs a second simulator.
    """

    def __init__(
        self,
        profile: Profile | None = None,
        clock: Clock | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        app: Callable[[Provider], App] = App,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.url = ""
        self._app = app(Provider(profile or Profile(), self.clock))
        self._address = (host, port)
        self._started: Future[str] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        """Listen, and set `url`. Raises OSError if the port is in use."""
        self._thread.start()
        self.url = self._started.result(_TIMEOUT_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening and end the thread."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(_TIMEOUT_SECONDS)

    @property
    def profile(self) -> Profile:
        """The provider's settings from the next call on; setting them resets the fault rules."""
        return self._app.provider.profile

    @profile.setter
    def profile(self, profile: Profile) -> None:
        self._call(lambda: setattr(self._app.provider, "profile", profile))

    def invoice(self) -> JsonObject:
        """The response of GET /simulator/invoice."""
        return self._call(self._app.provider.invoice.as_json)

    def charges(self) -> dict[str | None, int]:
        """The nano-dollars of the newest answers by their id."""
        return self._call(lambda: dict(self._app.provider.invoice.charges))

    def requests(self) -> list[JsonObject]:
        """The response of GET /simulator/requests: the newest requests, as received."""
        return self._call(self._app.received.as_json)

    def script(self, *scripts: Script) -> None:
        """Add scripts, as POST /simulator/scripts does; the first that hits a request wins."""
        self._call(lambda: self._app.provider.scripts.add(scripts))

    def stats(self) -> JsonObject:
        """The response of GET /simulator/stats."""
        return self._call(self._app.stats.as_json)

    def send_webhooks(self) -> list[int]:
        """The response of POST /simulator/webhooks; its receiver needs another thread."""
        sending = asyncio.run_coroutine_threadsafe(self._app.send_webhooks(), self._loop)
        return sending.result(_TIMEOUT_SECONDS)

    def reset(self) -> None:
        """Do what POST /simulator/reset does."""
        self._call(self._app.reset)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        server = Server(self._app)
        try:
            self._started.set_result(await server.start(*self._address))
            await self._stopped.wait()
        except OSError as error:
            self._started.set_exception(error)
        finally:
            await server.stop()

    def _call(self, function: Callable[[], _T]) -> _T:
        if not self._thread.is_alive():
            return function()

        async def called() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result(_TIMEOUT_SECONDS)
