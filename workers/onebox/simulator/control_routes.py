"""The simulator's own routes: invoice, stats, requests, scripts, profile, clock and others."""

import json

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from workers.onebox.simulator.app import App
from workers.onebox.simulator.clock import VirtualClock
from workers.onebox.simulator.errors import ApiError, JsonObject, invalid
from workers.onebox.simulator.profile import Profile
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.transport import error_response

_SCRIPTS = TypeAdapter(list[Script])


class ControlRoutes:
    """Routes under /simulator; they need no API key, and no fault rule applies to them."""

    def __init__(self, app: App) -> None:
        self._app = app

    def add_to(self, application: web.Application) -> None:
        """Add the routes, and last a route that answers all other paths with 404."""
        application.add_routes(
            [
                web.get("/simulator/invoice", self._invoice),
                web.get("/simulator/charges", self._charges),
                web.get("/simulator/stats", self._stats),
                web.get("/simulator/requests", self._received),
                web.post("/simulator/scripts", self._add_scripts),
                web.put("/simulator/profile", self._replace_profile),
                web.post("/simulator/clock", self._advance_clock),
                web.post("/simulator/webhooks", self._send_webhooks),
                web.post("/simulator/reset", self._reset),
                web.route("*", "/{path:.*}", self._app.no_such_route),
            ]
        )

    async def _invoice(self, request: web.Request) -> web.Response:
        return web.json_response(self._app.provider.invoice.as_json())

    async def _charges(self, request: web.Request) -> web.Response:
        return web.json_response(list(self._app.provider.invoice.charges))

    async def _received(self, request: web.Request) -> web.Response:
        return web.json_response(self._app.received.as_json())

    async def _add_scripts(self, request: web.Request) -> web.Response:
        try:
            scripts = _SCRIPTS.validate_json(await request.read())
        except ValidationError as error:
            return error_response(invalid(one_line(error), None), "")
        self._app.provider.scripts.add(scripts)
        return web.json_response({"scripts": len(scripts)})

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response(self._app.stats.as_json())

    async def _replace_profile(self, request: web.Request) -> web.Response:
        try:
            profile = Profile.model_validate_json(await request.read())
        except ValidationError as error:
            return error_response(invalid(one_line(error), None), "")
        self._app.provider.profile = profile
        return web.json_response(profile.model_dump(mode="json"))

    async def _advance_clock(self, request: web.Request) -> web.Response:
        clock = self._app.provider.clock
        if not isinstance(clock, VirtualClock):
            return error_response(ApiError(409, "Only a virtual clock can be advanced."), "")
        try:
            clock.advance(float(json.loads(await request.read())["advance"]))
        except (ValueError, TypeError, KeyError):
            return error_response(invalid("Expected {'advance': seconds >= 0}.", "advance"), "")
        return web.json_response({"now": clock.now()})

    async def _send_webhooks(self, request: web.Request) -> web.Response:
        return web.json_response({"answers": await self._app.send_webhooks()})

    async def _reset(self, request: web.Request) -> web.Response:
        self._app.reset()
        empty: JsonObject = {}
        return web.json_response(empty)


def one_line(error: ValidationError) -> str:
    """Format all errors of a profile on one line, without its values."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'profile'}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False)
    )
