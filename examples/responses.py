"""Read a response of OpenAI's Responses API while it is generated, and continue it.

`python examples/responses.py` uses the fleet that `make up` started from this checkout.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # in a service it is installed

from examples.hello import redis_url
from primarch_fleet import Fleet, FleetError, ResponsesRequest

#: Seconds to wait for an answer.
TIMEOUT_SECONDS = 60


def main() -> None:
    question = ResponsesRequest(
        model="gpt-4o-mini",
        instructions="Answer in one sentence.",
        input="Why is the sky blue?",
        max_output_tokens=200,
        stream=True,
        lane="realtime",
    )
    try:
        with Fleet(redis_url()) as fleet:
            stream = fleet.stream(question, timeout=TIMEOUT_SECONDS)
            for chunk in stream:  # OpenAI's events
                print(chunk.text, end="", flush=True)
            first = stream.result(timeout=TIMEOUT_SECONDS)
            more = ResponsesRequest(
                model="gpt-4o-mini", input="And at dusk?", previous_response_id=first.body["id"]
            )
            second = fleet.result(fleet.submit(more), timeout=TIMEOUT_SECONDS)
    except FleetError as error:
        sys.exit(f"{error.code}: {error}")
    print(f"\n{second.text}")
    print(second.receipt)


if __name__ == "__main__":
    main()
