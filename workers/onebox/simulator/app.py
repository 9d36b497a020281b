"""OpenAI's routes: authorization, faults, and one handler per endpoint."""

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace

from aiohttp import web

from workers.onebox.simulator import chat, responses
from workers.onebox.simulator.batches import Batches
from workers.onebox.simulator.errors import ApiError, JsonObject
from workers.onebox.simulator.faults import error_of
from workers.onebox.simulator.files import Files
from workers.onebox.simulator.profile import Fault
from workers.onebox.simulator.provider import ENDPOINTS, Provider
from workers.onebox.simulator.received import Received
from workers.onebox.simulator.rule import Endpoint
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.stats import Stats
from workers.onebox.simulator.stream import chunks
from workers.onebox.simulator.transport import (
    JSON,
    Call,
    DropConnection,
    Reply,
    as_events,
    as_json,
    close_connection,
    error_response,
    first_half,
    garbled,
    read,
    scripted,
    send,
    send_half,
)
from workers.onebox.simulator.webhooks import Webhooks

_MAX_BODY_BYTES = 512 * 1024 * 1024

Events = Callable[[JsonObject], Iterable[JsonObject | str]]
Handler = Callable[[Call], Awaitable[Reply]]
WebHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class App:
    """The HTTP API of a provider, with its files, batches and stats."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.stats = Stats()
        self.reset()

    def reset(self) -> None:
        """Delete files, batches, scripts, charges and counts; keep the profile and the clock."""
        self.provider.reset()
        self.stats.reset()
        self.received = Received()
        self._files = Files(self.provider)
        self._webhooks = Webhooks(self.provider)
        self._batches = Batches(self.provider, self._files, self._webhooks.enqueue)

    async def send_webhooks(self) -> list[int]:
        """Send the webhooks of batches that ended; return the response statuses, 0 for no response.

        Webhooks that were not accepted are sent again by the next call.
        """
        self._batches.catch_up()
        return await self._webhooks.send()

    def application(self) -> web.Application:
        """Build an application with OpenAI's routes."""
        application = web.Application(client_max_size=_MAX_BODY_BYTES)
        application.add_routes(self._routes())
        return application

    @property
    def no_such_route(self) -> WebHandler:
        """Answers paths that are not OpenAI's: as a script says, otherwise with a 404."""
        return self._with_stats("other", self._no_such_route)

    def _routes(self) -> Iterator[web.RouteDef]:
        table: tuple[tuple[str, str, Endpoint, Handler], ...] = (
            ("POST", "/v1/chat/completions", "chat.completions", self._complete),
            ("POST", "/v1/embeddings", "embeddings", self._answer_whole),
            ("POST", "/v1/responses", "responses", self._respond),
            ("POST", "/v1/moderations", "moderations", self._answer_whole),
            ("GET", "/v1/models", "models.list", self._list_models),
            ("POST", "/v1/files", "files.create", self._create_file),
            ("GET", "/v1/files", "files.list", self._list_files),
            ("GET", "/v1/files/{id}", "files.retrieve", self._retrieve_file),
            ("DELETE", "/v1/files/{id}", "files.delete", self._delete_file),
            ("GET", "/v1/files/{id}/content", "files.content", self._file_content),
            ("POST", "/v1/batches", "batches.create", self._create_batch),
            ("GET", "/v1/batches", "batches.list", self._list_batches),
            ("GET", "/v1/batches/{id}", "batches.retrieve", self._retrieve_batch),
            ("POST", "/v1/batches/{id}/cancel", "batches.cancel", self._cancel_batch),
        )
        for method, path, endpoint, handler in table:
            yield web.route(method, path, self._with_stats(endpoint, handler))

    def _with_stats(self, endpoint: Endpoint, handler: Handler) -> WebHandler:
        async def serve(request: web.Request) -> web.StreamResponse:
            self.stats.enter(endpoint)
            status = "dropped"
            try:
                response = await self._serve(endpoint, handler, request)
                if request.transport is not None:  # else the caller disconnected
                    status = str(response.status)
            except ApiError as error:
                response = error_response(error, self.provider.ids.new("req_"))
                status = str(error.status)
            except DropConnection:
                response = close_connection(request)
            finally:
                self.stats.leave(endpoint, status)
            return response

        return serve

    async def _serve(
        self, endpoint: Endpoint, handler: Handler, request: web.Request
    ) -> web.StreamResponse:
        if endpoint != "other":
            self._authorize(request)
        call = await read(endpoint, request)
        self.received.add(request, call)
        fault = self.provider.faults.pick(call.subject())
        if fault is not None:
            await self.provider.clock.sleep(fault.delay)
            _apply_fault(fault, handled=False)
        reply = await self._reply(handler, call)
        if fault is not None:
            _apply_fault(fault, handled=True)
            if fault.drop == "mid_stream":
                await send_half(request, reply, self.provider.clock)
            if fault.drop == "short":
                reply = first_half(reply)
            if fault.drop == "garbled":
                reply = garbled(reply)
        return await send(request, reply, self.provider.ids.new("req_"), self.provider.clock)

    def _authorize(self, request: web.Request) -> None:
        kind, _, key = request.headers.get("Authorization", "").partition(" ")
        if kind != "Bearer" or not key.strip():
            text = (
                "You didn't provide an API key. You need to provide your API key in an "
                "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            )
            raise ApiError(401, text)
        accepted = self.provider.profile.api_keys
        if accepted and key.strip() not in accepted:
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")

    async def _reply(self, handler: Handler, call: Call) -> Reply:
        script = self.provider.scripts.pick(call.subject())
        if script is None:
            return await handler(call)
        if script.is_error:
            error = ApiError(script.status or 500, "Scripted error.").body()
            reply = as_json(script.applied(error))
        elif call.endpoint == "other":
            reply = _scripted_reply(script, {})
        else:
            reply = await handler(replace(call, script=script))
            if call.endpoint not in ENDPOINTS.values() and reply.content_type == JSON:
                reply = _scripted_reply(script, json.loads(reply.parts[0]))
        await self.provider.clock.sleep(script.delay)
        return scripted(reply, script)

    async def _no_such_route(self, call: Call) -> Reply:
        raise ApiError(404, f"Invalid URL ({call.method} {call.path})")

    async def _complete(self, call: Call) -> Reply:
        include_usage = chat.include_usage(call.body)

        def events(body: JsonObject) -> Iterator[JsonObject | str]:
            yield from chunks(body, include_usage=include_usage)
            yield "[DONE]"

        return await self._answer(call, call.body, events)

    async def _respond(self, call: Call) -> Reply:
        return await self._answer(call, call.body, responses.events, "responses")

    async def _answer(
        self,
        call: Call,
        request: JsonObject,
        events: Events,
        endpoint: Endpoint = "chat.completions",
    ) -> Reply:
        """Answer a request in OpenAI's form; `events` are those of a streamed answer."""
        answer = self.provider.answer(endpoint, request)
        time_to_first_token = self.provider.latency(answer.model, call.raw)
        time_per_token = self.provider.profile.latency_of(answer.model).time_per_token
        generation_time = time_per_token * answer.usage.output_tokens
        streamed = call.body.get("stream") is True
        await self.provider.clock.sleep(
            time_to_first_token if streamed else time_to_first_token + generation_time
        )
        body = self.provider.respond(answer, "realtime", call.script)
        if not streamed or isinstance(body, str):
            return as_json(body)
        reply = as_events(events(body), call.script)
        pause = generation_time / max(1, len(reply.parts))
        return replace(reply, pause=pause, on_part_sent=self.stats.chunk_sent)

    async def _answer_whole(self, call: Call) -> Reply:
        answer = self.provider.answer(call.endpoint, call.body)
        await self.provider.clock.sleep(self.provider.latency(answer.model, call.raw))
        return as_json(self.provider.respond(answer, "realtime", call.script))

    async def _list_models(self, call: Call) -> Reply:
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": "simulator"}
            for name in self.provider.profile.models
        ]
        return as_json({"object": "list", "data": models})

    async def _create_file(self, call: Call) -> Reply:
        return as_json(self._files.upload(call.body).as_json())

    async def _list_files(self, call: Call) -> Reply:
        return as_json(self._files.list(call.query))

    async def _retrieve_file(self, call: Call) -> Reply:
        return as_json(self._files.find(call.query["id"]).as_json())

    async def _delete_file(self, call: Call) -> Reply:
        return as_json(self._files.delete(call.query["id"]))

    async def _file_content(self, call: Call) -> Reply:
        content = self._files.find(call.query["id"]).content
        return Reply((content,), "application/octet-stream")

    async def _create_batch(self, call: Call) -> Reply:
        batch = self._batches.create(call.body)
        self.stats.batch_created()
        return as_json(batch)

    async def _list_batches(self, call: Call) -> Reply:
        return as_json(self._batches.list(call.query))

    async def _retrieve_batch(self, call: Call) -> Reply:
        return as_json(self._batches.retrieve(call.query["id"]))

    async def _cancel_batch(self, call: Call) -> Reply:
        return as_json(self._batches.cancel(call.query["id"]))


def _apply_fault(fault: Fault, *, handled: bool) -> None:
    """Raise the fault's error, before or after the call was handled as the rule says."""
    if (fault.drop == "after_commit") is not handled:
        return
    if fault.status is not None:
        raise error_of(fault, fault.status)
    if fault.drop in ("before_response", "after_commit"):
        raise DropConnection


def _scripted_reply(script: Script, body: JsonObject) -> Reply:
    if script.chunks is not None:
        return as_events((), script)
    return as_json(script.applied(body))
