"""How likely an answer is to be right, learned from answers that were and were not.

A ranker is a folder with `ranker.json` (`RankerConfig`) and tensors, of one of two kinds:

states: a small encoder over what the served language model makes of question and answer: its embeddings, its last hidden states, and
    how likely it held each token. It holds next to nothing of its own, and belongs to that model.
classifier: any Hugging Face model for sequence classification, with a tokenizer of its own; it reads question and answer as a pair.

"Turning Dust into Gold" (arXiv 2312.12832), "Adaptive Self-Consistency", has the second.

Shape letters: B answers, T tokens, H hidden size of the language model, W width of the encoder, F numbers that are read of a token,
V vocabulary.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .backbone import causal
from .bundled import BUNDLED_RANKERS
from .checkpoint import Loaded, quiet_libraries
from .checkpoint_folder import CheckpointError, first_line, read_json
from .quiet_model import QuietModel
from .tokens import Tokens
from .voting import Entry

Kind = Literal["states", "classifier"]

CONFIG, TENSORS = "ranker.json", "ranker.safetensors"
MAX_ROWS = 8192  # tokens of a forward
_LEAST_LOGPROB = -20.0  # nats
_MOST_LOGITS = 2**22  # held at once
_DIGITS = 6  # what is left of a score does not depend on what else was in its batch


@dataclass(frozen=True)
class RankerConfig:
    """What a ranker is. Raises ValueError for one that cannot be."""

    kind: Kind
    hidden_size: int = 0  # of the language model whose states it reads
    vocab_size: int = 0
    width: int = 64
    layers: int = 2
    heads: int = 4
    logprobs: bool = False  # it is told how likely each token was, and how unsure the model; older ones are not
    temperature: float = 1.0  # a calibrated score is sigmoid(logit / temperature + bias)
    bias: float = 0.0
    measured: dict[str, Any] = field(default_factory=dict)  # on questions that it was not trained on

    def __post_init__(self) -> None:
        known = self.kind in ("states", "classifier")
        if not known or self.width < 1 or self.layers < 0 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"kind {self.kind!r}, {self.layers} layers, {self.width} wide with {self.heads} heads")
        if type(self.logprobs) is not bool:
            raise ValueError(f"logprobs {self.logprobs!r}")
        if not (math.isfinite(self.bias) and 0 < self.temperature < math.inf):
            raise ValueError(f"temperature {self.temperature}, bias {self.bias}")


class Judge(Protocol):
    """What tells right answers from wrong ones, not yet calibrated."""

    def __call__(self, entries: Sequence[Entry]) -> Tensor:
        """A logit [B] for every answer."""
        ...

    def length(self, entry: Entry) -> int:
        """Tokens that it reads of an entry."""
        ...


class StatesEncoder(nn.Module):
    """Reads embeddings and states, and says one number of them.

    Args:
        config: its shape.
    """

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        width = config.width
        self.tells_logprobs = config.logprobs
        self.enter = nn.Linear(2 * config.hidden_size + 2 * config.logprobs, width)
        self.part = nn.Embedding(2, width)  # the question, the answer
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False) if config.layers else None
        self.leave = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, read_BTF: Tensor, answer_BT: Tensor, real_BT: Tensor) -> Tensor:
        """Logits [B] of texts: what is read of each token [B, T, F], which tokens are the answer's, and which are real."""
        hidden = self.enter(read_BTF) + self.part(answer_BT.long()) + _waves(read_BTF.shape[1], self.part.weight)
        if self.layers is not None:
            hidden = self.layers(hidden, src_key_padding_mask=~real_BT)
        counts_BT1 = answer_BT[..., None]
        mean = (hidden * counts_BT1).sum(1) / counts_BT1.sum(1).clamp(min=1)
        most = hidden.masked_fill(~counts_BT1, -math.inf).amax(1)
        return self.leave(torch.cat([mean, most.clamp(min=torch.finfo(most.dtype).min)], -1)).squeeze(-1)


