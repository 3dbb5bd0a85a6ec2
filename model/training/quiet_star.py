"""Teach a base to think before it speaks: REINFORCE on thoughts that make the next tokens likelier.

For some positions of each text several thoughts are sampled by the serving kernel; one forward with gradients then reads the
texts and all thoughts, and the true tokens after them. Mixed predictions are trained on the true tokens, thoughts on how much
better they made them. Quiet-STaR (arXiv 2403.09629), "Quiet-STaR".

Arms for comparison at equal numbers of updates: `no-reinforce` (the thoughts get no reward), `pause` (a thought is a fixed
token, repeated) and `continued` (no thoughts; the base goes on with the same texts).
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from .. import checkpoint
from ..backbone import Backbone
from ..cache import Cache
from ..config import QuietConfig
from ..quiet_model import QuietModel
from ..thoughts import Choose, Rows, Thought, replay, think, whole_rows
from .arguments import require, require_families, require_least, run
from .batches import Batch
from .documents import DASH_TOKEN, END, EOS, PAD, SPECIAL, START, make_batch
from .loop import DivergedError, Loop, LoopConfig, decay_linearly, make_optimizer, step_rng
from .losses import advantages, choice_logprobs, mean_where, policy_loss, rewards
from .tasks import FAMILIES, MAX_STEPS

ARMS = ("quiet-star", "no-reinforce", "pause", "continued")


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train quiet-star`."""
    return run(_parser(), train, argv)


def train(args: argparse.Namespace) -> None:
    """Train as the arguments say and write the checkpoint into `args.out`."""
    _check(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)  # the mixing head's first layers are random
    model, tokenizer = open_base(args.base, max(args.depths), args.thought_temperature)
    model.requires_grad_(True)
    scale = args.thinking_lr / args.lr
    lr_scales = {"start_embedding": scale, "end_embedding": scale, "mixing_head": scale}
    recipe = {name: value for name, value in vars(args).items() if name not in ("out", "resume", "threads")}
    recipe["base"] = str(args.base.resolve())
    loop = Loop(
        model,
        make_optimizer(model, args.weight_decay, lr_scales),
        lambda step: decay_linearly(step, args.steps, args.lr, args.warmup),
        LoopConfig(args.steps, seed=args.seed, save_every=args.save_every, log_every=10),
        args.out,
        recipe,
    )
    if not (args.resume and loop.resume()):
        loop.start_afresh()

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = step_rng(args.seed, step)
        size = args.batch * (args.continued_batch if args.arm == "continued" else 1)
        batch = make_batch(tokenizer, rng, size, {"direct": 1.0}, range(1, MAX_STEPS + 1), args.families)
        return (_text_loss(model, batch), {}) if args.arm == "continued" else quiet_loss(model, batch, args, rng)

    loop.run(loss_at)
    checkpoint.save(model, tokenizer, args.out)


def open_base(folder: Path, depth: int, thought_temperature: float = 0.0) -> tuple[QuietModel, PreTrainedTokenizerFast]:
    """A base that does not think yet: both markers start as the dash that opens and closes an aside, the mixing weight at 0.

    From random markers the mixing weight dies and nothing is left to reinforce.
    """
    try:
        with checkpoint.quiet_libraries():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            lm = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"--base {folder} is not a checkpoint folder: {str(error).splitlines()[0]}") from error
    names = (DASH_TOKEN, START, END, EOS)
    for name in names:
        if name not in tokenizer.get_vocab():
            raise ValueError(
                f"--base {folder}: its tokenizer has no token {name!r}; `train pretrain` makes a base that has"
            )
    dash, start, end, eos = tokenizer.convert_tokens_to_ids(list(names))
    quiet = QuietConfig(depth, thought_temperature, (DASH_TOKEN, EOS), START, END)
    model = QuietModel(Backbone(lm), quiet, hidden_ids=(start, end), stop_ids=(dash, eos))
    with torch.no_grad():
        aside = model.backbone.embed(torch.tensor(dash))
        model.start_embedding.copy_(aside)
        model.end_embedding.copy_(aside)
    return model, tokenizer


