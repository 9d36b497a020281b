"""The operators' page at `/`: what `fleet status` and the other commands show, and their actions.

It reads and acts by the functions of the command line, in threads: they block.
"""

from __future__ import annotations

from starlette.routing import Route

from api.page import batches, dead_letters, open_requests, overview, queues, style
from api.page.actions import action
from api.page.view import view

ROUTES = [
    Route("/", view(overview.show)),
    Route("/requests", view(open_requests.show)),
    Route("/requests/cancel", action(open_requests.cancel), methods=["POST"]),
    Route("/batches", view(batches.show)),
    Route("/batches/cancel", action(batches.cancel), methods=["POST"]),
    Route("/dead-letters", view(dead_letters.show)),
    Route("/dead-letters/retry", action(dead_letters.retry), methods=["POST"]),
    Route("/dead-letters/drop", action(dead_letters.drop), methods=["POST"]),
    Route("/dead-letters/{letter}", view(dead_letters.show_message)),
    Route("/queues/pause", action(queues.pause), methods=["POST"]),
    Route("/queues/resume", action(queues.resume), methods=["POST"]),
    Route("/page.css", style.show),
]
