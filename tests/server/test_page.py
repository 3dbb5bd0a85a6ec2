"""The playground's files: who gets them, how long a browser may keep them, and what they may do."""

import re

import pytest
from fake_engine import Client

from quietserve.server.app import create_app
from quietserve.server.page import FILES, FOLDER
from quietserve.server.service import Service
from quietserve.server.settings import Settings

KEY = "s3cret"


@pytest.fixture
def page(service: Service) -> Client:
    return Client(create_app(service, playground=True))


@pytest.mark.parametrize("path", FILES)
def test_each_file_is_sent_as_what_it_is_and_asked_for_again(page: Client, path: str) -> None:
    name, media_type = FILES[path]
    reply = page.get(path)
    assert reply.content == (FOLDER / name).read_bytes()
    assert reply.headers["content-type"].startswith(media_type)
    assert (reply.headers["cache-control"], reply.headers["x-content-type-options"]) == ("no-cache", "nosniff")
    etag = reply.headers["etag"]
    for known, status in ((etag, 304), (f'W/{etag}, "other"', 304), ('"other"', 200)):
        again = page.get(path, headers={"If-None-Match": known})
        assert (again.status_code, bool(again.content)) == (status, status == 200)
        assert again.headers["etag"] == etag


def test_a_file_that_was_changed_is_known_to_be_another(page: Client) -> None:
    etags = [page.get(path).headers["etag"] for path in FILES]
    assert len(set(etags)) == len(FILES)


def test_the_page_is_all_its_own(page: Client) -> None:
    """It runs no script and loads nothing but the files beside it, and the policy says so to the browser."""
    policy = dict(part.split(" ", 1) for part in page.get("/").headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
    html = page.get("/").text
    assert not re.search(r"<style|\son\w+=|\sstyle=|<script(?![^>]*\ssrc=)", html)
    links = re.findall(r'(?:href|src)="([^"]*)"', html)
    assert {f"/{link}" for link in links} == FILES.keys() - {"/"}  # relative, below whatever path a proxy puts them
    for path in FILES.keys() - {"/playground/icon.svg"}:
        # The namespaces of SVG and its like aside, nothing names another host.
        assert set(re.findall(r"https?://([\w.]+)", page.get(path).text)) <= {"www.w3.org"}


@pytest.mark.parametrize(
    "path",
    ["/playground/", "/playground/main.tsx", "/playground/..%2fapp.js", "/playground/src/main.tsx", "/index.html"],
)
def test_nothing_else_is_sent(page: Client, path: str) -> None:
    assert page.get(path).status_code == 404


def test_the_page_needs_no_key_and_what_it_shows_does(service: Service) -> None:
    guarded = Client(create_app(service, keys=[KEY], playground=True))
    assert {guarded.get(path).status_code for path in FILES} == {200}
    for path in ("/v1/models", "/metrics", "/playground/other", "/playground/app.js/", "/openapi.json"):
        assert guarded.get(path).status_code == 401, path
    assert guarded.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    assert KEY not in "".join(guarded.get(path).text for path in FILES)


@pytest.mark.parametrize("keys", [[], [KEY]])
def test_without_it_there_is_nothing(service: Service, keys: list[str]) -> None:
    plain = Client(create_app(service, keys=keys))
    assert {plain.get(path).status_code for path in FILES} == ({401} if keys else {404})


def test_it_is_there_unless_told_otherwise() -> None:
    assert Settings.from_args([], {}).playground
    assert not Settings.from_args(["--no-playground"], {}).playground
    assert not Settings.from_args([], {"QUIETSERVE_PLAYGROUND": "off"}).playground


def test_the_page_is_not_part_of_the_described_api(page: Client) -> None:
    assert not FILES.keys() & page.get("/openapi.json").json()["paths"].keys()