@dataclass(frozen=True)
class Sampled:
    """Thoughts of a batch and where they stand. M = J positions times P thoughts."""

    positions_BM: Tensor
    own_BMG: Tensor  # each thought's rows and the true tokens after it
    tokens_BML: Tensor
    lengths_BM: Tensor
    ended_BM: Tensor  # it ended itself before the ceiling


def quiet_loss(
    model: QuietModel, batch: Batch, args: argparse.Namespace, rng: random.Random
) -> tuple[Tensor, dict[str, float]]:
    """The objective on one batch, and what to log of it."""
    depth = rng.choice(args.depths)
    sampled = sample_thoughts(model, batch, args.positions, args.thoughts, depth, args.after, _chooser(args.arm))
    base_BTH, own_BMGH = replay(model, batch.ids_BT, sampled.positions_BM, sampled.own_BMG)
    base_nll_BT = _next_nll(model, base_BTH, batch.ids_BT)
    weights_BT = batch.weights_BT[:, 1:]
    mixed_nll_BMS, real_BMS, weight_BMS = _mixed_nll(model, batch, sampled, base_BTH, own_BMGH, args.after)
    reward_BJP = _rewards(base_nll_BT, mixed_nll_BMS, real_BMS, sampled.positions_BM, args.thoughts)
    loss = 0.5 * mean_where(base_nll_BT, weights_BT) + 0.5 * mean_where(mixed_nll_BMS, real_BMS)
    if args.arm == "quiet-star":
        length = sampled.tokens_BML.shape[-1]
        logprobs_NL = choice_logprobs(
            model.logits(own_BMGH[:, :, :length]).flatten(0, 1),
            sampled.tokens_BML.flatten(0, 1),
            sampled.lengths_BM.flatten(),
            sampled.ended_BM.flatten(),
            sorted(model.stop_ids),
        )
        advantage_BJP = advantages(reward_BJP, args.keep_negative)
        loss = loss + args.beta * policy_loss(advantage_BJP.flatten(), logprobs_NL)
    facts = {
        "base_nll": mean_where(base_nll_BT, weights_BT),
        "mixed_nll": mean_where(mixed_nll_BMS, real_BMS),
        "reward": reward_BJP.mean(),
        "weight": weight_BMS[..., 0].mean(),
        "length": sampled.lengths_BM.float().mean(),
    }
    return loss, {name: float(value.detach()) for name, value in facts.items()}


@torch.no_grad()
def sample_thoughts(
    model: QuietModel, batch: Batch, positions: int, thoughts: int, depth: int, after: int, choose: Choose
) -> Sampled:
    """Think `thoughts` times after each of `positions` tokens of every text, drawn in proportion to the loss there."""
    ids_BT = batch.ids_BT
    real_BT = batch.weights_BT[:, 1:] > 0
    cache = Cache(model.backbone, len(ids_BT), ids_BT.shape[1], depth, lanes=positions * thoughts)
    rows = Rows()
    for slot, length in enumerate((real_BT.sum(1) + 1).tolist()):
        rows.add_base(slot, ids_BT[slot, :length].tolist(), 0)
    hidden_BTH = torch.zeros(*ids_BT.shape, model.backbone.hidden_size)
    hidden_BTH[torch.tensor(rows.slots), torch.tensor(rows.columns)] = model.run(rows, cache)
    loss_BT = _next_nll(model, hidden_BTH, ids_BT) * batch.weights_BT[:, 1:]
    where_BJ = torch.multinomial(loss_BT + 1e-6 * real_BT, positions)
    flights = [
        Thought(slot, position, cache.lane(lane, depth), depth, model.stop_ids, wants_end=False)
        for slot, places in enumerate(where_BJ.repeat_interleave(thoughts, 1).tolist())
        for lane, position in enumerate(places)
    ]
    think(model, cache, flights, choose)
    return _pack(flights, batch, after, (len(ids_BT), positions * thoughts))


