"""A random Quiet-STaR checkpoint in a moment: real classes, real files, tiny sizes."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from quietserve.model import checkpoint, probe, ranker
from quietserve.model.backbone import Backbone
from quietserve.model.checkpoint import Loaded
from quietserve.model.config import QuietConfig
from quietserve.model.quiet_model import QuietModel

SPECIAL = ["<|endoftext|>", "<|startthought|>", "<|endthought|>"]
QUIET = QuietConfig()
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: any text survives the round trip."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: i for i, name in enumerate([*SPECIAL, *letters])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=SPECIAL[0])
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    fast.chat_template = CHAT
    return fast


def config(kind: type[PreTrainedConfig] = LlamaConfig, **changes: Any) -> PreTrainedConfig:
    """A model of a few thousand parameters; wide initial weights, so that its choices are far from ties."""
    sizes: dict[str, Any] = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.25,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    return kind(**(sizes | changes))


def quiet_model(
    base: PreTrainedConfig | None = None, quiet: QuietConfig | None = QUIET, seed: int = 0, stops: str = ""
) -> QuietModel:
    """A random model that thinks (unless `quiet` is None); `stops` are letters at which its thoughts end themselves."""
    torch.manual_seed(seed)
    backbone = Backbone(AutoModelForCausalLM.from_config(base or config()).eval())
    vocab = tokenizer().get_vocab()
    model = QuietModel(backbone, quiet, hidden_ids=(1, 2), stop_ids=tuple(vocab[letter] for letter in stops))
    if quiet is not None:
        for parameter in thinking_parameters(model):
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval().requires_grad_(False)


def thinking_parameters(model: QuietModel) -> list[torch.nn.Parameter]:
    """The markers and the mixing head: all that is not the language model."""
    return [parameter for name, parameter in model.named_parameters() if not name.startswith("backbone.")]


def save_ranker(folder: Path, loaded: Loaded) -> Path:
    """Write a random ranker for a model's answers."""
    torch.manual_seed(0)
    config = ranker.states_config(loaded, width=8, layers=1, heads=2)
    ranker.save_ranker(folder, config, ranker.StatesJudge(ranker.StatesEncoder(config), loaded))
    return folder


def save_probe(folder: Path, loaded: Loaded, seed: int = 0, **settings: Any) -> Path:
    """Write a random probe of a model's states."""
    torch.manual_seed(seed)
    config = probe.probe_config(loaded, **{"property": "direction", "classes": ("north", "south", "east"), **settings})
    net = probe.ProbeNet(config)
    net.mean.normal_()
    net.std.uniform_(0.2, 0.5)
    probe.save_probe(folder, config, net)
    return folder


def save(folder: Path, **settings: Any) -> Path:
    """Write such a model as a checkpoint folder."""
    checkpoint.save(quiet_model(**settings), tokenizer(), folder)
    return folder
