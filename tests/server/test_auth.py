"""Who may ask, whatever they do to the path."""

import http.client
from collections.abc import Iterator

import pytest
from fake_engine import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quietserve.server.app import create_app
from quietserve.server.auth import OPEN
from quietserve.server.service import Service
from serving import serve

KEYS = ("s3cret-one", "s3cret-two")


@pytest.fixture
def guarded(service: Service) -> Client:
    return Client(create_app(service, keys=KEYS))


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    with serve(create_app(service, keys=KEYS)) as url:
        yield url.removeprefix("http://")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("form", ["Authorization: Bearer {}", "authorization: bearer  {} ", "X-Api-Key: {}"])
def test_any_key_in_either_header(guarded: Client, key: str, form: str) -> None:
    name, value = form.format(key).split(": ", 1)
    assert guarded.get("/v1/models", headers={name: value}).status_code == 200


def test_a_key_that_a_library_sends_by_itself_does_not_hide_the_right_one(guarded: Client) -> None:
    """OpenAI's SDKs always send a Bearer."""
    headers = {"Authorization": "Bearer none", "X-Api-Key": KEYS[0]}
    assert guarded.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer s3cret"},
        {"Authorization": "Basic s3cret-one"},
        {"Authorization": "s3cret-one"},
        {"X-Api-Key": ""},
        {"X-Api-Key": "s3cret-one, s3cret-two"},
        {"Authorization": "Bearer S3CRET-ONE"},
        {"Cookie": "s3cret-one"},
    ],
    ids=str,
)
def test_no_key_or_another(guarded: Client, headers: dict[str, str]) -> None:
    for path, method in [(path, method) for path, methods in routes(guarded) for method in methods]:
        if path not in OPEN:
            reply = guarded.request(method.upper(), path, headers=headers)
            assert reply.status_code == 401, (method, path)
            error = reply.json()["error"]
            assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.headers["x-request-id"]
            assert "s3cret" not in reply.text.lower()


def routes(client: Client) -> list[tuple[str, list[str]]]:
    return [(path, list(told)) for path, told in client.app.openapi()["paths"].items()] + [("/openapi.json", ["get"])]


def test_what_a_load_balancer_asks_is_open(guarded: Client) -> None:
    for path in OPEN:
        assert guarded.get(path).status_code == 200
    assert guarded.request("POST", "/ping").status_code == 200


TRICKS = ["//health", "/health/", "/Health", "/health%2f", "/%2fhealth", "/health/../v1/models", "/health;v1/models",
          "/./health", "/v1/../health", "/health%00", "/health?x=/v1/models#", "//v1/models", "/v1/models/../../health",
          "/V1/models", "/v1/models/", "/v1%2fmodels", "/v1/models%2f..%2f..%2fhealth", "/metrics/", "//metrics",
          "/openapi.json/", "/health\\t", "/ready%0a", "http://x/v1/models", "/health/%2e%2e/metrics", "*"]  # fmt: skip


def status_of(address: str, target: str) -> tuple[int, str]:
    """The raw target, which clients with manners would tidy up."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.putrequest("GET", target, skip_accept_encoding=True)
        connection.endheaders()
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def test_no_trick_with_the_path_opens_anything(address: str) -> None:
    for target in TRICKS:
        status, body = status_of(address, target)
        open_after_all = target.partition("?")[0] in OPEN
        assert status == 200 if open_after_all else status in (400, 401, 404), target
        assert open_after_all or "fake" not in body, target


PIECES = ["/", "health", "ready", "ping", "v1", "models", "metrics", "..", ".", "%2f", "%2e", "//", ";", "%00"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(
            ["/", "health", "ready", "ping", "v1", "models", "metrics", "..", ".", "%2f", "%2e", "//", ";", "%00"]
        ),
        max_size=6,
    )
)
def test_only_the_open_paths_are_open(guarded: Client, parts: list[str]) -> None:
    reply = guarded.get("http://test/" + "".join(parts))
    assert reply.status_code == 401 or reply.request.url.path in OPEN


def test_browsers_may_ask_first_and_only_from_where_they_are_let(service: Service) -> None:
    client = Client(create_app(service, keys=KEYS, allowed_origins=["https://a.example"]))
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = client.request("OPTIONS", "/v1/completions", headers=ask | {"Origin": "https://a.example"})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    other = client.request("OPTIONS", "/v1/completions", headers=ask | {"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers
    refused = client.get("/v1/models", headers={"Origin": "https://a.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://a.example", "or a page could not read why"


def test_without_allowed_origins_no_page_may_ask(client: Client) -> None:
    reply = client.get("/v1/models", headers={"Origin": "https://a.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]
