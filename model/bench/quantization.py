"""Measure what quantised weights cost and save: one model with its weights held in every way, each against full precision.

Memory of the weights and of loading them (a process each), how far the next token's distribution moves on random text,
plain decoding's speed, and, with --problems, how many answers are still right. Where the tokens of a random model are as good
as tied, its agreement says little of a trained one; nor do its weights have the outliers that make rounding hard.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from math import sqrt
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint
from ..backbone import causal
from ..bundled import DEFAULT
from ..cache import Cache
from ..checkpoint import Loaded
from ..config import SamplingParams
from ..decode import Decoder, generate
from . import machine
from .cell import Cell, Setup
from .measure import measure
from .shapes import BUNDLED, SHAPES, Subject, write
from .systems import Factory, Ours

KINDS = ("none", "half", "int8", "bnb-8bit", "bnb-4bit")
_PROMPT, _MAX_S = 64, 60.0
_TEXTS, _TEXT_LENGTH = 16, 128
_SLOTS, _MAX_LEN, _ANSWER_TOKENS = 64, 256, 3
_Z95 = 1.96


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 when all is measured, 2 for a model or a file that cannot be read."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(1)
    try:
        with _folder(args.model, args.file_dtype) as folder:
            run = {"command": [str(arg) for arg in (sys.argv[1:] if argv is None else argv)], **_measure(folder, args)}
    except (ValueError, OSError) as error:
        print(f"quantization: {error}", file=sys.stderr)
        return 2
    print(json.dumps(run, indent=1))
    if args.json:
        runs = json.loads(args.json.read_text()) if args.json.exists() else []
        args.json.write_text(json.dumps([*runs, run], indent=1) + "\n")
    return 0


def _measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    problems = [json.loads(line) for line in args.problems.read_text().splitlines()] if args.problems else []
    kinds = list(dict.fromkeys(("none", *args.kinds)))
    rows: dict[str, dict[str, Any]] = {kind: weigh_apart(folder, args.dtype, kind) for kind in kinds}
    models = {kind: load(folder, args.dtype, kind) for kind in kinds}
    for measured in (_closeness(models), *(_speed(models, batch, args) for batch in args.batches)):
        for kind, values in measured.items():
            rows[kind] |= values
    for depth in args.depths if problems else ():
        answers = {kind: right(loaded, problems, depth, args.bar) for kind, loaded in models.items()}
        for kind, hits in answers.items():
            rows[kind][f"accuracy_depth_{depth}"] = compare(hits, answers["none"])
    return {"machine": machine.describe(1), "dtype": str(models["none"].model.backbone.dtype), "rows": rows}


def load(folder: Path, dtype: str, kind: str) -> Loaded:
    """The checkpoint as the server would lay it out."""
    loaded = checkpoint.load(folder, dtype, quantization=kind if kind.startswith("bnb-") else "none")
    loaded.model.speed_up(kind if kind in ("half", "int8") else "float")
    return loaded


def weigh(folder: Path, dtype: str, kind: str) -> dict[str, int]:
    """Bytes of the weights; of the process at its largest, after loading and one forward, and as it was before."""
    before = _peak_rss()
    torch.set_num_threads(1)
    loaded = load(folder, dtype, kind)
    _log_probs(loaded, torch.arange(8)[None])
    return {"weight_bytes": loaded.model.num_bytes, "peak_rss_bytes": _peak_rss(), "rss_before_bytes": before}


def _peak_rss() -> int:
    """Linux's own count: that of `getrusage` begins with what the parent had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def weigh_apart(folder: Path, dtype: str, kind: str) -> dict[str, int]:
    """The same in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(weigh, folder, dtype, kind).result()


def _closeness(models: Mapping[str, Loaded]) -> dict[str, dict[str, float]]:
    """Against full precision on random text: KL divergence (nats a token) and how often the likeliest token is the same."""
    size = models["none"].model.backbone.vocab_size
    texts = torch.randint(size, (_TEXTS, _TEXT_LENGTH), generator=torch.Generator().manual_seed(0))
    rows: dict[str, list[tuple[float, float]]] = {kind: [] for kind in models}
    for text in texts:
        full = _log_probs(models["none"], text[None])
        for kind, loaded in models.items():
            other = _log_probs(loaded, text[None])
            kl = (full.exp() * (full - other)).sum(-1).mean()
            rows[kind].append((float(kl), float((full.argmax(-1) == other.argmax(-1)).float().mean())))
    return {
        kind: {"kl_nats": float(f"{_mean(kl for kl, _ in v):.3g}"), "same_top": round(_mean(top for _, top in v), 4)}
        for kind, v in rows.items()
    }


@torch.no_grad()
def _log_probs(loaded: Loaded, ids: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1])[None]
    return loaded.model.backbone.logits(loaded.model(ids, positions, causal)).log_softmax(-1)


def _speed(models: Mapping[str, Loaded], batch: int, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Tokens a second of plain decoding over those in full precision: the median round's ratio, the least and the most."""
    subjects = {k: Subject(k, m.model, m.tokens, m.model.backbone.lm, forced=False) for k, m in models.items()}
    setup = Setup(subjects["none"], Cell(args.model, batch, _PROMPT, 0), args.tokens, _MAX_S, 1)
    measured = measure(setup, {kind: _factory(kind, subject) for kind, subject in subjects.items()}, args.rounds)
    rows = {}
    for kind in subjects:
        pairs = [(r[kind].figures.tokens_per_s, r["none"].figures.tokens_per_s) for r in measured.rounds]
        ratios = sorted(round(own / full, 3) for own, full in pairs)
        rows[kind] = {f"speed_batch_{batch}": {"ratio": round(median(ratios), 3), "spread": [ratios[0], ratios[-1]]}}
    return rows


