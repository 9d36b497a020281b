"""Who sees the operators' page and who acts on it; what other web sites and links cannot do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
import redis

from api.page.signing import SECRET_KEY
from api.page.view import MESSAGE, SIGNATURE
from primarch_fleet.queues import PAUSED_QUEUES_KEY
from tests.support.api_page import Server, serving, words

PAGES = ("/", "/requests", "/batches", "/dead-letters")
ACTIONS = (
    "/queues/pause",
    "/queues/resume",
    "/requests/cancel",
    "/batches/cancel",
    "/dead-letters/retry",
    "/dead-letters/drop",
)


@pytest.fixture(scope="module")
def served(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(valkey_url, tmp_path_factory.mktemp("serve")) as server:
        yield server


@pytest.fixture(scope="module")
def open_to_all(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without keys."""
    with serving(valkey_url, tmp_path_factory.mktemp("serve"), keys={}) as server:
        yield server


@pytest.mark.parametrize("path", [*PAGES, "/dead-letters/0123456789ab"])
def test_without_a_key_the_browser_is_told_to_ask_for_one(
    served: Server, server: redis.Redis, path: str
) -> None:
    reply = served.page(None).get(path)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == 'Basic realm="fleet"'
    assert "Log in" in reply.text


def test_a_wrong_key_is_refused_as_a_missing_one(served: Server, server: redis.Redis) -> None:
    reply = httpx.get(served.url, auth=("operator", "sk-fleet-wrong"))
    assert reply.status_code == 401
    assert "www-authenticate" in reply.headers
    assert "sk-fleet-wrong" not in reply.text


def test_a_key_without_a_role_sees_no_page(served: Server, server: redis.Redis) -> None:
    for path in PAGES:
        assert served.page("caller").get(path).status_code == 403


def test_a_key_opens_the_page_also_as_a_bearer(served: Server, server: redis.Redis) -> None:
    headers = {"authorization": f"Bearer {served.keys['reader']}"}
    assert httpx.get(served.url, headers=headers).status_code == 200


@pytest.mark.parametrize("path", PAGES)
def test_a_reader_sees_pages_without_forms_that_act(
    served: Server, server: redis.Redis, path: str
) -> None:
    page = served.page("reader").get(path)
    assert page.status_code == 200
    assert 'method="post"' not in page.text
    assert "<button>Cancel" not in page.text


@pytest.mark.parametrize("path", ACTIONS)
def test_a_reader_cannot_act_even_with_an_operators_token(
    served: Server, server: redis.Redis, path: str
) -> None:
    token = served.page("operator").token()
    reply = served.page("reader").post(path, {"token": token, "name": "realtime", "all": "yes"})
    assert reply.status_code == 403
    assert "does not have the role operator" in reply.text
    assert not server.exists(PAUSED_QUEUES_KEY)


@pytest.mark.parametrize("path", ACTIONS)
def test_actions_are_no_links(served: Server, server: redis.Redis, path: str) -> None:
    assert served.page("operator").get(path).status_code in (404, 405)


def test_an_operator_acts_and_reads_what_was_done(served: Server, server: redis.Redis) -> None:
    page = served.page("operator")
    assert "Paused: realtime." in words(page.act("/queues/pause", name="realtime"))
    assert server.smembers(PAUSED_QUEUES_KEY) == {"realtime"}
    assert "operator: Paused: realtime." in served.log.read_text()


def test_a_form_without_a_token_is_refused(served: Server, server: redis.Redis) -> None:
    for token in ({}, {"token": ""}, {"token": "0" * 64}, {"token": "é"}):
        reply = served.page("operator").post("/queues/pause", {"name": "realtime"} | token)
        assert reply.status_code == 403
        assert "load its page again" in reply.text
    assert not server.exists(PAUSED_QUEUES_KEY)


def test_a_token_of_another_operator_is_refused(served: Server, server: redis.Redis) -> None:
    token = served.page("other-operator").token()
    form = {"name": "realtime", "token": token}
    assert served.page("operator").post("/queues/pause", form).status_code == 403
    assert served.page("other-operator").post("/queues/pause", form).status_code == 303


def test_a_token_ends_with_the_secret_which_expires(served: Server, server: redis.Redis) -> None:
    page = served.page("operator")
    form = {"name": "realtime", "token": page.token()}
    assert 0 < server.ttl(SECRET_KEY) <= 86_400
    server.delete(SECRET_KEY)
    assert page.post("/queues/pause", form).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://[evil"},
    ],
)
def test_a_form_of_another_site_is_refused_whatever_its_token(
    served: Server, server: redis.Redis, headers: dict[str, str]
) -> None:
    page = served.page("operator")
    form = {"name": "realtime", "token": page.token()}
    assert page.post("/queues/pause", form, **headers).status_code == 403
    assert not server.exists(PAUSED_QUEUES_KEY)