class StatesJudge(nn.Module):
    """An encoder with the language model whose states it reads, which stays as it is."""

    def __init__(self, encoder: StatesEncoder, loaded: Loaded) -> None:
        super().__init__()
        self.encoder = encoder
        self._lm, self._tokens = (loaded.model,), loaded.tokens  # in a tuple it is no part of this module
        self._tells_logprobs = encoder.tells_logprobs

    def length(self, entry: Entry) -> int:
        """Tokens of question and answer, as far as the model's context goes."""
        return len(self._read(entry)[0])

    def forward(self, entries: Sequence[Entry]) -> Tensor:
        """Logits [B]."""
        read = [self._read(entry) for entry in entries]
        longest, device = max(len(ids) for ids, _ in read), self._lm[0].backbone.device
        ids_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in read], device=device)
        columns_T = torch.arange(longest, device=device)
        begins_B1, ends_B1 = (
            torch.tensor(cut, device=device)[:, None] for cut in ([at for _, at in read], [len(ids) for ids, _ in read])
        )
        real_BT = columns_T < ends_B1
        return self.encoder(self._states(ids_BT), real_BT & (columns_T >= begins_B1), real_BT)

    @torch.no_grad()
    def _states(self, ids_BT: Tensor) -> Tensor:
        """What is read of each token [B, T, F]; padding stands on the right, where no real token sees it."""
        model = self._lm[0]
        embeds = model.embed(ids_BT)
        positions = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
        hidden_BTH = model.backbone(embeds, positions, causal)
        read = [embeds.float(), hidden_BTH.float()]
        if self._tells_logprobs:
            read.append(_surprise(model, ids_BT, hidden_BTH))
        return torch.cat(read, -1)

    def _read(self, entry: Entry) -> tuple[list[int], int]:
        """Ids, and where the answer begins: of what is too long, the end."""
        answer = self._tokens.encode_written(entry.text) or [min(self._tokens.eos_ids, default=0)]
        ids = [*entry.prompt, *answer][-self._lm[0].backbone.max_positions :]
        return ids, max(0, len(ids) - len(answer))


