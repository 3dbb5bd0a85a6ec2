"""Make the base that learns to correct itself: a small Llama that attempts problems, and attempts them again when told to.

Some documents hold one attempt, the others two, with the instruction between them. An attempt is a solution, or with the
share `--random` one drawn at random, whose steps are true and which mostly fails: or the base would learn to claim that it
got there. The second attempt has nothing to do with the first, or repeats it, with the share `--copies`; so before it is
trained (SCoRe, arXiv 2409.12917) the base's second answer is no better than its first. With the share `--foreign` the first is
one at another problem, or the second would lean on it: what it says of the numbers is true, and cheap to repeat.

With the share `--asides` an attempt stops on its way and tries in an aside how the rest might go, up to `--tries` times. A try is
drawn at random, or with the share `--lucky` one that gets there; the first that does is the answer. Such a base can learn to think
quietly (`train quiet-star --families`), as thoughts begin as asides, and longer ones have room for more tries.
"""

import argparse
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from .. import checkpoint
from ..backbone import Backbone
from ..correction import CorrectionConfig, bridge, next_prompt
from ..quiet_model import QuietModel
from ..tokens import Tokens
from .arguments import require, require_least, run
from .batches import Batch, pad
from .documents import DASH, PAD, QUESTION_WEIGHT, build_tokenizer, token_id, write_prompt
from .loop import Loop, LoopConfig, decay_linearly, make_optimizer, step_rng
from .pretrain import build_model, document_loss
from .processes import Processes
from .tasks import SEARCHES, Problem, Search, draw, problems

FIRST = next(iter(SEARCHES))
OR = " or"  # between two tries
AGAIN = "Is there an error? Answer again."  # short: it is read in every episode


class Attempts:
    """Documents of one or two attempts.

    Args:
        tokenizer: knows the families' words and the instruction's.
        families: whose problems.
        instruction: said between two attempts.
        random_share: of attempts that are drawn at random.
        copies: share of the other second attempts that repeat the first.
        foreign: share of second attempts that follow an attempt at another problem.
        asides: share of right attempts, the last of their document and no repetition, that hold an aside.
        tries: most of an aside.
        lucky: share of them that are drawn so that they get there.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        families: list[Search],
        instruction: str,
        random_share: float,
        copies: float,
        foreign: float,
        asides: float = 0.0,
        tries: int = 1,
        lucky: float = 0.0,
    ) -> None:
        self._tokens, self._families = Tokens(tokenizer), families
        self._random_share, self._copies, self._foreign, self._asides = random_share, copies, foreign, asides
        self._tries, self._lucky = tries, lucky
        self._between = bridge(self._tokens, instruction)
        self._pad = token_id(tokenizer, PAD)

    def batch(self, rng: random.Random, size: int) -> Batch:
        """Draw `size` documents; of prompts and instructions little counts, of attempts everything."""
        rows, weights = zip(*(self._document(rng) for _ in range(size)), strict=True)
        return pad(rows, weights, self._pad)

    def _document(self, rng: random.Random) -> tuple[list[int], list[float]]:
        family = rng.choice(self._families)
        problem = draw(rng, "train", family, rng.choice(family.steps))
        prompt, answer = self._tokens.encode(write_prompt(problem)), self._attempt(rng, family, problem)
        read = [0.0, *_light(prompt[1:])]
        if rng.random() < 0.5:
            said, weights = self._say(rng, family, problem, answer)
            return [*prompt, *said], [*read, *weights]
        second, counts, repeats = answer, 1.0, False
        if rng.random() < self._foreign:
            other = draw(rng, "train", family, problem.num_steps)
            answer, counts = self._attempt(rng, family, other), 0.0  # nobody is to answer so
        else:
            repeats = rng.random() < self._copies
            second = answer if repeats else self._attempt(rng, family, problem)
        first = self._encode(answer)
        told = next_prompt(prompt, first, self._tokens.eos_ids, self._between)  # whose bridge ends the answer, too
        # Whoever repeats an answer has nothing to try: an aside that got there would say another one.
        said, weights = self._plainly(second) if repeats else self._say(rng, family, problem, second)
        return [*told, *said], [*read, *[counts] * len(first), *_light(self._between[1:]), *weights]

    def _say(self, rng: random.Random, family: Search, problem: Problem, answer: str) -> tuple[list[int], list[float]]:
        """An answer, perhaps with an aside, and what its tokens count: where an aside begins nobody is to foretell."""
        if not self._asides or rng.random() >= self._asides or not family.verify(problem, answer):
            return self._plainly(answer)
        words = answer.split()
        cut = rng.randrange(rng.randint(1, len(words)))  # mostly early, where there is much to try
        tried = self._try(rng, family, problem, words[:cut])
        rest = tried[-1].split()[cut:] if family.verify(problem, tried[-1]) else words[cut:]
        before = self._tokens.encode(_spaced(words[:cut]), special=False)
        thought = OR.join(_spaced(one.split()[cut:]) for one in tried)
        aside = self._tokens.encode(f"{DASH}{thought}{DASH}{_spaced(rest)}", special=False)
        ids = [*before, *aside, *self._tokens.eos_ids]
        return ids, [1.0] * len(before) + [0.0] + [1.0] * (len(ids) - len(before) - 1)

    def _try(self, rng: random.Random, family: Search, problem: Problem, begun: list[str]) -> list[str]:
        """Attempts that begin so, each another one, until one gets there or there are enough."""
        found: list[str] = []
        while len(found) < self._tries and not (found and family.verify(problem, found[-1])):
            is_lucky = rng.random() < self._lucky
            trial = family.attempt(rng, problem)
            while (
                trial.split()[: len(begun)] != begun
                or trial in found
                or (is_lucky and not family.verify(problem, trial))
            ):
                trial = family.attempt(rng, problem)
            found.append(trial)
        return found

    def _plainly(self, answer: str) -> tuple[list[int], list[float]]:
        ids = self._encode(answer)
        return ids, [1.0] * len(ids)

    def _encode(self, answer: str) -> list[int]:
        return [*self._tokens.encode(f" {answer}", special=False), *self._tokens.eos_ids]

    def _attempt(self, rng: random.Random, family: Search, problem: Problem) -> str:
        text = family.attempt(rng, problem)
        if rng.random() >= self._random_share:
            while not family.verify(problem, text):
                text = family.attempt(rng, problem)
        return text


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train attempts`."""
    return run(_parser(), train, argv)