def _factory(kind: str, subject: Subject) -> Factory:
    return lambda setup: Ours(kind, replace(setup, subject=subject), 1)


def right(loaded: Loaded, problems: Sequence[Mapping[str, str]], depth: int, bar: Sequence[str]) -> list[bool]:
    """Which problems are answered word for word; greedy answers, greedy thoughts. Tokens in `bar` are not spoken."""
    vocab = loaded.tokens.tokenizer.get_vocab()
    params = SamplingParams(
        max_tokens=_ANSWER_TOKENS,
        temperature=0,
        thought_depth=depth,
        thought_temperature=0,
        logit_bias={vocab[name]: -100.0 for name in bar},
    )
    decoder = Decoder(loaded.model, loaded.tokens, Cache(loaded.model.backbone, _SLOTS, _MAX_LEN, depth))
    prompts = [loaded.tokens.encode(problem["prompt"]) for problem in problems]
    results = generate(decoder, prompts, params)
    return [r.text.strip() == problem["answer"] for r, problem in zip(results, problems, strict=True)]


def compare(hits: Sequence[bool], full: Sequence[bool]) -> dict[str, Any]:
    """Accuracy with its 95 % interval (Wilson), and the paired difference to full precision with its own."""
    n, share = len(hits), _mean(hits)
    spread = _Z95**2 / n
    half = _Z95 / (1 + spread) * sqrt(share * (1 - share) / n + spread / (4 * n))
    centre = (share + spread / 2) / (1 + spread)
    changes = [own - other for own, other in zip(hits, full, strict=True)]
    change = _mean(changes)
    error = _Z95 * sqrt(max(_mean(abs(c) for c in changes) - change**2, 0) / n)
    return {
        "n": n,
        "accuracy": round(share, 4),
        "ci95": [round(centre - half, 4), round(centre + half, 4)],
        "won": changes.count(1),
        "lost": changes.count(-1),
        "difference": round(change, 4),
        "difference_ci95": [round(change - error, 4), round(change + error, 4)],
    }


def _mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


@contextmanager
def _folder(model: str, dtype: str) -> Iterator[Path]:
    """The checkpoint's folder; a random one's is made, and goes again."""
    if model not in SHAPES:
        yield DEFAULT if model == BUNDLED else Path(model)
        return
    with TemporaryDirectory() as folder:
        write(SHAPES[model], getattr(torch, dtype), Path(folder))
        yield Path(folder)


def _parser() -> argparse.ArgumentParser:
    name = "python -m quietserve.model.bench.quantization"
    parser = argparse.ArgumentParser(prog=name, description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--model", default=BUNDLED, help=f"a checkpoint folder, `{BUNDLED}`, or random weights: {' '.join(SHAPES)}")
    add(
        "--file-dtype", choices=["float32", "bfloat16"], default="float32", help="of random weights' file (%(default)s)"
    )
    add("--dtype", default="auto", help="what the file is loaded as (%(default)s)")
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, help="ways to hold the weights (all)")
    add("--batches", type=int, nargs="*", default=[1, 8], help="requests at once (1 8)")
    add("--tokens", type=int, default=32, help="tokens of a request to measure (%(default)s)")
    add("--rounds", type=int, default=5, help="repetitions, each in another order (%(default)s)")
    add(
        "--problems",
        type=Path,
        metavar="FILE",
        help="lines of JSON with `prompt` and `answer`: how many are still right?",
    )
    add("--depths", type=int, nargs="+", default=[0], help="thought depths to answer them at (0)")
    add("--bar", nargs="+", default=[], metavar="TOKEN", help="names of tokens that an answer may not contain")
    add("--json", type=Path, metavar="FILE", help="add this run to the list in a file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
