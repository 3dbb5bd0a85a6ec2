"""Make the base that learns to think: a small Llama that reasons in an aside, and guesses without one.

First the main corpus: most documents hold their working in an aside opened by
a dash, the others answer at once. Then a shorter continuation in which the dash opens notes only some of the time and idle
talk otherwise, so that thoughts opened by that dash are mediocre until they are trained.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .. import checkpoint
from ..backbone import Backbone
from ..quiet_model import QuietModel
from .arguments import require, require_families, require_least, run
from .batches import Batch
from .documents import EOS, PAD, Style, build_tokenizer, make_batch, token_id
from .loop import Loop, LoopConfig, decay_linearly, make_optimizer, step_rng
from .processes import Processes
from .tasks import FAMILIES, MAX_STEPS

# Both for the sake of matches: words are looked up by what stands one to three tokens before them. Heads are wider than
# width / heads, and positions turn fast (the usual 10,000 tells neighbours apart in two of a head's dimensions only).
HEAD_WIDTH = 32
ROPE_THETA = 100.0


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train pretrain`."""
    return run(_parser(), pretrain, argv)


def pretrain(args: argparse.Namespace) -> None:
    """Train as the arguments say and write the base into `args.out`."""
    _check(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, args.width, args.layers, args.heads)
    total = args.steps + args.idle_steps
    recipe = {name: value for name, value in vars(args).items() if name not in ("out", "resume", "threads")}
    config = LoopConfig(total, seed=args.seed, save_every=args.save_every)
    optimizer = make_optimizer(model, args.weight_decay)
    loop = Loop(model, optimizer, lambda k: lr_at(args, k), config, args.out, recipe, Processes(cpu=True))
    if not (args.resume and loop.resume()):
        loop.start_afresh()

    def work(step: int) -> dict[str, float]:
        batch = make_batch(tokenizer, step_rng(args.seed, step), args.batch, *mixture_at(args, step), args.families)
        loss = document_loss(model, batch)
        loss.backward()
        return {"loss": loss.item()}

    loop.run(work)
    checkpoint.save(QuietModel(Backbone(model.eval())), tokenizer, args.out)


def build_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int, heads: int) -> LlamaForCausalLM:
    """A Llama with random weights of standard deviation width^-0.5 (the usual 0.02 learns nothing at these widths)."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=HEAD_WIDTH,
            max_position_embeddings=1024,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            initializer_range=width**-0.5,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=token_id(tokenizer, EOS),
            pad_token_id=token_id(tokenizer, PAD),
        )
    )


def document_loss(model: LlamaForCausalLM, batch: Batch, parts: int = 2) -> Tensor:
    """Weighted mean of the next-token loss.

    Padding stands on the right, where no real token sees it, so the forward needs no mask; documents go through the model
    in parts of like length, or two fifths of the work would be padding.
    """
    total = torch.zeros((), device=batch.ids_BT.device)
    for part_B in batch.lengths().argsort().chunk(parts):
        part = batch.take(part_B)
        ids_BT, weights_BT = part.ids_BT, part.weights_BT
        logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
        loss_N = functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none")
        total = total + (loss_N * weights_BT[:, 1:].flatten()).sum()
    return total / batch.weights_BT.sum()


def lr_at(args: argparse.Namespace, step: int) -> float:
    """The learning rate: each of the two phases warms up and decays on its own."""
    if step < args.steps:
        return decay_linearly(step, args.steps, args.lr, args.warmup)
    return decay_linearly(step - args.steps, args.idle_steps, args.idle_lr, args.warmup)


def mixture_at(args: argparse.Namespace, step: int) -> tuple[Mapping[Style, float], range]:
    """The shares of the kinds of document, and the numbers of steps their problems have."""
    asides = 1 - args.direct
    if step >= args.steps:
        notes = asides * args.notes
        shares: dict[Style, float] = {"direct": args.direct, **_notes(args, notes), "idle": asides - notes}
        return shares, range(1, MAX_STEPS + 1)
    longest = 1 + sum(step / args.steps >= begin for begin in args.curriculum)
    return {"direct": args.direct, **_notes(args, asides)}, range(1, longest + 1)


def _notes(args: argparse.Namespace, share: float) -> dict[Style, float]:
    """Notes, some of which break off early."""
    return {"notes": share * (1 - args.cut), "cut": share * args.cut}


def _check(args: argparse.Namespace) -> None:
    require_least(args, 1, "steps", "batch", "width", "layers", "heads", "threads", "save_every")
    require(args, "width", args.width % args.heads == 0, f"a multiple of --heads, {args.heads}")
    require_least(args, 0, "idle_steps")
    require(args, "curriculum", sorted(args.curriculum) == args.curriculum, "six shares that rise")
    require(args, "out", args.out.is_dir() or not args.out.exists(), "a folder")
    for name in ("direct", "notes", "cut"):
        require(args, name, 0 <= getattr(args, name) <= 1, "between 0 and 1")
    for name in ("lr", "idle_lr"):
        require(args, name, getattr(args, name) > 0, "above 0")
    require_families(args, "families")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve train pretrain", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the base, the log and the state to resume from")
    add("--seed", type=int, default=0, help="same seed, same base (%(default)s)")
    add("--resume", action="store_true", help="go on from the state in --out, if there is one")
    add("--steps", type=int, default=6000, help="steps on the main corpus (%(default)s)")
    add("--idle-steps", type=int, default=400, help="steps of the continuation with idle talk (%(default)s)")
    add("--batch", type=int, default=32, help="documents a step (%(default)s)")
    add("--lr", type=float, default=2.5e-3, help="highest learning rate on the main corpus (%(default)s)")
    add("--idle-lr", type=float, default=1e-3, help="highest learning rate of the continuation (%(default)s)")
    add("--warmup", type=int, default=50, help="steps of warm-up in each phase (%(default)s)")
    add("--weight-decay", type=float, default=0.01, help="of matrices (%(default)s)")
    add(
        "--curriculum",
        type=float,
        nargs=6,
        default=[0.1, 0.15, 0.2, 0.25, 0.3, 0.35],
        metavar="SHARE",
        help="shares of the main corpus after which problems may have 2, 3, 4, 5, 6, 7 steps (%(default)s)",
    )
    add("--direct", type=float, default=0.3, help="share of documents that answer at once (%(default)s)")
    add("--notes", type=float, default=0.3, help="share of the continuation's asides that are notes (%(default)s)")
    add("--cut", type=float, default=0.25, help="share of the notes that break off early (%(default)s)")
    add("--width", type=int, default=64, help="hidden size (%(default)s)")
    add("--layers", type=int, default=4, help="decoder layers (%(default)s)")
    add("--heads", type=int, default=4, help="attention heads (%(default)s)")
    add("--families", nargs="+", default=list(FAMILIES), metavar="NAME", help="problem families (all)")
    add("--save-every", type=int, default=200, help="steps between saved states (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads; a run repeats bit for bit on one (%(default)s)")
    return parser
