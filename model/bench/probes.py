"""Measure what it costs that probes read along: the same answers with no probe, with one and with four, side by side.

The probes are random, as wide as the paper's, and read the mean over all layers. All ways give the same texts, which is checked.
The ratio of a way is its tokens a second over those without a probe, in the same round.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import torch

from ..cache import Cache
from ..checkpoint import Loaded
from ..config import SamplingParams
from ..decode import Decoder, generate
from ..probe import Probe, ProbeNet, probe_config
from . import outcome, shapes

COUNTS = (0, 1, 4)  # probes
WIDTHS = ((256,), (), (256, 1024), (256,))  # of each one's hidden layers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 when all is measured, 2 where texts differ."""
    parser = _parser()
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        outcome.check_flags(args)
        found = {**outcome.describe(parser, argv, args), **measure(args)}
    except ValueError as error:
        print(f"probes: {error}", file=sys.stderr)
        return 2
    cells = {f"{count} probes": cell for count, cell in found["probes"].items()}
    spans = {name: (cell["spread"][0], cell["ratio"], cell["spread"][1]) for name, cell in cells.items()}
    outcome.write(found, spans, "tokens a second over those without a probe", args)
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every count of probes in every round, in another order each time; the first round warms up and does not count."""
    draw = Draw(args)
    rounds: list[dict[int, float]] = []
    for number in range(args.rounds + 1):
        order = COUNTS[number % len(COUNTS) :] + COUNTS[: number % len(COUNTS)]
        timed = {count: draw.timed(count) for count in order}
        if len({tuple(texts) for texts, _ in timed.values()}) > 1:
            raise ValueError("two ways gave different texts")
        rounds.append({count: speed for count, (_, speed) in timed.items()})
    return {"probes": _ratios(rounds[1:])}


class Draw:
    """Answers to random prompts, with some probes reading along."""

    def __init__(self, args: argparse.Namespace) -> None:
        subject = shapes.build(args.shape, shapes.SHAPES[args.shape], torch.float32)
        self._loaded = Loaded(subject.model, subject.tokens, subject.name)
        self._probes = {f"probe {number}": self._probe(number) for number in range(max(COUNTS))}
        self._params = SamplingParams(args.tokens, thought_depth=args.depth, ignore_eos=True)
        self._longest = args.prompt + args.tokens
        generator = torch.Generator().manual_seed(0)
        places = torch.randint(len(subject.prompt_ids), (args.batch, args.prompt), generator=generator).tolist()
        self._prompts = [[subject.prompt_ids[place] for place in row] for row in places]

    def timed(self, count: int) -> tuple[list[str], float]:
        """The texts with so many probes, and visible tokens a second."""
        model = self._loaded.model
        cache = Cache(model.backbone, len(self._prompts), self._longest, self._params.thought_depth)
        decoder = Decoder(model, self._loaded.tokens, cache, probes=self._probes)
        asked = replace(self._params, probes=tuple(self._probes)[:count])
        begin = perf_counter()
        results = generate(decoder, self._prompts, asked)
        seconds = perf_counter() - begin
        return [result.text for result in results], sum(len(result.tokens) for result in results) / seconds

    def _probe(self, number: int) -> Probe:
        torch.manual_seed(number)
        config = probe_config(self._loaded, property="way", classes=("N", "E", "S", "W"), widths=WIDTHS[number])
        return Probe(config, ProbeNet(config).eval().requires_grad_(False))


def _ratios(rounds: Sequence[dict[int, float]]) -> dict[str, dict[str, Any]]:
    """Of each way: the median round's tokens a second, and its ratio to none, with the least and the most."""
    found = {}
    for count in COUNTS:
        ratios = sorted(round(speeds[count] / speeds[0], 3) for speeds in rounds)
        speed = round(median(speeds[count] for speeds in rounds), 1)
        found[str(count)] = {
            "tokens_per_second": speed,
            "ratio": round(median(ratios), 3),
            "spread": [ratios[0], ratios[-1]],
        }
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m quietserve.model.bench.probes", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--shape", choices=list(shapes.SHAPES), default="5M", help="a random Llama of this size (%(default)s)")
    add("--batch", type=int, default=4, help="answers at once (%(default)s)")
    add("--prompt", type=int, default=64, help="tokens of a prompt (%(default)s)")
    add("--tokens", type=int, default=64, help="of an answer (%(default)s)")
    add("--depth", type=int, default=0, help="of thoughts (%(default)s)")
    add("--rounds", type=int, default=5, help="repetitions that count (%(default)s)")
    outcome.add_flags(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
