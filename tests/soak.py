"""Half an hour of everything at once, over 64 connections: `python tests/soak.py --minutes 30 --out docs/results/soak.json`.

Depths, streams, votes of the likeliest, clients that leave, cancelled requests, deadlines, bad input. What must be answered is
compared with what the server said before anybody else was there; whatever is not expected is listed, and fails the run.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))
from faults import settled
from serving import Server, running

QUESTIONS = [
    "Question: A dial is at 3. It flips over on Monday. It goes up 4 on Tuesday. It doubles on Wednesday. "
    "Where is the dial now?\nAnswer:",
    "Question: Mary has 4 apples. She buys 3 more on Monday. She doubles them on Tuesday. "
    "How many apples does Mary have now?\nAnswer:",
    "Question: Anna has the ball. Ben, Carl, Dora, Emma and Fred have nothing. Anna and Ben swap on Monday. "
    "Who has the ball now?\nAnswer:",
]
DEPTHS = (0, 0, 2, 4, 8, 12, 16)
REFUSALS = {400: None, 404: None, 413: "request_too_large", 503: "queue_full", 504: "request_timeout"}


@dataclass
class Soak:
    """One run: what is asked, what came of it."""

    url: str
    client: httpx.AsyncClient
    dice: random.Random
    right: dict[str, str] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    unexpected: list[str] = field(default_factory=list)

    async def known(self) -> None:
        """A question whose answer is known, whoever else is there."""
        body = self._body()
        reply = await self._post("/v1/completions", body)
        if reply.status_code == 200:
            self._expect(json.dumps(body), reply.json()["choices"][0]["text"])

    async def streamed(self) -> None:
        """The same, piece by piece."""
        body, text = self._body(), ""
        async with self.client.stream("POST", f"{self.url}/v1/completions", json=body | {"stream": True}) as reply:
            if reply.status_code != 200:
                self._refused(reply.status_code, await reply.aread())
                return
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self.unexpected.append(f"error event {event}")
                        return
                    text += event["choices"][0]["text"]
        self._expect(json.dumps(body), text)

    async def long(self) -> None:
        """Text that goes on, of all kinds of thoughts, some of it corrected."""
        body = self._body()
        more = self.dice.choice(
            [
                {},
                {"num_thoughts": 3 if body["thought_depth"] else 1},
                {"thought_mode": "adaptive"},
                {"thinking_token_budget": 40},
                {"n": 3},
                {"best_of": 4},
                {"best_of": 2, "self_correction_turns": 1},
                {"best_of": 3, "voting": "majority"},
            ]
        )
        await self._post("/v1/completions", body | {"max_tokens": 40, "temperature": 1, "ignore_eos": True} | more)

    async def scored(self) -> None:
        """A text, scored with a thought at every position."""
        await self._post("/v1/completions", self._body() | {"echo": True, "logprobs": 1, "max_tokens": 1})

    async def chat(self) -> None:
        """A conversation."""
        question = self.dice.choice(QUESTIONS).removeprefix("Question: ").removesuffix("\nAnswer:")
        body = {"messages": [{"role": "user", "content": question}], "include_reasoning": True}
        await self._post("/v1/chat/completions", body | {"thought_depth": self.dice.choice(DEPTHS)})

    async def leaves(self) -> None:
        """A client that is gone before its answer is there."""
        body = self._body() | {"max_tokens": 400, "ignore_eos": True, "stream": self.dice.random() < 0.5}
        with suppress(httpx.TimeoutException):
            timeout = httpx.Timeout(30, read=self.dice.uniform(0.01, 0.4))
            async with self.client.stream("POST", f"{self.url}/v1/completions", json=body, timeout=timeout) as reply:
                await anext(reply.aiter_bytes())

    async def cancelled(self) -> None:
        """A request that somebody else ends by its id."""
        name = f"soak-{self.dice.randrange(10**9)}"
        body = self._body() | {"max_tokens": 400, "ignore_eos": True}
        asked = asyncio.create_task(self._post("/v1/completions", body, {"x-request-id": name}))
        await asyncio.sleep(self.dice.uniform(0, 0.3))
        reply = await self.client.post(f"{self.url}/v1/requests/{name}/cancel")
        if reply.status_code not in (200, 404):  # 404: it has not begun, or ended
            self.unexpected.append(f"cancel: {reply.status_code} {reply.text}")
        await asked

    async def late(self) -> None:
        """A request that has no time."""
        await self._post("/v1/completions", self._body() | {"max_tokens": 300, "ignore_eos": True, "timeout_s": 0.05})

    async def bad(self) -> None:
        """Input that must be refused."""
        content = self.dice.choice(
            [b"{", b"[]", b'{"prompt": 5}', b'{"prompt": "x", "max_tokens": -1}', b'{"prompt": "<|startthought|>"}',
             b'{"prompt": "x", "thought_depth": 99}', b'{"prompt": "x", "model": "other"}', b"\xff\xfe", b" " * (17 * 2**20)]
        )  # fmt: skip
        kind = {"content-type": "application/json"}
        with suppress(httpx.WriteError, httpx.ReadError):
            reply = await self.client.post(f"{self.url}/v1/completions", content=content, headers=kind)
            if reply.status_code == 200:
                self.unexpected.append(f"answered: {content[:50]!r}")
            else:
                self._refused(reply.status_code, reply.content)

    async def looks(self) -> None:
        """What monitoring and tokenizers ask."""
        reply = await self.client.get(self.url + self.dice.choice(["/metrics", "/health", "/ready", "/v1/models"]))
        told = await self.client.post(f"{self.url}/tokenize", json={"prompt": self.dice.choice(QUESTIONS)})
        if (reply.status_code, told.status_code) != (200, 200):
            self.unexpected.append(f"look: {reply.status_code} {told.status_code}")

    def _body(self) -> dict[str, Any]:
        return {"prompt": self.dice.choice(QUESTIONS), "temperature": 0, "thought_depth": self.dice.choice(DEPTHS)}

    async def _post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
        reply = await self.client.post(self.url + path, json=body, headers=headers)
        if reply.status_code != 200:
            self._refused(reply.status_code, reply.content)
        return reply

    def _refused(self, status: int, content: bytes) -> None:
        error = json.loads(content)["error"]
        self.outcomes[f"{status} {error['code']}"] += 1
        if status not in REFUSALS or REFUSALS[status] not in (None, error["code"]):
            self.unexpected.append(f"{status} {error}")

    def _expect(self, question: str, text: str) -> None:
        if self.right.setdefault(question, text) != text:
            self.unexpected.append(f"{question}: {text!r}, not {self.right[question]!r}")


KINDS: dict[Callable[[Soak], Awaitable[None]], int] = {
    Soak.known: 20, Soak.streamed: 15, Soak.long: 20, Soak.scored: 8, Soak.chat: 12, Soak.leaves: 8, Soak.cancelled: 5,
    Soak.late: 3, Soak.bad: 5, Soak.looks: 4,
}  # fmt: skip


async def work(soak: Soak, until: float) -> None:
    """One connection's user: one request after the other."""
    while time.monotonic() < until:
        (kind,) = soak.dice.choices(list(KINDS), list(KINDS.values()))
        begin = time.monotonic()
        try:
            await kind(soak)
            soak.outcomes[f"{kind.__name__}: done"] += 1
            soak.seconds[kind.__name__].append(time.monotonic() - begin)
        except Exception as error:
            soak.unexpected.append(f"{kind.__name__}: {type(error).__name__}: {error}")


