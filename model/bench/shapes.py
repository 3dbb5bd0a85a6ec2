"""The models that are measured: Llama shapes with random weights, and checkpoints."""

import copy
import shutil
import weakref
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from .. import checkpoint
from ..backbone import Backbone
from ..config import QuietConfig
from ..quiet_model import QuietModel
from ..tokens import Tokens

# Parameters counted with the two embeddings; proportions as in small Llamas: grouped queries, SwiGLU of 2.7 widths.
SHAPES: dict[str, dict[str, int]] = {
    "5M": {
        "vocab_size": 8192,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
    "50M": {
        "vocab_size": 16384,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "100M": {
        "vocab_size": 16384,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
    "200M": {
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
}
SHAPES["7B"] = {  # Mistral-7B's; for a GPU, and not measured unless it is named
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
MAX_POSITIONS = 32768  # of the random ones
BUNDLED = "bundled"  # the checkpoint that the package carries
_BUNDLED_FOLDER = Path(__file__).parent.parent / "bundled" / "quiet-small"
_SPECIAL_IDS = 3  # at the beginning of a vocabulary some engines expect unknown, begin and end of text


@dataclass(eq=False)
class Subject:
    """A model under measurement, in every form that a system needs."""

    name: str
    model: QuietModel
    tokens: Tokens
    lm: PreTrainedModel  # the same weights, with the library's own attention
    forced: bool  # the mixing weight is ours to choose
    weights: dict[int, float] = field(default_factory=dict)  # forced ones by thought depth

    @cached_property
    def scratch(self) -> Path:
        """A folder for other engines' files; it goes with the subject."""
        folder = mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    @cached_property
    def prompt_ids(self) -> list[int]:
        """Ids that a prompt is drawn from."""
        barred = {*range(_SPECIAL_IDS), *self.tokens.eos_ids, *self.tokens.markers.values()}
        size = min(self.tokens.num_ids, self.model.backbone.vocab_size)
        return [i for i in range(size) if i not in barred]


def build(name: str, sizes: dict[str, int], dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> Subject:
    """A random Llama of these sizes that thinks. The same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        lm = _random_llama(sizes, dtype)
        twin = _twin(lm)
        model = QuietModel(Backbone(lm), QuietConfig(thought_temperature=1.0))
        for marker in (model.start_embedding, model.end_embedding):
            nn.init.normal_(marker, std=lm.config.initializer_range)
    model.eval().requires_grad_(False)
    model.speed_up()
    return Subject(name, model, Tokens(_tokenizer(sizes["vocab_size"])), twin, forced=True)


def write(sizes: dict[str, int], dtype: torch.dtype, folder: Path, seed: int = 0) -> None:
    """Make a checkpoint folder of a random Llama that does not think."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = QuietModel(Backbone(_random_llama(sizes, dtype)))
    checkpoint.save(model, _tokenizer(sizes["vocab_size"]), folder)


def _random_llama(sizes: dict[str, int], dtype: torch.dtype) -> Any:
    settings: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
    lm: Any = LlamaForCausalLM(LlamaConfig(**sizes, **settings, max_position_embeddings=MAX_POSITIONS))
    return lm.eval().to(dtype)


def load(path: str, dtype: str, device: str = "cpu") -> Subject:
    """A checkpoint with its own mixing head. Raises CheckpointError.

    Nothing ends a text here: every system decodes on past whatever token it chooses.
    """
    loaded = checkpoint.load(_BUNDLED_FOLDER if path == BUNDLED else path, dtype, device)
    loaded.tokens.eos_ids = frozenset()
    twin = _twin(loaded.model.backbone.lm)
    loaded.model.speed_up()
    return Subject(loaded.name, loaded.model, loaded.tokens, twin, forced=False)


def force_weight(model: QuietModel, weight: float) -> None:
    """Make the mixing head give every thought this weight."""
    layers = model.mixing_head.layers
    inner, last = layers[2], layers[4]
    assert isinstance(inner, nn.Linear)
    assert isinstance(last, nn.Linear)
    inner.weight.zero_()
    inner.bias.fill_(1.0)
    last.weight.fill_(weight / last.in_features)


def _twin(lm: PreTrainedModel) -> PreTrainedModel:
    """The same module over the same tensors, with an attention setting of its own."""
    shared = [*lm.parameters(), *lm.buffers()]
    twin = copy.deepcopy(lm, {id(tensor): tensor for tensor in shared})
    twin.set_attn_implementation("sdpa")
    return twin.eval().requires_grad_(False)


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One word an id: text of every token is made and streamed, as it would be for a real vocabulary."""
    words = {"a": 0, **{f"w{i}": i for i in range(1, size)}}
    raw = Tokenizer(models.WordLevel(words, unk_token="a"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw)
