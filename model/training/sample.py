"""Draw answers to training questions from a model, several to each, and sort the right from the wrong.

The model is a checkpoint, decoded by the code that serves, or any served one (`--url`). An answer is a visible chain of thought,
or with `--direct` the answer alone (problems of search have nothing else: their answers show their steps). What was drawn is kept
as it comes; a run that was killed goes on with `--resume`. "Turning Dust into Gold" (arXiv 2312.12832) draws eight to a question.
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...clients.client import ApiError, Client
from .. import checkpoint
from ..answers import normalise
from ..checkpoint import Loaded
from ..config import SamplingParams
from . import samples
from .arguments import claim, read_stops, require, require_distinct, require_least, run
from .evaluation.evaluation import Evaluation
from .evaluation.family_items import FamilyItem
from .evaluation.generated import longest_answer
from .evaluation.majority import longest_chain
from .loop import progress_bar
from .sampler import RESERVED, Drawn, LocalSampler, Sampler, ServedSampler
from .samples import SAMPLES, Asked, Sample
from .tasks import EVERY, SEARCHES, problems
from .tasks.files import read_items
from .tasks.item import Item, Wording

MADE_WITH = "sampling.json"  # what a folder's answers were asked for with
AT_ONCE = 32  # questions between two writes
SERVED_TOKENS = 256  # of an answer, where nothing is known of the tokenizer
SETTINGS = (
    *("tasks", "direct", "held_out", "samples", "temperature", "max_tokens", "depth", "params", "seed"),
    "served_model",
)


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train sample`."""
    return run(_parser(), sample, argv)


def sample(args: argparse.Namespace) -> None:
    """Draw what is missing in `args.out`, and write the halves."""
    _check(args)
    torch.set_num_threads(args.threads)
    _open(args)
    items = list(itertools.islice(_items(args), args.n))
    # An answer's last digits depend on what it was drawn beside.
    done = samples.keep_multiple(args.out, AT_ONCE, enough=len(items))
    bar = progress_bar(total=len(items), initial=min(done, len(items)), unit="question")
    with _sampler(args, items) as sampler, bar:
        for first in range(done, len(items), AT_ONCE):
            part = items[first : first + AT_ONCE]
            samples.append(args.out, draw(sampler, part, range(first, first + len(part)), args.samples, args.direct))
            bar.update(len(part))
    right, wrong = samples.write_halves(args.out)
    number = max(done, len(items))  # a folder keeps what was drawn when more was asked for
    told = number * args.samples
    print(f"{number} questions, {told} answers: {right} right, {wrong} wrong, {told - right - wrong} without an answer")


def draw(
    sampler: Sampler, items: Sequence[Item], numbers: Sequence[int], count: int, direct: bool = False
) -> list[Asked]:
    """`count` answers to every item, judged; an item's number decides which ones."""
    prompts = [_prompt(item, direct) for item in items]
    drawn = sampler.draw(prompts, numbers, count, [_is_bare(item, direct) for item in items])
    return [
        Asked(
            item.source,
            item.question,
            prompt,
            item.prompt,
            item.answer,
            tuple(_judge(item, one, direct) for one in own),
        )
        for item, prompt, own in zip(items, prompts, drawn, strict=True)
    ]


def _prompt(item: Item, direct: bool) -> str:
    return item.prompt if _is_bare(item, direct) else item.reasoning_prompt


def _is_bare(item: Item, direct: bool) -> bool:
    """Whether it is answered without a chain of thought."""
    return direct or (isinstance(item, FamilyItem) and item.problem.family in SEARCHES)


def _judge(item: Item, drawn: Drawn, direct: bool) -> Sample:
    """What an answer comes to: of a family's problem answered directly, all of it."""
    whole = isinstance(item, FamilyItem) and _is_bare(item, direct)
    found = (drawn.text.strip() or None) if whole else item.extract(drawn.text)
    return Sample(
        drawn.text,
        None if found is None else normalise(found),
        found is not None and item.verify(found),
        math.fsum(drawn.logprobs),
        min(drawn.logprobs, default=-math.inf),
        len(drawn.logprobs),
    )


def _items(args: argparse.Namespace) -> Iterator[Item]:
    """Those of files first, then families' problems, in equal shares and without end: with more asked for, the first stay."""
    families = [name for name in args.tasks if name in EVERY]
    files = [read_items(Path(name), Wording()) for name in args.tasks if name not in EVERY]
    drawn = problems("held_out" if args.held_out else "train", families, args.seed) if families else ()
    return itertools.chain(*files, (FamilyItem(problem, problem.answers) for problem in drawn))


def _open(args: argparse.Namespace) -> None:
    """Raises ValueError where somebody else's answers are in the folder."""
    file = args.out / SAMPLES
    if file.exists() and not args.resume:
        raise ValueError(f"{file} is an earlier run's: --resume goes on with it; or use another folder")
    if not file.exists():
        (args.out / MADE_WITH).unlink(missing_ok=True)  # a run that drew nothing binds nobody
    stop = None if args.stop is None else list(args.stop)
    dtype = None if args.dtype == "auto" else args.dtype  # as in folders from before it was noted
    settings = {name: getattr(args, name) for name in SETTINGS}
    whose = {"model": str(args.model), "url": args.url, "dtype": dtype}
    claim(args.out, settings | {"stop": stop, **whose}, MADE_WITH)


