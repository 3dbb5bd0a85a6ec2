"""What stands in front of replicas on Ray Serve: it carries requests to them, and replies back. It holds no model, nor torch."""
# pyright: reportMissingImports=false
# Ray is an optional package, which brings another event loop along: it is not in the environment of the other sources.

import hashlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from .errors import ApiError, UnavailableError, as_api_error, error_response
from .metrics import CONTENT_TYPE
from .streaming import DONE

logger = logging.getLogger(__name__)

BEGINNING = 400  # bytes of a body by which requests are alike
MOST_OVER_MEAN = 1.5  # times the mean of what the replicas have to do that the one with the beginning may have
TRIES = 5  # replicas that a request may lose
LOST = (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError)


@dataclass(frozen=True)
class Asked:
    """A request, as it goes to a replica."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def key(self) -> bytes:
        """What requests have in common that begin alike."""
        return self.body[:BEGINNING]


@dataclass(frozen=True)
class Head:
    """What a reply begins with; the body is None where it comes piece by piece."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes | None


class Ingress:
    """Carries requests to replicas, and replies back."""

    def __init__(self, engines: DeploymentHandle) -> None:
        self._engines = engines
        self._answers = engines.options(stream=True, method_name="answer")

    async def __call__(self, request: Request) -> Response:
        """One request."""
        scope = request.scope
        headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        asked = Asked(scope["method"], scope["path"], scope["query_string"], headers, await request.body())
        if asked.path == "/metrics" or asked.path.endswith("/cancel"):
            return await self._ask_all(asked)
        items: Any = self._carry(asked)  # a head, and then bytes alone
        head = await anext(items)
        return _as_said(head, StreamingResponse(items) if head.body is None else Response(head.body))

    async def _carry(self, asked: Asked) -> AsyncIterator[Head | bytes]:
        """A head and the pieces of a stream, of whichever replica comes to the end."""
        begun = told = False
        error: ApiError = UnavailableError("The answer was lost with the process that made it.", code="replica_lost")
        for _ in range(TRIES):
            items = self._answers.remote(asked)
            try:
                async for item in items:
                    if isinstance(item, bytes):
                        told = told or not item.startswith(b":")
                        yield item
                    elif not begun:
                        yield item
                    elif item.body is not None:  # comments were passed on, and then no other one would have it
                        yield _event(item.body)
                        return
                    begun = True
                return
            except LOST:
                if told:
                    break
            except BackPressureError:
                error = UnavailableError("The queue is full. Try again later.", code="queue_full")
                break
            except Exception as failure:  # a fault of ours, in a replica that lives
                logger.exception("a reply failed")
                error = as_api_error(failure)
                break
            finally:
                items.cancel()  # whoever asked may have left
        refusal = _refusal(error)
        yield _event(refusal.body or b"") if begun else refusal

    async def _ask_all(self, asked: Asked) -> Response:
        """What concerns whichever replica has the request, or all of them."""
        replies = await self._engines.broadcast("whole", asked).results_async(timeout_s=10, return_exceptions=True)
        heads = dict(reply for reply in replies if not isinstance(reply, BaseException))
        if not heads:
            return error_response(UnavailableError("No replica is there yet.", code="model_loading"))
        best = min(heads.values(), key=lambda head: head.status)
        if asked.path == "/metrics" and best.status == 200:
            texts = {rank: head.body or b"" for rank, head in heads.items()}
            return Response(merge_metrics(texts), media_type=CONTENT_TYPE)
        return _as_said(best, Response(best.body))


class BeginningRouter(RequestRouter):
    """Sends requests that begin alike to one replica: the one whose hash with the beginning is highest.

    Every ingress comes to the same one without a word to the others, and when a replica comes or goes only its share moves. A replica
    that has `MOST_OVER_MEAN` times as much to do as the mean is passed over.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Each replica in a rank of its own, the one to be asked first."""
        asked = pending_request.args[0] if pending_request and pending_request.args else None
        key = getattr(asked, "key", b"")  # Ray may have made another class of its class
        work = {
            replica.replica_id: self.replica_queue_len_cache.get(replica.replica_id) or 0
            for replica in candidate_replicas
        }
        ranked = preferred(key, work)
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        return [[by_id[replica_id]] for replica_id in ranked]


def preferred(key: bytes, work: dict[ReplicaID, int]) -> list[ReplicaID]:
    """The replicas in the order in which they are to be asked, given what each has to do."""
    bound = MOST_OVER_MEAN * (sum(work.values()) + 1) / max(1, len(work))

    def order(replica: ReplicaID) -> tuple[bool, int, bytes]:
        busy = work[replica] + 1 > max(bound, 1)
        weight = hashlib.blake2b(key + replica.unique_id.encode(), digest_size=8).digest()
        return busy, work[replica] if busy else 0, bytes(255 - byte for byte in weight)

    return sorted(work, key=order)


class _Labelled(Collector):
    """The metrics of several replicas, each with its rank for a label."""

    def __init__(self, texts: dict[int, bytes]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        """One family of each name."""
        families: dict[str, Metric] = {}
        for rank_, text in sorted(self._texts.items()):
            for family in text_string_to_metric_families(text.decode()):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.samples.append(sample._replace(labels={**sample.labels, "replica": str(rank_)}))
        yield from families.values()


def merge_metrics(texts: dict[int, bytes]) -> bytes:
    """One exposition of several replicas' by rank, told apart by the label `replica`."""
    registry = CollectorRegistry()
    registry.register(_Labelled(texts))
    return generate_latest(registry)


def _as_said(head: Head, response: Response) -> Response:
    """With the status and the headers of the replica's reply; the request's id Ray Serve says itself."""
    length = [pair for pair in response.raw_headers if pair[0] == b"content-length"]
    response.raw_headers = [
        pair for pair in head.headers if pair[0] not in (b"content-length", b"x-request-id")
    ] + length
    response.status_code = head.status
    return response


def _refusal(error: ApiError) -> Head:
    response = error_response(error)
    return Head(response.status_code, list(response.raw_headers), bytes(response.body))


def _event(body: bytes) -> bytes:
    """An error, as the last event of a stream."""
    return b"data: " + body + b"\n\n" + DONE
