"""The server above the seam, in this process: see `fake_engine`."""

from collections.abc import Iterator

import pytest
from fake_engine import MODEL, Client, FakeEngine, byte_tokens

from quietserve.model.tokens import Tokens
from quietserve.server.app import create_app
from quietserve.server.metrics import Metrics
from quietserve.server.pipeline import Pipeline
from quietserve.server.service import Service
from serving import serve


@pytest.fixture(scope="session")
def tokens() -> Tokens:
    return byte_tokens()


@pytest.fixture
def engine(tokens: Tokens) -> FakeEngine:
    return FakeEngine(tokens)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(MODEL)


@pytest.fixture
def pipeline(engine: FakeEngine) -> Pipeline:
    return Pipeline(engine)


@pytest.fixture
def service(pipeline: Pipeline, metrics: Metrics) -> Service:
    return Service(MODEL, metrics, pipeline=pipeline)


@pytest.fixture
def client(service: Service) -> Client:
    return Client(create_app(service))


@pytest.fixture
def url(client: Client) -> Iterator[str]:
    with serve(client.app) as url:
        yield url