def test_another_site_cannot_spend_money_with_the_login_of_a_browser(
    served: Server, server: redis.Redis
) -> None:
    body = '{"model": "m", "messages": [{"role": "user", "content": "2+2?"}]}'
    foreign = {"sec-fetch-site": "cross-site", "content-type": "text/plain"}
    url = f"{served.url}/v1/chat/completions"
    login = ("any", served.keys["caller"])
    reply = httpx.post(url, content=body, headers=foreign, auth=login)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_site_request")
    bearer = {"authorization": f"Bearer {served.keys['caller']}"}
    wrong = httpx.post(url, content="{}", headers=foreign | bearer)
    assert wrong.status_code == 400, "no browser adds a bearer key by itself"


def test_a_form_behind_a_balancer_with_tls_is_accepted(served: Server, server: redis.Redis) -> None:
    page = served.page("operator")
    form = {"name": "realtime", "token": page.token()}
    balancer = {"host": "fleet.example", "origin": "https://fleet.example"}
    assert page.post("/queues/pause", form, **balancer).status_code == 303


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/v1/models", "/nothing"])
def test_without_keys_a_foreign_host_name_reaches_nothing(
    open_to_all: Server, server: redis.Redis, path: str
) -> None:
    for host in ("evil.example", "evil.example:8700", "127.0.0.1.evil.example", "[::1", "10.0.0.1"):
        reply = open_to_all.page(None).get(path, host=host)
        assert (reply.status_code, reply.json()["error"]["code"]) == (421, "misdirected_request")
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1:8700", "[::1]:8700"):
        assert open_to_all.page(None).get(path, host=host).status_code in (200, 404)


def test_a_call_without_a_host_name_is_refused_without_keys(
    open_to_all: Server, server: redis.Redis
) -> None:
    place = urlsplit(open_to_all.url)
    assert place.hostname
    with socket.create_connection((place.hostname, place.port or 0), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert connection.recv(100).split()[1] == b"421"


def test_without_keys_everyone_on_this_machine_acts(
    open_to_all: Server, server: redis.Redis
) -> None:
    page = open_to_all.page(None)
    assert "Paused: realtime." in words(page.act("/queues/pause", name="realtime"))
    assert "Resumed: realtime." in words(page.act("/queues/resume", name="realtime"))


@pytest.mark.parametrize("path", [*PAGES, "/dead-letters/nothing"])
@pytest.mark.parametrize("key", [None, "caller", "operator"])
def test_each_page_and_error_forbids_scripts_frames_and_copies(
    served: Server, server: redis.Redis, key: str | None, path: str
) -> None:
    headers = served.page(key).get(path).headers
    policy = headers["content-security-policy"]
    for rule in (
        *("default-src 'none'", "style-src 'self'", "form-action 'self'"),
        *("frame-ancestors 'none'", "base-uri 'none'"),
    ):
        assert rule in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"


def test_a_link_cannot_put_a_message_on_the_page(served: Server, server: redis.Redis) -> None:
    page = served.page("operator")
    assert "the bank" not in page.text("/?" + urlencode({MESSAGE: "call the bank"}))
    signed = urlencode({MESSAGE: "call the bank", SIGNATURE: "0" * 64})
    assert "the bank" not in page.text(f"/?{signed}")


def test_a_message_about_a_hostile_name_is_escaped(served: Server, server: redis.Redis) -> None:
    reply = served.page("operator").act("/dead-letters/retry", id="<script>alert(1)</script>\r\nx")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;x: no such dead letter" in reply.text
    assert "<script" not in reply.text
    lines = [line for line in served.log.read_text().splitlines() if "alert(1)" in line]
    assert len(lines) == 1, "a line end of a caller is no line end of the log"


def test_a_form_that_is_too_large_or_no_form_is_refused(
    served: Server, server: redis.Redis
) -> None:
    page = served.page("operator")
    assert page.post("/queues/pause", {"name": "x" * 200_000}).status_code == 413
    many = {f"n{number}": "1" for number in range(2_000)}
    assert page.post("/queues/pause", many).status_code == 400
    assert page.post("/queues/pause", {"name": "moon", "token": page.token()}).status_code == 404


def test_the_styles_are_kept_by_browsers(served: Server, server: redis.Redis) -> None:
    address = served.page("reader").get().text.split('rel="stylesheet" href="')[1].split('"')[0]
    reply = served.page(None).get(address)
    assert reply.headers["content-type"].startswith("text/css")
    assert "immutable" in reply.headers["cache-control"]


def test_a_fleet_whose_workers_never_started_says_so(served: Server, store: redis.Redis) -> None:
    reply = served.page("reader").get()
    assert reply.status_code == 503
    assert "start a worker" in reply.text