def train(args: argparse.Namespace) -> None:
    """Train as the arguments say and write the base into `args.out`."""
    _check(args)
    correction = CorrectionConfig(args.instruction)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    families = [SEARCHES[name] for name in args.families]
    tokenizer = build_tokenizer(_corpus(args))
    model = build_model(tokenizer, args.width, args.layers, args.heads)
    recipe = {name: value for name, value in vars(args).items() if name not in ("out", "resume", "threads")}
    loop = Loop(
        model,
        make_optimizer(model, args.weight_decay),
        lambda step: decay_linearly(step, args.steps, args.lr, args.warmup),
        LoopConfig(args.steps, seed=args.seed, save_every=args.save_every),
        args.out,
        recipe,
        Processes(cpu=True),
    )
    if not (args.resume and loop.resume()):
        loop.start_afresh()
    shares = (args.random, args.copies, args.foreign, args.asides)
    attempts = Attempts(tokenizer, families, args.instruction, *shares, args.tries, args.lucky)

    def work(step: int) -> dict[str, float]:
        loss = document_loss(model, attempts.batch(step_rng(args.seed, step), args.batch))
        loss.backward()
        return {"loss": loss.item()}

    loop.run(work)
    checkpoint.save(QuietModel(Backbone(model.eval())), tokenizer, args.out, correction=correction)


def _corpus(args: argparse.Namespace) -> list[str]:
    drawn = itertools.islice(problems("train", args.families), 3000)
    return [
        *(f"{write_prompt(problem)} {problem.answer}" for problem in drawn),
        f"Question: {args.instruction}\nAnswer:",
        *([DASH + OR] if args.asides else []),
    ]


def _spaced(words: Sequence[str]) -> str:
    return "".join(f" {word}" for word in words)


def _light(ids: list[int]) -> list[float]:
    """Weights of what can hardly be foretold."""
    return [QUESTION_WEIGHT] * len(ids)


def _check(args: argparse.Namespace) -> None:
    require_least(args, 1, "tries", "steps", "batch", "width", "layers", "heads", "threads", "save_every")
    require(args, "width", args.width % args.heads == 0, f"a multiple of --heads, {args.heads}")
    require(args, "out", args.out.is_dir() or not args.out.exists(), "a folder")
    for name in ("random", "copies", "foreign", "asides", "lucky"):
        require(args, name, 0 <= getattr(args, name) <= 1, "between 0 and 1")
    require(args, "tries", args.tries == 1 or args.asides > 0, "left out without --asides")
    require(args, "lucky", not args.lucky or args.asides > 0, "left out without --asides")
    require(args, "lr", args.lr > 0, "above 0")
    require(args, "families", set(args.families) <= set(SEARCHES), "among " + ", ".join(SEARCHES))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve train attempts", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the base, the log and the state to resume from")
    add("--seed", type=int, default=0, help="same seed, same base (%(default)s)")
    add("--resume", action="store_true", help="go on from the state in --out, if there is one")
    add("--families", nargs="+", default=[FIRST], metavar="NAME", help=f"of {', '.join(SEARCHES)} ({FIRST})")
    add("--instruction", default=AGAIN, help="said between two attempts (%(default)r)")
    add("--random", type=float, default=0.1, help="share of attempts that are drawn at random (%(default)s)")
    add("--foreign", type=float, default=0.5, help="share of second attempts behind another problem's (%(default)s)")
    add("--copies", type=float, default=0.9, help="share of the others that repeat the first (%(default)s)")
    add("--asides", type=float, default=0.0, help="share of right attempts with an aside in them (%(default)s)")
    add("--tries", type=int, default=1, help="most of an aside (%(default)s)")
    add("--lucky", type=float, default=0.0, help="share of tries that are drawn to get there (%(default)s)")
    add("--steps", type=int, default=4000, help="updates (%(default)s)")
    add("--batch", type=int, default=64, help="documents an update (%(default)s)")
    add("--lr", type=float, default=1.2e-3, help="highest learning rate (%(default)s)")
    add("--warmup", type=int, default=50, help="updates of warm-up (%(default)s)")
    add("--weight-decay", type=float, default=0.01, help="of matrices (%(default)s)")
    add("--width", type=int, default=64, help="hidden size (%(default)s)")
    add("--layers", type=int, default=3, help="decoder layers (%(default)s)")
    add("--heads", type=int, default=4, help="attention heads (%(default)s)")
    add("--save-every", type=int, default=200, help="updates between saved states (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads; a run repeats bit for bit on one (%(default)s)")
    return parser
