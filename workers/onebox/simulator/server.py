"""Runs the simulator: on the caller's event loop, or on a thread of its own."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeVar

from aiohttp import web

from workers.onebox.simulator.app import App
from workers.onebox.simulator.clock import Clock, SystemClock
from workers.onebox.simulator.controls import Controls
from workers.onebox.simulator.error import JsonObject
from workers.onebox.simulator.profile import Profile
from workers.onebox.simulator.provider import Provider

_T = TypeVar("_T")
_BACKLOG = 4_096  # a benchmark opens its connections all at once
_PATIENCE = 10.0  # seconds
_GRACE = 0.01  # seconds a call in flight has to end; aiohttp takes 0 for "any time"


class Server:
    """An app listening on one port, on the running event loop."""

    def __init__(self, app: App) -> None:
        application = app.application()
        Controls(app).add_to(application)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=_GRACE)

    async def start(self, host: str, port: int) -> str:
        """Listen; the URL for clients, ending in /v1. Port 0 takes a free one."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=_BACKLOG).start()
        bound = self._runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{bound}/v1"

    async def stop(self) -> None:
        """Close the port and all connections, without waiting for their answers."""
        await self._runner.cleanup()


class Simulator:
    """A simulator on a thread of its own, for as long as the `with` block lasts.

    Its methods may be called from any thread but its own, also after the block, and see every call
    answered before. It serves once: a second block needs a second simulator.
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
        """Listen; `url` is set once this returns. OSError where the port is taken."""
        self._thread.start()
        self.url = self._started.result(_PATIENCE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening and end the thread."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(_PATIENCE)

    @property
    def profile(self) -> Profile:
        """How the provider behaves from the next call on; setting it restarts the fault rules."""
        return self._app.provider.profile

    @profile.setter
    def profile(self, profile: Profile) -> None:
        self._call(lambda: setattr(self._app.provider, "profile", profile))

    def invoice(self) -> JsonObject:
        """What GET /simulator/invoice answers."""
        return self._call(self._app.provider.invoice.as_json)

    def stats(self) -> JsonObject:
        """What GET /simulator/stats answers."""
        return self._call(self._app.stats.as_json)

    def send_webhooks(self) -> list[int]:
        """What POST /simulator/webhooks answers; the receiver is not to be the caller's thread."""
        sending = asyncio.run_coroutine_threadsafe(self._app.send_webhooks(), self._loop)
        return sending.result(_PATIENCE)

    def reset(self) -> None:
        """What POST /simulator/reset does."""
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

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result(_PATIENCE)
