"""Measure what it saves that the answers to one prompt share its prefill: the same answers, drawn in four ways, side by side.

    together, shared     one request of so many votes: all in one batch, the prompt read once
    together, apart      as many requests at once, each with a prefill of its own
    in turn, shared      one after the other, each finding the prompt in the cache
    in turn, apart       one after the other, nothing shared: what a client without voting does

All give the same texts, which is checked. The ratio of a way is the time that it takes over that of the first, in the same round.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch

from .. import checkpoint
from ..bundled import DEFAULT
from ..cache import Cache
from ..checkpoint import Loaded
from ..config import SamplingParams
from ..decode import Decoder, generate
from . import outcome

WAYS = ("together, shared", "together, apart", "in turn, shared", "in turn, apart")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 when all is measured, 2 for a model that cannot be read or texts that do not fit."""
    parser = _parser()
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        outcome.check_flags(args)
        loaded = checkpoint.load(args.model)
        loaded.model.speed_up()
        found = {**outcome.describe(parser, argv, args), "model": loaded.name, **measure(loaded, args)}
    except (ValueError, OSError) as error:
        print(f"votes: {error}", file=sys.stderr)
        return 2
    walls = {way: cell["wall"] for way, cell in found["ways"].items()}
    spans = {way: (wall["spread"][0], wall["ratio"], wall["spread"][1]) for way, wall in walls.items()}
    outcome.write(found, spans, f"time over that of {WAYS[0]}", args)
    return 0


def measure(loaded: Loaded, args: argparse.Namespace) -> dict[str, Any]:
    """Every way in every round, in another order each time; the first round warms up and does not count."""
    room = loaded.model.backbone.max_positions - (args.depth + 2 if args.depth else 0)
    if args.prompt + args.tokens > room:
        raise ValueError(f"--prompt and --tokens are {args.prompt} and {args.tokens}; the model's context is {room}")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, loaded.model.backbone.vocab_size, (args.prompt,), generator=generator).tolist()
    markers = set(loaded.tokens.markers.values())
    draw = Draw(loaded, [4 if token in markers else token for token in ids], args)
    rounds: list[dict[str, tuple[float, float]]] = []
    for number in range(args.rounds + 1):
        order = WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]
        timed = {way: _timed(lambda way=way: draw.texts(way)) for way in order}
        if len({tuple(texts) for texts, *_ in timed.values()}) > 1:
            raise ValueError("two ways gave different texts")
        rounds.append({way: times for way, (_, *times) in timed.items()})  # type: ignore[misc]
    return {"ways": _ratios(rounds[1:])}


class Draw:
    """The answers to one prompt."""

    def __init__(self, loaded: Loaded, prompt: list[int], args: argparse.Namespace) -> None:
        self._loaded, self._prompt, self._depth = loaded, prompt, args.depth
        params = SamplingParams(args.tokens, thought_depth=args.depth, ignore_eos=True)
        self._params = [replace(params, seed=seed) for seed in range(args.votes)]

    def texts(self, way: str) -> list[str]:
        """All of them, drawn in one of `WAYS`, with an empty cache."""
        together, shared = way.startswith("together"), way.endswith("shared")
        slots = len(self._params) if together else 1
        longest = len(self._prompt) + self._params[0].max_tokens
        cache = Cache(self._loaded.model.backbone, slots, longest, self._depth)
        decoder = Decoder(self._loaded.model, self._loaded.tokens, cache, reuse_prefixes=shared)
        groups = [self._params] if together else [[params] for params in self._params]
        return [g.text for group in groups for g in generate(decoder, [self._prompt] * len(group), group)]


def _timed(work: Callable[[], list[str]]) -> tuple[list[str], float, float]:
    wall, cpu = perf_counter(), process_time()
    texts = work()
    return texts, perf_counter() - wall, process_time() - cpu


def _ratios(rounds: Sequence[dict[str, tuple[float, float]]]) -> dict[str, dict[str, Any]]:
    """Of each way's time over the first's: the median round, the least and the most, by the clock and by CPU time."""
    found = {}
    for way in WAYS:
        cell = {}
        for name, which in (("wall", 0), ("cpu", 1)):
            ratios = sorted(round(times[way][which] / times[WAYS[0]][which], 3) for times in rounds)
            cell[name] = {"ratio": round(median(ratios), 3), "spread": [ratios[0], ratios[-1]]}
        found[way] = cell
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m quietserve.model.bench.votes", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", type=Path, default=DEFAULT, help="a checkpoint folder, or a bundled one (quiet-small)")
    add("--votes", type=int, default=16, help="answers (%(default)s)")
    add("--prompt", type=int, default=256, help="tokens of the prompt (%(default)s)")
    add("--tokens", type=int, default=32, help="of an answer (%(default)s)")
    add("--depth", type=int, default=0, help="of thoughts (%(default)s)")
    add("--rounds", type=int, default=5, help="repetitions that count (%(default)s)")
    outcome.add_flags(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