class ClassifierJudge(nn.Module):
    """A Hugging Face model for sequence classification.

    Of one output it is the logit; of two the second's, less the first's.

    Args:
        classifier: the model.
        tokenizer: its own.
        tokens: the language model's, to which prompts belong.
    """

    def __init__(self, classifier: Any, tokenizer: Any, tokens: Tokens) -> None:
        super().__init__()
        self.classifier, self.tokenizer, self._tokens = classifier, tokenizer, tokens
        self._most = min(int(tokenizer.model_max_length), _positions(classifier.config))

    def length(self, entry: Entry) -> int:
        """Tokens of the pair."""
        return min(self._most, len(self.tokenizer(self._tokens.decode(entry.prompt), entry.text)["input_ids"]))

    def forward(self, entries: Sequence[Entry]) -> Tensor:
        """Logits [B]."""
        read = self.tokenizer(
            [self._tokens.decode(entry.prompt) for entry in entries],
            [entry.text for entry in entries],
            padding=True,
            truncation=True,
            max_length=self._most,
            return_tensors="pt",
        ).to(self.classifier.device)
        known = {name: read[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in read}
        logits = self.classifier(**known).logits.float()
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


class Ranker:
    """Scores answers.

    Args:
        config: how its judge is calibrated.
        judge: gives logits.
    """

    def __init__(self, config: RankerConfig, judge: Judge) -> None:
        self.config, self._judge = config, judge

    @torch.no_grad()
    def logits(self, entries: Sequence[Entry]) -> list[float]:
        """Of every answer, not calibrated; texts of like length are read together."""
        found = [0.0] * len(entries)
        for part in self._parts(entries):
            for number, logit in zip(part, self._judge([entries[number] for number in part]).tolist(), strict=True):
                found[number] = logit
        return found

    def score(self, entries: Sequence[Entry]) -> list[float]:
        """How likely each answer is to be right, 0 to 1. Raises ArithmeticError where that is no number."""
        config, logits = self.config, self.logits(entries)
        if not all(map(math.isfinite, logits)):
            raise ArithmeticError("a ranker's logit is no number")
        return [round(_sigmoid(logit / config.temperature + config.bias), _DIGITS) for logit in logits]

    def _parts(self, entries: Sequence[Entry]) -> list[list[int]]:
        lengths = [self._judge.length(entry) for entry in entries]
        parts: list[list[int]] = []
        for number in sorted(range(len(entries)), key=lambda number: lengths[number]):
            if not parts or lengths[number] * (len(parts[-1]) + 1) > MAX_ROWS:
                parts.append([])
            parts[-1].append(number)
        return parts


def load_ranker(path: Path | str, loaded: Loaded) -> Ranker:
    """Load a ranker for the answers of a checkpoint, from a folder or a bundled one; it goes where the checkpoint is.

    Raises CheckpointError for a file that is missing or damaged, and a ranker that reads another model's states.
    """
    folder = Path(BUNDLED_RANKERS.get(str(path), path))
    values = read_json(folder / CONFIG)
    names = {known.name for known in fields(RankerConfig)}
    if unknown := sorted(values.keys() - names):
        raise CheckpointError(f"{folder / CONFIG}: field {unknown[0]!r} is unknown")
    try:
        config = RankerConfig(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG}: not a ranker's: {error}") from error
    device = loaded.model.backbone.device
    if config.kind == "classifier":
        return Ranker(config, load_classifier(folder, loaded.tokens).to(device).eval())
    _check_model(folder, config, loaded)
    encoder = StatesEncoder(config)
    try:
        encoder.load_state_dict(load_file(folder / TENSORS))
    except Exception as error:  # missing, truncated, or of another shape
        raise CheckpointError(f"{folder / TENSORS}: {first_line(error)}") from error
    return Ranker(config, StatesJudge(encoder, loaded).to(device).eval().requires_grad_(False))


def load_classifier(source: Path | str, tokens: Tokens, num_labels: int | None = None) -> ClassifierJudge:
    """A model for sequence classification, from a folder or the hub.

    With `num_labels` it is one to train: in float32, whatever its file has, as small steps are lost in 16 bits, and with a head of so
    many outputs, a new one where its own has another number. Raises CheckpointError.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    new_head = {"num_labels": num_labels, "ignore_mismatched_sizes": True, "dtype": torch.float32}
    shape: dict[str, Any] = {} if num_labels is None else new_head
    try:
        with quiet_libraries():
            tokenizer = AutoTokenizer.from_pretrained(source)
            classifier = AutoModelForSequenceClassification.from_pretrained(source, **shape)
    except Exception as error:  # the library raises many kinds
        raise CheckpointError(f"{source}: no model for sequence classification: {first_line(error)}") from error
    if classifier.config.num_labels > 2:
        raise CheckpointError(f"{source}: has {classifier.config.num_labels} labels; a ranker has 1 or 2")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    classifier.config.pad_token_id = tokenizer.pad_token_id
    return ClassifierJudge(classifier, tokenizer, tokens)


def save_ranker(folder: Path, config: RankerConfig, judge: StatesJudge | ClassifierJudge) -> None:
    """Write a ranker; a folder that is there is added to."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(judge, StatesJudge):
        save_file(judge.encoder.state_dict(), folder / TENSORS)
    else:
        with quiet_libraries():
            judge.classifier.save_pretrained(folder)
            judge.tokenizer.save_pretrained(folder)
    (folder / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n")


def states_config(loaded: Loaded, **shape: Any) -> RankerConfig:
    """That of a ranker which reads a checkpoint's states."""
    backbone = loaded.model.backbone
    return RankerConfig("states", backbone.hidden_size, backbone.vocab_size, logprobs=True, **shape)


def _check_model(folder: Path, config: RankerConfig, loaded: Loaded) -> None:
    backbone = loaded.model.backbone
    own, theirs = (config.hidden_size, config.vocab_size), (backbone.hidden_size, backbone.vocab_size)
    if own != theirs:
        raise CheckpointError(
            f"{folder / CONFIG}: reads states {own[0]} wide of a vocabulary of {own[1]}; {loaded.name}'s are "
            f"{theirs[0]} wide, of {theirs[1]}"
        )


def _surprise(model: QuietModel, ids_BT: Tensor, hidden_BTH: Tensor) -> Tensor:
    """Each token's log-probability behind those before it, and the entropy that it ended [B, T, 2]; of the first both are 0."""
    at_once = max(1, _MOST_LOGITS // model.backbone.vocab_size)
    told = []
    for hidden_NH, ids_N in zip(
        hidden_BTH[:, :-1].flatten(0, 1).split(at_once), ids_BT[:, 1:].flatten().split(at_once), strict=True
    ):
        logprobs_NV = model.logits(hidden_NH).log_softmax(-1).clamp(min=_LEAST_LOGPROB)  # markers have -inf
        entropies_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
        told.append(torch.stack([logprobs_NV.gather(-1, ids_N[:, None]).squeeze(-1), entropies_N], -1))
    found_BT2 = torch.zeros(*ids_BT.shape, 2, device=ids_BT.device)
    if told:
        found_BT2[:, 1:] = torch.cat(told).unflatten(0, (len(ids_BT), -1))
    return found_BT2


def _positions(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or 2**20)


def _waves(length: int, like: Tensor) -> Tensor:
    """Sines and cosines of the positions [T, W] (Vaswani et al., arXiv 1706.03762, "Positional Encoding")."""
    width = like.shape[1]
    angles = torch.arange(length, device=like.device)[:, None] * torch.exp(
        torch.arange(0, width, 2, device=like.device) * (-math.log(1e4) / width)
    )
    return torch.cat([angles.sin(), angles.cos()], -1)[:, :width].to(like.dtype)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))
