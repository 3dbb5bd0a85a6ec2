"""How many fresh problems a checkpoint answers right at each thought depth, decoded by what the server decodes with."""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import checkpoint
from ..bundled import DEFAULT
from ..cache import Cache
from ..checkpoint import Loaded
from ..config import SamplingParams
from ..decode import Decoder, generate
from ..progress import Generation
from ..thoughts import Choose
from .arguments import require_families, require_least, run
from .documents import DASH_TOKEN, write_prompt
from .tasks import FAMILIES, problems

SLOTS = 64
MAX_TOKENS = 3  # an answer is one token and the end of the text


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve evaluate`."""
    return run(_parser(), _report, argv)


def _report(args: argparse.Namespace) -> None:
    require_least(args, 1, "n", "threads")
    require_families(args, "families")
    torch.set_num_threads(args.threads)
    loaded = checkpoint.load(args.model)
    report = evaluate(loaded, args.depths, args.n, args.seed, args.families, args.thought_temperature)
    print(json.dumps(report) if args.json else table(report))


def evaluate(
    loaded: Loaded,
    depths: Sequence[int],
    n: int,
    seed: int,
    families: Sequence[str] = tuple(FAMILIES),
    thought_temperature: float | None = None,
    choose: Choose | None = None,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, Any]:
    """Accuracy over `n` held-out problems of each family at each depth: greedy answers, exact match.

    The same problems at every depth; one to six steps in equal shares. The dash that opens an aside may not be spoken, or a
    base would reason in the open. `thought_temperature` None is the checkpoint's own; `choose` replaces who picks thoughts.
    """
    decoder = _decoder(loaded, max(depths), choose)
    if thought_temperature is None:
        thought_temperature = loaded.model.quiet.thought_temperature if loaded.model.quiet else 0.0
    report: dict[str, Any] = {"n": n, "seed": seed, "thought_temperature": thought_temperature, "families": {}}
    with tqdm(total=len(families) * len(depths), unit="cell", file=sys.stderr, leave=False) as bar:
        for name in families:
            drawn = list(itertools.islice(problems("held_out", (name,), seed), n))
            prompts = [loaded.tokens.encode(write_prompt(problem)) for problem in drawn]
            cells: dict[str, Any] = {
                "n": n,
                "accuracy": {},
                "ci95": {},
                "by_steps": {},
                "thought_tokens": {},
                "decoding": {},
            }
            for depth in depths:
                params = [_params(loaded, depth, thought_temperature, seed + i, max_tokens) for i in range(n)]
                results = generate(decoder, prompts, params)
                right = [FAMILIES[name].verify(p, r.text) for p, r in zip(drawn, results, strict=True)]
                key = str(depth)
                cells["accuracy"][key] = sum(right) / n
                cells["ci95"][key] = wilson(sum(right), n)
                cells["by_steps"][key] = _by_steps([p.num_steps for p in drawn], right)
                cells["thought_tokens"][key] = sum(r.num_thought_tokens for r in results) / n
                cells["decoding"][key] = _decoding(results)
                bar.update()
            report["families"][name] = cells
    report["mean"] = {
        str(d): sum(cells["accuracy"][str(d)] for cells in report["families"].values()) / len(families) for d in depths
    }
    return report


def table(report: dict[str, Any]) -> str:
    """The report as a table: a row for each family, a column for each depth."""
    depths = list(report["mean"])
    lines = [f"{'depth':<10}" + "".join(f"{depth:>21}" for depth in depths)]
    for name, cells in report["families"].items():
        shown = [f"{cells['accuracy'][d]:.3f} [{cells['ci95'][d][0]:.3f} {cells['ci95'][d][1]:.3f}]" for d in depths]
        lines.append(f"{name:<10}" + "".join(f"{cell:>21}" for cell in shown))
    lines.append(f"{'mean':<10}" + "".join(f"{report['mean'][d]:>21.3f}" for d in depths))
    lines.append(f"{'forwards':<10}" + "".join(f"{_forwards_per_token(report, depth):>21.2f}" for depth in depths))
    lines.append(
        f"accuracy and its 95 % interval over {report['n']} held-out problems a family, seed {report['seed']}; forwards a token"
    )
    return "\n".join(lines)


def _forwards_per_token(report: dict[str, Any], depth: str) -> float:
    told = [cells["decoding"][depth] for cells in report["families"].values()]
    return sum(each["forwards"] for each in told) / sum(each["tokens"] for each in told)


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share."""
    share, spread = right / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return round(max(0.0, centre - half), 4), round(min(1.0, centre + half), 4)


def _decoding(results: list[Generation]) -> dict[str, float | None]:
    """What the answers cost: visible tokens and forwards of all of them, and the share of drafts that were right."""
    accepted, rejected = (sum(getattr(r.counts, name) for r in results) for name in ("accepted", "rejected"))
    return {
        "tokens": sum(len(r.tokens) for r in results),
        "forwards": sum(r.counts.forwards for r in results),
        "acceptance": accepted / (accepted + rejected) if accepted + rejected else None,
    }


def _decoder(loaded: Loaded, depth: int, choose: Choose | None) -> Decoder:
    cache = Cache(loaded.model.backbone, SLOTS, min(256, loaded.model.backbone.max_positions - depth - 2), depth)
    return Decoder(loaded.model, loaded.tokens, cache, choose=choose)


def _params(loaded: Loaded, depth: int, thought_temperature: float, seed: int, max_tokens: int) -> SamplingParams:
    dash = loaded.tokens.tokenizer.get_vocab().get(DASH_TOKEN)
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=0.0,
        seed=seed,
        thought_depth=depth,
        thought_temperature=thought_temperature,
        logit_bias={} if dash is None else {dash: -100.0},
    )


def _by_steps(steps: list[int], right: list[bool]) -> dict[str, float]:
    """Accuracy by the number of steps of the problem."""
    found = {}
    for number in sorted(set(steps)):
        hits = [r for s, r in zip(steps, right, strict=True) if s == number]
        found[str(number)] = round(sum(hits) / len(hits), 4)
    return found


def _depths(text: str) -> list[int]:
    try:
        depths = [int(part) for part in text.split(",")]
    except ValueError:
        depths = [-1]
    if min(depths) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of depths such as 0,4,8,12")
    return depths


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve evaluate", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("model", nargs="?", type=Path, default=DEFAULT, help="checkpoint folder (the bundled one)")
    add("--depths", type=_depths, default=[0, 4, 8, 12], help="thought depths, with commas between (0,4,8,12)")
    add("--n", type=int, default=2000, help="problems a family (%(default)s)")
    add("--seed", type=int, default=1, help="draws other problems (%(default)s)")
    add("--families", nargs="+", default=list(FAMILIES), metavar="NAME", help="problem families (all)")
    add("--thought-temperature", type=float, help="0 is greedy (the checkpoint's own)")
    add("--json", action="store_true", help="print the whole report as JSON")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    return parser
