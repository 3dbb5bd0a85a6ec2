"""What a language model knows of the world that its tokens are about: small classifiers that read its hidden states.

A probe is a folder with `probe.json` (`ProbeConfig`) and tensors, and belongs to one language model. It reads the state that
chose a token: that of the row before it, a mean over some layers, without any thought in it. Jin and Rinard, "Emergent
Representations of Program Semantics in Language Models Trained on Programs" (ICML 2024).

Shape letters: B sequences, T tokens, N tokens of all sequences, H hidden size of the language model.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .backbone import causal
from .bundled import BUNDLED_PROBES
from .checkpoint import Loaded
from .checkpoint_folder import CheckpointError, read_json
from .config import check
from .layer_means import LayerMeans, Rule
from .progress import Readout
from .quiet_model import QuietModel

__all__ = [
    "Probe",
    "ProbeConfig",
    "ProbeNet",
    "Readout",
    "fingerprint",
    "layer_states",
    "load_probe",
    "probe_config",
    "read_text",
    "save_probe",
]

CONFIG, TENSORS = "probe.json", "probe.safetensors"
_DIGITS = 4  # what is left of a probability does not depend on what else was in its batch


@dataclass(frozen=True)
class ProbeConfig:
    """What a probe reads, where, and what it says. Raises ValueError naming the field when a value is out of its range."""

    property: str  # of the world, "direction" for example
    classes: tuple[str, ...]  # what it may be
    hidden_size: int  # of the language model
    vocab_size: int
    num_layers: int
    layers: Rule  # whose states are averaged, as transformers' `output_hidden_states` numbers them
    widths: tuple[int, ...] = ()  # of the probe's own hidden layers; none: it is linear
    offset: int = 0  # of what it was trained to say, in labelled tokens from the one whose state it reads
    tokens: tuple[str, ...] = ()  # names of those at which it was trained: at others it says nothing; none: at all
    fingerprint: str = ""  # of the language model (`fingerprint`)
    measured: dict[str, Any] = field(default_factory=dict)  # on texts that it was not trained on

    def __post_init__(self) -> None:
        check(isinstance(self.property, str) and bool(self.property), "property", self.property, "a word")
        distinct = _are(self.classes, str) and len(set(self.classes)) == len(self.classes) >= 2
        check(distinct, "classes", self.classes, "a list of 2 or more different strings")
        for name in ("hidden_size", "vocab_size", "num_layers"):
            value = getattr(self, name)
            check(type(value) is int and value >= 1, name, value, "a whole number, 1 or more")
        ordered = _are(self.layers, int) and list(self.layers) == sorted(set(self.layers)) != []
        inside = ordered and 0 <= self.layers[0] <= self.layers[-1] <= self.num_layers
        check(inside, "layers", self.layers, f"a list of ascending numbers between 0 and num_layers, {self.num_layers}")
        positive = _are(self.widths, int) and all(width >= 1 for width in self.widths)
        check(positive, "widths", self.widths, "a list of whole numbers, 1 or more")
        check(type(self.offset) is int, "offset", self.offset, "a whole number")
        check(_are(self.tokens, str), "tokens", self.tokens, "a list of strings")
        check(isinstance(self.fingerprint, str), "fingerprint", self.fingerprint, "a string")
        check(isinstance(self.measured, dict), "measured", self.measured, "an object")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from parsed JSON; an unknown key and a missing one are errors."""
        if unknown := sorted(values.keys() - {f.name for f in fields(cls)}):
            raise ValueError(f"field {unknown[0]!r} is unknown")
        needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        if missing := sorted(needed - values.keys()):
            raise ValueError(f"field {missing[0]!r} is missing")
        told: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**told)


class ProbeNet(nn.Module):
    """Says how likely each class is by a state, in float32.

    Args:
        config: its shape.
    """

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(config.hidden_size))  # of the states that it was trained on
        self.register_buffer("std", torch.ones(config.hidden_size))
        sizes = [config.hidden_size, *config.widths]
        hidden = [part for size, width in zip(sizes, config.widths, strict=False) for part in _layer(size, width)]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], len(config.classes)))

    def forward(self, state: Tensor) -> Tensor:
        """Logits [..., classes] of states [..., H]."""
        return self.layers((state.float() - self.mean) / self.std)


class Probe:
    """Reads states.

    Args:
        config: what it is.
        net: its network.
        token_ids: at which tokens it says something; None: at all.
    """

    def __init__(self, config: ProbeConfig, net: ProbeNet, token_ids: frozenset[int] | None = None) -> None:
        self.config, self._net, self._token_ids = config, net, token_ids

    def reads(self, token: int) -> bool:
        """Whether it has something to say of a token."""
        return self._token_ids is None or token in self._token_ids

    @torch.no_grad()
    def read(self, state_NH: Tensor) -> list[Readout]:
        """The likeliest class by each state, and how likely it is."""
        if not len(state_NH):
            return []
        probabilities, classes = self._net(state_NH).softmax(-1).max(-1)
        return [
            Readout(self.config.classes[number], round(probability, _DIGITS))
            for number, probability in zip(classes.tolist(), probabilities.tolist(), strict=True)
        ]


