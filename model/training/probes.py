"""Train probes: what a model's hidden states say of the world that its text is about, token by token.

The data is texts some of whose tokens have labels (`quietserve train karel-traces` makes such files of Karel programs; any other
property of any model's text will do). A probe reads the state that chose a token, the mean over the layers, and learns the token's
label, or with `--offset` the label so many labelled tokens later or, below 0, earlier. It is measured on texts that it has not
seen, beside three controls of the same shape: the commonest class, a probe that is told the labelled tokens in place of the state,
and one on the states of the same model with random weights. Emergent Representations of Program Semantics in Language Models Trained
on Programs (Jin and Rinard, arXiv 2305.11169), "Probing for the Abstract Interpretation".

`quietserve serve MODEL --probe NAME=OUT/PROPERTY` serves one.
"""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from .. import checkpoint
from ..backbone import Backbone
from ..checkpoint import Loaded
from ..checkpoint_folder import CheckpointError
from ..probe import CONFIG, ProbeConfig, probe_config, save_probe
from ..quiet_model import QuietModel
from .arguments import require, require_distinct, require_least, run
from .probing import WINDOW, Examples, Fit, Fitted, States, classes_of, fit, measure, split
from .traces import Trace, properties, read_traces

COLUMNS = ("accuracy", "balanced", "majority", "skill")


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train probes`."""
    return run(_parser(), train, argv)


def train(args: argparse.Namespace) -> None:
    """Train a probe of each property, and print what they are worth."""
    require_least(args, 1, "steps", "batch", "threads")
    require_least(args, 0, "weight_decay")
    require(args, "lr", args.lr > 0, "above 0")
    require(args, "held", 0 < args.held < 1, "above 0 and below 1")
    require(args, "widths", all(width >= 1 for width in args.widths), "1 or more each")
    require_distinct(args, "layers")
    torch.set_num_threads(args.threads)
    loaded = checkpoint.load(args.model, "float32", args.device)
    traces = read_traces(args.data, loaded.tokens)
    names = args.properties or properties(traces)
    _check(args, loaded, traces, names)
    layers = args.layers or list(range(loaded.model.backbone.num_layers + 1))
    how = Fit(tuple(args.widths), args.steps, args.batch, args.lr, args.weight_decay, args.seed)
    states = States(loaded, traces, layers)
    blank = None if args.no_controls else States(with_random_weights(loaded, args.seed), traces, layers)
    print(f"| property | classes | {' | '.join(COLUMNS)} | skill of tokens alone | of random weights |")
    print("|---" * (len(COLUMNS) + 4) + "|")
    for name in names:
        config = _config(loaded, traces, name, layers, args)
        measured = probe(states, blank, config, args.held, how, args.out / name)
        print(_line(name, config, measured), flush=True)


def probe(
    states: States, blank: States | None, config: ProbeConfig, held: float, how: Fit, out: Path | None = None
) -> dict[str, Any]:
    """Fit a probe and its controls; what they are worth. With `out` it is kept, and that with it."""
    name, classes, offset = config.property, config.classes, config.offset
    fitted = fit_part(config, states.examples(name, classes, offset), len(states.traces), held, how)
    measured = measure(*fitted)
    if blank is not None:
        for control, examples in (
            ("tokens_alone", states.tokens_alone(name, classes, offset)),
            ("random_weights", blank.examples(name, classes, offset)),
        ):
            shape = replace(config, hidden_size=examples.features_NF.shape[1])
            measured[control] = measure(*fit_part(shape, examples, len(states.traces), held, how))
    if out:
        save_probe(out, replace(config, measured=measured), fitted[0])
    return measured


class TooFewLabelsError(ValueError):
    """No text with a label is left to learn from, or to measure with."""


def fit_part(config: ProbeConfig, examples: Examples, count: int, held: float, how: Fit) -> Fitted:
    """A probe of some of `count` texts, what it was fitted to, and the texts that are held back."""
    learned, kept = (examples.take(texts) for texts in split(count, held, how.seed))
    if not len(learned) or not len(kept):
        raise TooFewLabelsError(f"property {config.property!r}: too few texts have a label at offset {config.offset}")
    return fit(config, learned, how), learned, kept


def with_random_weights(loaded: Loaded, seed: int) -> Loaded:
    """The same model before it has learned anything."""
    torch.manual_seed(seed)
    config = copy.deepcopy(loaded.model.backbone.lm.config)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model = QuietModel(Backbone(lm.eval())).to(loaded.model.backbone.device)
    return replace(loaded, model=model.requires_grad_(False))


def _config(
    loaded: Loaded, traces: Sequence[Trace], name: str, layers: Sequence[int], args: argparse.Namespace
) -> ProbeConfig:
    """Of a probe that speaks at the tokens that were labelled."""
    vocab = loaded.tokens.tokenizer
    ids = sorted({trace.ids[token] for trace in traces for token, _ in trace.pairs(name)})
    names = tuple(vocab.convert_ids_to_tokens(ids)) if len(ids) <= args.most_tokens else ()
    return probe_config(
        loaded,
        property=name,
        classes=classes_of(traces, name),
        layers=tuple(sorted(layers)),
        widths=tuple(args.widths),
        offset=args.offset,
        tokens=names,
    )


def _check(args: argparse.Namespace, loaded: Loaded, traces: Sequence[Trace], names: Sequence[str]) -> None:
    known, last = properties(traces), loaded.model.backbone.num_layers
    require(args, "layers", all(0 <= layer <= last for layer in args.layers), f"between 0 and {last}")
    for name in names:
        require(args, "properties", name in known, f"among those of {args.data}: {', '.join(known)}")
        if len(classes_of(traces, name)) < 2:
            raise ValueError(f"{args.data}: every label of {name!r} is the same")
        if (args.out / name / CONFIG).exists() and not args.overwrite:
            raise ValueError(f"{args.out / name}: a probe is there; --overwrite replaces it")
    longest = max(len(trace.ids) for trace in traces)
    if longest > loaded.model.backbone.max_positions:
        raise CheckpointError(f"{args.data}: a text has {longest} tokens, more than {loaded.name}'s context holds")


def _line(name: str, config: ProbeConfig, measured: dict[str, Any]) -> str:
    low, high = measured["skill_ci95"]
    cells = [f"{measured[column]:.3f}" for column in COLUMNS]
    controls = [f"{measured[c]['skill']:.3f}" if c in measured else "" for c in ("tokens_alone", "random_weights")]
    return f"| {name} | {len(config.classes)} | {' | '.join(cells)} [{low:.3f} {high:.3f}] | {' | '.join(controls)} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quietserve train probes",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="whose states are read: a folder, a hub name, or a bundled one")
    add("--data", type=Path, required=True, metavar="FILE", help="labelled texts, a line of JSON each")
    add("--out", type=Path, required=True, help="folder for a folder of each property")
    add("--overwrite", action="store_true", help="replace probes that are there")
    add("--properties", nargs="+", metavar="NAME", help="to read (all of the data)")
    add("--offset", type=int, default=0, help="labels from the token whose state is read (%(default)s)")
    add("--layers", type=int, nargs="+", default=[], help="whose states are averaged; 0: embeddings (all)")
    add("--widths", type=int, nargs="*", default=[], help="of hidden layers, as 256 1024 (none: linear)")
    add("--steps", type=int, default=1500, help="updates (%(default)s)")
    add("--batch", type=int, default=1024, help="states an update (%(default)s)")
    add("--lr", type=float, default=0.02, help="first learning rate (%(default)s)")
    add("--weight-decay", type=float, default=0.2, help="of matrices (%(default)s)")
    add("--held", type=float, default=0.2, help="share of texts to measure with (%(default)s)")
    add("--no-controls", action="store_true", help=f"leave out the controls (tokens alone: the last {WINDOW})")
    add("--most-tokens", type=int, default=64, metavar="N", help="more different labelled ones: any (%(default)s)")
    add("--seed", type=int, default=0, help="same seed, same probes (%(default)s)")
    add("--device", default="cpu", help="where states are computed (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    return parser