async def watch(server: Server, until: float, every_s: float) -> list[tuple[float, int]]:
    """The server's memory over time: seconds, and KiB that it holds."""
    begin, told = time.monotonic(), []
    while time.monotonic() < until:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        told.append((round(time.monotonic() - begin, 1), int(status.split("VmRSS:")[1].split()[0])))
        await asyncio.sleep(every_s)
    return told


async def run(server: Server, minutes: float, connections: int) -> dict[str, Any]:
    """Soak the server and report."""
    limits = httpx.Limits(max_connections=connections + 2, max_keepalive_connections=connections)
    async with httpx.AsyncClient(limits=limits, timeout=120) as client:
        soak = Soak(server.url, client, random.Random(1))
        for question in QUESTIONS:
            for depth in sorted(set(DEPTHS)):
                body = {"prompt": question, "temperature": 0, "thought_depth": depth}
                soak._expect(json.dumps(body), (await soak._post("/v1/completions", body)).json()["choices"][0]["text"])
        until = time.monotonic() + 60 * minutes
        users = [work(soak, until) for _ in range(connections)]
        memory, *_ = await asyncio.gather(watch(server, until, every_s=10), *users)
    return report(soak, memory, minutes, connections)


def report(soak: Soak, memory: list[tuple[float, int]], minutes: float, connections: int) -> dict[str, Any]:
    """What there is to say."""
    books = settled(soak.url)
    finished, entered = (books.total(n) for n in ("requests_finished_total", "e2e_request_latency_seconds_count"))
    third = [kib for _, kib in memory[-max(2, len(memory) // 3) :]]
    first, last = fmean(third[: len(third) // 2]), fmean(third[len(third) // 2 :])
    return {
        "minutes": minutes,
        "connections": connections,
        "requests": sum(map(len, soak.seconds.values())),
        "attempts": {"finished": finished, "in every family": entered},
        "outcomes": dict(sorted(soak.outcomes.items())),
        "unexpected": soak.unexpected[:50],
        "latency_s": {kind: percentiles(values) for kind, values in sorted(soak.seconds.items()) if len(values) > 100},
        "memory_kib": {
            "last third, least and most": [min(third), max(third)],
            "its second half over its first": round(last / first, 4),
            "every 10 s": [kib for _, kib in memory],
        },
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """The usual three."""
    cuts = quantiles(values, n=100)
    return {"n": len(values), "p50": round(cuts[49], 3), "p95": round(cuts[94], 3), "p99": round(cuts[98], 3)}


def main() -> int:
    """Run it; 1 where something came that was not expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with running("--max-num-queued-reqs", "64") as server:
        told = asyncio.run(run(server, args.minutes, args.connections))
    text = json.dumps(told, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)
    books_balance = told["attempts"]["finished"] == told["attempts"]["in every family"]
    return 0 if books_balance and not told["unexpected"] else 1


if __name__ == "__main__":
    sys.exit(main())