def load_probe(path: Path | str, loaded: Loaded) -> Probe:
    """Load a probe of a checkpoint, from a folder or a bundled one; it goes where the checkpoint is.

    Raises CheckpointError for a file that is missing or damaged, and a probe of another language model.
    """
    folder = Path(BUNDLED_PROBES.get(str(path), path))
    values = read_json(folder / CONFIG)
    try:
        config = ProbeConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG}: not a probe's: {error}") from error
    _check_model(folder / CONFIG, config, loaded)
    token_ids = _token_ids(folder / CONFIG, config, loaded)
    try:
        with torch.device("meta"):  # whatever size it says it is: it is the tensors that count
            net = ProbeNet(config)
        net.load_state_dict(load_file(folder / TENSORS), assign=True)
    except Exception as error:  # missing, truncated, or of another shape: which tensor stands behind the first line
        raise CheckpointError(f"{folder / TENSORS}: {' '.join(str(error).split())}") from error
    if not all(value.isfinite().all() for value in net.state_dict().values()) or not bool((net.std > 0).all()):
        raise CheckpointError(f"{folder / TENSORS}: holds what is no number, or a deviation that is not above 0")
    return Probe(config, net.to(loaded.model.backbone.device, torch.float32).eval().requires_grad_(False), token_ids)


def save_probe(folder: Path, config: ProbeConfig, net: ProbeNet) -> None:
    """Write a probe; a folder that is there is added to."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, folder / TENSORS)
    (folder / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n")


def probe_config(loaded: Loaded, **rest: Any) -> ProbeConfig:
    """That of a probe which reads a checkpoint's states, the mean over all of them unless `layers` says otherwise."""
    model = loaded.model
    own: dict[str, Any] = {
        "hidden_size": model.backbone.hidden_size,
        "vocab_size": model.backbone.vocab_size,
        "num_layers": model.backbone.num_layers,
        "layers": tuple(range(model.backbone.num_layers + 1)),
        "fingerprint": fingerprint(model),
    }
    return ProbeConfig(**own | rest)


@torch.no_grad()
def fingerprint(model: QuietModel) -> str:
    """16 hexadecimal digits that tell a language model from another of its shape: a hash of its embeddings' signs.

    No way to serve a model changes an embedding's sign: layers that are joined, packed or quantised leave the embeddings alone,
    and a dtype rounds them. Models whose embeddings are the same to the sign are not told apart: one that only adapters changed.
    """
    weight = cast(nn.Embedding, model.backbone.lm.get_input_embeddings()).weight
    bits = torch.signbit(weight).cpu().contiguous().numpy()
    digest = hashlib.sha256(str(tuple(bits.shape)).encode())
    digest.update(np.packbits(bits).tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def layer_states(model: QuietModel, ids_BT: Tensor, layers: Sequence[int]) -> Tensor:
    """What a plain forward over texts makes of each token: the mean over some layers [B, T, H], in float32.

    Texts are padded on the right, with any id.
    """
    means = LayerMeans([tuple(layers)])
    positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    model(ids_BT, positions_BT, causal, means)
    return means.means()[0]


def read_text(loaded: Loaded, probe: Probe, ids: Sequence[int], first: int = 1) -> list[Readout | None]:
    """Readouts of the tokens of a text from number `first` on, each by the state of the one before; None where it has none.

    Raises ValueError where there is none before, or the text is longer than the model's context.
    """
    most = loaded.model.backbone.max_positions
    if not 1 <= first <= len(ids) or len(ids) > most:
        raise ValueError(
            f"{len(ids)} tokens, read from number {first}; it must be 1 or more, and the text at most {most}"
        )
    states_TH = layer_states(
        loaded.model, torch.tensor([list(ids)], device=loaded.model.backbone.device), probe.config.layers
    )[0]
    readouts = probe.read(states_TH[first - 1 : len(ids) - 1])
    return [readout if probe.reads(token) else None for token, readout in zip(ids[first:], readouts, strict=True)]


def _check_model(file: Path, config: ProbeConfig, loaded: Loaded) -> None:
    backbone = loaded.model.backbone
    for what, own, theirs in (
        ("states so wide", config.hidden_size, backbone.hidden_size),
        ("a vocabulary of", config.vocab_size, backbone.vocab_size),
        ("layers", config.num_layers, backbone.num_layers),
        ("the fingerprint", config.fingerprint, fingerprint(loaded.model)),
    ):
        if own != theirs:
            raise CheckpointError(f"{file}: is of a model with {what}: {own}; {loaded.name} has {theirs}")


def _token_ids(file: Path, config: ProbeConfig, loaded: Loaded) -> frozenset[int] | None:
    vocab = loaded.tokens.tokenizer.get_vocab()
    for name in config.tokens:
        if name not in vocab:
            raise CheckpointError(f"{file}: tokens: the tokenizer of {loaded.name} has no {name!r}")
    return frozenset(vocab[name] for name in config.tokens) or None


def _layer(size: int, width: int) -> list[nn.Module]:
    return [nn.Linear(size, width), nn.ReLU()]


def _are(values: object, kind: type) -> bool:
    return isinstance(values, tuple) and all(type(value) is kind for value in values)