def _pack(flights: list[Thought], batch: Batch, after: int, shape: tuple[int, int]) -> Sampled:
    """Finished thoughts as tensors; the true tokens after each are read behind its END."""
    texts = batch.ids_BT.tolist()
    pad = texts[0][0]  # any real id: nothing sees the padding
    longest = max(len(t.tokens) for t in flights) + 1
    own = [whole_rows(t.tokens, texts[t.slot][t.position + 1 : t.position + after]) for t in flights]
    group = max(map(len, own))
    return Sampled(
        torch.tensor([t.position for t in flights]).view(shape),
        torch.tensor([row + [pad] * (group - len(row)) for row in own]).view(*shape, group),
        torch.tensor([t.tokens + [pad] * (longest - len(t.tokens)) for t in flights]).view(*shape, longest),
        torch.tensor([len(t.tokens) for t in flights]).view(shape),
        torch.tensor([not t.full for t in flights]).view(shape),
    )


def _mixed_nll(
    model: QuietModel, batch: Batch, sampled: Sampled, base_BTH: Tensor, own_BMGH: Tensor, after: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of the `after` tokens behind each thought under the mix, which of them are real, and the mixing weights."""
    steps_S = torch.arange(after)
    texts_B11 = torch.arange(len(batch.ids_BT))[:, None, None]
    last = batch.ids_BT.shape[1] - 1
    read_BMS = sampled.positions_BM[..., None] + steps_S
    real_BMS = (read_BMS < last) & (batch.weights_BT[texts_B11, (read_BMS + 1).clamp(max=last)] > 0)
    base_BMSH = base_BTH[texts_B11, read_BMS.clamp(max=last)]
    # A thought that is shorter than the longest leaves room behind it, so a column out of range is never a real one.
    behind_BMS = (sampled.lengths_BM[..., None] + 1 + steps_S).clamp(max=own_BMGH.shape[2] - 1)
    thought_BMSH = own_BMGH.gather(2, behind_BMS[..., None].expand(-1, -1, -1, own_BMGH.shape[-1]))
    mixed_BMSH, weight_BMS = model.mix(base_BMSH, thought_BMSH)
    logprobs = model.logits(mixed_BMSH).log_softmax(-1)
    targets = batch.ids_BT[texts_B11, (read_BMS + 1).clamp(max=last)]
    return _pick(logprobs, targets, real_BMS), real_BMS.float(), weight_BMS


def _rewards(
    base_nll_BT: Tensor, mixed_nll_BMS: Tensor, real_BMS: Tensor, positions_BM: Tensor, thoughts: int
) -> Tensor:
    """Rewards [B, J, P] of the thoughts of each position."""
    steps = torch.arange(mixed_nll_BMS.shape[-1])
    read = (positions_BM[..., None] + steps).clamp(max=base_nll_BT.shape[1] - 1)
    base_BMS = base_nll_BT.gather(1, read.flatten(1)).view_as(read)
    by_position = [x.unflatten(1, (-1, thoughts)) for x in (base_BMS, mixed_nll_BMS, real_BMS)]
    return rewards(by_position[0][:, :, 0], by_position[1], by_position[2][:, :, 0])


def _next_nll(model: QuietModel, hidden_BTH: Tensor, ids_BT: Tensor) -> Tensor:
    """Loss [B, T - 1] of each next token."""
    logprobs = model.logits(hidden_BTH[:, :-1]).log_softmax(-1)
    return _pick(logprobs, ids_BT[:, 1:], None)


def _pick(logprobs: Tensor, targets: Tensor, real: Tensor | None) -> Tensor:
    """Minus the log-probability of each target; 0 where it is not real."""
    nll = -logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return nll if real is None else torch.where(real, nll, 0.0)


def _text_loss(model: QuietModel, batch: Batch) -> Tensor:
    own_BMG = torch.zeros(len(batch.ids_BT), 0, 1, dtype=torch.long)
    base_BTH, _ = replay(model, batch.ids_BT, own_BMG[..., 0], own_BMG)
    return mean_where(_next_nll(model, base_BTH, batch.ids_BT), batch.weights_BT[:, 1:])


def draw_thoughts(thoughts: list[Thought], logits_NV: Tensor) -> list[int]:  # noqa: ARG001
    """Sample at temperature 1 from torch's own generator. Raises DivergedError for logits that are not numbers."""
    if logits_NV.isnan().any():
        raise DivergedError("logits are not numbers")
    return functional.softmax(logits_NV, -1).multinomial(1).squeeze(1).tolist()


def pause(thoughts: list[Thought], logits_NV: Tensor) -> list[int]:  # noqa: ARG001
    """The same token again and again: a thought that can hold no reasoning, only time."""
    return [SPECIAL.index(PAD)] * len(thoughts)  # a token that no text holds


def _chooser(arm: str) -> Choose:
    return pause if arm == "pause" else draw_thoughts


def _check(args: argparse.Namespace) -> None:
    require(args, "arm", args.arm in ARMS, "one of " + ", ".join(ARMS))
    require_least(args, 1, "steps", "batch", "positions", "after", "threads", "save_every", "continued_batch")
    require(args, "thoughts", args.thoughts >= 2, "2 or more: each is measured against the others")
    require(args, "depths", min(args.depths) >= 1, "1 or more")
    for name in ("lr", "thinking_lr"):
        require(args, name, getattr(args, name) > 0, "above 0")
    require_least(args, 0, "beta")
    require(args, "thought_temperature", 0 <= args.thought_temperature <= 2, "between 0 and 2")
    require_families(args, "families")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve train quiet-star", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--base",
        type=Path,
        required=True,
        help="folder of the language model to start from (`train pretrain` makes one)",
    )
    add("--out", type=Path, required=True, help="folder for the checkpoint, the log and the state to resume from")
    add("--arm", default=ARMS[0], help=f"what to train: {', '.join(ARMS)} (%(default)s)")
    add("--seed", type=int, default=0, help="same seed, same checkpoint (%(default)s)")
    add("--resume", action="store_true", help="go on from the state in --out, if there is one")
    add("--steps", type=int, default=200, help="updates (%(default)s)")
    add("--batch", type=int, default=32, help="texts an update (%(default)s)")
    add("--continued-batch", type=int, default=4, help="times as many texts where no thoughts are read (%(default)s)")
    add("--positions", type=int, default=2, help="positions of a text that think, drawn by their loss (%(default)s)")
    add("--thoughts", type=int, default=4, help="thoughts at a position (%(default)s)")
    add(
        "--depths",
        type=int,
        nargs="+",
        default=[4, 8, 12, 16],
        metavar="N",
        help="one drawn for each update (4 8 12 16)",
    )
    add("--after", type=int, default=3, help="true tokens foretold after a thought (%(default)s)")
    add(
        "--thought-temperature",
        type=float,
        default=0.0,
        help="of the checkpoint's users; training samples at 1 (%(default)s)",
    )
    add("--beta", type=float, default=10.0, help="weight of REINFORCE (%(default)s)")
    add("--keep-negative", action=argparse.BooleanOptionalAction, default=True, help="learn from bad thoughts too")
    add("--lr", type=float, default=5e-4, help="highest learning rate of the language model (%(default)s)")
    add("--thinking-lr", type=float, default=3e-3, help="the same of the markers and the mixing head (%(default)s)")
    add("--warmup", type=int, default=10, help="updates of warm-up (%(default)s)")
    add("--weight-decay", type=float, default=0.001, help="of matrices (%(default)s)")
    add("--families", nargs="+", default=list(FAMILIES), metavar="NAME", help="problem families (all)")
    add("--save-every", type=int, default=50, help="updates between saved states (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads; a run repeats bit for bit on one (%(default)s)")
    return parser
