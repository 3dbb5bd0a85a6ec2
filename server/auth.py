"""The API key: who may ask."""

import hmac
from collections.abc import Sequence, Set
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import ApiKeyError

OPEN = frozenset({"/health", "/ready", "/ping"})  # what a load balancer asks, and knows no key


class KeyGuard:
    """Asks every request for a key, but those for a path that is, letter by letter, one of `without`.

    Args:
        app: what it guards.
        keys: each of them will do; none lets everybody in.
        without: paths that need no key.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], without: Set[str] = OPEN) -> None:
        self.app, self._without = app, without
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises ApiKeyError."""
        if self._digests and scope["type"] != "lifespan" and scope["path"] not in self._without:
            self._check(Headers(scope=scope))
        await self.app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        offered = [bearer.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")]
        # Each is compared with all, in constant time: how long a refusal takes tells nothing.
        digests = [_digest(key) for key in offered]
        if not sum(hmac.compare_digest(digest, known) for digest in digests for known in self._digests):
            reason = (
                "The API key is not valid." if any(offered) else "An API key is required: Authorization: Bearer KEY."
            )
            raise ApiKeyError(reason, headers={"WWW-Authenticate": "Bearer"})


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