@contextmanager
def _sampler(args: argparse.Namespace, items: Sequence[Item]) -> Iterator[Sampler]:
    if not args.url:
        yield _local(args, checkpoint.load(args.model, args.dtype or "auto", args.device or "cpu"), items)
        return
    with Client(args.url) as client:
        try:
            client.models()  # an address that is none is told of before anything else
            yield _served(args, client, items)
        except ApiError as error:
            raise OSError(f"--url {args.url}: {error}") from error


def _local(args: argparse.Namespace, loaded: Loaded, items: Sequence[Item]) -> LocalSampler:
    quiet = loaded.model.quiet
    depth = (quiet.thought_depth if quiet else 0) if args.depth is None else args.depth
    require(args, "depth", loaded.model.can_think or not depth, "0: the model does not think")
    evaluation = Evaluation(loaded)
    bare = all(_is_bare(item, args.direct) for item in items)
    enough = longest_answer(evaluation, items) if bare else longest_chain(evaluation, items)
    params = SamplingParams(
        max_tokens=args.max_tokens or enough,
        temperature=args.temperature,
        seed=args.seed,
        stop=_stop(args, items),
        logprobs=0,
        thought_depth=depth,
        thought_temperature=quiet.thought_temperature if quiet else 1.0,
    )
    return LocalSampler(loaded, params, dash=evaluation.dash)


def _served(args: argparse.Namespace, client: Client, items: Sequence[Item]) -> ServedSampler:
    known = {
        "model": args.served_model,
        "max_tokens": args.max_tokens or SERVED_TOKENS,
        "temperature": args.temperature,
        "stop": list(_stop(args, items)) or None,
        "thought_depth": args.depth,
    }
    return ServedSampler(client, {**known, **args.params}, args.seed)


def _stop(args: argparse.Namespace, items: Sequence[Item]) -> tuple[str, ...]:
    """What ends an answer: of several tasks, whatever ends one of any."""
    return args.stop if args.stop is not None else tuple(dict.fromkeys(s for i in items for s in i.reasoning_stop))


def _check(args: argparse.Namespace) -> None:
    require_least(args, 1, "n", "samples", "threads")
    require(args, "temperature", 0 < args.temperature <= 2, "above 0 and at most 2")
    require(args, "depth", args.depth is None or args.depth >= 0, "0 or more")
    require(args, "max_tokens", args.max_tokens is None or args.max_tokens >= 1, "1 or more")
    require_distinct(args, "tasks")
    require(args, "params", args.url is not None or not args.params, "left out: it is for a served model's requests")
    fits = args.url is not None or args.served_model is None
    require(args, "served_model", fits, "left out: the model is a checkpoint")
    for name in ("dtype", "device"):
        fits = args.url is None or getattr(args, name) is None
        require(args, name, fits, "left out: the model is a server's")
    taken = [name for name in RESERVED if name in args.params]
    require(args, "params", not taken, f"without {', '.join(taken)}: the draw sets that itself")
    args.stop = read_stops(args) if args.stop is not None else None
    for name in args.tasks:
        known = name in EVERY or Path(name).is_file()
        require(args, "tasks", known, f"among {', '.join(EVERY)}, or JSONL files that exist")


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


_object.__name__ = "JSON object"  # what argparse calls it in its errors


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve train sample", description=__doc__, allow_abbrev=False)
    add, whose = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--model", type=Path, help="checkpoint: a folder, a hub name, or a bundled one")
    whose.add_argument("--url", help="of a server with OpenAI's completions, whose model it is")
    add("--served-model", metavar="NAME", help="which of the server's models (its default)")
    add("--params", type=_object, default={}, metavar="JSON", help="further parameters of every request to it")
    add("--out", type=Path, required=True, help="folder for what is drawn")
    add("--resume", action="store_true", help="go on with what is in --out")
    add("--tasks", nargs="+", required=True, metavar="TASK", help=f"of {', '.join(EVERY)}, and JSONL files")
    add("--n", type=int, default=1000, help="questions (%(default)s)")
    add("--samples", type=int, default=8, help="answers to each (%(default)s)")
    add("--direct", action="store_true", help="answers without a chain of thought")
    add("--held-out", action="store_true", help="of families the problems that are kept for evaluation")
    add("--temperature", type=float, default=1.0, help="of visible tokens (%(default)s)")
    add(
        "--max-tokens",
        type=int,
        help=f"of an answer (what a family's need; for files and served models {SERVED_TOKENS})",
    )
    add(
        "--stop",
        nargs="*",
        metavar="TEXT",
        help="ends an answer; \\n is a newline (as the task's chains of thought end)",
    )
    add("--depth", type=int, help="tokens of a thought (as the model was trained; a server's default)")
    add("--seed", type=int, default=0, help="draws other questions and other answers (%(default)s)")
    add("--dtype", choices=["auto", "float32", "bfloat16"], help="of a checkpoint's weights (auto)")
    add("--device", help="where a checkpoint is put (cpu)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    return parser
