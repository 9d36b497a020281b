"""Summarize texts for the cheapest price, and ask again in real time if the batch is too slow.

examples/test_summaries.py tests it without Redis and without workers.
"""

import sys

from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.errors import ResultTimeout


def request(text: str, lane: str) -> CompletionRequest:
    return CompletionRequest(
        model="gpt-4o-mini",
        lane=lane,
        messages=[
            {"role": "system", "content": "Summarize the text in one sentence."},
            {"role": "user", "content": text},
        ],
    )


def summarize(fleet: Fleet, texts: list[str], seconds: float = 3600) -> list[str]:
    tickets = fleet.submit_many(request(text, "batch") for text in texts)
    try:
        return [completion.text for completion in fleet.results(tickets, seconds)]
    except ResultTimeout:
        fleet.cancel_many(tickets)
    tickets = fleet.submit_many(request(text, "realtime") for text in texts)
    return [completion.text for completion in fleet.results(tickets, timeout=60)]


if __name__ == "__main__":
    with Fleet(sys.argv[1]) as fleet:
        print(summarize(fleet, sys.argv[2:], seconds=30))
