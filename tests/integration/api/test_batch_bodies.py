"""Lines of a batch whose answers are in a store outside of Redis."""

import json
from pathlib import Path

import redis

from primarch_fleet import Fleet
from primarch_fleet.blobs import BlobRef
from tests.support.api_batches import ended, line, lines, read, start
from tests.support.api_server import api_server, fleet_yaml
from tests.support.producer import CATALOGUE, DONE, finish
from tests.support.workers import eventually

#: The list of the realtime queue's messages of low priority, which batches send.
QUEUE = "realtime\x06\x166"


def test_a_line_whose_answer_cannot_be_read_yet_waits_for_it(
    valkey_url: str, store: redis.Redis, tmp_path: Path
) -> None:
    CATALOGUE.publish(store)
    path, body = tmp_path / "answer.json", json.dumps(DONE.body).encode()
    away = DONE.model_copy(update={"body": {}, "body_ref": BlobRef.for_data(path.as_uri(), body)})
    config = fleet_yaml(tmp_path / "fleet.yaml")
    with (
        Fleet(valkey_url) as fleet,
        api_server(valkey_url, tmp_path, config) as server,
        server.client() as client,
    ):
        batch = start(
            client,
            lines([line("away", model="m"), line("here", model="m")]),
            metadata={"x-fleet-lane": "realtime"},
        )
        for answer in (away, DONE):
            message = json.loads(eventually(lambda: store.rpop(QUEUE)))
            finish(fleet, message["headers"]["id"], answer.to_wire())

        def completed() -> int:
            counts = client.batches.retrieve(batch.id).request_counts
            return counts.completed if counts else 0

        eventually(lambda: completed() == 1)
        path.write_bytes(body)
        batch = ended(client, batch)
        answers = read(client, batch.output_file_id)
    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert answers.keys() == {"away", "here"}
